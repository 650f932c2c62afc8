"""Calls of tools in every format: what is written is what is parsed, and nothing else can be drawn."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from transformers import AutoTokenizer

from stack.engine.grammar.compile import GrammarCompiler, answer_grammar
from stack.engine.tool_calls.formats import FORMATS, HERMES, MAX_CALLS, Tool, ToolFormat, checked_tools
from stack.engine.tool_calls.parsing import CallScanner
from stack.engine.tool_calls.prompts import instructions
from stack.engine.tool_calls.schema import describe, schema_of, strict
from stack.errors import BadRequest
from stack.schemas.content import ContentDelta, TextDelta, ToolCall, ToolCallDelta
from stack.schemas.messages import ToolDefinition, ToolParamDefinition
from stack.schemas.sampling import JsonSchemaResponseFormat
from tests.engine.drawing import draw

VOCABULARY, END = 49152, 2
ALL_FORMATS = [*FORMATS.values(), HERMES]
EVERY_FORMAT = pytest.mark.parametrize("tool_format", ALL_FORMATS, ids=lambda tool_format: tool_format.id)


def parameter(param_type: str, required: bool = True, **more: Any) -> ToolParamDefinition:
    return ToolParamDefinition(param_type=param_type, required=required, **more)


TOOLS = checked_tools(
    [
        ToolDefinition(
            tool_name="get_weather",
            description="The weather of a city",
            parameters={
                "city": parameter("string", description="Its name"),
                "days": parameter("int", required=False, default=1),
                "metric": parameter("boolean", required=False),
            },
        ),
        ToolDefinition(
            tool_name="builtin::sum-up",
            parameters={
                "first": parameter("float", required=False),
                "numbers": parameter("list[float]"),
                "options": parameter("dict", required=False),
                "anything": parameter("whatever", required=False),
                "mode": parameter("Literal['fast', 'exact']", required=False),
            },
        ),
        ToolDefinition(tool_name="now"),
        ToolDefinition(tool_name="brave_search"),
    ]
)
BY_NAME = {tool.name: tool for tool in TOOLS}


def scan(text: str, tool_format: ToolFormat, size: int = 5, **options: Any) -> list[ContentDelta]:
    """As it comes from a model: in pieces."""
    scanner = CallScanner(tool_format, TOOLS, **options)
    deltas = [
        delta for start in range(0, len(text), size) for delta in scanner.push(text[start : start + size])
    ]
    return [*deltas, *scanner.finish()]


def text_of(deltas: list[ContentDelta]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


def calls_of(deltas: list[ContentDelta]) -> list[ToolCall]:
    return [d.tool_call for d in deltas if isinstance(d, ToolCallDelta) and isinstance(d.tool_call, ToolCall)]


def statuses(deltas: list[ContentDelta]) -> list[str]:
    """Without repetitions of in_progress."""
    found = [delta.parse_status for delta in deltas if isinstance(delta, ToolCallDelta)]
    return [one for one, before in zip(found, [None, *found], strict=False) if one != before]


def assert_fits(call: ToolCall) -> None:
    tool = BY_NAME[call.tool_name]
    assert isinstance(call.arguments, dict)
    assert json.loads(call.arguments_json or "") == call.arguments
    Draft202012Validator(strict(tool.parameters)).validate(call.arguments)


# Strings as the grammars allow them: no control characters, nothing that is half a character.
strings = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
scalars = strings | st.integers(-(10**17), 10**17) | st.booleans() | st.none() | st.floats(-1e9, 1e9)
written_calls = st.lists(
    st.one_of(
        st.tuples(
            st.just("get_weather"),
            st.fixed_dictionaries(
                {"city": strings}, optional={"days": st.integers(-99, 99), "metric": st.booleans()}
            ),
        ),
        st.tuples(
            st.just("builtin::sum-up"),
            st.fixed_dictionaries(
                {"numbers": st.lists(st.integers(-9, 9), max_size=3)},
                optional={"options": st.dictionaries(strings, scalars, max_size=2), "anything": scalars},
            ),
        ),
        st.tuples(st.just("now"), st.just({})),
    ),
    min_size=1,
    max_size=3,
)


@EVERY_FORMAT
@settings(max_examples=60, deadline=None)
@given(calls=written_calls, size=st.integers(1, 40))
def test_what_is_written_is_parsed(tool_format: ToolFormat, calls: list[Any], size: int) -> None:
    deltas = scan(tool_format.write(calls), tool_format, size)
    parsed = calls_of(deltas)
    assert [(call.tool_name, call.arguments) for call in parsed] == calls
    assert text_of(deltas) == ""
    assert statuses(deltas) == ["started", "in_progress", "succeeded"] * len(calls)
    assert len({call.call_id for call in parsed}) == len(calls)


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2_dir)


@pytest.fixture(scope="module")
def compiler(tokenizer: Any) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(tokenizer, VOCABULARY, [END])
    yield compiler
    compiler.close()


Answer = Callable[..., tuple[str, bool]]


@pytest.fixture(scope="module")
def answer(compiler: GrammarCompiler, tokenizer: Any) -> Answer:
    def answer(grammar: Any, seed: int, free_text: bool = False, budget: int = 120) -> tuple[str, bool]:
        constraint = compiler.constraint(grammar, "tools", budget, free_text)
        tokens, ended = draw(constraint, seed, budget, END, VOCABULARY)
        return str(tokenizer.decode(tokens)), ended

    return answer


@EVERY_FORMAT
def test_required_calls_always_fit_the_definitions(answer: Answer, tool_format: ToolFormat) -> None:
    names = set()
    for seed in range(25):
        text, ended = answer(tool_format.grammar(TOOLS, required=True), seed)
        assert ended, text
        deltas = scan(text, tool_format)
        assert calls_of(deltas), text
        assert text_of(deltas) == ""
        assert "failed" not in statuses(deltas)
        for call in calls_of(deltas):
            assert_fits(call)
            names.add(call.tool_name)
    assert len(names) >= 3


@EVERY_FORMAT
def test_with_auto_the_model_may_answer_in_words(answer: Answer, tool_format: ToolFormat) -> None:
    grammar = tool_format.grammar(TOOLS, required=False)
    for seed in range(10):
        text, _ = answer(grammar, seed, free_text=True)
        assert text_of(scan(text, tool_format)) == text


@EVERY_FORMAT
def test_with_auto_a_call_that_begins_is_constrained(
    compiler: GrammarCompiler, tokenizer: Any, tool_format: ToolFormat
) -> None:
    begin = tool_format.first + tool_format.before
    before = "Let me see. " if tool_format.anywhere else ""
    for name, allowed in (("get_weather", True), ("get_wether", False)):
        constraint = compiler.constraint(tool_format.grammar(TOOLS, required=False), "tools", free_text=True)
        matcher = constraint._matcher
        tokens = tokenizer.encode(f"{before}{begin}{name}{tool_format.after}", add_special_tokens=False)
        # python_list knows a call by its name, so another name is only text
        assert (matcher.try_consume_tokens(tokens) == len(tokens)) is (allowed or tool_format.python)


ANSWER = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "parameters": {"type": "array"}},
    "required": ["name"],
}


@EVERY_FORMAT
def test_an_answer_that_is_no_call_follows_the_response_format(
    answer: Answer, tool_format: ToolFormat
) -> None:
    other = answer_grammar(JsonSchemaResponseFormat(json_schema=ANSWER))
    grammar = tool_format.grammar(TOOLS, required=False, answer=other)
    texts = 0
    for seed in range(25):
        text, ended = answer(grammar, seed)
        assert ended
        deltas = scan(text, tool_format, answers_json=True)
        if calls := calls_of(deltas):
            assert [assert_fits(call) for call in calls]
        else:
            Draft202012Validator(ANSWER).validate(json.loads(text_of(deltas)))
            texts += 1
    assert texts


@EVERY_FORMAT
def test_calls_are_limited(compiler: GrammarCompiler, tokenizer: Any, tool_format: ToolFormat) -> None:
    for count, fits in ((MAX_CALLS, True), (MAX_CALLS + 1, False)):
        text = tool_format.write([("now", {})] * count)
        matcher = compiler.constraint(tool_format.grammar(TOOLS, required=True), "tools")._matcher
        tokens = tokenizer.encode(text, add_special_tokens=False)
        assert (matcher.try_consume_tokens(tokens) == len(tokens)) is fits


@pytest.mark.parametrize(
    ("tool_format", "text", "status"),
    [
        ("json", '{"name": "now", "parameters": {"a', ["started", "in_progress", "failed"]),
        ("json", '{"name": "who", "parameters": {}}', ["started", "in_progress", "failed"]),
        (
            "json",
            '{"type": "function", "name": "now", "parameters": {}}',
            ["started", "in_progress", "succeeded"],
        ),
        ("json", '{"name": 3}', ["started", "in_progress", "failed"]),
        ("function_tag", "<function=now", ["started", "in_progress", "failed"]),
        ("function_tag", "<function=now>{}</func", ["started", "in_progress", "succeeded"]),
        ("python_list", "[now()", ["started", "in_progress", "succeeded"]),
        ("python_list", "[now(a=)]", ["started", "in_progress", "failed"]),
        ("python_list", '[get_weather(city="a\\"]) b")]', ["started", "in_progress", "succeeded"]),
    ],
)
def test_calls_that_are_cut_off_or_wrong(tool_format: str, text: str, status: list[str]) -> None:
    for size in (1, 7, 100):
        deltas = scan(text, FORMATS[tool_format], size)
        assert statuses(deltas) == status
        assert text_of(deltas) == ""
    if status[-1] == "failed":
        last = deltas[-1]
        assert isinstance(last, ToolCallDelta)
        assert last.tool_call == text.rstrip("]") or last.tool_call == text


@pytest.mark.parametrize(
    ("tool_format", "text"),
    [
        ("json", '{"title": "no call"}'),
        ("json", 'Say {"name": "now"}'),
        ("json", "  {"),
        ("json", '{"nam'),
        ("python_list", "[1, 2, 3]"),
        ("python_list", "[nowhere()]"),
        ("function_tag", "a < b and <function"),
        ("function_tag", "<functional>"),
    ],
)
def test_text_that_only_resembles_a_call_is_text(tool_format: str, text: str) -> None:
    for size in (1, 3, 100):
        assert text_of(scan(text, FORMATS[tool_format], size)) == text


def test_text_before_a_call() -> None:
    deltas = scan('I look.\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', HERMES, 3)
    assert text_of(deltas) == "I look.\n"
    assert [call.tool_name for call in calls_of(deltas)] == ["now"]


@pytest.mark.parametrize(
    ("param_type", "expected"),
    [
        ("string", {"type": "string"}),
        ("Str", {"type": "string"}),
        ("int", {"type": "integer"}),
        ("float", {"type": "number"}),
        ("bool", {"type": "boolean"}),
        ("list", {"type": "array"}),
        ("list[int]", {"type": "array", "items": {"type": "integer"}}),
        ("typing.List[str]", {"type": "array", "items": {"type": "string"}}),
        ("array of strings", {"type": "array", "items": {"type": "string"}}),
        ("dict[str, int]", {"type": "object"}),
        ("Optional[int]", {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        ("str | None", {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        ("Literal['a', 'b']", {"type": "string", "enum": ["a", "b"]}),
        ("datetime", {}),
        ("", {}),
    ],
)
def test_types_of_parameters(param_type: str, expected: dict[str, Any]) -> None:
    assert schema_of(param_type) == expected


def test_definitions_for_the_model() -> None:
    told = instructions(TOOLS, FORMATS["json"])
    assert json.dumps(describe(BY_NAME["get_weather"].parameters)) in told
    assert describe(BY_NAME["get_weather"].parameters) == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Its name"},
            "days": {"type": "integer", "default": 1},
            "metric": {"type": "boolean"},
        },
        "required": ["city"],
    }
    assert list(BY_NAME["brave_search"].parameters) == ["query"]


@EVERY_FORMAT
def test_the_example_in_the_instructions_is_in_the_format(tool_format: ToolFormat) -> None:
    example = instructions([], tool_format).rpartition(":\n")[2]
    tools = [
        Tool("function_name", "", {"parameter_name": parameter("string")}),
        Tool("other_function", "", {"number": parameter("int"), "flag": parameter("bool")}),
    ]
    scanner = CallScanner(tool_format, tools)
    deltas = [*scanner.push(example), *scanner.finish()]
    assert calls_of(deltas)[0].arguments == {"parameter_name": "value"}
    assert "failed" not in statuses(deltas)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "a"], "defined twice"),
        ([""], "tool_name is ''"),
        (["a b"], "'a b'"),
        (['a"b'], "quote"),
        (["x" * 200], "128"),
        ([f"t{number}" for number in range(200)], "at most 128"),
    ],
)
def test_tools_that_cannot_be_used(names: list[str], message: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(message)):
        checked_tools([ToolDefinition(tool_name=name) for name in names])

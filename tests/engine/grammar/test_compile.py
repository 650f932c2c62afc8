"""Whatever a model prefers, its output follows the schema or grammar; and a hostile one harms nobody."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from transformers import AutoTokenizer

from stack.engine.grammar.compile import GrammarCompiler, answer_grammar
from stack.engine.grammar.json_schema import prepare
from stack.errors import BadRequest
from stack.schemas.sampling import GrammarResponseFormat, JsonSchemaResponseFormat
from tests.engine.drawing import draw

VOCABULARY, END = 49152, 2
BUDGET = 160

Json = dict[str, Any]
Answer = Callable[..., tuple[str, bool]]

PERSON: Json = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age"],
}
TREE: Json = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "number"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["value", "children"],
        }
    },
}


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2_dir)


@pytest.fixture(scope="module")
def compiler(tokenizer: Any) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(tokenizer, VOCABULARY, [END])
    yield compiler
    compiler.close()


@pytest.fixture(scope="module")
def answer(compiler: GrammarCompiler, tokenizer: Any) -> Answer:
    """A random answer in a format, and whether it ended by itself."""

    def answer(response_format: Any, seed: int = 0, budget: int = BUDGET) -> tuple[str, bool]:
        constraint = compiler.constraint(answer_grammar(response_format), "response_format", budget)
        tokens, ended = draw(constraint, seed, budget, END, VOCABULARY)
        return str(tokenizer.decode(tokens)), ended

    return answer


def schema(value: Json) -> JsonSchemaResponseFormat:
    return JsonSchemaResponseFormat(json_schema=value)


def bnf(**value: Any) -> GrammarResponseFormat:
    return GrammarResponseFormat(bnf=value)


def leaf() -> st.SearchStrategy[Json]:
    return st.sampled_from(
        [
            {"type": "string"},
            {"type": "string", "minLength": 2, "maxLength": 5},
            {"type": "string", "pattern": "^[a-c]{2,4}$"},
            {"type": "string", "format": "date"},
            {"type": "integer"},
            {"type": "integer", "minimum": -3, "maximum": 1200},
            {"type": "number", "exclusiveMinimum": 0},
            {"type": "boolean"},
            {"type": "null"},
            {"enum": ["red", 7, None, {"a": [1]}]},
            {"const": 'x"y'},
            {"type": ["string", "null"]},
        ]
    )


def compound(inner: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    names = st.lists(st.sampled_from(["a", "b c", "ü", "long_property_name"]), unique=True, max_size=3)
    objects = st.tuples(names, st.data()).map(lambda drawn: _object(drawn[0], drawn[1], inner))
    arrays = st.builds(
        lambda items, least: {"type": "array", "items": items, "minItems": least, "maxItems": least + 2},
        inner,
        st.integers(0, 2),
    )
    return objects | arrays | st.builds(lambda one, other: {"anyOf": [one, other]}, inner, inner)


def _object(names: list[str], data: st.DataObject, inner: st.SearchStrategy[Json]) -> Json:
    return {
        "type": "object",
        "properties": {name: data.draw(inner) for name in names},
        "required": [name for name in names if data.draw(st.booleans())],
    }


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=st.recursive(leaf(), compound, max_leaves=6), seed=st.integers(0, 10**6))
def test_any_output_is_valid_json_for_its_schema(answer: Answer, value: Json, seed: int) -> None:
    text, ended = answer(schema(value), seed)
    assert ended
    Draft202012Validator(value).validate(json.loads(text))


@pytest.mark.parametrize(
    "value", [PERSON, TREE, {"type": "object"}, {}], ids=["person", "tree", "object", "any"]
)
@pytest.mark.parametrize("budget", [32, 64, 128])
def test_ends_before_the_tokens_run_out(answer: Answer, value: Json, budget: int) -> None:
    for seed in range(12):
        text, ended = answer(schema(value), seed, budget)
        assert ended, text
        Draft202012Validator(value).validate(json.loads(text))


def test_whitespace_cannot_flood(answer: Answer) -> None:
    for seed in range(20):
        text, _ = answer(schema(PERSON), seed)
        assert not re.search(r"\n\s*\n|\s{40}", re.sub(r'"[^"]*"', '""', text))


def test_objects_take_no_properties_that_the_schema_does_not_name() -> None:
    assert prepare(PERSON)["additionalProperties"] is False
    assert prepare({"allOf": [PERSON, {"type": "object"}]})["allOf"][0] == PERSON | {
        "properties": PERSON["properties"]
        | {"age": {"type": "integer", "minimum": -(10**18 - 1), "maximum": 10**18 - 1}}
    }
    assert prepare({"properties": {"a": {}}, "additionalProperties": True})["additionalProperties"] is True


def test_data_in_a_schema_is_left_alone() -> None:
    value = {"enum": [{"type": "integer"}], "default": {"properties": {}}}
    assert prepare(value) == value


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (bnf(grammar='root ::= "yes" | "no" " "? digits\ndigits ::= [0-9]{1,3}'), r"yes|no ?[0-9]{1,3}"),
        (bnf(root='item ("," item)*', item="[a-z]+"), r"[a-z]+(,[a-z]+)*"),
        (bnf(root=['"a"', '"b"']), r"[ab]"),
        (bnf(grammar='start: "<" WORD ">"\nWORD: /[a-z]{2,8}/'), r"<[a-z]{2,8}>"),
        (bnf(start='"x" y', y='"1" | "2"'), r"x[12]"),
        (bnf(grammar=r"[A-Z][a-z]+/[0-9]{4}", syntax="regex"), r"[A-Z][a-z]+/[0-9]{4}"),
    ],
)
def test_any_output_is_a_sentence_of_its_grammar(
    answer: Answer, grammar: GrammarResponseFormat, pattern: str
) -> None:
    for seed in range(10):
        text, ended = answer(grammar, seed)
        assert ended
        assert re.fullmatch(pattern, text)


@pytest.mark.parametrize(
    ("response_format", "message"),
    [
        (bnf(grammar='start: "a" b\n b "c'), "line 2"),
        (bnf(grammar='root ::= "a"\nb = "c"'), "line 2"),
        (bnf(grammar="root ::= missing"), "missing"),
        (bnf(grammar="(a", syntax="regex"), "unclosed group"),
        (bnf(grammar="hello"), "GBNF"),
        (bnf(grammar="hello", syntax="peg"), "gbnf, lark, regex"),
        (bnf(rule="x"), "root"),
        (bnf(root=3), "rule 'root'"),
        (bnf(grammar="start: a\na: a"), "no text"),
        (schema({"type": "strnig"}), "strnig"),
        (schema({"not": {"type": "string"}}), "not"),
        (schema({"type": "string", "pattern": "(?=a)"}), "look-around"),
        (schema({"$ref": "https://example.com/schema.json"}), "inside the schema"),
        (schema({"$ref": "#/$defs/nowhere"}), "nowhere"),
        (schema({"$ref": "#"}), "no text"),
        (schema({"type": "object", "minProperties": 3}), "minProperties"),
        (schema({"anyOf": {"type": "string"}}), "#/anyOf"),
    ],
)
def test_what_cannot_be_compiled_says_why(answer: Answer, response_format: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(message)):
        answer(response_format)


def nested(levels: int) -> Json:
    value: Json = {"type": "string"}
    for _ in range(levels):
        value = {"type": "object", "properties": {"a": value}}
    return value


def chain(rules: int) -> str:
    """Each rule has the next one twice; a compiler that recurses runs out of stack."""
    lines = [f'r{number}: r{number + 1} r{number + 1} | "x"' for number in range(rules)]
    return "\n".join(["start: r0", *lines, f'r{rules}: "y"'])


@pytest.mark.parametrize(
    "hostile",
    [
        schema(nested(100)),
        schema({"enum": ["x" * 100 + str(number) for number in range(20_000)]}),
        schema({"type": "integer", "allOf": [{"multipleOf": prime} for prime in (7, 11, 13, 17, 19, 23)]}),
        bnf(grammar=chain(2000)),
        bnf(grammar="root ::= " + "(" * 4000 + '"a"' + ")" * 4000),
        bnf(
            grammar="root ::= r0\n" + "\n".join(f"r{n} ::= r{n + 1}" for n in range(3000)) + '\nr3000 ::= "x"'
        ),
        bnf(grammar="x" * 70_000, syntax="regex"),
    ],
    ids=["deep", "huge", "slow", "stack", "groups", "quadratic", "long"],
)
def test_hostile_grammars_are_refused_and_leave_no_trace(answer: Answer, hostile: Any) -> None:
    answer(schema(PERSON))  # the guard is running
    started = time.process_time()
    with pytest.raises(BadRequest):
        answer(hostile)
    assert time.process_time() - started < 1.0
    assert answer(schema(PERSON))[1]


def test_a_grammar_that_gets_too_costly_on_the_way_ends_its_own_request_only(answer: Answer) -> None:
    costly = schema({"type": "string", "pattern": "^(.*a.{300}b.*c.{200})$"})
    with pytest.raises(BadRequest, match="simplify"):
        [answer(costly, seed, 2000) for seed in range(20)]
    assert answer(schema(PERSON))[1]


def test_masks_have_the_size_of_the_logits(tokenizer: Any) -> None:
    padded = VOCABULARY + 100
    compiler = GrammarCompiler(tokenizer, padded, [END])
    constraint = compiler.constraint(answer_grammar(bnf(root='"a"')), "response_format")
    mask = torch.full((-(-padded // 32),), -1, dtype=torch.int32)
    constraint.fill_mask(mask)
    compiler.close()
    assert mask.count_nonzero() == 1
    assert mask[-4:].count_nonzero() == 0


def test_masks_are_cheap(compiler: GrammarCompiler) -> None:
    """Microseconds, against milliseconds for a step of the smallest model."""
    constraint = compiler.constraint(answer_grammar(schema(PERSON)), "response_format", 4096)
    mask = torch.zeros(VOCABULARY // 32, dtype=torch.int32)
    for token in compiler.tokenizer.tokenize_str('{"name": "'):
        constraint.fill_mask(mask)
        constraint.accept(token)
    word = compiler.tokenizer.tokenize_str("word")[0]
    times = []
    for _ in range(200):
        started = time.perf_counter()
        constraint.fill_mask(mask)
        constraint.accept(word)
        times.append(time.perf_counter() - started)
    assert sorted(times)[100] < 0.001

"""The tools of one request, and the ways in which a model may write calls of them.

A `ToolFormat` is one such way: how calls look, what their grammar is. The spec's three are taught in the
prompt (see `tool_prompts`); `hermes` is what many models learnt and is used when the chat template says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stack.engine.grammar.compile import JSON_OPTIONS, Grammar
from stack.engine.tool_calls.schema import PYTHON_RULES, describe, literal, python_arguments, strict
from stack.errors import BadRequest
from stack.schemas.messages import ToolDefinition, ToolParamDefinition

MAX_TOOLS = 128
MAX_PARAMETERS = 64
MAX_NAME = 128
MAX_CALLS = 16  # in one answer; a small model would repeat itself until its tokens run out


def _text(description: str) -> ToolParamDefinition:
    return ToolParamDefinition(param_type="string", description=description)


_BUILTIN_PARAMETERS = {
    "brave_search": {"query": _text("What to search for")},
    "wolfram_alpha": {"query": _text("What to compute")},
    "photogen": {"query": _text("The image to make, in words")},
    "code_interpreter": {"code": _text("Python code to run")},
}


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    description: str
    parameters: Mapping[str, ToolParamDefinition]

    def function(self) -> dict[str, Any]:
        """As prompts and chat templates list it."""
        return {"name": self.name, "description": self.description, "parameters": describe(self.parameters)}


def checked_tools(definitions: Sequence[ToolDefinition]) -> list[Tool]:
    """Raises BadRequest for names that are double or cannot be written, and for too many."""
    if len(definitions) > MAX_TOOLS:
        raise BadRequest(f"{len(definitions)} tools are given; at most {MAX_TOOLS} are taken")
    tools: dict[str, Tool] = {}
    for definition in definitions:
        name, parameters = definition.tool_name, definition.parameters
        _check_name(name, "tool_name")
        if name in tools:
            raise BadRequest(f"tool {name!r} is defined twice")
        if parameters is None:
            parameters = _BUILTIN_PARAMETERS.get(name, {})
        if len(parameters) > MAX_PARAMETERS:
            raise BadRequest(
                f"tool {name!r} has {len(parameters)} parameters; at most {MAX_PARAMETERS} are taken"
            )
        for parameter in parameters:
            _check_name(parameter, f"a parameter of tool {name!r}")
        tools[name] = Tool(name, definition.description or "", parameters)
    return list(tools.values())


_NAME = re.compile(r"[^\s\"'\\<>()\[\]{}=,]+")


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME or not name.isprintable():
        raise BadRequest(
            f"{what} is {name[:MAX_NAME]!r}; a name has 1 to {MAX_NAME} characters, "
            "none of them a space, quote, bracket, comma or ="
        )


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """Calls are `first`, then `before` name `after` arguments `end` joined by `between`, then `last`.

    No other text may begin with one of the `triggers` or, when calls may come `anywhere` in an answer, have
    the trigger in it. The head's last character opens the arguments unless they are an object of their own.
    """

    id: str
    before: str
    after: str
    end: str
    triggers: tuple[str, ...] = ()  # none: `first`, a tool's name and `after`
    first: str = ""
    between: str = "\n"
    last: str = ""
    anywhere: bool = False
    python: bool = False
    variants: tuple[str, ...] = ()  # other forms of `before`

    @property
    def opener(self) -> str:
        """The bracket that begins what is balanced up to the end of a call."""
        return "(" if self.python else "{"

    def write(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
        """Calls as a model should write them."""
        written = (
            f"{self.before}{name}{self.after}{self._write_arguments(arguments)}{self.end}"
            for name, arguments in calls
        )
        return self.first + self.between.join(written) + self.last

    def _write_arguments(self, arguments: Mapping[str, Any]) -> str:
        if self.python:
            return ", ".join(f"{name}={_python_literal(value)}" for name, value in arguments.items())
        return json.dumps(arguments, ensure_ascii=False)

    def trigger_texts(self, tools: Sequence[Tool]) -> tuple[str, ...]:
        """What calls begin with."""
        return self.triggers or tuple(f"{self.first}{self.before}{tool.name}{self.after}" for tool in tools)

    def grammar(self, tools: Sequence[Tool], required: bool, answer: Grammar | None = None) -> Grammar:
        """Calls; unless they are required also an answer: any text, or what the `answer` grammar says."""
        rules = ["%llguidance {}"]
        if required:
            rules += ["start: calls"]
        elif answer is not None:
            rules += ["start: calls | @answer"]
        else:
            rules += ["start: calls | TEXT", f"TEXT: {self._other_text(tools)}"]
        if answer is not None and not self.anywhere and not self.python:
            rules += self._json_rules(tools)
        else:
            rules += self._rules(tools, preceded=self.anywhere and not required and answer is None)
        calls: Grammar = [{"name": "calls", "lark_grammar": "\n".join(rules)}]
        return calls if required or answer is None else calls + answer

    def _other_text(self, tools: Sequence[Tool]) -> str:
        head = "(?s:.*)" if self.anywhere else r"\s*"
        triggers = "|".join(_regex(trigger) for trigger in self.trigger_texts(tools))
        return f"/(?s:.*)/ & ~/{head}({triggers})(?s:.*)/"

    def _rules(self, tools: Sequence[Tool], preceded: bool) -> list[str]:
        """A call's head is one literal as far as possible, so that it is told from text at its trigger."""
        rules = [
            "calls: initial " + " ".join(self._more()),
            "initial: " + " | ".join(f"initial_{number}" for number in range(len(tools))),
            "call: " + " | ".join(f"call_{number}" for number in range(len(tools))),
        ]
        if preceded:
            rules.append(f"trigger[lazy]: /(?s:.*)/ {literal(self.triggers[0])}")
        for number, tool in enumerate(tools):
            forms = [f"{before}{tool.name}{self.after}" for before in (self.before, *self.variants)]
            rest = f"arguments_{number} {literal(self.end)}"
            if preceded:
                begin = "trigger " + literal(forms[0].removeprefix(self.triggers[0]))
            else:
                begin = "(" + " | ".join(literal(self.first + form) for form in forms) + ")"
            rules.append(f"initial_{number}: {begin} {rest}")
            rules.append(f"call_{number}: ({' | '.join(map(literal, forms))}) {rest}")
            if self.python:
                rules += python_arguments(f"arguments_{number}", tool.parameters)
            else:
                rules.append(f"arguments_{number}: %json {_with_options(strict(tool.parameters))}")
        return [*rules, PYTHON_RULES] if self.python else rules

    def _json_rules(self, tools: Sequence[Tool]) -> list[str]:
        """Whole calls as JSON: an answer in JSON may begin with the same characters."""
        schemas = [
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "parameters": strict(tool.parameters)},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
            for tool in tools
        ]
        return ["calls: call " + " ".join(self._more()), f"call: %json {_with_options({'anyOf': schemas})}"]

    def _more(self) -> list[str]:
        last = [literal(self.last)] if self.last else []
        return [f"({literal(self.between)} call){{0,{MAX_CALLS - 1}}}", *last]

    def parse(self, text: str, tools: Sequence[Tool]) -> tuple[str, dict[str, Any]]:
        """One call, whose text ends where its brackets are balanced. Raises ValueError."""
        if self.python:
            return _parse_python(text, tools)
        if self.id == "function_tag":
            match = re.match(r".*?<function=([^>]*)>\s*(?=\{)", text, re.DOTALL)
            if match is None:
                raise ValueError("no <function=name>")
            return match[1], _json_object(text[match.end() :])
        call = _json_object(text[text.index("{") :])
        arguments = call.get("arguments", call.get("parameters"))
        name = call.get("name")
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise ValueError("a call has a name and parameters")
        return name, arguments


JSON = ToolFormat(
    "json",
    before='{"name": "',
    variants=('{"type": "function", "name": "',),
    after='", "parameters": ',
    end="}",
    triggers=('{"name"', '{"type": "function"'),
)
FUNCTION_TAG = ToolFormat(
    "function_tag",
    before="<function=",
    after=">",
    end="</function>",
    triggers=("<function=",),
    anywhere=True,
)
PYTHON_LIST = ToolFormat(
    "python_list", before="", after="(", end=")", first="[", between=", ", last="]", python=True
)
HERMES = ToolFormat(
    "hermes",
    before='<tool_call>\n{"name": "',
    after='", "arguments": ',
    end="}\n</tool_call>",
    triggers=("<tool_call>",),
    anywhere=True,
)
FORMATS = {tool_format.id: tool_format for tool_format in (JSON, FUNCTION_TAG, PYTHON_LIST)}


def _with_options(schema: dict[str, Any]) -> str:
    return json.dumps({**schema, "x-guidance": JSON_OPTIONS}, ensure_ascii=False)


def _regex(text: str) -> str:
    """For /…/ in Lark; a space stands for any whitespace, and some is allowed before a quote."""
    pattern = re.sub(r"[^\w\s<>=\"]", lambda match: "\\" + match[0], text)
    return pattern.replace('\\{"', '\\{\\s*"').replace(": ", "\\s*:\\s*")


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _python_literal(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return "[" + ", ".join(map(_python_literal, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_python_literal(k)}: {_python_literal(v)}" for k, v in value.items()) + "}"
    return repr(value)


_PYTHON_VALUE = re.compile(r'("(?:[^"\\]|\\.)*")|\bTrue\b|\bFalse\b|\bNone\b', re.DOTALL)
_AS_JSON = {"True": "true", "False": "false", "None": "null"}


def _parse_python(text: str, tools: Sequence[Tool]) -> tuple[str, dict[str, Any]]:
    head, _, rest = text.lstrip("[, \n").partition("(")
    tool = next((tool for tool in tools if tool.name == head.strip()), None)
    if tool is None or not rest.rstrip().endswith(")"):
        raise ValueError("not a call of a tool")
    source = _PYTHON_VALUE.sub(lambda match: match[1] or _AS_JSON[match[0]], rest.rstrip()[:-1])
    decoder, arguments, position = json.JSONDecoder(), dict[str, Any](), 0
    while match := re.compile(r"[\s,]*([^\s=,]+)=").match(source, position):
        arguments[match[1]], position = decoder.raw_decode(source, match.end())
    if source[position:].strip():
        raise ValueError("not an argument")
    return tool.name, arguments

"""What a model is told about tools when its chat template does not do it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from stack.engine.tool_calls.formats import Tool, ToolFormat

PLACEHOLDER = "{{function_definitions}}"

_HOW = {
    "json": (
        "To call a function, answer with nothing but a JSON object, one on each line for several calls:\n"
        '{"name": "function_name", "parameters": {"parameter_name": "value"}}'
    ),
    "function_tag": (
        "To call a function, write its arguments as a JSON object in a tag with the function's name, "
        "one tag on each line for several calls, and end your answer there:\n"
        '<function=function_name>{"parameter_name": "value"}</function>'
    ),
    "python_list": (
        "To call functions, answer with nothing but a Python list of calls, with every argument named:\n"
        '[function_name(parameter_name="value"), other_function(number=1, flag=True)]'
    ),
    "hermes": (
        "To call a function, write a JSON object within <tool_call></tool_call>, one for each call, "
        "and end your answer there:\n"
        '<tool_call>\n{"name": "function_name", "arguments": {"parameter_name": "value"}}\n</tool_call>'
    ),
}


def definitions(tools: Sequence[Tool]) -> str:
    """The tools as JSON, one on each line."""
    lines = ",\n".join(json.dumps(tool.function(), ensure_ascii=False) for tool in tools)
    return f"You have these functions, described in JSON:\n[\n{lines}\n]"


def instructions(tools: Sequence[Tool], tool_format: ToolFormat) -> str:
    """The default system prompt of a model with tools."""
    return (
        f"{definitions(tools)}\n\n"
        "Call one when it helps to answer, with all of its required parameters; otherwise answer in words.\n"
        f"{_HOW[tool_format.id]}"
    )


def system_prompt(system: str, tools: Sequence[Tool], tool_format: ToolFormat, replaces: bool) -> str:
    """The caller's system message together with the instructions, or instead of them."""
    if system and replaces:
        return system.replace(PLACEHOLDER, definitions(tools))
    told = instructions(tools, tool_format)
    return f"{told}\n\n{system}" if system else told

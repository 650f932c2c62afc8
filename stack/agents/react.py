"""ReAct (Yao et al. 2023): a model writes its next action as JSON, which the client reads out of the answer.

To the server such a turn is completed, yet llama-stack-client's ReActAgent resumes it with the tool's words.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from stack.agents.records import Record
from stack.schemas.agents import ToolResponse
from stack.schemas.content import ToolCall

MAX_CHARS = 100_000


def react_call(record: Record, responses: Sequence[ToolResponse]) -> ToolCall | None:
    """The call in a completed turn's answer that the one response is to; None if it is no such answer."""
    if record.status != "completed" or record.output is None or len(responses) != 1:
        return None
    (response,) = responses
    content = record.output.message.content
    action = _action(content) if isinstance(content, str) and len(content) <= MAX_CHARS else None
    if action is None or action.get("tool_name") != response.tool_name:
        return None
    params = action.get("tool_params")
    pairs = [item for item in params if isinstance(item, dict)] if isinstance(params, list) else []
    arguments = json.dumps({str(item.get("name")): item.get("value") for item in pairs})
    return ToolCall(
        call_id=response.call_id,
        tool_name=response.tool_name,
        arguments=arguments,
        arguments_json=arguments,
    )


def _action(content: str) -> dict[str, object] | None:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict) or answer.get("answer"):
        return None
    action = answer.get("action")
    return action if isinstance(action, dict) else None

"""The tool `code_interpreter`: a model's Python code, run in the sandbox."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from typing import Any

from stack.errors import NotReady
from stack.sandbox.sandbox import Execution, OutputFile, Sandbox
from stack.schemas.common import JsonObject
from stack.schemas.content import ImageContentItem, ImageSource, InterleavedContentItem, TextContentItem
from stack.schemas.tools import ToolDef, ToolGroup, ToolInvocationResult
from stack.tools.base import CallContext, text_parameter

SHOWN_IMAGES = ("image/png", "image/jpeg")
MAX_STREAM_CHARS = 32 << 10  # of stdout, and of stderr, that a model reads

DEFINITION = ToolDef(
    name="code_interpreter",
    description="Execute code",
    parameters=[text_parameter("code", "The code to execute")],
)

_ENDINGS = {
    "time": "stopped: it took too long",
    "memory": "stopped: it needed too much memory",
    "processes": "stopped: it started too many processes",
    "disk": "stopped: it wrote too much to the disk",
    "output": "stopped: it printed too much",
}


class CodeInterpreter:
    kind = "code_interpreter"
    extras: frozenset[str] = frozenset()

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def check_args(self, args: JsonObject) -> None:
        pass

    async def tools(self, group: ToolGroup, provider_data: Mapping[str, Any]) -> Sequence[ToolDef]:
        return [DEFINITION]

    async def invoke(
        self, group: ToolGroup, tool_name: str, arguments: JsonObject, context: CallContext
    ) -> ToolInvocationResult:
        """Code that fails is a result like any other: the model reads the traceback."""
        if (reason := await self._sandbox.unavailable()) is not None:
            raise NotReady(f"code_interpreter is unavailable: {reason}", None)
        execution = await self._sandbox.run(str(arguments["code"]), context.files)
        return await asyncio.to_thread(_result, execution)


def _result(execution: Execution) -> ToolInvocationResult:
    items: list[InterleavedContentItem] = [TextContentItem(text=_text(execution))]
    for file in execution.files:
        if file.mime_type in SHOWN_IMAGES:
            items.append(ImageContentItem(image=ImageSource(data=_base64(file.content))))
    attachments: list[Any] = [_attachment(file) for file in execution.files]
    metadata: JsonObject = {"exit_code": execution.exit_code, "ended": execution.ended}
    if attachments:
        metadata["attachments"] = attachments
    return ToolInvocationResult(content=items, metadata=metadata)


def _text(execution: Execution) -> str:
    """In the form that Llama models were trained on: the state, then what was printed, between tags."""
    if execution.ended == "exited":
        state = "completed" if execution.exit_code == 0 else f"failed with exit code {execution.exit_code}"
    else:
        state = _ENDINGS[execution.ended]
    parts = [state]
    for name, text in (("stdout", execution.stdout), ("stderr", execution.stderr)):
        if text.strip():
            parts.append(f"[{name}]\n{_shortened(text)}\n[/{name}]")
    if execution.files:
        parts.append("files: " + ", ".join(file.name for file in execution.files))
    return "\n".join([*parts, *execution.notes])


def _shortened(text: str) -> str:
    """Of a long text the first and the last half: the error is at the end of a traceback."""
    text = text.rstrip("\n")
    if len(text) <= MAX_STREAM_CHARS:
        return text
    half = MAX_STREAM_CHARS // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"


def _attachment(file: OutputFile) -> JsonObject:
    uri = f"data:{file.mime_type};base64,{_base64(file.content)}"
    return {"name": file.name, "mime_type": file.mime_type, "content": {"uri": uri}}


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()

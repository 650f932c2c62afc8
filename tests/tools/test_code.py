"""The code interpreter's adapter with a stand-in for the sandbox; the sandbox's own tests run code."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import pytest

from stack.errors import NotReady
from stack.sandbox.sandbox import Execution, OutputFile
from stack.schemas.content import ImageContentItem, TextContentItem
from stack.schemas.tools import ToolGroup, ToolInvocationResult
from stack.tools.base import CallContext
from stack.tools.code import MAX_STREAM_CHARS, CodeInterpreter

GROUP = ToolGroup(identifier="g", provider_resource_id="g", provider_id="p")
PNG = b"\x89PNG\r\n"


class StandIn:
    """Plays one execution."""

    def __init__(self, reason: str | None = None, **fields: Any) -> None:
        self.reason = reason
        self.execution = Execution(
            **{"ended": "exited", "exit_code": 0, "stdout": "", "stderr": "", "files": (), **fields}
        )
        self.ran: list[tuple[str, Mapping[str, bytes] | None]] = []

    async def unavailable(self) -> str | None:
        return self.reason

    async def run(self, code: str, files: Mapping[str, bytes] | None = None) -> Execution:
        self.ran.append((code, files))
        return self.execution


async def run(sandbox: StandIn, code: str = "print(1)") -> ToolInvocationResult:
    context = CallContext(files={"a.csv": b"1"})
    interpreter = CodeInterpreter(sandbox)  # type: ignore[arg-type]
    return await interpreter.invoke(GROUP, "code_interpreter", {"code": code}, context)


def text(result: ToolInvocationResult) -> str:
    assert isinstance(result.content, list)
    assert isinstance(result.content[0], TextContentItem)
    return result.content[0].text


async def test_output_is_told_in_the_way_that_models_know() -> None:
    sandbox = StandIn(stdout="1\n")
    result = await run(sandbox)
    assert text(result) == "completed\n[stdout]\n1\n[/stdout]"
    assert sandbox.ran == [("print(1)", {"a.csv": b"1"})]
    assert result.metadata == {"exit_code": 0, "ended": "exited"}
    assert text(await run(StandIn())) == "completed"


async def test_code_that_fails_is_a_result() -> None:
    result = await run(StandIn(exit_code=1, stderr="Traceback …\nNameError: x"))
    assert text(result) == "failed with exit code 1\n[stderr]\nTraceback …\nNameError: x\n[/stderr]"
    assert result.error_message is None


@pytest.mark.parametrize("ended", ["time", "memory", "processes", "disk", "output"])
async def test_what_the_sandbox_stopped(ended: str) -> None:
    result = await run(StandIn(ended=ended, exit_code=-9, notes=("the output was cut off",)))
    assert text(result).startswith("stopped: it ")
    assert text(result).endswith("\nthe output was cut off")


async def test_files_are_attachments_and_pictures_are_seen() -> None:
    files = (
        OutputFile("plot.png", "image/png", PNG),
        OutputFile("out/data.csv", "text/csv", b"1,2"),
    )
    result = await run(StandIn(files=files))
    assert text(result) == "completed\nfiles: plot.png, out/data.csv"
    assert isinstance(result.content, list)
    (image,) = [item for item in result.content if isinstance(item, ImageContentItem)]
    assert image.image.data == base64.b64encode(PNG).decode()
    assert result.metadata is not None
    assert result.metadata["attachments"] == [
        {
            "name": "plot.png",
            "mime_type": "image/png",
            "content": {"uri": f"data:image/png;base64,{base64.b64encode(PNG).decode()}"},
        },
        {"name": "out/data.csv", "mime_type": "text/csv", "content": {"uri": "data:text/csv;base64,MSwy"}},
    ]


async def test_long_output_keeps_its_end() -> None:
    shown = text(await run(StandIn(stdout="a" * MAX_STREAM_CHARS + "the end")))
    assert len(shown) < MAX_STREAM_CHARS + 200
    assert "[… 7 characters left out …]" in shown
    assert "the end\n[/stdout]" in shown


async def test_without_a_sandbox_it_says_why() -> None:
    sandbox = StandIn(reason="bubblewrap is not installed")
    with pytest.raises(NotReady, match="unavailable: bubblewrap is not installed"):
        await run(sandbox)
    assert sandbox.ran == []

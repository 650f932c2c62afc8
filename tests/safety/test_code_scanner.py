from __future__ import annotations

import textwrap
import time
from typing import Any

import pytest

from stack.errors import BadRequest
from stack.safety.python_code import scan
from stack.safety.shields import Shields
from stack.schemas.content import ToolCall
from stack.schemas.messages import CompletionMessage, UserMessage
from stack.schemas.safety import SafetyViolation

BAD = 'import subprocess\nsubprocess.call("ls " + path, shell=True)\n'
ISSUE = {
    "test_id": "B602",
    "severity": "high",
    "confidence": "high",
    "text_index": 0,
    "text": "subprocess call with shell=True identified, security issue.",
}


async def run(shields: Shields, text: str, **params: Any) -> SafetyViolation | None:
    return await shields.run("code-scanner", [UserMessage(content=text)], params)


async def test_code_as_a_whole_text(shields: Shields) -> None:
    violation = await run(shields, BAD)
    assert violation is not None
    assert violation.violation_level == "error"
    assert violation.metadata == {
        "violation_type": "B602",
        "issues": [{**ISSUE, "line": 2}],
        "issue_count": 1,
        "shield_id": "code-scanner",
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"Like this:\n```python\n{BAD}```\nGood luck!", 4),
        (f"No language:\n\n~~~\n{BAD}~~~", 5),
        (f"Wrong language:\n```text\n{BAD}```", 4),
        (f"Not closed:\n````py\n```\n````\n```\n{BAD}", 7),
        (f"In a list:\n- one\n  ```python\n{textwrap.indent(BAD, '  ')}  ```", 5),
        (f"In a console:\n```pycon\n>>> {BAD.strip().replace(chr(10), chr(10) + '>>> ')}\n3\n```", 4),
        (f"A notebook:\n```\n%matplotlib inline\n!pip install x\n{BAD}```", 6),
        (f"Silenced:\n```python\n{BAD.strip()}  # nosec\n```", 4),
    ],
)
def test_code_in_blocks(text: str, line: int) -> None:
    assert scan(["first text", text], "medium", "medium") == [{**ISSUE, "text_index": 1, "line": line}]


async def test_code_in_tool_calls(shields: Shields) -> None:
    call = ToolCall(call_id="1", tool_name="code_interpreter", arguments={"code": BAD})
    message = CompletionMessage(content="Let me run it.", stop_reason="end_of_turn", tool_calls=[call])
    violation = await shields.run("code-scanner", [message], {})
    assert violation is not None
    assert violation.metadata["violation_type"] == "B602"


async def test_params(shields: Shields) -> None:
    code = 'import random\npassword = "hunter2"\nx = eval(y)\nassert x\nrandom.random()\n'
    violation = await run(shields, code)
    assert violation is not None
    assert (violation.violation_level, violation.metadata["violation_type"]) == ("warn", "B307")
    low = await run(shields, code, min_severity="low", level="error")
    assert low is not None
    assert low.violation_level == "error"
    assert str(low.metadata["violation_type"]).split(",") == ["B307", "B105", "B101", "B311"]
    sure = await run(shields, code, min_severity="low", min_confidence="high")
    assert sure is not None
    assert "B105" not in str(sure.metadata["violation_type"])
    assert await run(shields, code, min_severity="high") is None
    with pytest.raises(BadRequest, match=r"params\.min_severity: input should be 'low', 'medium' or 'high'"):
        await run(shields, code, min_severity="HIGH")


def test_long_lines_of_code_are_not_taken_for_prose() -> None:
    code = "import os\nos.system('ls ' + x)\ny = [" + "a, " * 50_000 + "]"
    assert [issue["test_id"] for issue in scan([code], "high", "high")] == ["B605"]
    for hidden in ("y = " + "-" * 9_000 + "1", "y = " + "(" * 150 + "-" * 9_000 + "1" + ")" * 150):
        with pytest.raises((MemoryError, RecursionError)):
            scan(["import os\nos.system('ls ' + x)\n" + hidden], "high", "high")


@pytest.mark.parametrize(
    "text",
    [
        "Please tell me how to call subprocess with shell=True.",
        "```python\nprint('hello')\n```",
        "```javascript\nrequire('child_process').exec(cmd);\n```",
        "```python\nthis does not parse\n```",
        "```\n```",
        " \n ",
        "word " * 20_000,
        "Dear all,\n\n" + "a long paragraph of prose with many words " * 1_000,
        "hello",
        "x = '\0'",
    ],
)
def test_nothing_to_say(text: str) -> None:
    assert scan([text], "medium", "medium") == []


async def test_the_list_of_issues_is_bounded(shields: Shields) -> None:
    violation = await run(shields, "x = eval(y)\n" * 500)
    assert violation is not None
    issues = violation.metadata["issues"]
    assert isinstance(issues, list)
    assert (len(issues), violation.metadata["issue_count"]) == (20, 500)
    assert len(violation.model_dump_json()) < 6_000


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos.system('ls ' + x)\nx = " + "a" + ".b" * 5_000,
        "import os\nos.system('ls ' + x)\nx = " + "-" * 10_000 + "1",
        "import os\nos.system('ls ' + x)\nx = " + "1" + "+1" * 20_000,
        "import os\nos.system('ls ' + x)\nx = a" + ".b" * 990 + "()",
        "# coding: no-such-code\nimport os\nos.system('ls ' + x)",
    ],
    ids=["attributes", "minus", "plus", "calls", "coding"],
)
async def test_what_cannot_be_scanned_is_an_error(code: str, shields: Shields) -> None:
    started = time.monotonic()
    with pytest.raises(BadRequest, match=r"cannot be (checked|scanned)"):
        await run(shields, f"```python\n{code}\n```")
    assert time.monotonic() - started < 30
    assert await run(shields, BAD) is not None


async def test_depth_hides_nothing(shields: Shields) -> None:
    """Near the limit of recursion, where single checks break down, code is refused or its issue found."""
    refused = 0
    for depth in (100, 500, 900, 940, 950, 960, 970, 980, 990):
        code = "import os\nx = a" + ".b" * depth + ".run(os.system('ls ' + x))"
        try:
            violation = await run(shields, code)
            assert violation is not None, depth
        except BadRequest:
            refused += 1
    assert 1 <= refused < 7


@pytest.mark.parametrize("text", ["(" * 1_000_000, "```\n" * 250_000, "[" * 150 + "]" * 150, "# " * 500_000])
async def test_hostile_text_that_is_no_code(text: str, shields: Shields) -> None:
    assert await run(shields, text) is None

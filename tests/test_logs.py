from __future__ import annotations

import logging

import pytest

from stack.logs import configure_logging, redact, trace_id


def test_lines_have_fields_and_the_trace(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    token = trace_id.set("ab" * 16)
    logging.getLogger("stack.part").info(
        "two %s", "words", extra={"fields": {"path": "/v1/x", "name": 'a "b"\n'}}
    )
    trace_id.reset(token)
    logging.getLogger("stack.part").debug("not shown")
    line = capfd.readouterr().err
    assert line.startswith("time=20")
    assert line.count("\n") == 1
    assert f'Z level=info logger=stack.part trace_id={"ab" * 16} message="two words" ' in line
    assert line.endswith(' path=/v1/x name="a \\"b\\"\\n"\n')


def test_a_traceback_is_one_field(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    try:
        raise ValueError("postgresql://me:hunter2@host/db")
    except ValueError:
        logging.getLogger("stack.part").exception("failed")
    line = capfd.readouterr().err
    assert line.count("\n") == 1
    assert "ValueError" in line
    assert "hunter2" not in line
    assert "me:********@host" in line


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("authorization: Bearer abcdef123456", "authorization: Bearer ********"),
        ('{"openai_api_key": "abcdef123456"}', '{"openai_api_key": "********"}'),
        ("hf_token=abcdef123456 x", "hf_token=******** x"),
        ("the key sk-abcdef1234 was refused", "the key ******** was refused"),
        ("the prompt has 10 tokens: 4096 at most", "the prompt has 10 tokens: 4096 at most"),
        ("model 'org/x' is not registered", "model 'org/x' is not registered"),
    ],
)
def test_redacts_what_looks_like_a_secret(text: str, wanted: str) -> None:
    assert redact(text) == wanted

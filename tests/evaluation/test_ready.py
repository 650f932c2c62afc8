"""What the ready benchmarks ask, word for word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stack.cli.app import app
from stack.datasets.rows import encode
from stack.errors import BadRequest
from stack.evaluation.ready import READY, put
from stack.scoring.mathematics import compare

GSM8K = Path(__file__).parents[1] / "data/gsm8k_train.jsonl"
ROWS: dict[str, Any] = {
    "gsm8k": {"question": "1 and 1,234?", "answer": "1+1234 = <<1+1234=1235>>1235\n#### 1,235"},
    "ifeval": {
        "key": 1,
        "prompt": "Write without commas.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{"num_words": None, "relation": None}],
    },
    "mmlu": {
        "question": "Two? ",
        "subject": "abstract_algebra",
        "choices": ["1", "2", "3", "4"],
        "answer": 1,
    },
    "bfcl": {
        "id": "simple_java_3",
        "question": [[{"role": "user", "content": "Area of base 10?"}]],
        "function": [{"name": "area", "parameters": {"type": "dict", "properties": {}}}],
        "ground_truth": [{"area": {"base": [10]}}],
    },
}


def test_gsm8k() -> None:
    (row,) = put("gsm8k", [ROWS["gsm8k"]], [{"question": "What?", "answer": "It.\n#### 1"}])
    assert row["completion_input"] == (
        "Question: What?\nAnswer: It.\n#### 1\n\nQuestion: 1 and 1,234?\nAnswer:"
    )
    assert row["expected_answer"] == "1235"
    patterns = READY["gsm8k"].scoring_params["basic::regex_parser_math_response"]["parsing_regexes"]
    answers = ["so 1,235.\n#### 1,235", "#### 1235. Or #### 1236", "#### 1236", "1,235", "It is 1235."]
    scores = [each["score"] for each in compare([(answer, "1235") for answer in answers], patterns)]
    assert scores == [1, 1, 0, 0, 0]  # lm-evaluation-harness's strict match


def test_mmlu() -> None:
    (row,) = put("mmlu", [ROWS["mmlu"]], [ROWS["mmlu"] | {"answer": "C"}])
    question = "Two?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    assert row["completion_input"] == (
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        f"{question} C\n\n{question}"
    )
    assert row["answer"] == "B"


def test_ifeval() -> None:
    (row,) = put("ifeval", [ROWS["ifeval"]])
    assert (row["question"], row["kwargs"]) == ("Write without commas.", [{}])


def test_bfcl() -> None:
    (row,) = put("bfcl", [ROWS["bfcl"]])
    assert [message["role"] for message in row["messages"]] == ["system", "user"]
    assert '"name": "area"' in row["messages"][0]["content"]
    assert (row["language"], row["test_category"]) == ("java", "simple_java")


@pytest.mark.parametrize("name", READY)
def test_their_rows_are_those_of_a_dataset(name: str) -> None:
    rows = put(name, [ROWS[name]])
    purpose: Any = "eval/messages-answer" if "messages" in rows[0] else "eval/question-answer"
    assert len(list(encode(rows, purpose))) == 1


@pytest.mark.parametrize("name", READY)
@pytest.mark.parametrize("row", [{}, {"question": 3}, {"answer": None}])
def test_other_rows_are_refused(name: str, row: Any) -> None:
    with pytest.raises(BadRequest, match=r"row 1 .* is none of "):
        put(name, [ROWS[name], row])


def test_real_rows() -> None:
    rows = [json.loads(line) for line in GSM8K.read_text().splitlines()]
    found = put("gsm8k", rows[5:], rows[:5])
    assert all(row["expected_answer"].replace(".", "").lstrip("-").isdigit() for row in found)
    assert found[0]["completion_input"].count("Question: ") == 6


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["none"], "there is no ready benchmark 'none'; there are gsm8k, ifeval, bfcl, mmlu"),
        (["gsm8k", "--file", "none.jsonl"], "none.jsonl cannot be read"),
        (["gsm8k", "--file", __file__], "is not JSON lines"),
        (["gsm8k", "--file", str(GSM8K), "--shots", "2"], "--shots takes its examples from --shots-file"),
        (["mmlu", "--file", str(GSM8K)], "row 0 (the first is 0) is none of cais/mmlu"),
        (["gsm8k", "--file", str(GSM8K)], "start one: stack up"),
    ],
)
def test_what_the_command_refuses(command: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["eval", "register", *command, "--url", "http://127.0.0.1:9"])
    assert (result.exit_code, said in result.output) == (1, True), result.output

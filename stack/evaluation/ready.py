"""Ready benchmarks: the rows of public datasets as this server asks and scores them.

Each says where its rows are from, how a row is put, which functions score, and with what parameters and
sampling it is run. Prompts become columns of the dataset: what a model is asked can be read there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json

from stack.errors import BadRequest

Row = dict[str, Any]


_NO_ANSWER = "()"  # matches everywhere: without it, what no pattern finds is looked for in the whole text


@dataclass(frozen=True, slots=True)
class Ready:
    """`put` makes a row of the dataset of one of the source, with examples that stand before the question."""

    description: str
    hub: str
    """Of the source on the Hugging Face hub: path, configuration and split."""
    put: Callable[[Row, Sequence[Row]], Row]
    scoring_functions: tuple[str, ...]
    scoring_params: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    """`max_tokens` and `stop`; greedy."""


def gsm8k(row: Row, examples: Sequence[Row] = ()) -> Row:
    """A completion: `Question: … Answer:`, as in lm-evaluation-harness's task gsm8k."""
    shots = "".join(f"Question: {each['question']}\nAnswer: {each['answer']}\n\n" for each in examples)
    return {
        "question": row["question"],
        "answer": row["answer"],
        "completion_input": f"{shots}Question: {row['question']}\nAnswer:",
        "expected_answer": row["answer"].rpartition("####")[2].strip().replace(",", ""),
    }


def ifeval(row: Row, examples: Sequence[Row] = ()) -> Row:
    """The prompt is what a user says; there is no answer to compare with."""
    return {
        "question": row["prompt"],
        "answer": "",
        "instruction_id_list": row["instruction_id_list"],
        "kwargs": [
            {key: value for key, value in each.items() if value is not None} for each in row["kwargs"]
        ],
    }


def mmlu(row: Row, examples: Sequence[Row] = ()) -> Row:
    """A completion: the choices by letters, as in lm-evaluation-harness's task mmlu_generative."""
    subject = str(row.get("subject", "general knowledge")).replace("_", " ")
    shots = "".join(f"{_choices(each)} {_letter(each)}\n\n" for each in examples)
    introduction = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    return {
        "question": row["question"],
        "answer": _letter(row),
        "completion_input": f"{introduction}{shots}{_choices(row)}",
    }


def _choices(row: Row) -> str:
    letters = "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCDEFGHIJ", row["choices"]))  # noqa: B905
    return f"{row['question'].strip()}\n{letters}Answer:"


def _letter(row: Row) -> str:
    answer = row["answer"]
    return answer if isinstance(answer, str) else "ABCDEFGHIJ"[answer]


_BFCL_SYSTEM = """\
You are an expert in composing functions. You are given a question and a set of possible functions. Based on \
the question, you will need to make one or more function/tool calls to achieve the purpose. If none of the \
functions can be used, point it out. If the given question lacks the parameters required by the function, \
also point it out. You should only return the function calls in your response.

If you decide to invoke any of the function(s), you MUST put it in the format of \
[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]. You SHOULD NOT \
include any other text in the response.

Here is a list of functions in JSON format that you can invoke.
{functions}
"""


def bfcl(row: Row, examples: Sequence[Row] = ()) -> Row:
    """Functions stand in the system message, as BFCL puts them to models without tools of their own."""
    turns = row["question"]
    messages = turns[0] if turns and isinstance(turns[0], list) else turns
    functions = to_json(row["function"], indent=4).decode()
    system = {"role": "system", "content": _BFCL_SYSTEM.format(functions=functions)}
    category = re.sub(r"_[0-9_-]+$", "", str(row.get("id", "")))
    return {
        "messages": [system, *messages],
        "answer": "",
        "id": row.get("id", ""),
        "function": row["function"],
        "ground_truth": row["ground_truth"],
        "language": next(
            (name for name in ("java", "javascript") if category.endswith(f"_{name}")), "python"
        ),
        "test_category": category,
    }


READY: dict[str, Ready] = {
    "gsm8k": Ready(
        "grade-school mathematics: 1,319 word problems (Cobbe et al. 2021)",
        "openai/gsm8k main test",
        gsm8k,
        ("basic::regex_parser_math_response",),
        {
            "basic::regex_parser_math_response": {
                "type": "regex_parser",
                "parsing_regexes": [r"#### (?P<X>-?[0-9.,]*[0-9])", _NO_ANSWER],
            }
        },
        {"max_tokens": 256, "stop": ["Question:", "</s>", "<|im_end|>"]},
    ),
    "ifeval": Ready(
        "541 prompts with instructions that can be verified (Zhou et al. 2023)",
        "google/IFEval default train",
        ifeval,
        ("basic::ifeval",),
        sampling={"max_tokens": 1280},
    ),
    "bfcl": Ready(
        "function calls (Patil et al. 2025); rows with function and ground_truth",
        "gorilla-llm/Berkeley-Function-Calling-Leaderboard default train",
        bfcl,
        ("basic::bfcl",),
        sampling={"max_tokens": 512},
    ),
    "mmlu": Ready(
        "multiple choice over 57 subjects (Hendrycks et al. 2021)",
        "cais/mmlu all test",
        mmlu,
        ("basic::regex_parser_multiple_choice_answer",),
        {
            "basic::regex_parser_multiple_choice_answer": {
                "type": "regex_parser",
                "parsing_regexes": [r"^\s*\(?([A-J])\b"],
            }
        },
        {"max_tokens": 8, "stop": ["\n", "</s>"]},
    ),
}


def put(name: str, rows: Sequence[Row], examples: Sequence[Row] = ()) -> list[Row]:
    """The rows of a benchmark's dataset. Raises BadRequest for rows that are not those of the source."""
    ready = READY[name]
    found = []
    for number, row in enumerate(rows):
        try:
            found.append(ready.put(row, examples))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            source, problem = ready.hub.split()[0], f"{type(error).__name__} {error}"
            raise BadRequest(f"row {number} (the first is 0) is none of {source}: {problem}") from None
    return found

"""basic::docvqa: the answer is one of several, but for what does not matter in a short answer.

Answers are normalised as in the evaluation of VQA (Antol et al. 2015, https://visualqa.org/evaluation.html):
punctuation, case, articles, number words; contractions with and without their apostrophe are the same.
"""

from __future__ import annotations

import re

from pydantic_core import from_json

from stack.schemas.common import JsonObject
from stack.scoring.scorer import given, text

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_WORDS = {word: str(number) for number, word in enumerate(_NUMBERS)}
_WORDS |= {"none": "0", "1st": "first", "2nd": "second", "3rd": "third"}
_LEFT_OUT = frozenset({"a", "an", "the", "to", "in", "from", "by"})
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")


def docvqa(row: JsonObject) -> float:
    """1 if the answer is one of the `expected_answer`, a list of texts or its JSON."""
    generated = normalise(text(row, "generated_answer"))
    return 1.0 if generated in map(normalise, _expected(row)) else 0.0


def _expected(row: JsonObject) -> list[str]:
    answers = given(row, "expected_answer")
    if isinstance(answers, str):
        try:
            answers = from_json(answers)
        except ValueError:
            answers = None
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError('expected_answer is a JSON list of texts, such as ["42", "forty-two"]')
    return [str(answer) for answer in answers]


def normalise(answer: str) -> str:
    for sign in _PUNCTUATION:
        if sign in answer:
            beside_a_gap = f"{sign} " in answer or f" {sign}" in answer
            removed = beside_a_gap or _COMMA_IN_NUMBER.search(answer) is not None
            answer = answer.replace(sign, "" if removed else " ")
        if "." in answer:
            answer = _PERIOD.sub("", answer)
    answer = answer.replace("'", "").replace("’", "")
    words = (_WORDS.get(word, word) for word in answer.lower().split())
    return " ".join(word for word in words if word not in _LEFT_OUT)

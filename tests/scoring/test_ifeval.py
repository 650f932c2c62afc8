"""IFEval's instructions, each with an answer that follows it and one that does not."""

from __future__ import annotations

from typing import Any

import pytest

from stack.scoring.builtin import BUILT_IN
from stack.scoring.ifeval import CHECKS, score
from stack.scoring.sentences import sentences
from stack.scoring.workers import Workers

GERMAN = "Das Wetter ist heute sehr schön, und wir gehen am Nachmittag zusammen in den Park spazieren."
ENGLISH = "The weather is very nice today and we will walk in the park together in the afternoon."

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["C++", "sun"]}, "The Sun, in c++", "The sun, in c"),
    ("keywords:frequency", {"keyword": "ha", "frequency": 3, "relation": "at least"}, "ha Ha haha", "ha ha"),
    ("keywords:frequency", {"keyword": "ha", "frequency": 1, "relation": "less than"}, "hi", "ha"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "a category", "a Cat."),
    ("keywords:letter_frequency", {"letter": "z", "let_frequency": 2, "let_relation": "at least"}, "Zz", "z"),
    ("language:response_language", {"language": "de"}, GERMAN, ENGLISH),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        "One. Two.",
        "One two.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n***\n\n***\nb"),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "less than"},
        "two words",
        "three more words",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        "First.\n\nthen, more.",
        "First.\n\nMore.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] at [place]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP.S. More", "Bye. PS more"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.P.S more", "Bye.\nP.S. More"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n** b"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Maybe."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b*", "*a* and **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "SECTION 1\na\nSection 2",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<A poem>>\nrose", "<< >>\nrose"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi. "}, "say hi. Hi!", "Hi!"),
    ("startend:end_checker", {"end_phrase": "The end."}, 'So it was. "the end."', "The end. Really."),
    ("startend:quotation", {}, '"all of it"', '"all" of it'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "NOW or NEVER-EVER",
        "NOW or Never",
    ),
    ("change_case:english_capital", {}, ENGLISH.upper(), ENGLISH),
    ("change_case:english_lowercase", {}, ENGLISH.lower(), GERMAN.lower()),
    ("punctuation:no_comma", {}, "no comma; none", "a comma, here"),
]


def row(answer: str, *instructions: tuple[str, Any]) -> dict[str, Any]:
    return {
        "input_query": "Write.",
        "generated_answer": answer,
        "instruction_id_list": [name for name, _ in instructions],
        "kwargs": [arguments for _, arguments in instructions],
    }


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES)
def test_instructions(name: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    asked = (name, arguments | {"unused": None})
    assert score([row(good, asked), row(bad, asked), row("  ", asked)]) == [
        {"score": 1.0, "weight": 1.0},
        {"score": 0.0, "weight": 1.0},
        {"score": 0.0, "weight": 1.0},
    ]


def test_every_instruction_is_tested() -> None:
    assert {name for name, *_ in CASES} == CHECKS.keys()
    assert len(CHECKS) == 25


def test_the_score_is_the_share_that_is_followed() -> None:
    asked = [("punctuation:no_comma", {}), ("startend:quotation", {}), ("detectable_format:title", None)]
    assert score([row("a, b", *asked), row("<<a>> b", *asked)]) == [
        {"score": 0.0, "weight": 3.0},
        {"score": pytest.approx(2 / 3), "weight": 3.0},
    ]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"instruction_id_list": ["a:b"]}, "there is no instruction 'a:b'; there are keywords:existence"),
        ({"instruction_id_list": []}, "instruction_id_list is empty"),
        ({"kwargs": []}, "kwargs has 0 objects, instruction_id_list has 1 instructions"),
        ({"kwargs": [{"num_words": 3}]}, "missing 1 required positional argument: 'relation'"),
        ({"kwargs": [{"num_words": "3", "relation": "at least"}]}, "are not its own"),
        ({"kwargs": [{"num_words": 3, "relation": "around"}]}, "'less than' or 'at least', not 'around'"),
        ({"kwargs": ["x"]}, "are not its own"),
        ({"kwargs": None}, "the row has no kwargs"),
        ({"generated_answer": ["a"]}, "generated_answer is a text, not list"),
    ],
)
def test_rows_that_cannot_be_scored(changes: dict[str, Any], error: str) -> None:
    good = row("a b c", ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}))
    scored, after = score([good | changes, good])
    assert error in str(scored["error"])
    assert (scored["score"], after["score"]) == (None, 1.0)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Dr. Smith paid 3.50 at example.com. He left.", 2),
        ("What?! No...", 2),
        ("He works at Acme Inc. They like him.", 2),
        ("It was 5 p.m. and e.g. dark.", 1),
        ('She said "Go!" Then she went.', 2),
        ("no end", 1),
        ("", 0),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert len(sentences(text)) == count, sentences(text)


async def test_long_answers_in_a_child(workers: Workers) -> None:
    make = BUILT_IN["basic::ifeval"].make
    assert make is not None
    asked = [(name, arguments) for name, arguments, _, _ in CASES]
    hostile = ["<<" * 20_000, "*" * 100_000, "[" * 100_000, " p." * 30_000]
    rows = [row(each, *asked) for each in hostile] + [row("a", ("punctuation:no_comma", {}))]
    scored = await make(workers, []).score_rows(rows)
    assert scored[-1] == {"score": 1.0, "weight": 1.0}
    assert all("score" in each for each in scored)

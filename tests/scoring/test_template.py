"""Judges' prompts: placeholders of columns, and nothing that a caller could run."""

from __future__ import annotations

from typing import Any

import pytest

from stack.scoring.template import Template

ROW: dict[str, Any] = {"input_query": "Q", "expected_answer": ["E", 1], "generated_answer": "G {input_query}"}


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("{input_query}?", "Q?"),
        ("{expected_answer} or {generated_answer}", '["E",1] or G {input_query}'),
        ('Answer as {{"score": 1}}: {input_query}', 'Answer as {"score": 1}: Q'),
        ('Answer as {"a": {"b": 1}}: {input_query}', 'Answer as {"a": {"b": 1}}: Q'),
        ("{input_query.__class__}", "{input_query.__class__}"),
        ("{input_query.__class__} {input_query}", "{input_query.__class__} Q"),
        ("{input_query!r:>1000000000}", "{input_query!r:>1000000000}"),
        ("{input_query:>1000000000}{input_query}", "{input_query:>1000000000}Q"),
        ("{0} {} {other} { {input_query} }", "{0} {} {other} { Q }"),
        ("{% for x in y %}{input_query}{% endfor %}", "{% for x in y %}Q{% endfor %}"),
    ],
)
def test_render(template: str, prompt: str) -> None:
    assert Template(template).render(ROW) == prompt


def test_columns_are_those_of_the_placeholders() -> None:
    assert Template("{generated_answer} {input_query} {other}").columns == ("input_query", "generated_answer")
    assert Template("{{input_query}}").columns == ()
    with pytest.raises(ValueError, match="the row has no input_query"):
        Template("{input_query}").render({"input_query": None})

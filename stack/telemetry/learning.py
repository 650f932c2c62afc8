"""Exported spans -> rows to train on: conversations, and pairs of answers to the same prompt.

A row of spans has `gen_ai.input.messages` and `gen_ai.output.messages` where content was recorded. What was
logged of it under a name, such as feedback, is its score: on the span itself, else anywhere in its turn, else
anywhere in its trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from stack.telemetry.conversations import INPUT, OUTPUT, messages_of

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Conversation:
    span: Row
    prompt: list[dict[str, Any]]
    answer: dict[str, Any]
    score: float | None

    @property
    def origin(self) -> dict[str, Any]:
        return {"trace_id": self.span["trace_id"], "span_id": self.span["span_id"]}


def conversations(spans: Iterable[Row], score: str | None = None) -> Iterator[Conversation]:
    """Of a turn its last one, which has all before it. Those with images are left out.

    Raises ValueError when a span's messages are not in OpenTelemetry's form.
    """
    rows = sorted(spans, key=lambda row: str(row["start_time"]))
    scores: dict[Any, float] = {}
    if score is not None:
        for row in rows:
            if (value := _number(row.get(score))) is not None:
                whole = not row.get(OUTPUT)  # a request's, not that of one answer among many
                for place in _places(row) if whole else _places(row)[:2]:
                    scores[place] = value  # the latest counts
    talks = {_places(row)[1]: row for row in rows if row.get(INPUT) and row.get(OUTPUT)}
    for row in talks.values():
        prompt, answer = messages_of(row[INPUT]), messages_of(row[OUTPUT])
        if prompt and answer and (answer[0]["content"] or answer[0].get("tool_calls")):
            found = (scores[place] for place in _places(row) if place in scores)
            yield Conversation(row, prompt, answer[0], next(found, None))


def message_rows(
    spans: Iterable[Row], score: str | None = None, at_least: float = 0.0
) -> Iterator[dict[str, Any]]:
    """`messages`, the answer last. With `score`: those only that have it, and as much as is asked for."""
    for each in conversations(spans, score):
        if score is None or (each.score is not None and each.score >= at_least):
            kept = {} if score is None else {"score": each.score}
            yield {"messages": [*each.prompt, each.answer]} | kept | each.origin


def pair_rows(spans: Iterable[Row], score: str) -> Iterator[dict[str, Any]]:
    """`messages`, `chosen` and `rejected`: the best and the worst answer to each prompt, if they differ."""
    by_prompt: dict[bytes, list[Conversation]] = {}
    for each in conversations(spans, score):
        if each.score is not None and not each.answer.get("tool_calls"):
            by_prompt.setdefault(to_json(each.prompt), []).append(each)
    for answers in by_prompt.values():
        answers.sort(key=lambda each: each.score or 0.0)
        worst, best = answers[0], answers[-1]
        if worst.score != best.score and worst.answer["content"] != best.answer["content"]:
            texts = {"chosen": best.answer["content"], "rejected": worst.answer["content"]}
            yield {"messages": best.prompt} | texts | best.origin


def _places(row: Row) -> tuple[Any, Any, Any]:
    """Where a score may be logged: the span, its turn or else itself, its trace."""
    span = ("span", row["trace_id"], row["span_id"])
    turn = row.get("turn_id")
    return span, (("turn", turn) if turn else span), ("trace", row["trace_id"])


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None

"""llm-as-judge: a model reads a prompt made of the row, and patterns find the score in what it writes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from stack.engine.base import Inference, Priority
from stack.engine.fold import fold_chat_completion
from stack.errors import BadRequest
from stack.schemas.common import JsonObject
from stack.schemas.content import TextContentItem
from stack.schemas.inference import ChatCompletionRequest
from stack.schemas.messages import UserMessage
from stack.schemas.sampling import GrammarResponseFormat, GreedySamplingStrategy, SamplingParams
from stack.scoring.model_scorer import ModelScorer
from stack.scoring.scorer import ScoreRow, unscored
from stack.scoring.template import Template
from stack.scoring.workers import Patience, Workers

MAX_TOKENS = 1024  # of a judge's answer, reasoning included
MAX_TEMPLATE_CHARS = 100_000

DEFAULT_TEMPLATE = """\
You grade an answer to a question. The expected answer is right.

Question: {input_query}

Expected answer: {expected_answer}

Answer to grade: {generated_answer}

Answer with nothing but a number from 0 (wrong) to 10 (it means the same as the expected answer)."""
DEFAULT_PATTERNS = (r"\b(10|[0-9])\b",)

_SAMPLING = SamplingParams(strategy=GreedySamplingStrategy(), max_tokens=MAX_TOKENS)
_NUMBER = re.compile(r"[+-]?\d{1,15}(\.\d{1,15})?")


class Judge(ModelScorer):
    """`grammar` is a regular expression that constrains what is written; None: the model writes freely.

    `as_text`: a score stays the text that was found, also when it is a number.
    """

    def __init__(
        self,
        workers: Workers,
        model_id: str,
        model: Inference,
        template: Template,
        patterns: Sequence[str],
        grammar: str | None,
        as_text: bool = False,
        priority: Priority = Priority.INTERACTIVE,
    ) -> None:
        super().__init__(priority)
        self.columns = template.columns
        self._workers, self._model_id, self._model = workers, model_id, model
        self._template, self._patterns, self._as_text = template, list(patterns), as_text
        self._format: GrammarResponseFormat | None = None
        if grammar is not None:
            self._format = GrammarResponseFormat(bnf={"grammar": grammar, "syntax": "regex"})
        self._patience = Patience()

    async def score_rows(self, rows: Sequence[JsonObject]) -> list[ScoreRow]:
        """Each row has `judge_feedback`, all that the judge wrote."""
        found = await self.ask_all(rows, lambda row: self._call(self._template.render(row)))
        written = [answer for answer in found if isinstance(answer, str)]
        read = iter(await self._read(written))
        return [next(read) if isinstance(answer, str) else answer for answer in found]

    async def _read(self, answers: list[str]) -> list[ScoreRow]:
        found = await self._workers.map(
            "stack.scoring.patterns:find", answers, self._patterns, patience=self._patience
        )
        return [
            self._row(score, answer) | {"judge_feedback": answer}
            for score, answer in zip(found, answers, strict=True)
        ]

    def _row(self, found: str | ScoreRow | None, answer: str) -> ScoreRow:
        if found is None:
            return unscored("no pattern of judge_score_regexes matches what the judge wrote")
        if isinstance(found, dict):
            return found
        return {"score": found if self._as_text else _number(found)}

    async def _call(self, prompt: str) -> str:
        used = self._format
        request = ChatCompletionRequest(
            model_id=self._model_id,
            messages=[UserMessage(content=prompt)],
            sampling_params=_SAMPLING,
            response_format=used,
        )
        try:
            answer = await fold_chat_completion(self._model.chat_completion(request, self.priority))
        except BadRequest as error:
            # The model may know the grammar less well than the check did: then it writes freely.
            if used is None or type(error) is not BadRequest:
                raise
            self._format = None
            return await self._call(prompt)
        content = answer.completion_message.content
        items = content if isinstance(content, list) else [content]
        return "".join(
            item if isinstance(item, str) else item.text
            for item in items
            if isinstance(item, str | TextContentItem)
        )


def _number(text: str) -> float | int | str:
    """The number that the text is, or the text."""
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        return text
    value = float(text)
    if not math.isfinite(value):
        return text
    return int(text) if "." not in text else value

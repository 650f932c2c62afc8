"""basic::regex_parser_…: the answer is what a pattern finds in a longer text, and is then compared."""

from __future__ import annotations

from collections.abc import Sequence

from stack.schemas.common import JsonObject
from stack.scoring.scorer import Scorer, ScoreRow, text, unscored
from stack.scoring.workers import Patience, Workers

# "Answer:" in the languages of MMMLU, as simple-evals looks for it (https://github.com/openai/simple-evals).
_ANSWERS = (
    "The best answer is ",
    r"Answer\s*:",
    r"Answer\s*:\u200b\u200b\u200b\u200b\u200b\u200b",
    *(rf"{word}\s*:" for word in ("উত্তর", "उत्तर")),
    "উত্তরঃ",
    *(rf"{word}\s*:" for word in ("Antwort", "답변", "정답", "답")),
    *(rf"{word}\s*[：:]" for word in ("答案", "答", "答复", "答曰")),
    *(
        f"{words}:"
        for words in (
            "الإجابة",
            "الجواب",
            "إجابة",
            "الإجابة النهائية",
            "الإجابة الصحيحة",
            "الإجابة الصحيحة هي",
            "الإجابة هي",
        )
    ),
    *(rf"{word}\s*:" for word in ("Respuesta", "Risposta")),
    *(rf"{word}\s*[：:]" for word in ("答え", "回答", "解答")),
    *(rf"{word}\s*:" for word in ("Jawaban", "Réponse", "Resposta", "Jibu", "Idahun", "Ìdáhùn", "Idáhùn")),
    *(rf"{word}\s*:" for word in ("Àmọ̀nà", "Àdáhùn", "Ànúgọ", "Àṣàyàn")),
)
CHOICE_PATTERNS = tuple(
    rf"(?i){answer}\s*([A-J]|[أ-د]|[অ]|[ব]|[ড]|[ঢ]|[Ａ]|[Ｂ]|[Ｃ]|[Ｄ])" for answer in _ANSWERS
)
MATH_PATTERNS = (r".*final answer is:?\s*\$\\boxed{(?P<X>.*)}\$",)


class RegexParser(Scorer):
    """`function` compares, in a child: pairs of generated and expected answers, patterns -> score rows."""

    def __init__(self, workers: Workers, function: str, patterns: Sequence[str], batch_rows: int) -> None:
        self._workers, self._function = workers, function
        self._patterns, self._batch_rows = list(patterns), batch_rows
        self._patience = Patience()

    async def score_rows(self, rows: Sequence[JsonObject]) -> list[ScoreRow]:
        scored: list[ScoreRow] = [{}] * len(rows)
        pairs: dict[int, tuple[str, str]] = {}
        for index, row in enumerate(rows):
            try:
                pairs[index] = text(row, "generated_answer"), text(row, "expected_answer")
            except ValueError as error:
                scored[index] = unscored(str(error))
        found = await self._workers.map(
            self._function,
            list(pairs.values()),
            self._patterns,
            batch_rows=self._batch_rows,
            patience=self._patience,
        )
        for index, result in zip(pairs, found, strict=True):
            scored[index] = result
        return scored

"""basic::ifeval: how many of a prompt's verifiable instructions an answer follows; runs in a child process.

The instructions, their ids and parameters are those of IFEval (Zhou et al. 2023,
https://github.com/google-research/google-research/tree/master/instruction_following_eval), checked strictly.
Keywords are texts, not patterns; sentences and words are split by rules instead of NLTK's model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import langdetect  # type: ignore[import-untyped]
from langdetect.detector_factory import init_factory  # type: ignore[import-untyped]
from pydantic_core import from_json

from stack.schemas.common import JsonObject
from stack.scoring.scorer import ScoreRow, given, text, unscored
from stack.scoring.sentences import sentences

langdetect.DetectorFactory.seed = 0  # else it draws at random
init_factory()

_WORD = re.compile(r"\w+")
_WORD_WITH_HYPHENS = re.compile(r"\w+(?:[-'’.]\w+)*")
_CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_POSTSCRIPTS = {"P.P.S": r"\s*p\.\s?p\.\s?s.*$", "P.S.": r"\s*p\.\s?s\..*$"}


def score(rows: Sequence[JsonObject]) -> list[ScoreRow]:
    """The share of the instructions that are followed; their number is the row's weight."""
    scored: list[ScoreRow] = []
    for row in rows:
        try:
            followed = _followed(row)
            scored.append({"score": sum(followed) / len(followed), "weight": float(len(followed))})
        except ValueError as error:
            scored.append(unscored(str(error)))
    return scored


def _followed(row: JsonObject) -> list[bool]:
    answer = text(row, "generated_answer").strip()
    instructions, parameters = _list(row, "instruction_id_list"), _list(row, "kwargs")
    if not instructions:
        raise ValueError("instruction_id_list is empty")
    if len(instructions) != len(parameters):
        raise ValueError(
            f"kwargs has {len(parameters)} objects, instruction_id_list has {len(instructions)} instructions"
        )
    return [_follows(answer, *each) for each in zip(instructions, parameters, strict=True)]


def _list(row: JsonObject, column: str) -> list[Any]:
    value: Any = given(row, column)
    if isinstance(value, str):
        value = from_json(value)
    if not isinstance(value, list):
        raise ValueError(f"{column} is a list, not {type(value).__name__}")
    return value


def _follows(answer: str, instruction: Any, parameters: Any) -> bool:
    check = CHECKS.get(instruction) if isinstance(instruction, str) else None
    if check is None:
        raise ValueError(f"there is no instruction {str(instruction)[:80]!r}; there are {', '.join(CHECKS)}")
    try:
        arguments = {name: value for name, value in (parameters or {}).items() if value is not None}
        return bool(answer) and check(answer, **arguments)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"kwargs of {instruction} are not its own: {_complaint(error)}") from None


def _complaint(error: Exception) -> str:
    """Without the function's own name: `missing 1 required positional argument: 'relation'`."""
    return str(error).rpartition("() ")[2] or str(error)


def _compared(count: int, relation: str, threshold: int) -> bool:
    if relation not in ("less than", "at least"):
        raise ValueError(f"a relation is 'less than' or 'at least', not {str(relation)[:40]!r}")
    return count < threshold if relation == "less than" else count >= threshold


def _found(keyword: str, answer: str) -> int:
    return len(re.findall(re.escape(keyword.strip()), answer, re.IGNORECASE))


def _keywords(answer: str, keywords: list[str]) -> bool:
    return all(_found(keyword, answer) for keyword in keywords)


def _keyword_frequency(answer: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compared(_found(keyword, answer), relation, frequency)


def _forbidden_words(answer: str, forbidden_words: list[str]) -> bool:
    words = (rf"\b{re.escape(word)}\b" for word in forbidden_words)
    return not any(re.search(word, answer, re.IGNORECASE) for word in words)


def _letter_frequency(answer: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compared(answer.lower().count(letter.lower()), let_relation, let_frequency)


def _language(answer: str, language: str) -> bool:
    try:
        return bool(langdetect.detect(answer) == language)
    except langdetect.LangDetectException:  # a text without letters is in any language
        return True


def _sentences(answer: str, num_sentences: int, relation: str) -> bool:
    return _compared(len(sentences(answer)), relation, num_sentences)


def _words(answer: str, num_words: int, relation: str) -> bool:
    return _compared(len(_WORD.findall(answer)), relation, num_words)


def _paragraphs(answer: str, num_paragraphs: int) -> bool:
    parts = [part.strip() for part in answer.split("***")]
    return all(parts[1:-1]) and len(list(filter(None, parts))) == num_paragraphs


def _nth_paragraph(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = answer.split("\n\n")
    count = sum(bool(part.strip()) for part in parts)
    if not 0 < nth_paragraph <= count or not parts[nth_paragraph - 1].strip():
        return False
    word = re.split(r"[.,?!'\"]", parts[nth_paragraph - 1].split()[0].lstrip("'\""))[0].lower()
    return count == num_paragraphs and word == first_word.lower()


def _placeholders(answer: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\]\n]*\]", answer)) >= num_placeholders


def _postscript(answer: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    pattern = _POSTSCRIPTS.get(marker, re.escape(marker.lower()))
    return re.search(pattern, answer.lower(), re.MULTILINE) is not None


def _bullets(answer: str, num_bullets: int) -> bool:
    lines = [line.lstrip() for line in answer.splitlines()]
    return sum(re.match(r"\*[^*]|-", line) is not None for line in lines) == num_bullets


def _highlights(answer: str, num_highlights: int) -> bool:
    marked = re.findall(r"\*[^\n*]*\*", answer) + re.findall(r"\*\*[^\n*]*\*\*", answer)
    return sum(bool(part.strip("*").strip()) for part in marked) >= num_highlights


def _sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", answer)) >= num_sections


def _is_json(answer: str) -> bool:
    body = re.sub(r"^```(?:json)?", "", answer, flags=re.IGNORECASE).removesuffix("```").strip()
    try:
        from_json(body)
    except ValueError:
        return False
    return True


def _title(answer: str) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", answer))


def _two_responses(answer: str) -> bool:
    parts = [part.strip() for part in answer.split("******")]
    responses = list(filter(None, parts))
    return all(parts[1:-1]) and len(responses) == 2 and responses[0] != responses[1]


def _repeat_prompt(answer: str, prompt_to_repeat: str) -> bool:
    return answer.lower().startswith(prompt_to_repeat.strip().lower())


def _end(answer: str, end_phrase: str) -> bool:
    return answer.strip('"').lower().endswith(end_phrase.strip().lower())


def _capital_words(answer: str, capital_frequency: int, capital_relation: str) -> bool:
    words = _WORD_WITH_HYPHENS.findall(answer)
    return _compared(sum(map(str.isupper, words)), capital_relation, capital_frequency)


CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": _keywords,
    "keywords:frequency": _keyword_frequency,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _language,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": _words,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": lambda answer: any(choice in answer for choice in _CHOICES),
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _is_json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat_prompt,
    "startend:end_checker": _end,
    "startend:quotation": lambda answer: len(answer) > 1 and answer[0] == '"' == answer[-1],
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda answer: answer.isupper() and _language(answer, "en"),
    "change_case:english_lowercase": lambda answer: answer.islower() and _language(answer, "en"),
    "punctuation:no_comma": lambda answer: "," not in answer,
}

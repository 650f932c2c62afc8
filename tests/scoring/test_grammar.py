"""What a judge may write under a constraint is what the caller's pattern finds."""

from __future__ import annotations

import random
import re
from typing import Any

import llguidance
import numpy as np
import pytest

from stack.engine.grammar.compile import answer_grammar
from stack.engine.grammar.guard import GrammarGuard
from stack.schemas.sampling import GrammarResponseFormat
from stack.scoring.grammar import FREE_CHARS, grammar_of


@pytest.fixture(scope="module")
def guard() -> Any:
    guard = GrammarGuard()
    yield guard
    guard.close()


def drawn(grammar: str, guard: GrammarGuard, seed: int) -> str:
    """A text that the decoder allows, drawn a byte at a time."""
    wanted = answer_grammar(GrammarResponseFormat(bnf={"grammar": grammar, "syntax": "regex"}))
    verdict = guard.check(wanted)
    assert verdict.error == ""
    tokenizer = llguidance.LLTokenizer("byte")
    matcher = llguidance.LLMatcher(tokenizer, verdict.grammar, log_level=0)
    mask = np.zeros((tokenizer.vocab_size + 31) // 32, dtype=np.int32)
    draw, tokens = random.Random(seed), list[int]()
    while not matcher.is_stopped() and not (matcher.is_accepting() and draw.random() < 0.3):
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
        allowed = [token for token in np.flatnonzero(bits) if token < 256]
        letters = [token for token in allowed if chr(token).isalnum()]
        token = int(draw.choice(letters or allowed))
        assert matcher.consume_token(token)
        tokens.append(token)
    return bytes(tokens).decode()


@pytest.mark.parametrize(
    "pattern",
    [
        "(A|B|C)",
        "(yes|no|maybe)",
        r"(?i)verdict is\s*:?\s*(correct|incorrect)",
        r"Total rating: (\d+)",
        r"^\s*([0-9]{1,3})$",
        r"\[\[(\d(?:\.\d)?)\]\]",
        r"\b([1-5])\b",
        r"rating[^0-9\n]*(10|[0-9])",
        r"<score>\w+?</score>",
        r"(?s)because .* therefore (YES|NO)",
    ],
)
def test_whatever_may_be_written_matches(pattern: str, guard: GrammarGuard) -> None:
    grammar = grammar_of([pattern])
    assert grammar is not None
    for seed in range(3):
        text = drawn(grammar, guard, seed)
        assert re.search(pattern, text) is not None, text
        assert len(text) < FREE_CHARS + 700


def test_reasons_may_come_before_a_mark_but_not_before_a_bare_value() -> None:
    assert str(FREE_CHARS) in (grammar_of([r"Score: (\d)"]) or "")
    for bare in (r"(\d)", "(A|B)", r"^Score: (\d)", "yes|yep"):
        assert str(FREE_CHARS) not in (grammar_of([bare]) or str(FREE_CHARS))


def test_one_of_several_patterns(guard: GrammarGuard) -> None:
    grammar = grammar_of(["(A)", "(B)"])
    assert grammar is not None
    assert {drawn(grammar, guard, seed) for seed in range(20)} == {"A", "B"}


@pytest.mark.parametrize("pattern", [r"(a)\1", "(?=a)b", r"(?<!x)(\d)", r"a\b(b)", "(?a:b)", r"(\W)", r"a++"])
def test_patterns_that_are_no_grammar(pattern: str) -> None:
    assert grammar_of([pattern]) is None
    assert grammar_of(["(A|B)", pattern]) is None

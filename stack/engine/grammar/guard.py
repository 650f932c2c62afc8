"""Compiles a grammar in a bounded child process before this process does.

Compiling somebody else's grammar can take minutes, gigabytes or, by a stack overflow, the whole process; the
library's own limits don't cover all of it. The child runs this file, which imports nothing of the package.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from stack.bounded import BoundedChild, Exceeded, Limits

LIMITS = Limits(cpu_s=0.5, wall_s=10.0, memory_bytes=1 << 30)

_EXCEEDED = {
    "time": f"it takes more than {LIMITS.cpu_s} s to compile",
    "stack": "its rules are nested too deeply",
    "memory": "it takes too much memory to compile",
    "other": "it is too complex to compile",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """`grammar` is what the library takes, empty when there is an `error`."""

    grammar: str
    error: str


class GrammarGuard:
    """Blocking, thread-safe."""

    def __init__(self) -> None:
        self._child = BoundedChild(LIMITS, ["llguidance", "llguidance.gbnf_to_lark", "numpy"])

    def check(self, grammars: list[dict[str, Any]]) -> Verdict:
        """Compile llguidance's list of grammars, in which one may also be `{"gbnf": text}`."""
        try:
            return Verdict(**self._child.call("stack.engine.grammar.guard:compile_grammars", grammars))
        except Exceeded as error:
            return Verdict("", _EXCEEDED[error.limit])

    def close(self) -> None:
        self._child.close()


def compile_grammars(grammars: list[dict[str, Any]]) -> dict[str, str]:
    """Runs in the child."""
    import llguidance
    import numpy
    from llguidance.gbnf_to_lark import gbnf_to_lark

    tokenizer = llguidance.LLTokenizer("byte")
    try:
        for grammar in grammars:
            if "gbnf" in grammar:
                grammar["lark_grammar"] = gbnf_to_lark(grammar.pop("gbnf"))
    except RecursionError:
        return {"grammar": "", "error": "its groups are nested too deeply"}
    except Exception as error:  # the converter raises plain Exception for what the grammar got wrong
        return {"grammar": "", "error": str(error)}
    text = json.dumps({"grammars": grammars})
    limits = llguidance.LLParserLimits(verbose_errors=False)
    matcher = llguidance.LLMatcher(tokenizer, text, log_level=0, limits=limits)
    if not matcher.is_error():
        mask = numpy.zeros((tokenizer.vocab_size + 31) // 32, dtype=numpy.int32)
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if matcher.is_error() or not mask.any():
            return {"grammar": "", "error": "there is no text that it accepts"}
    return {"grammar": "" if matcher.is_error() else text, "error": matcher.get_error()}

"""Response formats and tool calls -> `Constraint`, through llguidance.

A grammar is a list of llguidance grammars, the first of which is the start: `Grammar`. It is compiled once
in the guard (see `grammar_guard`), then here, then copied for each generation, which takes microseconds.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import llguidance
from transformers import PreTrainedTokenizerBase

from stack.engine.grammar.constraint import Closers, TokenConstraint
from stack.engine.grammar.guard import GrammarGuard
from stack.engine.grammar.json_schema import prepare
from stack.errors import BadRequest
from stack.schemas.sampling import GrammarResponseFormat, JsonSchemaResponseFormat

Grammar = list[dict[str, Any]]
"""llguidance's grammars: each has a name and either a `lark_grammar` or a `json_schema`."""

# A gap in JSON is nothing, one space, or one line break with its indentation; so whitespace cannot flood.
JSON_OPTIONS = {"whitespace_pattern": r"( |\n {0,32})?", "lenient": False, "coerce_one_of": False}
MAX_GRAMMAR_BYTES = 64 * 1024
_CACHED = 64


def answer_grammar(response_format: JsonSchemaResponseFormat | GrammarResponseFormat) -> Grammar:
    """The grammar of an answer in this format. Raises BadRequest for what is wrong at first sight."""
    if isinstance(response_format, JsonSchemaResponseFormat):
        schema = prepare(response_format.json_schema)
        return [{"name": "answer", "json_schema": {**schema, "x-guidance": JSON_OPTIONS}}]
    return [{"name": "answer", **_grammar_text(response_format.bnf)}]


def _grammar_text(bnf: dict[str, Any]) -> dict[str, str]:
    if "grammar" in bnf and "root" not in bnf and "start" not in bnf:
        unknown = sorted(bnf.keys() - {"grammar", "syntax"})
        if unknown:
            raise BadRequest(f'bnf: unknown key {unknown[0]!r}; write {{"grammar": "…", "syntax": "gbnf"}}')
        text, syntax = bnf["grammar"], bnf.get("syntax")
        if not isinstance(text, str) or not text.strip():
            raise BadRequest("bnf: `grammar` must be a text that is not empty")
    else:
        text, syntax = _join_rules(bnf), "lark" if "start" in bnf else "gbnf"
    if len(text) > MAX_GRAMMAR_BYTES:
        raise BadRequest(f"bnf: {len(text):,} characters long; the limit is {MAX_GRAMMAR_BYTES:,}")
    if syntax is None:
        syntax = _guess_syntax(text)
    if syntax == "regex":
        return {"lark_grammar": f"start: /{_escape_slashes(text)}/"}
    if syntax == "lark":
        return {"lark_grammar": text}
    if syntax == "gbnf":
        return {"gbnf": text}
    raise BadRequest(f"bnf: syntax {syntax!r} is unknown; it is one of gbnf, lark, regex")


def _join_rules(bnf: dict[str, Any]) -> str:
    """A mapping of rule names to right-hand sides, each a text or a list of alternatives."""
    if "root" not in bnf and "start" not in bnf:
        raise BadRequest(
            'bnf: write {"grammar": "<text>", "syntax": "gbnf" | "lark" | "regex"}, '
            'or {"root": "<right-hand side>", "<rule>": "…"} with a rule `root` (GBNF) or `start` (Lark)'
        )
    rules = []
    for name, value in bnf.items():
        alternatives = value if isinstance(value, list) else [value]
        if not alternatives or not all(isinstance(item, str) for item in alternatives):
            raise BadRequest(f"bnf: rule {name!r} must be a text or a list of texts")
        sign = ":" if "start" in bnf else "::="
        rules.append(f"{name} {sign} {' | '.join(alternatives)}")
    return "\n".join(rules)


def _guess_syntax(text: str) -> str:
    if "::=" in text:
        return "gbnf"
    if re.search(r"^\s*(%llguidance\b|\??start\s*:)", text, re.MULTILINE):
        return "lark"
    raise BadRequest(
        "bnf: the grammar's syntax is not clear: GBNF rules look like `root ::= …`, Lark rules like "
        '`start: …`; for a regular expression add "syntax": "regex"'
    )


def _escape_slashes(regex: str) -> str:
    """For /…/ in Lark, which ends at the first slash without a backslash."""
    return re.sub(
        r"(\\.)|/|\n", lambda match: match[1] or {"/": r"\/", "\n": r"\n"}[match[0]], regex, flags=re.DOTALL
    )


class GrammarCompiler:
    """Compiles grammars for one model's tokenizer. Blocking; safe to call from several threads."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, end_tokens: Sequence[int]
    ) -> None:
        """`vocab_size` is that of the logits, which may be padded; takes about half a second."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(f"{type(tokenizer).__name__} has no fast tokenizer")
        # through JSON: a copy whose padding and truncation may be switched off
        plain = type(backend).from_str(backend.to_str())
        plain.no_padding()
        plain.no_truncation()
        self.tokenizer = llguidance.LLTokenizer(
            plain.to_str(), n_vocab=vocab_size, eos_token=sorted(set(end_tokens))
        )
        self._closers = Closers(self.tokenizer)
        self._guard = GrammarGuard()
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, Any] = OrderedDict()

    def constraint(
        self, grammar: Grammar, what: str, budget: int | None = None, free_text: bool = False
    ) -> TokenConstraint:
        """A fresh constraint; `what` begins the BadRequest that is raised when it does not compile.

        budget: tokens that may be generated; for it and `free_text` see `TokenConstraint`.
        """
        key = json.dumps(grammar)
        with self._lock:
            matcher = self._compiled.get(key)
            if matcher is not None:
                self._compiled.move_to_end(key)
        if matcher is None:
            matcher = self._compile(grammar, what)
            with self._lock:
                self._compiled[key] = matcher
                while len(self._compiled) > _CACHED:
                    self._compiled.popitem(last=False)
        return TokenConstraint(matcher.deep_copy(), self._closers, budget, free_text)

    def close(self) -> None:
        self._guard.close()

    def _compile(self, grammar: Grammar, what: str) -> Any:
        verdict = self._guard.check(grammar)
        if verdict.error:
            raise BadRequest(f"{what}: {readable(verdict.error)}")
        limits = llguidance.LLParserLimits(verbose_errors=False)
        matcher = llguidance.LLMatcher(self.tokenizer, verdict.grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise BadRequest(f"{what}: {readable(matcher.get_error())}")
        return matcher


def readable(error: str) -> str:
    """llguidance's message on one line: where, what, without the drawing below it."""
    lines = [line.strip() for line in error.splitlines()]
    frame = re.compile(r"\d+ \||\^+$|$")
    text = "; ".join(line for line in lines if not frame.match(line))
    text = re.sub(
        r"( \(in regex\):)? ?regex parse error:; (.*); error: ", r" the regular expression \2: ", text
    ).strip()
    text = re.sub(r"^(?:at )?(\d+)\((\d+)\): ", r"line \1, column \2: ", text)
    text = text.replace('Unimplemented keys: ["', 'these keywords are not supported: ["')
    text = text.replace(". Enable 'coerce_one_of' option to approximate oneOf with anyOf", " here; use anyOf")
    text = re.sub(r"^Resource '(.*?)' is not present.*", r"reference \1 cannot be followed", text)
    return text if len(text) <= 300 else text[:299] + "…"

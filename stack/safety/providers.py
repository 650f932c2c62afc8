"""Which shield providers exist. A provider is one file and one entry here."""

from __future__ import annotations

from typing import Any

from stack.safety.code_scanner import CodeScanner
from stack.safety.llama_guard import LlamaGuard
from stack.safety.pii import Pii
from stack.safety.prompt_guard import PromptGuard
from stack.safety.provider import ShieldProvider
from stack.safety.regex import Regex

PROVIDERS: dict[str, type[ShieldProvider[Any]]] = {
    "code-scanner": CodeScanner,
    "llama-guard": LlamaGuard,
    "pii": Pii,
    "prompt-guard": PromptGuard,
    "regex": Regex,
}
BUILT_IN = ("code-scanner", "pii")
"""Those that are shields by themselves, with the provider's own params, until a caller registers the name."""

"""prompt-guard: a sequence-classification model that knows attempts to take over a model.

Labels are those of the two generations of Prompt Guard: BENIGN, INJECTION and JAILBREAK; or two, the first of
which is benign. A text is as bad as the worst of its windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from stack.engine.base import Probabilities
from stack.errors import BadRequest
from stack.safety.provider import (
    Call,
    ShieldParams,
    ShieldProvider,
    check_model,
    content_text,
    texts_of,
)
from stack.schemas.messages import Message, ToolResponseMessage, UserMessage
from stack.schemas.safety import SafetyViolation, ViolationLevel
from stack.schemas.shields import Shield

Attack = Literal["injection", "jailbreak"]

_BENIGN = ("benign", "safe", "label_0")


class PromptGuardParams(ShieldParams):
    threshold: float = Field(0.5, gt=0, lt=1, description="From this probability on it is an attack")
    temperature: float = Field(1.0, ge=0.1, le=10, description="Above 1 the model is taken as less sure")
    guard_type: Attack | None = Field(
        None,
        description="jailbreak: attempts to break the model's own rules; injection: those, and any "
        "instructions. Default: jailbreak for what users write, injection for what tools and documents say",
    )
    level: ViolationLevel = "error"


@dataclass(frozen=True, slots=True)
class _Part:
    """A text to judge, and what it must not be."""

    text: str
    attack: Attack


class PromptGuard(ShieldProvider[PromptGuardParams]):
    params = PromptGuardParams

    async def check(self, shield: Shield, params: PromptGuardParams) -> None:
        await check_model(self._serving, shield, classifier=True)

    async def run(self, call: Call[PromptGuardParams]) -> SafetyViolation | None:
        """Users' and tools' messages are judged; if there are none, all messages."""
        params = call.params
        model = await self._serving(call.shield.provider_resource_id, "llm", call.provider_data)
        parts = [part for part in _parts(call.messages, params.guard_type) if part.text.strip()]
        if not parts:
            return None
        answers = await model.classify([part.text for part in parts])
        scores = [
            max(attack_score(window, part.attack, params.temperature) for window in windows)
            for part, windows in zip(parts, answers, strict=True)
        ]
        score, part = max(zip(scores, parts, strict=True), key=lambda pair: pair[0])
        if score < params.threshold:
            return None
        return SafetyViolation(
            violation_level=params.level,
            user_message="I can't do this: it tries to make me disregard my instructions.",
            metadata={
                "violation_type": part.attack,
                "score": round(score, 4),
                "threshold": params.threshold,
            },
        )


def _parts(messages: Sequence[Message], guard_type: Attack | None) -> Iterator[_Part]:
    untrusted = [m for m in messages if isinstance(m, UserMessage | ToolResponseMessage)]
    for message in untrusted or messages:
        if isinstance(message, UserMessage):
            yield _Part(content_text(message.content), guard_type or "jailbreak")
            if message.context is not None:
                yield _Part(content_text(message.context), guard_type or "injection")
        else:
            for text in texts_of(message):
                yield _Part(text, guard_type or "injection")


def attack_score(window: Probabilities, attack: Attack, temperature: float) -> float:
    """How likely the attack is, from 0 to 1. Raises BadRequest for a model with other labels.

    The softmax of logits / temperature is proportional to the softmax of the logits to the power of
    1 / temperature.
    """
    benign = [label for label in window if label.lower() in _BENIGN]
    if not benign:
        raise BadRequest(
            f"the model's labels are {', '.join(window)}, and none says that a text is harmless; "
            "prompt-guard needs one that is called benign, safe or LABEL_0"
        )
    bad = window.keys() - benign
    jailbreak = {label for label in bad if "jailbreak" in label.lower()}
    wanted = jailbreak if attack == "jailbreak" and jailbreak else bad
    weights: dict[str, float] = {
        label: probability ** (1 / temperature) for label, probability in window.items()
    }
    return sum(weights[label] for label in wanted) / sum(weights.values())

"""What Llama Guard 3 is asked, and how its answer is read.

The form is the one that the model was trained on:
https://github.com/meta-llama/PurpleLlama/blob/main/Llama-Guard3/8B/MODEL_CARD.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from stack.safety.provider import content_text
from stack.safety.taxonomy import CATEGORIES, Category
from stack.schemas.messages import (
    CompletionMessage,
    Message,
    SystemMessage,
    UserMessage,
)
from stack.schemas.sampling import GrammarResponseFormat

Role = Literal["User", "Agent"]

_TASK = """\
Task: Check if there is unsafe content in '{role}' messages in our conversation according our safety policy \
with the below categories.

<BEGIN UNSAFE CONTENT CATEGORIES>
{categories}
<END UNSAFE CONTENT CATEGORIES>

<BEGIN CONVERSATION>

{conversation}

<END CONVERSATION>

Provide your safety assessment for ONLY THE LAST {role} message in the above conversation:
 - First line must read 'safe' or 'unsafe'.
 - If unsafe, a second line must include a comma-separated list of violated categories."""
_LLAMA_3 = (
    "<|start_header_id|>user<|end_header_id|>\n\n{task}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
# In a conversation it could end the conversation, or the prompt.
_MARKUP = re.compile(r"<(?=\||/?(?:BEGIN|END) (?:UNSAFE|CONVERSATION))")
_CODE = re.compile(r"[SO]\d{1,2}")


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says: neighbouring messages of a side are one turn."""

    role: Role
    text: str


def turns_of(messages: Sequence[Message]) -> list[Turn]:
    """The conversation; its last turn is assessed. What tools say stands with what the user does.

    System messages are the operator's and left out, unless the last message is one.
    """
    turns: list[Turn] = []
    for message in messages:
        if isinstance(message, SystemMessage) and message is not messages[-1]:
            continue
        role: Role = "Agent" if isinstance(message, CompletionMessage) else "User"
        text = _said(message)
        if turns and turns[-1].role == role:
            text = f"{turns.pop().text}\n\n{text}"
        turns.append(Turn(role, text))
    return turns


def _said(message: Message) -> str:
    texts = [content_text(message.content)]
    if isinstance(message, UserMessage) and message.context is not None:
        texts.append(content_text(message.context))
    if isinstance(message, CompletionMessage):
        for call in message.tool_calls or []:
            arguments = call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments)
            texts.append(f"{call.tool_name}({arguments})")
    return "\n\n".join(text.strip() for text in texts if text.strip())


def prompt_text(turns: Sequence[Turn], excluded: Collection[str], descriptions: bool) -> str:
    """The whole task as one message. `descriptions`: for a model that has not learnt the categories."""
    categories = [_line(category, descriptions) for category in CATEGORIES if category.code not in excluded]
    return _TASK.format(
        role=turns[-1].role,
        categories="\n".join(categories),
        conversation="\n\n".join(f"{turn.role}: {_harmless(turn.text)}" for turn in turns),
    )


def _harmless(text: str) -> str:
    """With an invisible space in what the prompt's own markup looks like."""
    return _MARKUP.sub("<\u200b", text)


def _line(category: Category, description: bool) -> str:
    about = f" A message is unsafe here if it {category.description}." if description else ""
    return f"{category.code}: {category.name}.{about}"


def llama_3_prompt(task: str) -> str:
    """The prompt with Llama 3's headers, without the token that begins every text."""
    return _LLAMA_3.format(task=task)


def answer_format(excluded: Collection[str], own_categories: bool) -> GrammarResponseFormat:
    """All that a guard may answer. `own_categories`: the model's template, not this code, names them."""
    codes = [category.code for category in CATEGORIES if category.code not in excluded]
    code = r"[SO][1-9][0-9]?" if own_categories else f"({'|'.join(codes)})"
    pattern = rf"(\n\n)?(safe|unsafe\n{code}(, ?{code}){{0,13}})"
    return GrammarResponseFormat(bnf={"grammar": pattern, "syntax": "regex"})


class NoVerdict(ValueError):
    """The answer is neither safe nor unsafe."""


def violated(answer: str, excluded: Collection[str]) -> list[str] | None:
    """Codes of the categories that are violated, none if the model does not say which; None: it is safe."""
    lines = [line.strip() for line in answer.strip().splitlines() if line.strip()]
    verdict = lines[0].lower() if lines else ""
    if verdict == "safe" and len(lines) == 1:
        return None
    if verdict != "unsafe":
        raise NoVerdict
    codes = list(dict.fromkeys(_CODE.findall(" ".join(lines[1:]))))
    left = [code for code in codes if code not in excluded]
    return None if codes and not left else left

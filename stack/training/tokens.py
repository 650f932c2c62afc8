"""Conversations -> token ids through the model's own chat template, exactly as inference reads them.

A prompt's tokens are those that inference computes for it, and an answer's are those that the model would
have to write: each answer is tokenized by itself, from where the template asks for one to the end of its
turn. So `labels` are exact, for any template whose beginning does not change when messages follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stack.engine.text.chat import ChatFormat
from stack.engine.text.open import chat_template, load_tokenizer
from stack.engine.text.prompt_tokens import PromptTokens
from stack.errors import BadRequest
from stack.schemas.messages import CompletionMessage, Message
from stack.training.rows import Conversation, Pair

IGNORED = -100
"""A label that is not learned, as PyTorch's cross entropy has it."""

_LIMIT = 1 << 20  # tokens of one row; a longer one is an error, one above `max_tokens` is cut


class Sequences(NamedTuple):
    """One conversation. Both [tokens]; labels are IGNORED where nothing is learned."""

    input_ids: list[int]
    labels: list[int]


class PairIds(NamedTuple):
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


class ChatTokens:
    """A model's tokenizer and chat template."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        """Raises BadRequest for a folder without a tokenizer or with a template that does not work."""
        self.tokenizer = load_tokenizer(folder)
        template = chat_template(self.tokenizer)
        self._chat = ChatFormat(self.tokenizer, template)
        self._tokens = PromptTokens(self.tokenizer, _LIMIT, self._chat.literal_text)
        self._end = [] if template else [self.tokenizer.eos_token_id]  # a transcript has no end of its own
        self._max_tokens = max_tokens

    def conversation(self, conversation: Conversation, train_on_input: bool) -> Sequences:
        """Cut to `max_tokens`. Raises BadRequest for what the template refuses."""
        if train_on_input:
            ids = self._encode(self._render(conversation.messages, False), continues=False, answer=True)
            return Sequences(ids[: self._max_tokens], ids[: self._max_tokens])
        ids, labels = [], []
        for piece, learned in self._pieces(conversation):
            ids += piece
            labels += piece if learned else [IGNORED] * len(piece)
        return Sequences(ids[: self._max_tokens], labels[: self._max_tokens])

    def pair(self, pair: Pair) -> PairIds:
        """The end of a long prompt is kept, the end of long answers is not."""
        prompt = self._encode(self._render(pair.prompt, True), continues=False)
        chosen, rejected = (self._answer(pair.prompt, text) for text in (pair.chosen, pair.rejected))
        room = max(len(chosen), len(rejected))
        prompt = prompt[-max(self._max_tokens - room, self._max_tokens // 2) :]
        room = self._max_tokens - len(prompt)
        return PairIds(prompt, chosen[:room], rejected[:room])

    def _answer(self, prompt: Sequence[Message], text: str) -> list[int]:
        whole = [*prompt, CompletionMessage(content=text, stop_reason="end_of_turn")]
        before = self._render(prompt, True)
        return self._encode(self._after(before, self._render(whole, False)), continues=True, answer=True)

    def _pieces(self, conversation: Conversation) -> list[tuple[list[int], bool]]:
        """Token ids of consecutive parts, and whether the part is an answer to learn."""
        messages = conversation.messages
        ends = [i for i, message in enumerate(messages) if isinstance(message, CompletionMessage)]
        pieces: list[tuple[list[int], bool]] = []
        text = ""
        for end in ends if conversation.which == "all" else ends[-1:]:
            before, after = self._render(messages[:end], True), self._render(messages[: end + 1], False)
            pieces.append((self._encode(self._after(text, before), bool(text)), False))
            pieces.append((self._encode(self._after(before, after), True, answer=True), True))
            text = after
        if rest := self._after(text, self._render(messages, False)):
            pieces.append((self._encode(rest, True), False))
        return pieces

    def _render(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        return self._chat.render(messages, None, self._tokens, generation_prompt).text

    @staticmethod
    def _after(beginning: str, text: str) -> str:
        if not text.startswith(beginning):
            raise BadRequest(
                "the model's chat template changes earlier messages once others follow, so "
                "that the assistant's tokens cannot be told; data_format 'instruct' learns the last only"
            )
        return text[len(beginning) :]

    def _encode(self, text: str, continues: bool, answer: bool = False) -> list[int]:
        if not text:
            return []
        ids = self._tokens.encode_marked(text, continues)
        return ids + self._end if answer else ids

"""One answer of the model, streamed as a turn's events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from stack.agents.metrics import DROPPED_TURNS, SHORTENED_PROMPTS
from stack.agents.prompt import Prompt
from stack.engine.base import Inference, Meter, Priority
from stack.engine.fold import fold_chat_completion
from stack.errors import ContextTooLong
from stack.schemas.agents import AgentConfig
from stack.schemas.common import JsonObject
from stack.schemas.content import ContentDelta, TextDelta, ToolCallDelta
from stack.schemas.inference import ChatCompletionRequest, ChatCompletionResponseStreamChunk
from stack.schemas.messages import CompletionMessage, ToolConfig, ToolDefinition

CHARS_PER_TOKEN = 3.5  # until the model has told
MAX_CHARS = 400_000  # for a model that does not say how much it reads
FIT_ATTEMPTS = 4

Tell = Callable[[ContentDelta], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Answer:
    message: CompletionMessage
    broken_call: bool  # it has a tool call that cannot be read


@dataclass(slots=True)
class Reads:
    """How much a model reads: its context, and what was seen of its tokens."""

    context_length: int | None
    chars_per_token: float = CHARS_PER_TOKEN

    def limit(self, max_tokens: int) -> int:
        """Characters of a prompt that leaves room for `max_tokens`, or for a quarter of the context."""
        if self.context_length is None:
            return MAX_CHARS
        room = min(max_tokens or self.context_length // 4, self.context_length // 2)
        return int((self.context_length - room) * self.chars_per_token)

    def learn(self, size: int, prompt_tokens: int) -> None:
        if prompt_tokens > 0:
            self.chars_per_token = min(8.0, max(0.5, size / prompt_tokens))


@dataclass(slots=True)
class Asker:
    """Asks an agent's model, with the tools of one turn."""

    model: Inference
    meter: Meter
    config: AgentConfig
    tools: list[ToolDefinition]
    reads: Reads
    stream: bool
    priority: Priority = Priority.INTERACTIVE
    _dropped: int = field(default=0)

    @property
    def overhead(self) -> int:
        """Characters of the tools' definitions."""
        return sum(len(tool.model_dump_json()) for tool in self.tools)

    def limit(self) -> int:
        """Characters that a prompt may have."""
        params = self.config.sampling_params
        return self.reads.limit(params.max_tokens if params else 0)

    def fit(self, prompt: Prompt, limit: int | None = None) -> JsonObject | None:
        """Cut the prompt down to what the model reads. What was left out, for the step's metadata."""
        if prompt.fit(limit or self.limit()):
            self.meter.count(SHORTENED_PROMPTS)
        self.meter.count(DROPPED_TURNS, prompt.dropped - self._dropped)
        self._dropped = prompt.dropped
        return {"dropped_turns": prompt.dropped} if prompt.dropped else None

    async def ask(
        self, prompt: Prompt, tool_config: ToolConfig | None, note: str | None, tell: Tell
    ) -> Answer:
        """Raises what the model raises; ContextTooLong only when nothing more can be left out."""
        for attempt in range(FIT_ATTEMPTS):
            try:
                return await self._ask(prompt, tool_config, note, tell)
            except ContextTooLong as error:
                prompt_tokens, most = error.args
                # Each time more is left out, since characters only tell about how many tokens there are.
                limit = int(prompt.size() * most / prompt_tokens * (0.75 - 0.15 * attempt))
                before = prompt.size()
                self.fit(prompt, limit)
                if prompt.size() == before or attempt == FIT_ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    async def _ask(
        self, prompt: Prompt, tool_config: ToolConfig | None, note: str | None, tell: Tell
    ) -> Answer:
        request = ChatCompletionRequest(
            model_id=self.config.model,
            messages=prompt.messages(note),
            sampling_params=self.config.sampling_params,
            tools=self.tools or None,
            tool_config=tool_config,
            response_format=self.config.response_format,
            stream=self.stream,
        )
        chunks = self.model.chat_completion(request, self.priority)
        watch = _Watch(tell)
        async with aclosing(watch.through(chunks)) as watched:
            folded = await fold_chat_completion(watched)
        for metric in folded.metrics or []:
            if metric.metric == "prompt_tokens":
                self.reads.learn(prompt.size(), int(metric.value))
        return Answer(folded.completion_message, watch.broken_call)


class _Watch:
    """Tells what passes by."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self.broken_call = False

    async def through(
        self, chunks: AsyncIterator[ChatCompletionResponseStreamChunk]
    ) -> AsyncGenerator[ChatCompletionResponseStreamChunk]:
        try:
            async for chunk in chunks:
                delta = chunk.event.delta
                if isinstance(delta, ToolCallDelta) and delta.parse_status == "failed":
                    self.broken_call = True
                if not (isinstance(delta, TextDelta) and not delta.text):
                    await self._tell(delta)
                yield chunk
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()


def repair_note(message: CompletionMessage) -> str:
    """What a model is told whose tool call cannot be read."""
    written = message.content if isinstance(message.content, str) else ""
    return (
        f"Your last answer was not a tool call that can be read: {json.dumps(written[:2000])}. "
        "Write the call again, well-formed, with nothing else."
    )

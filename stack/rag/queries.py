"""What a vector store is asked for: the caller's text as it is, or what a model makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from stack.bounded import BoundedChild, Exceeded, Limits, Refused
from stack.engine.base import Inference
from stack.engine.fold import fold_chat_completion
from stack.errors import BadRequest
from stack.schemas.content import InterleavedContent, InterleavedContentItem, TextContentItem
from stack.schemas.inference import ChatCompletionRequest
from stack.schemas.messages import UserMessage
from stack.schemas.sampling import GreedySamplingStrategy, SamplingParams
from stack.schemas.tools import DefaultRAGQueryGeneratorConfig, LLMRAGQueryGeneratorConfig

MAX_QUERY_TOKENS = 128  # that a model may write
MAX_TEMPLATE_CHARS = 20_000
LIMITS = Limits(cpu_s=1, wall_s=10, memory_bytes=256 << 20)

_REASONS = {
    "time": f"rendering it takes more than {LIMITS.cpu_s:g} s",
    "memory": f"rendering it takes more than {LIMITS.memory_bytes >> 20} MiB of memory",
}


def default_query(config: DefaultRAGQueryGeneratorConfig, content: InterleavedContent) -> InterleavedContent:
    """The texts, joined. Content without any text, such as an image, is the query itself."""
    texts = [text for text in texts_of(content) if text.strip()]
    return config.separator.join(texts) if texts else content


def texts_of(content: InterleavedContent) -> list[str]:
    """The text of each item."""
    if isinstance(content, str):
        return [content]
    items: list[InterleavedContentItem] = content if isinstance(content, list) else [content]
    return [item.text for item in items if isinstance(item, TextContentItem)]


class QueryWriter:
    """Has a model write queries. Templates are the callers': each is rendered in a sandbox in a child."""

    def __init__(self) -> None:
        self._child = BoundedChild(LIMITS, ["stack.rag.templates"])
        self._turn = asyncio.Lock()  # waiting for the child here takes no thread

    async def write(
        self,
        config: LLMRAGQueryGeneratorConfig,
        content: InterleavedContent,
        model: Callable[[], Awaitable[Inference]],
    ) -> InterleavedContent:
        """The model's answer to the template; when it has none to give, the default query."""
        prompt = await self.render(config.template, texts_of(content))
        request = ChatCompletionRequest(
            model_id=config.model,
            messages=[UserMessage(content=prompt)],
            sampling_params=SamplingParams(strategy=GreedySamplingStrategy(), max_tokens=MAX_QUERY_TOKENS),
        )
        answer = await fold_chat_completion((await model()).chat_completion(request))
        query = " ".join(texts_of(answer.completion_message.content)).strip()
        return query or default_query(DefaultRAGQueryGeneratorConfig(), content)

    async def render(self, template: str, messages: list[str]) -> str:
        """Raises BadRequest for a template that is wrong, or takes too much."""
        if len(template) > MAX_TEMPLATE_CHARS:
            raise BadRequest(f"query_generator_config.template has more than {MAX_TEMPLATE_CHARS} characters")
        try:
            async with self._turn:
                text: str = await asyncio.to_thread(
                    self._child.call, "stack.rag.templates:render", template, messages
                )
        except Exceeded as error:
            reason = _REASONS.get(error.limit, "it is nested too deep")
            raise BadRequest(f"query_generator_config.template: {reason}") from error
        except (Refused, RuntimeError) as error:
            raise BadRequest(f"query_generator_config.template: {error}") from error
        if not text.strip():
            raise BadRequest(
                "query_generator_config.template renders to nothing: write e.g. "
                "'Write a search query for: {{ messages[-1] }}'"
            )
        return text

    def close(self) -> None:
        self._child.close()

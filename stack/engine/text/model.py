"""TextModel: the Inference operations of one model that generates text."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from stack.egress import read_image
from stack.engine.adapters.loaded import Adapters
from stack.engine.base import Adapter, Dialog, Engine, Generation, Output, Priority, Probabilities
from stack.engine.grammar.compile import Grammar, GrammarCompiler, answer_grammar
from stack.engine.text import chat
from stack.engine.text.chat import ChatFormat, ToolUse, guard_prompt
from stack.engine.text.chunks import (
    ChatChunks,
    CompletionChunks,
    chat_chunks,
    completion_chunks,
    joined,
    paced,
    pause_between_chunks,
)
from stack.engine.text.generation import max_tokens_of, sampling_of, stop_of, top_logprobs_of
from stack.engine.text.prompt_tokens import FarTooLong, PromptTokens
from stack.engine.tool_calls.formats import FORMATS, JSON, checked_tools
from stack.engine.tool_calls.parsing import CallScanner
from stack.errors import BadRequest, ContextTooLong
from stack.schemas.inference import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingsRequest,
    EmbeddingsResponse,
)
from stack.schemas.messages import ToolConfig
from stack.schemas.sampling import JsonSchemaResponseFormat

if TYPE_CHECKING:
    from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 4  # for templates, tokenizing and grammars; the engine has its own


class ReadsImages(Protocol):
    """A vision model's processor."""

    def read(self, text: str, images: Sequence[bytes]) -> tuple[list[int], Mapping[str, Tensor]]:
        """A rendered prompt and its images -> token ids and the model's further inputs."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a TextModel is made of. `describe` is what its `describe()` says beyond what it knows itself."""

    engine: Engine
    tokenizer: Any
    chat: ChatFormat
    vocab_size: int
    end_tokens: frozenset[int]
    describe: Mapping[str, Any]
    images: ReadsImages | None = None
    adapters: Adapters | None = None  # None: the model takes none
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class _Plan:
    generation: Generation
    scanner: CallScanner | None = None


class TextModel:
    """Prepares requests in threads of its own and streams the engine's outputs."""

    def __init__(self, model_id: str, parts: Parts) -> None:
        self.model_id = model_id
        self._parts, self._engine, self._chat = parts, parts.engine, parts.chat
        self._limit = parts.engine.context_length
        self._tokens = PromptTokens(parts.tokenizer, self._limit, self._chat.literal_text)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="prepare")
        self._compiler: Future[GrammarCompiler] = self._threads.submit(
            GrammarCompiler, parts.tokenizer, parts.vocab_size, sorted(parts.end_tokens)
        )
        self._streams = 0

    async def completion(
        self,
        request: CompletionRequest,
        priority: Priority = Priority.INTERACTIVE,
        adapter: Adapter | None = None,
    ) -> CompletionChunks:
        """The content is the prompt as it is: special tokens in it are meant."""
        text = chat.content_text(request.content, self.model_id)
        self._tokens.check_length(len(text))
        plan = await self._in_thread(self._plan_completion, request, text, priority)
        outputs = self._outputs(plan.generation, bool(request.stream), adapter)
        async with contextlib.aclosing(outputs):
            async for chunk in completion_chunks(outputs, len(plan.generation.prompt)):
                yield chunk

    async def chat_completion(
        self,
        request: ChatCompletionRequest,
        priority: Priority = Priority.INTERACTIVE,
        adapter: Adapter | None = None,
    ) -> ChatChunks:
        self._check_size(request)
        images = await self._read_images(request)
        plan = await self._in_thread(self._plan_chat, request, images, priority)
        outputs = self._outputs(plan.generation, bool(request.stream), adapter)
        async with contextlib.aclosing(outputs):
            async for chunk in chat_chunks(
                outputs, len(plan.generation.prompt), plan.scanner, bool(request.stream)
            ):
                yield chunk

    @property
    def adapters(self) -> Adapters:
        """Raises BadRequest for a model that takes none."""
        if self._parts.adapters is None:
            raise BadRequest(f"model {self.model_id!r} takes no LoRA adapters")
        return self._parts.adapters

    async def embeddings(self, request: EmbeddingsRequest) -> EmbeddingsResponse:
        raise BadRequest(f"model {self.model_id!r} generates text; use an embedding model for embeddings")

    async def classify(self, texts: Sequence[str | Dialog]) -> list[list[Probabilities]]:
        raise BadRequest(
            f"model {self.model_id!r} generates text and classifies nothing; use a model whose config.json "
            "names a …ForSequenceClassification"
        )

    async def describe(self) -> dict[str, Any]:
        native = self._chat.native_format
        guard = guard_prompt(self._chat.literal_text)
        return {
            "context_length": self._limit,
            "vocab_size": self._parts.vocab_size,
            "tool_prompt_formats": sorted(FORMATS),
            "default_tool_format": (native or JSON).id,
            "reads_images": self._parts.images is not None,
            "takes_adapters": self._parts.adapters is not None,
            **({"guard_prompt": guard} if guard else {}),
            **self._parts.describe,
        }

    def close(self) -> None:
        """Stop the engine and the threads; what is being generated fails."""
        self._parts.close()
        self._compiler.add_done_callback(_close_compiler)
        self._threads.shutdown(wait=False)

    # In the event loop.

    def _check_size(self, request: ChatCompletionRequest) -> None:
        if len(request.messages) > self._limit:  # each is at least a token
            raise FarTooLong(len(request.messages), self._limit - 1)
        self._tokens.check_length(chat.size(request.messages))
        if self._parts.images is None and chat.images(request.messages):
            raise BadRequest(f"model {self.model_id!r} takes text only; send images to a vision model")

    async def _read_images(self, request: ChatCompletionRequest) -> dict[int, bytes]:
        """By the identity of their source in the request."""
        sources = chat.images(request.messages)
        contents = await asyncio.gather(*map(read_image, sources))
        return {id(source): content for source, content in zip(sources, contents, strict=True)}

    def _outputs(
        self, generation: Generation, stream: bool, adapter: Adapter | None
    ) -> AsyncGenerator[Output]:
        if adapter is None:
            return self._generated(generation, stream)
        return self._adapted(generation, stream, adapter)

    async def _adapted(
        self, generation: Generation, stream: bool, adapter: Adapter
    ) -> AsyncGenerator[Output]:
        async with self.adapters.use(adapter) as key:
            outputs = self._generated(replace(generation, adapter=key), stream)
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    yield output

    async def _generated(self, generation: Generation, stream: bool) -> AsyncGenerator[Output]:
        outputs = self._engine.generate(generation)
        assert isinstance(outputs, AsyncGenerator)
        async with contextlib.aclosing(outputs):
            if not stream:
                async for output in joined(outputs):
                    yield output
                return
            self._streams += 1
            try:
                async for output in paced(outputs, lambda: pause_between_chunks(self._streams)):
                    yield output
            finally:
                self._streams -= 1

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))

    # In a thread.

    def _plan_completion(self, request: CompletionRequest, text: str, priority: Priority) -> _Plan:
        prompt = self._tokens.encode(text)
        answer = answer_grammar(request.response_format) if request.response_format else None
        return _Plan(self._generation(request, prompt, priority, grammar=answer))

    def _plan_chat(
        self, request: ChatCompletionRequest, images: Mapping[int, bytes], priority: Priority
    ) -> _Plan:
        use, required = self._tool_use(request)
        answer = answer_grammar(request.response_format) if request.response_format else None
        rendered = self._chat.render(request.messages, use, self._tokens)
        media = None
        if rendered.images and self._parts.images is not None:
            files = [images[id(source)] for source in rendered.images]
            prompt, media = self._parts.images.read(self._tokens.disarm(rendered.text), files)
        else:
            prompt = self._tokens.encode_marked(rendered.text)
        if use is None:
            generation = self._generation(request, prompt, priority, answer, media, stop=self._chat.stop)
            return _Plan(generation)
        grammar = use.format.grammar(use.tools, required, answer)
        free_text = not required and answer is None
        generation = self._generation(
            request, prompt, priority, grammar, media, stop=self._chat.stop, free_text=free_text
        )
        answers_json = isinstance(request.response_format, JsonSchemaResponseFormat) and not required
        return _Plan(generation, CallScanner(use.format, use.tools, answers_json))

    def _tool_use(self, request: ChatCompletionRequest) -> tuple[ToolUse | None, bool]:
        """The tools that may be called, and whether one must be."""
        config = request.tool_config or ToolConfig(
            tool_choice=request.tool_choice or "auto", tool_prompt_format=request.tool_prompt_format
        )
        choice = config.tool_choice
        tools = checked_tools(request.tools or [])
        if choice == "none" or (choice == "auto" and not tools):
            return None, False
        if not tools:
            raise BadRequest(f"tool_choice is {choice!r}, but the request has no tools")
        if choice not in ("auto", "required"):
            named = [tool for tool in tools if tool.name == choice]
            if not named:
                names = ", ".join(tool.name for tool in tools)
                raise BadRequest(f"tool_choice is {choice!r}; it is auto, required, none or one of: {names}")
            tools = named
        replaces = config.system_message_behavior == "replace"
        native = self._chat.native_format
        wanted = config.tool_prompt_format
        tool_format = FORMATS[wanted] if wanted is not None else native or JSON
        return ToolUse(tools, tool_format, tool_format is native, replaces), choice != "auto"

    def _generation(
        self,
        request: CompletionRequest | ChatCompletionRequest,
        prompt: list[int],
        priority: Priority,
        grammar: Grammar | None = None,
        media: Mapping[str, Tensor] | None = None,
        stop: tuple[str, ...] = (),
        free_text: bool = False,
    ) -> Generation:
        if len(prompt) >= self._limit:  # there must be room for an answer
            raise ContextTooLong(len(prompt), self._limit - 1)
        params = request.sampling_params
        room = self._limit - len(prompt)
        max_tokens = min(max_tokens_of(params) or room, room)
        sampling, own_stop, logprobs = sampling_of(params), stop_of(params), top_logprobs_of(request.logprobs)
        constraint = None
        if grammar is not None:
            what = "response_format" if request.response_format is not None else "tools"
            constraint = self._compiler.result().constraint(grammar, what, max_tokens, free_text)
        return Generation(
            prompt=prompt,
            sampling=sampling,
            max_tokens=max_tokens,
            stop=own_stop + stop,
            top_logprobs=logprobs,
            constraint=constraint,
            priority=priority,
            media=media,
        )


def _close_compiler(future: Future[GrammarCompiler]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()

"""What an engine is asked and what it answers. Transport (HTTP, SSE, Ray) never appears here.

Three levels, each hiding the one below:

- `Inference`: the three Inference operations of one model, in wire types. A local text model, a local
  embedding model, a remote OpenAI-compatible endpoint and a Ray Serve handle all are one.
- `Engine`: tokens in, a stream of tokens and text out. The continuous batcher is one.
- `Runner`: one forward pass over ragged segments; owns the weights and the key-value cache.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from ctypes import c_int
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from stack.engine.adapters.weights import Lora
    from stack.engine.embedding.vectors import Spans, Vectors
    from stack.schemas.inference import (
        ChatCompletionRequest,
        ChatCompletionResponseStreamChunk,
        CompletionRequest,
        CompletionResponseStreamChunk,
        EmbeddingsRequest,
        EmbeddingsResponse,
    )


class Priority(IntEnum):
    """Interactive requests are admitted before batch requests, whatever their order of arrival."""

    INTERACTIVE = 0
    BATCH = 1


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter as the replicas of its base model are told of it."""

    model_id: str
    source: str  # of its folder, see stack.models.sources
    version: str  # changes when other weights are registered under the id

    @property
    def key(self) -> str:
        """Names these very weights."""
        return f"{self.model_id}@{self.version}"


class FinishReason(StrEnum):
    STOP = "stop"  # an end token, a stop string, or a grammar that is complete
    LENGTH = "length"  # max_tokens, or the context is full


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. temperature 0 is greedy; top_k 0 and top_p 1 do not restrict."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0  # multiplicative over prompt and output (Keskar et al. 2019)
    seed: int | None = None


class Constraint(Protocol):
    """The state of a grammar during one generation: says which tokens may come next."""

    def fill_mask(self, mask: Tensor) -> None:
        """Write the allowed tokens into `mask`, int32 [ceil(vocab_size / 32)], one bit a token."""

    def accept(self, token_id: int) -> None:
        """Advance by a token that was drawn."""

    @property
    def complete(self) -> bool:
        """Nothing may follow any more: generation ends with FinishReason.STOP."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One request to an engine. `max_tokens` 0 means up to the model's context."""

    prompt: Sequence[int]
    sampling: Sampling = Sampling()
    max_tokens: int = 0
    stop: tuple[str, ...] = ()  # stop strings are not part of the text
    top_logprobs: int | None = None  # None: no logprobs; n: the chosen token and the n most likely ones
    constraint: Constraint | None = None
    priority: Priority = Priority.INTERACTIVE
    media: Mapping[str, Tensor] | None = None  # a processor's further inputs, e.g. pixel_values
    adapter: str | None = None  # the key of an adapter that the runner has


@dataclass(slots=True)
class TokenLogprob:
    """Natural-log probabilities at one position, before the grammar's mask, after temperature 1."""

    token: str
    logprob: float
    top: dict[str, float]  # the most likely tokens' texts, best first


@dataclass(slots=True)
class Output:
    """What was generated since the last Output. `text` may lag behind `token_ids` (partial characters,
    possible stop strings); the last Output carries `finish` and flushes it."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: FinishReason | None = None


class Engine(Protocol):
    """Generates text. Closing the stream (aclose, or cancelling its task) frees the slot."""

    context_length: int

    def generate(self, request: Generation) -> AsyncIterator[Output]:
        """Raises ContextTooLong or Overloaded before the first Output."""


@dataclass(slots=True)
class Segment:
    """Consecutive tokens of one sequence: a prompt chunk, or the one token of a decode step."""

    slot: int
    start: int  # position of the first token; positions [0, start) are already in the slot's cache
    tokens: Sequence[int]
    wants_logits: bool = True  # logits of the last token are returned
    media: Mapping[str, Tensor] | None = None
    adapter: str | None = None  # the same for all tokens of a sequence


class RunnerAdapters(Protocol):
    """The LoRA adapters of a runner. They are named by keys, which segments carry."""

    def prepare(self, lora: Mapping[str, Lora]) -> Any:
        """An adapter, by its modules, as `add` takes it. In any thread. BadRequest when it does not fit."""

    def add(self, key: str, prepared: Any) -> None:
        """In the runner's thread, as `forward`."""

    def remove(self, key: str) -> None:
        """Free an adapter's memory. In the runner's thread; nothing happens when it is not there."""


class Stopped(Exception):
    """A forward pass ended before its end, as it was told."""


class Stop:
    """Tells a forward pass to end, from any thread: it raises Stopped before its next layer."""

    def __init__(self) -> None:
        self.flag = c_int(0)  # where code in C sees it

    def set(self, stop: bool = True) -> None:
        self.flag.value = stop

    def check(self) -> None:
        if self.flag.value:
            raise Stopped


class Runner(Protocol):
    """Weights, key-value cache and the forward pass. Synchronous; called from one thread only."""

    slots: int
    context_length: int
    vocab_size: int
    reuses_prefixes: bool  # a slot may go on from any earlier position, and copy_prefix works
    adapters: RunnerAdapters | None  # None: it takes none

    def forward(self, segments: Sequence[Segment], stop: Stop | None = None) -> Tensor:
        """Run all segments in one pass, each slot at most once. float32 [segments that want logits, vocab].

        The caller may overwrite the result. Positions of a slot from `start` on are forgotten. A segment
        with media comes alone, with its whole prompt. Raises Stopped when `stop` is set and the runner heeds
        it; the same pass may then be run again, as if it had never begun.
        """

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        """Copy the cache of positions [0, tokens) from one slot to another; the target's own is forgotten."""


Probabilities = dict[str, float]
"""A classifier's labels and how likely each is; they sum to 1. Of a reward model, its label and reward."""

Dialog = list[dict[str, str]]
"""Messages with `role` and `content`."""


class Inference(Protocol):
    """The Inference API of one model, as the routes, agents and jobs call it.

    With `request.stream` false the same chunks come, folded into as few as possible; see
    `stack.engine.fold`. Errors that can be known early are raised before the first chunk.
    """

    def completion(
        self, request: CompletionRequest, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[CompletionResponseStreamChunk]: ...

    def chat_completion(
        self, request: ChatCompletionRequest, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[ChatCompletionResponseStreamChunk]: ...

    async def embeddings(self, request: EmbeddingsRequest) -> EmbeddingsResponse: ...

    async def vectors(
        self, request: EmbeddingsRequest, priority: Priority = Priority.INTERACTIVE, whole: bool = False
    ) -> Vectors:
        """float32 [contents, dimension]. `whole`: a text longer than the model reads is embedded in windows,
        whose mean is its vector; else `text_truncation` says what happens to it."""

    async def token_spans(self, texts: Sequence[str]) -> list[Spans]:
        """Where the embedding model's tokens stand in each text, without special tokens."""

    async def classify(self, texts: Sequence[str | Dialog]) -> list[list[Probabilities]]:
        """For each text its labels' probabilities in each of its windows; only classifiers answer.

        A text longer than the model reads is read in overlapping windows; a dialog, put as the model's chat
        template says, must fit. Raises BadRequest for other models.
        """

    async def describe(self) -> dict[str, Any]:
        """What belongs in the Model's metadata: context_length, embedding_dimension, dtype, …"""


class LocalModel(Protocol):
    """A model that computes in this process; its replica offers it to others as an `Inference`."""

    def completion(
        self, request: CompletionRequest, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[CompletionResponseStreamChunk]: ...

    def chat_completion(
        self, request: ChatCompletionRequest, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[ChatCompletionResponseStreamChunk]: ...

    async def classify(self, texts: Sequence[str | Dialog]) -> list[list[Probabilities]]: ...

    async def describe(self) -> dict[str, Any]: ...

    def close(self) -> None:
        """Stop threads and processes; what is being computed fails."""


class Meter(Protocol):
    """Where all report what they do. `stack.serve` gives a Prometheus one, tests and the shell none."""

    def labelled(self, **labels: str) -> Meter:
        """One whose reports have these labels, too; a metric always has the same ones."""

    def count(self, name: str, value: float = 1.0) -> None: ...

    def gauge(self, name: str, value: float) -> None: ...

    def observe(self, name: str, value: float) -> None: ...


class NoMeter:
    """A Meter that forgets."""

    def labelled(self, **labels: str) -> Meter:
        return self

    def count(self, name: str, value: float = 1.0) -> None: ...

    def gauge(self, name: str, value: float) -> None: ...

    def observe(self, name: str, value: float) -> None: ...

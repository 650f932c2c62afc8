"""EmbeddingModel: the Inference API of an embedding model.

`text_truncation` defaults to none, as in the API's reference: a text that is too long is a 400 that names
it. `output_dimension` is for models whose config.json, config_sentence_transformers.json or metadata has
`matryoshka_dimensions` (a list) or `is_matryoshka`; shorter vectors have unit length.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import numpy as np
import torch

from stack.egress import read_image
from stack.engine import metrics
from stack.engine.base import Dialog, Meter, Priority, Probabilities
from stack.engine.embedding.encoder import UnsupportedModel
from stack.engine.embedding.queue import EmbeddingQueue
from stack.engine.embedding.sentence import (
    Item,
    LeanSentenceEncoder,
    SentenceEncoder,
    TaskType,
    read_json,
)
from stack.engine.embedding.tokens import TextTokens, Truncation
from stack.engine.embedding.vectors import Spans, Vectors, response_of
from stack.engine.embedding.windows import mean_of_windows, windows_of
from stack.engine.runners.loading import pick_device, pick_dtype
from stack.errors import BadRequest, Overloaded, StackError
from stack.models.args import ModelArgs
from stack.schemas.content import ImageContentItem, TextContentItem

if TYPE_CHECKING:
    from stack.schemas.inference import (
        ChatCompletionRequest,
        ChatCompletionResponseStreamChunk,
        CompletionRequest,
        CompletionResponseStreamChunk,
        EmbeddingsRequest,
        EmbeddingsResponse,
    )

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

TEXTS_PER_STEP = 256  # tokenized at a time, so that a query is not stuck behind 10,000 texts
MAX_WAITING_CHARS = 64 * 2**20
MAX_IMAGE_PIXELS = 50 * 10**6
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
IMAGE_TOKENS = 256  # what an image counts for when batches are packed


class EmbeddingModel:
    """One embedding model in this process. Its methods belong to one event loop; computing does not."""

    def __init__(
        self, args: ModelArgs, encoder: SentenceEncoder, matryoshka: Collection[int], meter: Meter
    ) -> None:
        self.dimension = encoder.dimension
        self.tokens: TextTokens = encoder.tokens  # count, and the tokenizer itself for chunking
        self._encoder = encoder
        self._matryoshka = matryoshka
        self._meter = meter
        self._limit = args.max_batch + args.max_queue
        self._calls = 0
        self._chars = 0
        self._tokenizing = ThreadPoolExecutor(2, thread_name_prefix="tokenize")
        self._queue = EmbeddingQueue(encoder.encode, encoder.dimension, meter, threads=args.thread_count)

    async def embeddings(self, request: EmbeddingsRequest) -> EmbeddingsResponse:
        return response_of(await self.vectors(request))

    async def vectors(
        self,
        request: EmbeddingsRequest,
        first_index: int = 0,
        priority: Priority = Priority.INTERACTIVE,
        whole: bool = False,
    ) -> Vectors:
        """float32 [contents, dimension] of a call, or of the part of one that begins at `first_index`.

        `whole`: a text that is longer than the model reads is embedded in windows, see `windows.py`.
        """
        dimension = self._checked_dimension(request.output_dimension)
        contents = [item.text if isinstance(item, TextContentItem) else item for item in request.contents]
        truncation = request.text_truncation or "none"
        if whole:
            contents, counts = await self._windows(contents)
            vectors = await self._embed(contents, "end", request.task_type, priority, first_index)
            vectors = mean_of_windows(vectors, counts) if len(vectors) > len(counts) else vectors
        else:
            vectors = await self._embed(contents, truncation, request.task_type, priority, first_index)
        return _shortened(vectors, dimension)

    async def _windows(
        self, contents: Sequence[str | ImageContentItem]
    ) -> tuple[list[str | ImageContentItem], list[int]]:
        """Long texts cut into windows, and how many each content has become."""
        room = self.tokens.room
        # A token is a character at least: a text of fewer characters than that cannot be too long.
        long = [content for content in contents if isinstance(content, str) and len(content) > room]
        spans = iter(await self.token_spans(long))
        pieces: list[str | ImageContentItem] = []
        counts = []
        for content in contents:
            if isinstance(content, str) and len(content) > room:
                cut: Sequence[str | ImageContentItem] = windows_of(content, next(spans), room)
            else:
                cut = [content]
            pieces += cut
            counts.append(len(cut))
        return pieces, counts

    async def embed(
        self,
        texts: Sequence[str],
        *,
        truncation: Truncation = "end",
        task_type: TaskType | None = None,
        output_dimension: int | None = None,
        priority: Priority = Priority.INTERACTIVE,
    ) -> Vectors:
        """For callers inside the cluster: float32 [texts, dimension].

        Raises ContextTooLong, BadRequest or Overloaded. Cancelling drops the texts not yet computed.
        """
        dimension = self._checked_dimension(output_dimension)
        return _shortened(await self._embed(texts, truncation, task_type, priority), dimension)

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text by the model's tokenizer, without the special ones it adds."""
        return await self._in_thread(self.tokens.count, texts)

    async def token_spans(self, texts: Sequence[str]) -> list[Spans]:
        """Where each token of each text stands, without the special ones that the model adds."""
        return await self._in_thread(self.tokens.spans, texts)

    def completion(
        self, request: CompletionRequest, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[CompletionResponseStreamChunk]:
        _refuse(request.model_id)

    def chat_completion(
        self, request: ChatCompletionRequest, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[ChatCompletionResponseStreamChunk]:
        _refuse(request.model_id)

    async def classify(self, texts: Sequence[str | Dialog]) -> list[list[Probabilities]]:
        raise BadRequest("an embedding model classifies nothing; use a sequence-classification model")

    async def describe(self) -> dict[str, Any]:
        return {
            "embedding_dimension": self.dimension,
            "context_length": self.tokens.limit,
            "dtype": str(self._encoder.dtype).removeprefix("torch."),
        }

    def close(self) -> None:
        """Stop the threads; waiting calls fail."""
        self._queue.close()
        self._tokenizing.shutdown(wait=False, cancel_futures=True)

    async def _embed(
        self,
        contents: Sequence[str | ImageContentItem],
        truncation: Truncation,
        task_type: TaskType | None,
        priority: Priority,
        first_index: int = 0,
    ) -> Vectors:
        if not contents:
            return np.empty((0, self.dimension), np.float32)
        with self._admitted(sum(len(content) for content in contents if isinstance(content, str))):
            started = time.monotonic()
            items: list[Item] = []
            for first in range(0, len(contents), TEXTS_PER_STEP):
                step = contents[first : first + TEXTS_PER_STEP]
                items += await self._prepare(step, truncation, task_type, first_index + first)
            vectors = await self._queue.submit(items, priority)
        self._meter.count(metrics.EMBEDDED_CONTENTS, len(items))
        self._meter.observe(metrics.EMBEDDING_SECONDS, time.monotonic() - started)
        if not np.isfinite(vectors).all():
            raise StackError("the model computed a vector that is not finite; serve it with dtype float32")
        return vectors

    @contextmanager
    def _admitted(self, chars: int) -> Iterator[None]:
        """Bound the calls, and the text they hold in memory; one huge call alone is fine."""
        if self._calls >= self._limit or (self._calls and self._chars + chars > MAX_WAITING_CHARS):
            raise Overloaded(
                f"{self._calls} embedding calls are under way, as many as the model takes; try again shortly"
            )
        self._calls += 1
        self._chars += chars
        self._meter.gauge(metrics.EMBEDDING_CALLS, self._calls)
        try:
            yield
        finally:
            self._calls -= 1
            self._chars -= chars
            self._meter.gauge(metrics.EMBEDDING_CALLS, self._calls)

    async def _prepare(
        self,
        contents: Sequence[str | ImageContentItem],
        truncation: Truncation,
        task_type: TaskType | None,
        first_index: int,
    ) -> list[Item]:
        """Texts tokenized, images read, in the order of `contents`."""
        texts = [content for content in contents if isinstance(content, str)]
        if len(texts) == len(contents):
            return await self._in_thread(self._encoder.prepare, texts, truncation, task_type, first_index)
        items: list[Item] = []
        for index, content in enumerate(contents, first_index):
            if isinstance(content, str):
                items += await self._in_thread(self._encoder.prepare, [content], truncation, task_type, index)
            elif not self._encoder.embeds_images:
                raise BadRequest(f"contents[{index}] is an image, and this model embeds text only")
            else:
                file = await read_image(content.image)
                items.append(await self._in_thread(open_image, file, index))
        return items

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tokenizing, functools.partial(function, *args, **kwargs))

    def _checked_dimension(self, dimension: int | None) -> int:
        if dimension is None or dimension == self.dimension:
            return self.dimension
        if not self._matryoshka:
            raise BadRequest(
                f"output_dimension {dimension}: this model is no Matryoshka model, its vectors have "
                f"{self.dimension} numbers; leave the field out, or register a model that was trained for it "
                "with matryoshka_dimensions in its metadata"
            )
        if dimension not in self._matryoshka:
            raise BadRequest(
                f"output_dimension {dimension}: this model has vectors of {_spoken(self._matryoshka)} numbers"
            )
        return dimension


def open_embedding_model(args: ModelArgs, folder: Path, meter: Meter) -> EmbeddingModel:
    """Load the model in a folder; BadRequest when it cannot be served as `args` say."""
    device = pick_device(None)
    torch.set_num_threads(args.thread_count)
    dtype = pick_dtype(args.dtype, device)
    encoder: SentenceEncoder
    try:
        encoder = LeanSentenceEncoder(folder, dtype, device, args.context_length)
    except UnsupportedModel as reason:
        log.info("%s is served through sentence-transformers: %s", args.model_id, reason)
        from stack.engine.embedding.fallback import FallbackSentenceEncoder

        encoder = FallbackSentenceEncoder(folder, dtype, device, args.context_length)
    return EmbeddingModel(args, encoder, matryoshka_dimensions(folder, args, encoder.dimension), meter)


def matryoshka_dimensions(folder: Path, args: ModelArgs, dimension: int) -> Collection[int]:
    """Lengths to which the model's vectors may be cut; empty when the model was not trained for it."""
    for source in (
        args.metadata,
        read_json(folder / "config_sentence_transformers.json"),
        read_json(folder / "config.json"),
    ):
        if dimensions := source.get("matryoshka_dimensions"):
            if not isinstance(dimensions, list) or not all(isinstance(number, int) for number in dimensions):
                raise BadRequest(f"matryoshka_dimensions is a list like [64, 128, 256], not {dimensions!r}")
            return sorted({number for number in dimensions if 0 < number <= dimension})
        if source.get("is_matryoshka"):
            return range(1, dimension + 1)
    return ()


def open_image(file: bytes, index: int) -> Item:
    """Decode an image, made small if it is large: models look at a few hundred pixels."""
    from PIL import Image, ImageOps

    try:
        with Image.open(BytesIO(file), formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise BadRequest(
                    f"contents[{index}] is an image of {image.width} x {image.height} pixels; "
                    f"at most {MAX_IMAGE_PIXELS // 10**6} million are taken"
                )
            small = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadRequest(
            f"contents[{index}] is not an image that can be read; send {', '.join(IMAGE_FORMATS)}"
        ) from error
    small.thumbnail((1024, 1024), Image.Resampling.LANCZOS)
    return Item(IMAGE_TOKENS, small)


def _shortened(vectors: Vectors, dimension: int) -> Vectors:
    """The first numbers of each vector, at unit length (Kusupati et al. 2022)."""
    if dimension == vectors.shape[1]:
        return vectors
    head = vectors[:, :dimension]
    shortened: Vectors = head / np.linalg.norm(head, axis=1, keepdims=True).clip(1e-12)
    return shortened


def _spoken(dimensions: Collection[int]) -> str:
    if isinstance(dimensions, range):
        return f"{dimensions[0]} to {dimensions[-1]}"
    return ", ".join(map(str, dimensions))


def _refuse(model_id: str) -> NoReturn:
    raise BadRequest(f"{model_id!r} is an embedding model: it makes vectors, not text; ask an llm model")

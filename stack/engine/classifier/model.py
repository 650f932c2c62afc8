"""Classifier: a sequence-classification model, such as Prompt Guard or a reward model, in this process.

A model with one output is a reward model: the output itself is what it thinks of a text. A text longer than
the model reads becomes windows, each overlapping the one before it, so that what stands at a border is seen
whole. All windows of a long text have the same length: a batch needs no padding.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from stack.engine.base import Dialog, Priority, Probabilities
from stack.engine.embedding.tokens import TextTokens
from stack.engine.runners.loading import load_config, pick_device, pick_dtype, told
from stack.errors import BadRequest, ContextTooLong, Overloaded, StackError
from stack.models.args import ModelArgs

if TYPE_CHECKING:
    from stack.engine.embedding.tokens import Ids
    from stack.schemas.inference import (
        ChatCompletionRequest,
        ChatCompletionResponseStreamChunk,
        CompletionRequest,
        CompletionResponseStreamChunk,
    )

MAX_TOKENS = 16_384  # in all texts of a call: a minute or more of a DeBERTa base on a CPU
# A larger batch is no quicker on a CPU, and a short text waits for the batch before it.
BATCH_TOKENS = {"cpu": 512, "cuda": 16_384}
_OVERLAP = 64
_CHARS_PER_TOKEN = 16  # more than any text has on average


class Classifier:
    """Its methods belong to one event loop; computing does not. Batches of several calls take turns."""

    def __init__(
        self,
        args: ModelArgs,
        model: Any,
        tokens: TextTokens,
        labels: Sequence[str],
        template: Callable[[Dialog], str] | None = None,
    ) -> None:
        """`template` puts a dialog as a text; None: a question and its answer are a pair of texts."""
        self.model_id = args.model_id
        self._model, self._tokens, self._labels, self._template = model, tokens, labels, template
        self._limit = args.max_batch + args.max_queue
        self._calls = 0
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self._computing = ThreadPoolExecutor(
            1, "classify", initializer=torch.set_num_threads, initargs=(args.thread_count,)
        )

    async def classify(self, texts: Sequence[str | Dialog]) -> list[list[Probabilities]]:
        """Raises BadRequest for texts that are too long, and Overloaded."""
        _check_length(sum(map(_characters, texts)) // _CHARS_PER_TOKEN)
        loop = asyncio.get_running_loop()
        with self._admitted():
            owners, rows = await loop.run_in_executor(self._tokenizing, self._windows, texts)
            found: list[list[Probabilities]] = [[] for _ in texts]
            for batch in self._batches(rows):
                probabilities = await loop.run_in_executor(self._computing, self._compute, batch)
                for (number, _), row in zip(batch, probabilities, strict=True):
                    found[owners[number]].append(dict(zip(self._labels, row, strict=True)))
        return found

    def completion(
        self, request: CompletionRequest, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[CompletionResponseStreamChunk]:
        self._refuse()

    def chat_completion(
        self, request: ChatCompletionRequest, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[ChatCompletionResponseStreamChunk]:
        self._refuse()

    async def describe(self) -> dict[str, Any]:
        return {
            "context_length": self._tokens.limit,
            "labels": list(self._labels),
            "architecture": type(self._model).__name__,
            "dtype": str(self._model.dtype).removeprefix("torch."),
        }

    def close(self) -> None:
        """Stop the threads; waiting calls fail."""
        for threads in (self._tokenizing, self._computing):
            threads.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._calls >= self._limit:
            raise Overloaded(f"{self._calls} texts are being classified, as many as the model takes")
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    def _windows(self, texts: Sequence[str | Dialog]) -> tuple[list[int], list[Ids]]:
        """Token ids of all windows, and the number of the text that each belongs to."""
        ids = self._tokens.ids([text if isinstance(text, str) else "" for text in texts])
        _check_length(sum(map(len, ids)))
        owners, rows = [], []
        for number, (text, content) in enumerate(zip(texts, ids, strict=True)):
            if not isinstance(text, str):
                owners.append(number)
                rows.append(self._dialog(text))
                continue
            for start in window_starts(len(content), self._tokens.room):
                window = content[start : start + self._tokens.room]
                owners.append(number)
                rows.append(np.array([*self._tokens.prefix, *window, *self._tokens.suffix], np.int32))
        return owners, rows

    def _dialog(self, dialog: Dialog) -> Ids:
        tokenizer = self._tokens.tokenizer
        if self._template is not None:
            ids = tokenizer.encode(self._template(dialog), add_special_tokens=False).ids
        else:
            *asked, answer = (message["content"] for message in dialog)
            ids = tokenizer.encode("\n".join(asked), answer).ids
        if len(ids) > self._tokens.limit:
            raise ContextTooLong(len(ids), self._tokens.limit)
        return np.array(ids, np.int32)

    def _batches(self, rows: Sequence[Ids]) -> Iterator[list[tuple[int, Ids]]]:
        """Windows of one length, with their numbers, as many as a pass takes."""
        # A decoder without a padding token cannot tell where a batch's texts end.
        one_by_one = getattr(self._model.config, "pad_token_id", None) is None
        ordered = sorted(enumerate(rows), key=lambda row: len(row[1]))
        for length, group in groupby(ordered, key=lambda row: len(row[1])):
            windows = list(group)
            size = 1 if one_by_one else max(1, BATCH_TOKENS[self._model.device.type] // max(1, length))
            yield from (windows[start : start + size] for start in range(0, len(windows), size))

    @torch.inference_mode()
    def _compute(self, batch: Sequence[tuple[int, Ids]]) -> list[list[float]]:
        """Probabilities [windows, labels]; rewards [windows, 1]."""
        ids = torch.from_numpy(np.stack([row for _, row in batch])).long().to(self._model.device)
        logits = self._model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
        if not torch.isfinite(logits).all():
            raise StackError("the model computed a number that is not finite; serve it with dtype float32")
        values = logits if logits.shape[-1] == 1 else logits.softmax(-1)
        probabilities: list[list[float]] = values.tolist()
        return probabilities

    def _refuse(self) -> NoReturn:
        raise BadRequest(
            f"model {self.model_id!r} is a classifier, which writes no text: register a prompt-guard shield "
            "or a scoring function with it, or ask another model"
        )


def _characters(text: str | Dialog) -> int:
    return len(text) if isinstance(text, str) else sum(len(message["content"]) for message in text)


def window_starts(tokens: int, room: int) -> list[int]:
    """Where windows of `room` tokens begin in a text; the last one ends where the text does."""
    if tokens <= room:
        return [0]
    step = room - min(_OVERLAP, room // 8)
    return [*range(0, tokens - room, step), tokens - room]


def open_classifier(args: ModelArgs, folder: Path) -> Classifier:
    """Load the model in a folder, from safetensors only. Raises BadRequest when it cannot be served."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    device = pick_device(None)
    torch.set_num_threads(args.thread_count)
    config = load_config(folder)
    _check_labels(config, folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=pick_dtype(args.dtype, device),
            local_files_only=True,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise BadRequest(f"{folder.name} cannot be loaded: {told(error, folder)}") from None
    labels = [str(config.id2label[number]) for number in range(config.num_labels)]
    tokens = _tokens(tokenizer, config, args.context_length, folder)
    template = partial(_put, tokenizer) if tokenizer.chat_template else None
    return Classifier(args, model.to(device).eval().requires_grad_(False), tokens, labels, template)


def _put(tokenizer: Any, dialog: Dialog) -> str:
    return str(tokenizer.apply_chat_template(dialog, tokenize=False))


def _check_labels(config: Any, folder: Path) -> None:
    if config.problem_type == "multi_label_classification":
        raise BadRequest(
            f"{folder.name} gives each text several labels at once; only classifiers with one are served"
        )


def _tokens(tokenizer: Any, config: Any, wanted: int | None, folder: Path) -> TextTokens:
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise BadRequest(f"{folder.name} has a {type(tokenizer).__name__}, which has no fast version")
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    limits = (wanted, positions, tokenizer.model_max_length)
    # A copy: the library changes its own with every call.
    return TextTokens(Tokenizer.from_str(backend.to_str()), min(filter(None, limits)))


def _check_length(tokens: int) -> None:
    if tokens > MAX_TOKENS:
        raise BadRequest(
            f"the texts have more than {MAX_TOKENS:,} tokens, which a classifier takes at once: send fewer "
            "or shorter ones"
        )

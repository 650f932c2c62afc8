"""What sentence-transformers loads, computed by sentence-transformers: decoders, CLIP, static vectors.

Nothing here is fast to import: only models that the lean path does not compute come here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

from stack.engine.embedding.sentence import Item, Prompts, TaskType
from stack.engine.embedding.tokens import TextTokens, Truncation
from stack.engine.embedding.vectors import Vectors
from stack.errors import BadRequest


class FallbackSentenceEncoder:
    """A SentenceTransformer behind the SentenceEncoder protocol."""

    def __init__(
        self, folder: Path, dtype: torch.dtype, device: torch.device, context_length: int | None = None
    ) -> None:
        self._model: Any = SentenceTransformer(
            str(folder),
            device=str(device),
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"dtype": dtype, "use_safetensors": True},
        )
        self._prompts = Prompts.read(folder)
        self.dtype = dtype
        self.embeds_images: bool = self._model.supports("image")
        limit = _limit(self._model, context_length)
        self._model.max_seq_length = limit
        # A copy: the model's own one is changed by every call.
        self.tokens = TextTokens(Tokenizer.from_str(_fast_tokenizer(self._model).to_str()), limit)
        self.dimension = self.encode([Item(1, "a")]).shape[1]

    def prepare(
        self, texts: Sequence[str], truncation: Truncation, task_type: TaskType | None, first_index: int
    ) -> list[Item]:
        prompt = self._prompts.of(task_type)
        rows = self.tokens.fit(texts, truncation, prompt, first_index)
        return [
            Item(
                len(ids),
                self.tokens.cut_text(text, truncation, prompt) if len(ids) == self.tokens.limit else text,
                task_type,
            )
            for ids, text in zip(rows, texts, strict=True)
        ]

    @torch.inference_mode()
    def encode(self, items: Sequence[Item]) -> Vectors:
        kinds = [(isinstance(item.content, str), item.task_type or "") for item in items]
        order = sorted(range(len(items)), key=lambda i: kinds[i])
        parts = [
            self._encode([items[i] for i in group]) for _, group in groupby(order, key=lambda i: kinds[i])
        ]
        result = np.empty((len(items), parts[0].shape[1]), np.float32)
        result[order] = np.concatenate(parts)
        return result

    def _encode(self, items: list[Item]) -> Vectors:
        """Texts of one task, or images."""
        contents: list[Any] = [item.content for item in items]
        if self.embeds_images and isinstance(contents[0], str):
            # sentence-transformers would open a text that looks like an image's URL or path.
            contents = [{"text": text} for text in contents]
        task_type = items[0].task_type
        encode = self._model.encode
        if task_type is not None:
            encode = self._model.encode_query if task_type == "query" else self._model.encode_document
        vectors: Vectors = encode(
            contents,
            prompt=self._prompts.of(task_type) if isinstance(items[0].content, str) else "",
            batch_size=len(contents),
            show_progress_bar=False,
            processing_kwargs={"text": {"max_length": self.tokens.limit}},
        )
        return vectors


def _limit(model: Any, context_length: int | None) -> int:
    """Tokens that the model reads of a text, as in `sentence._limit`."""
    config = getattr(getattr(model[0], "model", None), "config", None)
    text = config.get_text_config() if config is not None else None
    positions = getattr(text, "max_position_embeddings", None) or sys.maxsize
    if context_length is not None and context_length > positions:
        raise BadRequest(f"context_length {context_length} is more than the model's {positions} positions")
    return int(context_length or min(model.max_seq_length or positions, positions, 8192))


def _fast_tokenizer(model: Any) -> Tokenizer:
    tokenizer = getattr(model, "tokenizer", None)
    for candidate in (tokenizer, getattr(tokenizer, "backend_tokenizer", None)):
        if isinstance(candidate, Tokenizer):
            return candidate
    raise BadRequest(
        f"the model's tokenizer is a {type(tokenizer).__name__}, which embeddings are not served with; "
        "use a model with a tokenizer.json"
    )

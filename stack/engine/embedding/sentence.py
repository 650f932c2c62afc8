"""What turns texts into vectors: the protocol, and the lean one for encoder models.

A folder in sentence-transformers' layout says what happens after the encoder (modules.json: pooling, dense
layers, normalisation). The lean path reads tokenizer.json and safetensors itself, so that neither
transformers nor sentence-transformers is imported; it raises UnsupportedModel for whatever it does not
compute exactly, and `stack.engine.embedding.fallback` serves that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from stack.engine.embedding.bert import FAMILIES, PostNormEncoder
from stack.engine.embedding.encoder import Encoder, Loader, Run, UnsupportedModel, Weights, rounded, runs_of
from stack.engine.embedding.modernbert import ModernBertEncoder
from stack.engine.embedding.tokens import Ids, TextTokens, Truncation
from stack.engine.embedding.vectors import Vectors
from stack.errors import BadRequest

if TYPE_CHECKING:
    from PIL.Image import Image

TaskType = Literal["query", "document"]


@dataclass(frozen=True, slots=True)
class Item:
    """One content, ready for the encoder. Batches are packed by `tokens`."""

    tokens: int
    content: Ids | str | Image
    task_type: TaskType | None = None


class SentenceEncoder(Protocol):
    """A model that turns contents into vectors. `prepare` may run in several threads, `encode` in one."""

    dimension: int
    tokens: TextTokens
    dtype: torch.dtype
    embeds_images: bool

    def prepare(
        self, texts: Sequence[str], truncation: Truncation, task_type: TaskType | None, first_index: int
    ) -> list[Item]:
        """Tokenize. Raises TextTooLong and BadRequest, naming contents[first_index + i]."""

    def encode(self, items: Sequence[Item]) -> Vectors:
        """[items, dimension]"""


def read_json(path: Path) -> dict[str, Any]:
    """A configuration file; empty when there is none."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


@dataclass(frozen=True)
class Prompts:
    """What a model wants written before a text (`prompts` in config_sentence_transformers.json)."""

    by_name: dict[str, str]
    default: str = ""

    @classmethod
    def read(cls, folder: Path) -> Prompts:
        config = read_json(folder / "config_sentence_transformers.json")
        by_name = {name: prompt for name, prompt in (config.get("prompts") or {}).items() if prompt}
        return cls(by_name, by_name.get(config.get("default_prompt_name") or "", ""))

    def of(self, task_type: TaskType | None) -> str:
        """A symmetric model has no prompts: queries and documents are embedded alike."""
        if task_type is None:
            return self.default
        names = ("query",) if task_type == "query" else ("document", "passage", "corpus")
        return next((self.by_name[name] for name in names if name in self.by_name), "")


class LeanSentenceEncoder:
    """Tokenizer, encoder, pooling and what follows it, without padding and without transformers."""

    embeds_images = False

    def __init__(
        self, folder: Path, dtype: torch.dtype, device: torch.device, context_length: int | None = None
    ) -> None:
        transformer, pooling, rest = _module_folders(folder)
        self._encoder = _open_encoder(transformer, dtype, device)
        self._pooling = Pooling(read_json(pooling / "config.json") if pooling else {})
        self._modules = [_open_module(kind, path, device) for kind, path in rest]
        self._prompts = Prompts.read(folder)
        self._device = device
        self.dtype = dtype
        self.tokens = TextTokens(
            _open_tokenizer(transformer), _limit(transformer, self._encoder.max_tokens, context_length)
        )
        self.dimension = self.encode([Item(1, np.array(self.tokens.prefix or [0], np.int32))]).shape[1]

    def prepare(
        self, texts: Sequence[str], truncation: Truncation, task_type: TaskType | None, first_index: int
    ) -> list[Item]:
        prompt = self._prompts.of(task_type)
        rows = self.tokens.fit(texts, truncation, prompt, first_index)
        return [Item(len(ids), ids, task_type) for ids in rows]

    @torch.inference_mode()
    def encode(self, items: Sequence[Item]) -> Vectors:
        skips = {item.task_type: self._skip(item.task_type) for item in items}
        order = sorted(range(len(items)), key=lambda i: (items[i].tokens, skips[items[i].task_type]))
        runs = runs_of([(items[i].tokens, skips[items[i].task_type]) for i in order])
        tokens = np.concatenate([items[i].content for i in order])
        ids = torch.zeros(rounded(len(tokens)), dtype=torch.int32)
        ids[: len(tokens)] = torch.from_numpy(tokens)
        ids = ids.to(self._device)
        vectors = self._pooling(self._encoder(ids, runs), runs)
        for module in self._modules:
            vectors = module(vectors)
        result = np.empty(vectors.shape, np.float32)
        result[order] = vectors.float().cpu().numpy()
        return result

    def _skip(self, task_type: TaskType | None) -> int:
        """Leading tokens that pooling leaves out: the prompt's, in models such as INSTRUCTOR."""
        prompt = self._prompts.of(task_type)
        if self._pooling.include_prompt or not prompt:
            return 0
        return len(self.tokens.prefix) + self.tokens.count([prompt])[0]


_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class Pooling:
    """Hidden states of each text's tokens to one vector, as sentence-transformers' Pooling."""

    def __init__(self, config: dict[str, Any]) -> None:
        modes = (
            config.get("pooling_mode") or [mode for key, mode in _MODES.items() if config.get(key)] or "mean"
        )
        self.modes = [modes] if isinstance(modes, str) else list(modes)
        self.include_prompt: bool = config.get("include_prompt", True)
        if unknown := set(self.modes) - set(_MODES.values()):
            raise UnsupportedModel(f"pooling {unknown}")

    def __call__(self, hidden: Tensor, runs: Sequence[Run]) -> Tensor:
        """hidden [tokens, size]; returns [texts, size * modes]."""
        return torch.cat(
            [
                torch.cat(
                    [
                        self._pool(mode, hidden[run.rows].view(run.texts, run.length, -1), run)
                        for mode in self.modes
                    ],
                    -1,
                )
                for run in runs
            ]
        )

    def _pool(self, mode: str, hidden: Tensor, run: Run) -> Tensor:
        skip = min(run.skip, run.length - 1)
        kept = hidden[:, skip:]
        if mode == "cls":
            return kept[:, 0]
        if mode == "lasttoken":
            return kept[:, -1]
        if mode == "max":
            return kept.amax(1)
        if mode == "weightedmean":
            weights = torch.arange(skip + 1, run.length + 1, device=kept.device, dtype=kept.dtype)[:, None]
            return (kept * weights).sum(1) / weights.sum()
        count = float(run.length - skip)
        return kept.sum(1) / (math.sqrt(count) if mode == "mean_sqrt_len_tokens" else count)


def _module_folders(folder: Path) -> tuple[Path, Path | None, list[tuple[str, Path]]]:
    """Folders of the transformer and the pooling, and the modules after them."""
    if not (folder / "modules.json").exists():
        return folder, None, []
    modules = []
    for module in json.loads((folder / "modules.json").read_text()):
        package, _, kind = module["type"].rpartition(".")
        if package.partition(".")[0] != "sentence_transformers":
            raise UnsupportedModel(f"module {module['type']}")
        modules.append((kind, folder / module["path"]))
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise UnsupportedModel(f"modules {kinds}")
    return modules[0][1], modules[1][1], modules[2:]


def _open_encoder(folder: Path, dtype: torch.dtype, device: torch.device) -> Encoder:
    config = read_json(folder / "config.json")
    family = config.get("model_type")
    if (folder / "adapter_config.json").exists():
        raise UnsupportedModel("adapters")
    if family in FAMILIES:
        return PostNormEncoder(config, Loader(Weights(folder), dtype, device))
    if family == "modernbert":
        return ModernBertEncoder(config, Loader(Weights(folder), dtype, device))
    raise UnsupportedModel(f"model type {family}")


_PLAIN_TRANSFORMER = {
    "do_lower_case": False,
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}


def _open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer as transformers would set it up from the same folder."""
    if not (folder / "tokenizer.json").exists():
        raise UnsupportedModel("tokenizer.json is missing")
    for key, value in read_json(folder / "sentence_bert_config.json").items():
        if key != "max_seq_length" and value and value != _PLAIN_TRANSFORMER.get(key):
            raise UnsupportedModel(f"{key} {value}")
    tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    lowercase = read_json(folder / "tokenizer_config.json").get("do_lower_case")
    if lowercase is not None and lowercase != getattr(tokenizer.normalizer, "lowercase", lowercase):
        raise UnsupportedModel("tokenizer.json and tokenizer_config.json differ on lower case")
    return tokenizer


def _limit(folder: Path, max_tokens: int, context_length: int | None) -> int:
    """Tokens that the model reads of a text: as it was trained, unless the operator wants another number."""
    if context_length is not None:
        if context_length > max_tokens:
            raise BadRequest(
                f"context_length {context_length} is more than the model's {max_tokens} positions"
            )
        return context_length
    trained = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    tokenizer = read_json(folder / "tokenizer_config.json").get("model_max_length")
    return int(min(trained or tokenizer or max_tokens, max_tokens, 8192))


_DENSE_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Tanh": torch.tanh, "Identity": lambda x: x, "ReLU": F.relu, "GELU": F.gelu,
}  # fmt: skip


def _open_module(kind: str, folder: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A module after the pooling, vectors [texts, size] to vectors."""
    if kind == "Normalize":
        return F.normalize
    if kind != "Dense":
        raise UnsupportedModel(f"module {kind}")
    config = read_json(folder / "config.json")
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh").rpartition(".")[2]
    plain = {config.get(key, "sentence_embedding") for key in ("module_input_name", "module_output_name")}
    weights = folder / "model.safetensors"
    if (
        activation not in _DENSE_ACTIVATIONS
        or plain - {"sentence_embedding", None}
        or config.get("use_residual")
    ):
        raise UnsupportedModel(f"dense layer {config}")
    if not weights.exists():
        raise UnsupportedModel(f"{folder.name}/model.safetensors is missing")
    tensors = {name: tensor.to(device, torch.float32) for name, tensor in load_file(weights).items()}
    apply = _DENSE_ACTIVATIONS[activation]
    return lambda x: apply(F.linear(x, tensors["linear.weight"], tensors.get("linear.bias")))

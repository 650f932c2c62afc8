"""What every Llama-family runner needs from a model folder: its shape, its tensors, its rotary tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stack.errors import NotFound, StackError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
ROPE_TYPES = frozenset(
    {"default", "linear", "llama3", "yarn"}
)  # those whose tables do not depend on the length


def supports(config: PreTrainedConfig) -> bool:
    """Whether the lean runner computes exactly what transformers computes for this model."""
    rope = getattr(config, "rope_parameters", None) or {}
    layer_types = getattr(config, "layer_types", None) or ["full_attention"]
    windowed = config.model_type == "mistral" and getattr(config, "sliding_window", None) is not None
    return (
        config.model_type in FAMILIES
        and config.hidden_act == "silu"
        and rope.get("rope_type") in ROPE_TYPES
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and set(layer_types) == {"full_attention"}
        and not windowed
        and not getattr(config, "use_sliding_window", False)
        and getattr(config, "quantization_config", None) is None
    )


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """The numbers of a Llama-family model, and its rotary frequencies."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    positions: int  # the context that the model was trained for
    eps: float
    tied: bool
    inv_freq: Tensor  # float32 [head_dim / 2]
    rope_scale: float  # of cos and sin

    @classmethod
    def of(cls, config: PreTrainedConfig) -> LlamaShape:
        """The shape of a model that `supports` accepts."""
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        inv_freq, rope_scale = _frequencies(config, head_dim)
        return cls(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads or config.num_attention_heads,
            head_dim=head_dim,
            vocab_size=config.vocab_size,
            positions=config.max_position_embeddings,
            eps=config.rms_norm_eps,
            tied=config.tie_word_embeddings,
            inv_freq=inv_freq,
            rope_scale=rope_scale,
        )

    def rotary(self, positions: int) -> tuple[Tensor, Tensor]:
        """cos and sin, each float32 [positions, head_dim / 2]."""
        angles = torch.arange(positions, dtype=torch.float32)[:, None] * self.inv_freq[None]
        return angles.cos() * self.rope_scale, angles.sin() * self.rope_scale


def _frequencies(config: PreTrainedConfig, head_dim: int) -> tuple[Tensor, float]:
    rope: dict[str, Any] = config.rope_parameters
    if rope["rope_type"] == "default":
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        return 1.0 / (rope["rope_theta"] ** exponents), 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    inv_freq, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    return inv_freq, scale


class Weights:
    """The tensors of a folder of safetensors, by transformers' names; read one at a time."""

    def __init__(self, files: dict[str, Any], dtype: torch.dtype) -> None:
        self._files = files
        self._dtype = dtype

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> Tensor:
        """Contiguous, on the CPU, in the dtype asked for; may be a view of the file."""
        if name not in self._files:
            raise StackError(f"the model's weights lack the tensor {name!r}")
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor.to(self._dtype).contiguous()

    def get(self, name: str) -> Tensor | None:
        if name not in self:
            return None
        return self[name]

    def together(self, *names: str) -> Tensor | None:
        """The tensors one below the other; None when the model has none of them (absent biases)."""
        if not any(name in self for name in names):
            return None
        return torch.cat([self[name] for name in names])


@contextmanager
def open_weights(folder: Path, dtype: torch.dtype) -> Iterator[Weights]:
    """The weights in `folder`, whole or in shards."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        shards = ["model.safetensors"]
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for shard in shards:
            if not (folder / shard).is_file():
                raise NotFound("weights file", shard)
            file = stack.enter_context(safe_open(folder / shard, framework="pt"))
            files.update(dict.fromkeys(file.keys(), file))
        yield Weights(files, dtype)


def base_weight(folder: Path) -> Callable[[str], Tensor]:
    """Reads a linear layer's weight anew, float32 [out, in], where the runner holds it in another layout."""

    def read(module: str) -> Tensor:
        with open_weights(folder, torch.float32) as weights:
            tied = module == "lm_head" and "lm_head.weight" not in weights
            return weights["model.embed_tokens.weight" if tied else f"{module}.weight"].clone()

    return read

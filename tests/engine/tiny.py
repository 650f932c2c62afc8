"""Tiny, randomly initialised models of many architectures, and what `generate` says with them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 64

BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 256,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}
SMALL_WINDOW = {"sliding_window": 8}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

ATTENTION_ONLY: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "gpt_neox": BASE,
    "llama": BASE,
    "qwen2": BASE,
    "qwen3": BASE,
    "phi": BASE,
    "mistral": BASE | SMALL_WINDOW,
    "gemma": BASE,
    "gemma2": BASE | SMALL_WINDOW | {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    "gemma3_text": BASE | SMALL_WINDOW,
    "gpt_oss": BASE | SMALL_WINDOW | EXPERTS,
    "mixtral": BASE | EXPERTS | {"sliding_window": None},
    "olmo2": BASE,
    "stablelm": BASE,
    "starcoder2": BASE | {"sliding_window": None},
    "cohere": BASE,
    "opt": BASE | {"ffn_dim": 48, "word_embed_proj_dim": 32},
}


def tiny_model(model_type: str, settings: dict[str, Any], seed: int = 0) -> Any:
    """float32, with weights large enough that attention matters and logits differ."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **settings)
    model: Any = AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-untyped-call]
    scramble(model)
    return model


def scramble(model: Any) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            elif "sinks" in name:
                parameter.normal_()
            elif "bias" in name:
                parameter.normal_(std=0.05)


def generate(model: Any, prompt: Sequence[int], count: int, **media: torch.Tensor) -> list[int]:
    """Greedy, exactly `count` tokens."""
    out = model.generate(
        torch.tensor([list(prompt)]), do_sample=False, max_new_tokens=count, min_new_tokens=count, **media
    )
    return [int(token) for token in out[0, len(prompt) :]]


def prompts(count: int, longest: int = 60, seed: int = 0) -> list[list[int]]:
    """Random ones of 1 to `longest` tokens; half of them begin alike."""
    draw = random.Random(seed)
    head = draw.choices(range(2, VOCABULARY), k=longest)
    made = []
    for i in range(count):
        size = draw.randrange(1, longest)
        own = draw.choices(range(2, VOCABULARY), k=size)
        made.append(head[: size // 2] + own[size // 2 :] if i % 2 else own)
    return made

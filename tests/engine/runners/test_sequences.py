"""Recurrent, hybrid and vision-language models say what `generate` says, one cache per sequence."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from stack.engine.base import Generation, Priority, Segment
from stack.engine.batching.batcher import Batcher
from stack.engine.runners.sequences import SequenceRunner
from stack.errors import BadRequest, StackError
from tests.engine.tiny import BASE, generate, prompts, scramble, tiny_model
from tests.engine.toy import toy_tokenizer

IMAGE = 60  # the token that stands for an image's features
RECURRENT = {
    "mamba": BASE | {"state_size": 8},
    "mamba2": BASE | {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 16},
    "falcon": {k: v for k, v in BASE.items() if k != "head_dim"},
    "bloom": BASE | {"n_layer": 2, "n_head": 4},
    "qwen3_next": BASE
    | {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "llama4_text": BASE
    | {"attention_chunk_size": 16, "num_local_experts": 2, "intermediate_size_mlp": 48, "use_qk_norm": False},
}


async def answer(batcher: Batcher, request: Generation, delay_s: float = 0.0) -> list[int]:
    await asyncio.sleep(delay_s)
    return [token async for output in batcher.generate(request) for token in output.token_ids]


@pytest.mark.parametrize("model_type", RECURRENT)
async def test_mixed_arrivals_say_what_generate_says(model_type: str) -> None:
    model = tiny_model(model_type, RECURRENT[model_type])
    asked = prompts(6, 40)
    expected = [generate(model, prompt, 12) for prompt in asked]
    assert len({tuple(said) for said in expected}) > 2
    batcher = Batcher(SequenceRunner(model, 3, 128), toy_tokenizer(), end_tokens=(), prefill_budget=20)
    try:
        draw = random.Random(0)
        requests = [Generation(prompt, max_tokens=12) for prompt in asked]
        assert expected == await asyncio.gather(*(answer(batcher, r, draw.random() * 0.05) for r in requests))
    finally:
        batcher.close()


def vision_model(model_type: str) -> tuple[Any, dict[str, int]]:
    """A tiny model, and how many image tokens stand for one image of 16 x 16."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 4}
    text = BASE | {"model_type": "llama"}
    if model_type == "llava":
        settings: dict[str, Any] = {
            "vision_config": vision | {"model_type": "siglip_vision_model"},
            "text_config": text,
            "image_token_index": IMAGE,
            "vision_feature_select_strategy": "full",
        }
    elif model_type in ("idefics3", "smolvlm"):
        settings = {
            "vision_config": vision | {"model_type": f"{model_type}_vision"},
            "text_config": text,
            "image_token_id": IMAGE,
            "scale_factor": 2,
        }
    else:
        settings = {
            "vision_config": {
                "depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2,
                "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
            },
            "text_config": BASE | {"rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2],
            }},
            "image_token_id": IMAGE, "vision_start_token_id": 58, "vision_end_token_id": 59,
            "video_token_id": 61,
        }  # fmt: skip
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **settings)
    model: Any = AutoModelForImageTextToText.from_config(config).eval()  # type: ignore[no-untyped-call]
    scramble(model)
    return model, {"llava": 16, "idefics3": 4, "smolvlm": 4, "qwen2_vl": 4}


def image(model_type: str, prompt: list[int], seed: int) -> dict[str, torch.Tensor]:
    """What the model's processor makes of a random image."""
    draw = torch.Generator().manual_seed(seed)
    if model_type == "llava":
        return {"pixel_values": torch.randn(1, 3, 16, 16, generator=draw)}
    if model_type in ("idefics3", "smolvlm"):
        return {
            "pixel_values": torch.randn(1, 1, 3, 16, 16, generator=draw),
            "pixel_attention_mask": torch.ones(1, 1, 16, 16, dtype=torch.bool),
        }
    return {
        "pixel_values": torch.randn(16, 3 * 2 * 4 * 4, generator=draw),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": torch.tensor([[int(token == IMAGE) for token in prompt]]),
    }


@pytest.mark.parametrize("model_type", ["llava", "idefics3", "smolvlm", "qwen2_vl"])
async def test_images_reach_vision_language_models(model_type: str) -> None:
    """Pictures, texts and two pictures behind one prompt, mixed, one of them preempted on its way."""
    model, image_tokens = vision_model(model_type)
    prompt = [5, 58, *[IMAGE] * image_tokens[model_type], 59, 9, 8]
    text = [5, 6, 7, 8, 9]
    pictures = [image(model_type, prompt, seed) for seed in range(3)]
    expected = [generate(model, prompt, 15, **picture) for picture in pictures]
    assert len({tuple(said) for said in expected}) == 3, "the pictures make no difference"
    expected.append(generate(model, text, 15))
    batcher = Batcher(SequenceRunner(model, 2, 128), toy_tokenizer(), end_tokens=(), prefill_budget=4)
    requests = [
        Generation(prompt, max_tokens=15, media=picture, priority=Priority.BATCH) for picture in pictures
    ]
    requests.append(Generation(text, max_tokens=15))
    try:
        answers = await asyncio.gather(*(answer(batcher, r, i * 0.005) for i, r in enumerate(requests)))
        assert answers == expected
    finally:
        batcher.close()


async def test_a_picture_that_does_not_fit_its_prompt_harms_no_other() -> None:
    model, image_tokens = vision_model("llava")
    good = [5, *[IMAGE] * image_tokens["llava"], 9]
    bad = [5, *[IMAGE] * 3, 9]
    picture = image("llava", good, 0)
    batcher = Batcher(SequenceRunner(model, 3, 64), toy_tokenizer(), end_tokens=())
    try:
        outcomes = await asyncio.gather(
            answer(batcher, Generation(good, max_tokens=9, media=picture)),
            answer(batcher, Generation(bad, max_tokens=9, media=picture)),
            answer(batcher, Generation([1, 2, 3], max_tokens=9)),
            return_exceptions=True,
        )
    finally:
        batcher.close()
    assert outcomes[0] == generate(model, good, 9, **picture)
    assert isinstance(outcomes[1], StackError)
    assert outcomes[2] == generate(model, [1, 2, 3], 9)


def test_a_model_with_state_in_its_layers_is_refused() -> None:
    model = tiny_model("recurrent_gemma", BASE | {"attention_window_size": 8, "lru_width": 32})
    with pytest.raises(BadRequest, match="RecurrentGemmaForCausalLM keeps state"):
        SequenceRunner(model, 2, 64)


def test_a_step_that_leaves_tokens_out_is_an_error() -> None:
    runner = SequenceRunner(tiny_model("mamba", RECURRENT["mamba"]), 2, 64)
    runner.forward([Segment(0, 0, [1, 2, 3])])
    with pytest.raises(ValueError, match="is at 3, not at 2"):
        runner.forward([Segment(0, 2, [7])])
    with pytest.raises(NotImplementedError):
        runner.copy_prefix(0, 1, 2)
    assert not runner.reuses_prefixes

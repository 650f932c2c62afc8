from __future__ import annotations

from pathlib import Path

import pytest

from stack.settings import Settings
from stack.store.storage import open_storage
from stack.training.modules import Linears, canonical
from stack.training.weights import open_weights
from tests.models.tiny import make_llama

LLAMA = {
    "model.embed_tokens.weight": (29, 16),
    "model.layers.0.self_attn.q_proj.weight": (16, 16),
    "model.layers.0.self_attn.q_proj.bias": (16,),
    "model.layers.0.self_attn.o_proj.weight": (16, 16),
    "model.layers.0.mlp.gate_proj.weight": (32, 16),
    "model.layers.0.mlp.down_proj.weight": (16, 32),
    "model.layers.0.input_layernorm.weight": (16,),
    "model.layers.1.self_attn.q_proj.weight": (16, 16),
    "model.norm.weight": (16,),
    "lm_head.weight": (29, 16),
}
GPT2 = {
    "wte.weight": (29, 16),
    "wpe.weight": (64, 16),
    "h.0.attn.c_attn.weight": (16, 48),
    "h.0.attn.c_proj.weight": (16, 16),
    "h.0.mlp.c_fc.weight": (16, 64),
    "h.0.mlp.c_proj.weight": (64, 16),
    "h.0.ln_1.weight": (16,),
}
OPT = {
    "model.decoder.embed_positions.weight": (66, 16),
    "model.decoder.layers.0.self_attn.out_proj.weight": (16, 16),
    "model.decoder.layers.0.fc1.weight": (64, 16),
}
FALCON = {
    "transformer.h.0.self_attention.query_key_value.weight": (48, 16),
    "transformer.h.0.mlp.dense_h_to_4h.weight": (64, 16),
}


@pytest.mark.parametrize(
    ("shapes", "attention", "mlp", "widths"),
    [
        (LLAMA, {"q_proj", "o_proj"}, {"gate_proj", "down_proj"}, {16, 32}),
        (GPT2, {"c_attn", "c_proj"}, {"c_fc", "c_proj"}, {48, 16, 64}),
        (OPT, {"out_proj"}, {"fc1"}, {16}),
        (FALCON, {"query_key_value"}, {"dense_h_to_4h"}, {16}),
        ({}, set(), set(), set()),
    ],
)
def test_linear_layers_by_their_tensors(
    shapes: dict[str, tuple[int, ...]], attention: set[str], mlp: set[str], widths: set[int]
) -> None:
    found = Linears.of(shapes)
    assert (found.attention, found.mlp, found.widths) == (attention, mlp, widths)


def test_what_an_adapter_changes() -> None:
    prefix = "base_model.model."
    shapes = {
        f"{prefix}model.layers.0.self_attn.q_proj.lora_A.weight": (4, 16),
        f"{prefix}model.layers.0.self_attn.q_proj.lora_B.weight": (16, 4),
        f"{prefix}model.layers.0.self_attn.q_proj.lora_magnitude_vector": (16,),
        f"{prefix}model.layers.1.mlp.up_proj.lora_A.weight": (4, 16),
    }
    found = Linears.adapted(shapes)
    assert (found.attention, found.mlp, found.output) == ({"q_proj"}, {"up_proj"}, False)
    assert Linears.adapted(shapes | {f"{prefix}lm_head.lora_A.weight": (4, 16)}).output


def adapter_on(*paths: str) -> Linears:
    return Linears.adapted({f"base_model.model.model.layers.{path}.lora_A.weight": (4, 16) for path in paths})


def test_what_an_adapter_leaves_out() -> None:
    base = Linears.of(LLAMA)
    q = ("0.self_attn.q_proj", "1.self_attn.q_proj")
    mlp = ("0.mlp.gate_proj", "0.mlp.down_proj")
    assert base.lacks(adapter_on(*q)) is None
    assert base.lacks(adapter_on(*q, *mlp)) is None
    assert base.lacks(adapter_on(q[0])) == "attention.q_proj"  # of one layer alone
    assert base.lacks(adapter_on(*q, mlp[0])) == "down_proj"
    moe = Linears.of(LLAMA | {"model.layers.0.mlp.experts.0.up_proj.weight": (32, 16)})
    assert moe.lacks(adapter_on(q[0])) is None


def test_names_of_torchtune() -> None:
    assert [canonical(name) for name in ("output_proj", "q_proj")] == ["o_proj", "q_proj"]


async def test_a_folder_and_a_copy_in_the_storage(tmp_path: Path) -> None:
    """Both are read where they are; their headers alone tell the modules."""
    folder = make_llama(tmp_path / "model")
    settings = Settings(home=tmp_path / "home")
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    async with open_storage(settings) as storage:
        for name, content in contents.items():
            await storage.write(f"training/x/model/{name}", content)
        for source in (str(folder), "storage://training/x/model"):
            weights = await open_weights(source, settings, storage)
            assert weights is not None
            found = Linears.of(await weights.shapes())
            assert found.attention == {"q_proj", "k_proj", "v_proj", "o_proj"}
            assert found.mlp == {"gate_proj", "up_proj", "down_proj"}
            assert (await weights.facts()).context_length == 64
        assert await open_weights("org/not-here", settings, storage) is None
        (folder / "model.safetensors").unlink()
        assert await open_weights(str(folder), settings, storage) is None  # as a half download leaves it


async def test_smollm2(smollm2_dir: Path, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    async with open_storage(settings) as storage:
        weights = await open_weights(str(smollm2_dir), settings, storage)
        assert weights is not None
        found = Linears.of(await weights.shapes())
    assert sorted(found.attention) == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert sorted(found.mlp) == ["down_proj", "gate_proj", "up_proj"]
    assert found.widths == {576, 1536}

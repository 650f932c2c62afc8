from __future__ import annotations

import pytest

from stack.errors import BadRequest
from stack.schemas.post_training import LoraFinetuningConfig, QATFinetuningConfig
from stack.settings import Settings
from stack.training.checks import DTYPES, Range, check_dtype, check_lora, check_quantizer
from stack.training.modules import Linears

KNOWN = Linears(frozenset({"q_proj", "o_proj"}), frozenset({"up_proj"}), widths=frozenset({64, 96}))


def lora(*modules: str, mlp: bool = False, output: bool = False) -> LoraFinetuningConfig:
    return LoraFinetuningConfig(
        lora_attn_modules=list(modules), apply_lora_to_mlp=mlp, apply_lora_to_output=output, rank=4, alpha=8
    )


def test_ranges() -> None:
    closed, open_ = Range(1, 4), Range(0, 0.5, above=True, below=True)
    assert [number in closed for number in (0, 1, 4, 5)] == [False, True, True, False]
    assert [number in open_ for number in (0, 0.1, 0.5)] == [False, True, False]
    assert (str(closed), str(open_)) == ("at least 1 and at most 4", "above 0 and below 0.5")
    assert float("nan") not in closed


def test_dtypes() -> None:
    laptop, cluster = Settings(), Settings(train_gpus=1)
    for name in DTYPES:
        check_dtype(name, cluster)
    check_dtype("bf16", laptop)
    for name in ("fp16", "float16"):
        with pytest.raises(BadRequest, match="needs a GPU"):
            check_dtype(name, laptop)


def test_modules_of_lora() -> None:
    assert check_lora(lora("output_proj", "q_proj", "o_proj"), KNOWN).lora_attn_modules == [
        "o_proj",
        "q_proj",
    ]
    assert check_lora(lora(mlp=True), KNOWN).lora_attn_modules == []
    assert check_lora(lora(output=True), KNOWN).apply_lora_to_output
    with pytest.raises(BadRequest, match=r"no 'up_proj'; it has o_proj, q_proj"):
        check_lora(lora("up_proj"), KNOWN)
    with pytest.raises(BadRequest, match="nothing would be trained"):
        check_lora(lora(), KNOWN)
    with pytest.raises(BadRequest, match="no linear layers in MLPs"):
        check_lora(lora("q_proj", mlp=True), Linears(frozenset({"q_proj"}), frozenset()))


def test_modules_of_a_model_that_is_elsewhere_are_left_to_the_job() -> None:
    assert check_lora(lora("anything"), None).lora_attn_modules == ["anything"]
    with pytest.raises(BadRequest, match="nothing would be trained"):
        check_lora(lora(), None)


def test_quantizers() -> None:
    def wanted(name: str, size: int) -> QATFinetuningConfig:
        return QATFinetuningConfig(quantizer_name=name, group_size=size)

    check_quantizer(wanted("Int4WeightOnlyQATQuantizer", 32), KNOWN)
    check_quantizer(wanted("int8_dynamic_act_int4_weight", 1000), None)
    with pytest.raises(BadRequest, match="takes 96 inputs, which groups of 64 do not divide"):
        check_quantizer(wanted("int4_weight_only", 64), KNOWN)
    with pytest.raises(BadRequest, match="one of int8_dynamic_act_int4_weight"):
        check_quantizer(wanted("int4", 32), KNOWN)


def test_the_quantizers_are_those_that_training_has() -> None:
    from stack.training.checks import QUANTIZERS
    from stack.training.qat import QUANTIZERS as AT_WORK

    assert set(QUANTIZERS) == set(AT_WORK)

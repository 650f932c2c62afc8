"""What efficiency_config does: fewer activations, divided weights."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from stack.errors import BadRequest
from stack.schemas.post_training import EfficiencyConfig
from stack.settings import Settings
from stack.training.arguments import training_arguments
from stack.training.efficiency import (
    check_divisible,
    efficiency_arguments,
    offloads_activations,
    strategy_of,
)
from stack.training.model import load
from stack.training.plan import Resources
from tests.training.plans import ALIGNMENT, ALONE, lora, make_plan

CPU = torch.device("cpu")
IDS = torch.arange(3, 203).reshape(2, 100)


def kept_and_gradients(config: Any, folder: Path, checkpointing: bool) -> tuple[int, list[torch.Tensor]]:
    """Bytes that a forward pass leaves to the backward pass, weights apart; and the gradients."""
    plan = make_plan(config, efficiency={"enable_activation_checkpointing": checkpointing})
    model = load(plan, folder, None, CPU).train()
    arguments = training_arguments(plan, Path("out"))
    if arguments["gradient_checkpointing"]:
        model.gradient_checkpointing_enable(arguments["gradient_checkpointing_kwargs"])
        model.enable_input_require_grads()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(IDS, labels=IDS).loss
    loss.backward()
    return sum(kept.values()), [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("config", [None, lora()], ids=["full", "lora"])
def test_checkpointing_keeps_less_and_gives_the_same_gradients(config: Any, tiny_dir: Path) -> None:
    plain, gradients = kept_and_gradients(config, tiny_dir, checkpointing=False)
    less, same = kept_and_gradients(config, tiny_dir, checkpointing=True)
    assert less < 0.5 * plain
    assert len(gradients) == len(same) > 0
    for ours, theirs in zip(gradients, same, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("alignment", [None, ALIGNMENT])
def test_activations_are_offloaded_from_gpus_only(alignment: Any) -> None:
    efficiency = {"enable_activation_offloading": True}
    gpu = Resources(gpus_per_worker=1)
    assert not offloads_activations(make_plan(alignment=alignment, efficiency=efficiency))
    assert offloads_activations(make_plan(alignment=alignment, efficiency=efficiency, resources=gpu))


GPUS = {"train_workers": 2, "train_gpus": 1.0}


@pytest.mark.parametrize(
    ("efficiency", "settings", "expected"),
    [
        ({}, GPUS, "ddp"),
        ({}, GPUS | {"train_strategy": "fsdp"}, "fsdp"),
        ({"memory_efficient_fsdp_wrap": True}, GPUS, "fsdp"),
        ({"fsdp_cpu_offload": True}, GPUS, "fsdp"),
        ({"fsdp_cpu_offload": True}, {"train_gpus": 1.0}, "ddp"),
        ({"fsdp_cpu_offload": True}, {"train_strategy": "fsdp"}, "ddp"),
    ],
)
def test_several_gpus_divide_the_weights(
    efficiency: dict[str, bool], settings: dict[str, Any], expected: str
) -> None:
    assert strategy_of(EfficiencyConfig(**efficiency), Settings(**settings)) == expected


@pytest.mark.parametrize(
    ("efficiency", "strategy", "where"),
    [
        ({"memory_efficient_fsdp_wrap": True}, "ddp", "training_config.efficiency_config: FSDP"),
        ({}, "fsdp", "STACK_TRAIN_STRATEGY: FSDP"),
    ],
)
def test_cpus_that_should_divide_them_are_refused(
    efficiency: dict[str, bool], strategy: Any, where: str
) -> None:
    with pytest.raises(BadRequest, match=where):
        strategy_of(EfficiencyConfig(**efficiency), Settings(train_workers=2, train_strategy=strategy))


@pytest.mark.parametrize("name", ["quantize_base", "apply_lora_to_output"])
def test_what_cannot_be_divided_is_refused(name: str) -> None:
    check_divisible("ddp", lora(**{name: True}))
    with pytest.raises(BadRequest, match=f"algorithm_config.{name}: does not go together with FSDP"):
        check_divisible("fsdp", lora(**{name: True}))


def test_the_plan_says_whether_they_are_divided() -> None:
    divided = make_plan(resources=Resources(workers=2, gpus_per_worker=1, strategy="fsdp"))
    assert efficiency_arguments(divided)["fsdp"] is True
    assert "fsdp" not in efficiency_arguments(make_plan())


def test_the_arguments_are_transformers(tmp_path: Path) -> None:
    """Of DPO, which knows no more than `TrainingArguments`."""
    arguments = training_arguments(make_plan(alignment=ALIGNMENT), tmp_path)
    made = TrainingArguments(**arguments | ALONE)
    assert made.use_cpu
    assert not made.bf16
    assert made.lr_scheduler_type == "cosine"


def run_two(out: Path, model: Path, runs: list[tuple[str, str, dict[str, Any]]]) -> None:
    """Two processes over gloo."""
    for name, *_ in runs:
        (out / name).mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    common |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.training.sharded", str(out), str(model), json.dumps(runs)]
    started = [
        subprocess.Popen(
            command,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=(out / f"{rank}.log").open("wb"),
            cwd=Path(__file__).parents[2],
        )
        for rank in range(2)
    ]
    try:
        for rank, process in enumerate(started):
            assert process.wait(timeout=240) == 0, (out / f"{rank}.log").read_text()[-2000:]
    finally:
        for process in started:
            process.kill()
            process.wait()


def reports(out: Path) -> list[dict[str, Any]]:
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def test_divided_weights_learn_what_copied_ones_do(tiny_dir: Path, tmp_path: Path) -> None:
    int8 = {"lora": {"quantize_base": True}}
    run_two(tmp_path, tiny_dir, [("int8", "ddp", int8), ("ddp", "ddp", {}), ("fsdp", "fsdp", {})])
    copied, divided = reports(tmp_path / "ddp"), reports(tmp_path / "fsdp")
    # First, that they really are: equal losses alone would also come of FSDP that is not on.
    assert all(each["sharded"] == each["tensors"] > 0 for each in divided)
    assert sum(each["local"] for each in divided) == divided[0]["whole"]
    assert all(each["sharded"] == 0 and each["local"] == each["whole"] for each in copied)
    assert divided[0]["losses"] == pytest.approx(copied[0]["losses"], abs=1e-5)
    assert divided[0]["losses"][-1] < divided[0]["losses"][0]
    # Int8 weights, which DDP could not send, are left to each worker.
    (first, second) = (each["losses"] for each in reports(tmp_path / "int8"))
    assert first == second
    assert first[-1] < first[0]
    name = "model/model.safetensors"
    ours, theirs = load_file(tmp_path / "fsdp" / name), load_file(tmp_path / "ddp" / name)
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-5, rtol=0)

"""One of two processes that train a tiny model together, one strategy after another.

Arguments: output folder, model folder, a JSON list of [name, ddp or fsdp, settings].

Writes the losses, and how the weights were held while training, as JSON; and the folder that is served.

accelerate takes its FSDP plugin on accelerators only: on CPUs it goes on with DDP, without a word. `on_cpus`
sets what it sets on a GPU, so that the rest of the way is the real one, over gloo.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments

from stack.engine.text.open import load_tokenizer
from stack.schemas.post_training import EfficiencyConfig
from stack.training.arguments import optimizer, training_arguments
from stack.training.efficiency import fsdp_arguments
from stack.training.model import load, save, whole_state
from stack.training.plan import Plan, Resources
from stack.training.preference import PreferenceTrainer, reference_logps
from tests.training.plans import ALIGNMENT, lora, make_plan


def on_cpus() -> None:
    original = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
        if "fsdp_plugin" in self.__dict__:  # each further one takes the type anew from the processes' state
            self.distributed_type = DistributedType.FSDP

    AcceleratorState.__init__ = init


class Held(TrainerCallback):
    """Looks at the weights in the middle of training."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        parameters = list(model.parameters())
        local = [p.to_local() if hasattr(p, "to_local") else p for p in parameters]
        self.found = {
            "sharded": sum(hasattr(p, "to_local") for p in parameters),
            "tensors": len(parameters),
            "local": sum(p.numel() for p in local),
            "whole": sum(p.numel() for p in parameters),
        }


def main(out: Path, model: Path, strategy: str, settings: dict[str, Any]) -> None:
    plan = make_plan(
        lora(**settings["lora"]) if "lora" in settings else None,
        alignment=ALIGNMENT,
        lr=1e-3,
        epochs=2,
        resources=Resources(workers=2),
        efficiency=settings.get("efficiency"),
    )
    arguments = training_arguments(plan, out / "trainer") | {"logging_steps": 1}
    if strategy == "fsdp":
        on_cpus()
        arguments |= fsdp_arguments(plan.training.efficiency_config or EfficiencyConfig())
    trainer, held = _trainer(plan, model, arguments), Held()
    trainer.add_callback(held)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    rank = trainer.args.process_index
    state = whole_state(trainer)
    if rank == 0:
        save(plan, trainer.accelerator.unwrap_model(trainer.model), out / "model", state)
    (out / f"{rank}.json").write_text(json.dumps({"losses": losses, **held.found}))


def _trainer(plan: Plan, model: Path, arguments: dict[str, Any]) -> PreferenceTrainer:
    made = load(plan, model, None, torch.device("cpu"))
    rows = Dataset.from_list(
        [
            {"prompt_ids": [1, 10 + i], "chosen_ids": [40 + i, 2], "rejected_ids": [60, 61, i, 2]}
            for i in range(8)
        ]
    )
    chosen, rejected = reference_logps(plan, made, rows, lambda done: None)
    rows = rows.add_column("ref_chosen_logps", chosen).add_column("ref_rejected_logps", rejected)
    return PreferenceTrainer(
        plan=plan,
        model=made,
        args=TrainingArguments(**arguments),
        train_dataset=rows,
        processing_class=load_tokenizer(model),
        optimizer_cls_and_kwargs=optimizer(plan),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, strategy, settings in json.loads(sys.argv[3]):
        main(Path(sys.argv[1]) / name, Path(sys.argv[2]), strategy, settings)
        AcceleratorState._reset_state()

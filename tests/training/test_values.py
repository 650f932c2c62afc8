"""Plans with other hyperparameters."""

from __future__ import annotations

from typing import Any

import pytest

from stack.errors import BadRequest
from stack.schemas.post_training import DPOAlignmentConfig
from stack.training.plan import Data, Plan, Start
from stack.training.values import with_values
from tests.training.conftest import LORA, training_config


def plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "job_uuid": "job",
        "method": "sft",
        "start": Start(model_id="tiny", source="org/tiny"),
        "algorithm": LORA,
        "training": training_config(epochs=2, batch_size=4, lr=1e-3, packed=False, shuffle=True, steps=0),
        "data": Data(dataset_id="rows", table="dataset-1", rows=12),
        "folder": "training/job",
        "max_tokens": 128,
    }
    return Plan(**(values | changes))


def test_each_value_is_put_where_it_belongs() -> None:
    changed = with_values(plan(), {"lr": 0.5, "rank": 2, "batch_size": 8, "n_epochs": 3})
    assert changed.training.optimizer_config.lr == 0.5
    assert (changed.training.data_config.batch_size, changed.training.n_epochs) == (8, 3)
    assert changed.algorithm is not None
    assert changed.algorithm.type == "LoRA"
    assert (changed.algorithm.rank, changed.algorithm.alpha) == (2, LORA.alpha)
    assert with_values(changed, {"lr": 1e-3, "rank": 4, "batch_size": 4, "n_epochs": 2}) == plan()


@pytest.mark.parametrize(
    ("values", "changes", "part"),
    [
        ({"rank": 2}, {"algorithm": None}, "its algorithm_config has none"),
        ({"group_size": 32}, {}, "its algorithm_config has none"),
        ({"gamma": 1.0}, {}, "only preference-optimize has it"),
        ({"speed": 1}, {}, "known are "),
        ({"optimizer_type": "lion"}, {}, "optimizer_type"),
        ({"lr": "fast"}, {}, "lr"),
    ],
)
def test_what_a_plan_does_not_have(values: dict[str, Any], changes: dict[str, Any], part: str) -> None:
    with pytest.raises(BadRequest) as raised:
        with_values(plan(**changes), values)
    assert part in str(raised.value)


def test_dpos_own_parameters() -> None:
    alignment = DPOAlignmentConfig(reward_scale=0.1, reward_clip=0, epsilon=0, gamma=0)
    changed = with_values(plan(method="dpo", alignment=alignment), {"reward_scale": 0.3})
    assert changed.alignment is not None
    assert changed.alignment.reward_scale == 0.3

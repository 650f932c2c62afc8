"""Drawing trials, and choosing among them. test_search_on_ray runs them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Literal, cast

import pytest

import stack.training.search
from stack.errors import NotReady, StackError
from stack.settings import Settings
from stack.store.jobs import Lease
from stack.training.plan import Parameter, Search
from stack.training.search import Found, Trial, choose, draw
from tests.training.test_values import plan


def search(num_trials: int = 3, seed: int = 0, **changes: Any) -> Search:
    parameters = {
        "lr": Parameter(type="loguniform", min=1e-5, max=1e-2),
        "rank": Parameter(type="grid", values=[4, 8]),
        "alpha": Parameter(type="choice", values=[8, 16]),
        "num_warmup_steps": Parameter(type="randint", min=0, max=3),
    }
    return Search(parameters=parameters, num_trials=num_trials, seed=seed, **changes)


def trial(
    index: int, loss: float | None, status: Literal["completed", "stopped", "failed"] = "completed"
) -> Trial:
    metrics = {} if loss is None else {"validation_loss": loss}
    error = "no memory" if status == "failed" else None
    return Trial(f"trial-{index}", {}, status, metrics, f"runs/trial-{index}", error)


def test_each_sample_goes_through_the_grid_within_its_ranges() -> None:
    drawn = draw(search())
    assert [values["rank"] for values in drawn] == [4, 8] * 3
    assert all(1e-5 <= values["lr"] <= 1e-2 for values in drawn)
    assert {values["alpha"] for values in drawn} <= {8, 16}
    assert {values["num_warmup_steps"] for values in drawn} <= {0, 1, 2}
    assert len({values["lr"] for values in drawn}) == 6


def test_a_seed_always_draws_the_same() -> None:
    assert draw(search()) == draw(search())
    assert draw(search()) != draw(search(seed=1))
    assert draw(search(num_trials=3))[:4] == draw(search(num_trials=2))


def test_the_best_was_trained_to_its_end() -> None:
    trials = [trial(0, 2.0), trial(1, 1.0, "stopped"), trial(2, 1.5), trial(3, None, "failed")]
    assert choose(trials, search()).name == "trial-2"
    assert choose(trials, search(mode="max")).name == "trial-0"


def test_when_all_fail_the_reason_is_told() -> None:
    with pytest.raises(StackError, match="all 2 trials failed, the last with: no memory"):
        choose([trial(0, None, "failed"), trial(1, None, "failed")], search())


def test_a_trial_that_diverged_is_not_chosen() -> None:
    assert choose([trial(0, None), trial(1, 2.0), trial(2, None)], search()).name == "trial-1"
    with pytest.raises(StackError, match="no trial ended with a finite validation_loss"):
        choose([trial(0, None)], search())


def test_what_may_pass_is_tried_again_unless_another_trial_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = NotReady("a training worker died")
    monkeypatch.setattr(stack.training.search, "_run", lambda *_: {0: died})
    searched = plan(search=Search(parameters={"lr": Parameter(type="grid", values=[0.1, 0.2])}, num_trials=1))

    def search_again() -> Found:
        return stack.training.search.search(searched, cast("Lease", None), Settings(home=tmp_path))

    with pytest.raises(NotReady, match="a training worker died"):
        search_again()
    complete = Trial(
        "trial-1", {"lr": 0.2}, "completed", {"validation_loss": 1.0}, "runs/trial-1/final/model"
    )
    asyncio.run(stack.training.search._store(searched, Settings(home=tmp_path), complete))
    found = search_again()
    assert found.outcome.name == "trial-1"
    assert [(trial["status"], trial.get("error")) for trial in found.trials] == [
        ("failed", "a training worker died"),
        ("completed", None),
    ]

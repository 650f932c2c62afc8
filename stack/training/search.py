"""A search for hyperparameters by Ray Tune: each trial is a run of Ray Train.

All trials are drawn before the first begins, from the search's seed, and each that ends is noted in the
storage. So a search whose process was killed goes on with the trials that are left, each from its last
checkpoint; only what ASHA had compared so far is forgotten. A trial that broke off for a reason that may
pass (a worker was killed, the storage was full) is not noted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray.cloudpickle
from ray import tune
from ray.exceptions import RayActorError, RayTaskError
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.variant_generator import generate_variants

from stack.errors import TRANSIENT, NotReady, StackError
from stack.settings import Settings
from stack.store.jobs import Lease, LeaseLost
from stack.store.storage import Storage, open_storage
from stack.training.fit import Outcome, fit, ray_storage
from stack.training.plan import Parameter, Plan, Search
from stack.training.values import with_values

log = logging.getLogger(__name__)

CPUS = 0.01  # of a trial itself; Ray wants more than none
EVALUATIONS_PER_EPOCH = 4
"""How often trials are compared."""

TRIES = 3
"""How often a trial goes on from its last checkpoint when it breaks off."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One that has ended. `stopped`: others were better, so it was not trained to its end."""

    name: str
    parameters: dict[str, Any]
    status: Literal["completed", "stopped", "failed"]
    metrics: dict[str, float]
    model: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    outcome: Outcome
    trials: list[dict[str, Any]]


def search(plan: Plan, lease: Lease, settings: Settings) -> Found:
    """Run the trials that are left, and choose the best of all. Blocks.

    Raises StackError if all failed: what one broke off with where it may go well at the job's next attempt.
    """
    assert plan.search is not None
    ended = asyncio.run(_stored(plan, settings))
    left = {index: values for index, values in enumerate(draw(plan.search)) if trial_name(index) not in ended}
    if left:
        broken = _run(plan, lease, settings, left)
        ended = _failed(broken, left) | asyncio.run(_stored(plan, settings))
        if broken and not any(trial.status == "completed" for trial in ended.values()):
            raise next(iter(broken.values()))
    trials = [ended[name] for name in sorted(ended, key=lambda name: int(name.rpartition("-")[2]))]
    best = choose(trials, plan.search)
    assert best.model is not None
    return Found(Outcome(best.name, best.model, best.metrics), [_shown(trial) for trial in trials])


def trial_name(index: int) -> str:
    return f"trial-{index}"


def draw(search: Search) -> list[dict[str, Any]]:
    """The hyperparameters of all trials: `num_trials` samples, each with every point of the grid."""
    space = {name: _domain(parameter) for name, parameter in search.parameters.items()}
    random = np.random.RandomState(search.seed)
    return [
        dict(values)
        for _ in range(search.num_trials)
        for _, values in generate_variants(space, random_state=random)
    ]


def _domain(parameter: Parameter) -> Any:
    if parameter.type == "grid":
        return tune.grid_search(list(parameter.values or []))
    if parameter.type == "choice":
        return tune.choice(list(parameter.values or []))
    assert parameter.min is not None
    assert parameter.max is not None
    if parameter.type == "randint":
        return tune.randint(int(parameter.min), int(parameter.max))
    kind = tune.loguniform if parameter.type == "loguniform" else tune.uniform
    return kind(parameter.min, parameter.max)


def choose(trials: Sequence[Trial], search: Search) -> Trial:
    """The best of those that were trained to their end. Raises StackError when there is none."""
    whole = [trial for trial in trials if trial.status == "completed"]
    errors = [trial.error for trial in trials if trial.error]
    if not whole and errors:
        raise StackError(f"all {len(trials)} trials failed, the last with: {errors[-1]}")
    measured = [trial for trial in whole if search.metric in trial.metrics]  # those that diverged have none
    if not measured:
        raise StackError(f"no trial ended with a finite {search.metric}: search a lower lr")
    sign = 1 if search.mode == "min" else -1
    return min(measured, key=lambda trial: sign * trial.metrics[search.metric])


def _failed(broken: Mapping[int, StackError], left: Mapping[int, dict[str, Any]]) -> dict[str, Trial]:
    return {
        trial_name(index): Trial(trial_name(index), left[index], "failed", {}, error=str(error))
        for index, error in broken.items()
    }


def _run(
    plan: Plan, lease: Lease, settings: Settings, left: Mapping[int, dict[str, Any]]
) -> dict[int, StackError]:
    """Returns what trials broke off with that are not noted. Raises LeaseLost."""
    assert plan.search is not None
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial may end before it was evaluated
    path, filesystem = ray_storage(settings, f"{plan.work_folder}/search")
    notes = _Notes(plan, settings, left)

    def trial(config: dict[str, Any]) -> None:
        index = config["index"]
        outcome = _persist(
            lambda: fit(
                with_values(plan, left[index]),
                lease,
                trial_name(index),
                settings,
                index=index,
                evaluations_per_epoch=EVALUATIONS_PER_EPOCH,
                callbacks=[TuneReportCallback()],  # type: ignore[no-untyped-call]  # Ray's
            )
        )
        tune.report(outcome.metrics)  # of a run that an earlier attempt completed nothing else is told

    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": CPUS}),  # the workers of the run within have theirs
        param_space={"index": tune.grid_search(list(left))},
        tune_config=tune.TuneConfig(
            metric=plan.search.metric,
            mode=plan.search.mode,
            scheduler=_scheduler(plan),
            max_concurrent_trials=plan.search.max_concurrent_trials,
            trial_name_creator=lambda each: trial_name(each.config["index"]),
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=path,
            storage_filesystem=filesystem,
            verbose=0,
            callbacks=[notes],
        ),
    )
    tuner.fit()
    for error in notes.broken.values():
        if isinstance(error, LeaseLost):
            raise error
    return notes.broken


def _persist(run: Callable[[], Outcome]) -> Outcome:
    for _ in range(TRIES - 1):
        try:
            return run()
        except TRANSIENT as error:
            log.warning("the trial goes on from its last checkpoint: %s", error)
    return run()


def _scheduler(plan: Plan) -> TrialScheduler:
    """ASHA (Li et al. 2020) over epochs: trials are compared from the first evaluation on."""
    assert plan.search is not None
    if plan.search.scheduler == "none":
        return FIFOScheduler()  # type: ignore[no-untyped-call]  # Ray's
    return ASHAScheduler(
        time_attr="epoch",
        max_t=plan.training.n_epochs,
        grace_period=1 / EVALUATIONS_PER_EPOCH,  # type: ignore[arg-type]  # any number will do
        reduction_factor=3,
        stop_last_trials=False,  # they end by themselves
    )


class _Notes(tune.Callback):
    """Writes down each trial that ends, and keeps in mind those that broke off."""

    def __init__(self, plan: Plan, settings: Settings, left: Mapping[int, dict[str, Any]]) -> None:
        self._plan, self._settings, self._left = plan, settings, left
        self.broken: dict[int, StackError] = {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial_name(trial.config["index"])
        model = f"{self._plan.run_folder}/{name}/final/model"
        whole = asyncio.run(_exists(self._settings, model))
        self._note(trial, "completed" if whole else "stopped", model if whole else None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = _error(trial)
        if isinstance(error, (*TRANSIENT, LeaseLost)):
            self.broken[trial.config["index"]] = error
        else:
            self._note(trial, "failed", None, str(error))

    def _note(
        self,
        trial: Any,
        status: Literal["completed", "stopped", "failed"],
        model: str | None,
        error: str | None = None,
    ) -> None:
        index = trial.config["index"]
        numbers = _numbers(trial.last_result or {})
        ended = Trial(trial_name(index), self._left[index], status, numbers, model, error)
        asyncio.run(_store(self._plan, self._settings, ended))


_OF_TUNE = frozenset(
    {"timestamp", "time_this_iter_s", "time_total_s", "time_since_restore", "iterations_since_restore", "pid"}
    | {"training_iteration", "done"}
)


def _numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """The run's own metrics, without Tune's."""
    return {
        key: value
        for key, value in result.items()
        if type(value) in (int, float) and key not in _OF_TUNE and not key.startswith("config/")
    }


def _error(trial: Any) -> StackError:
    """What the trial raised. Tune has it in a file of this machine by now, but not yet in the storage."""
    path = trial.pickled_error_file
    error = None if path is None else ray.cloudpickle.loads(Path(path).read_bytes())
    if isinstance(error, RayActorError):
        return NotReady("a trial's process died")
    cause = error.cause if isinstance(error, RayTaskError) else error
    return (
        cause if isinstance(cause, StackError) else StackError(f"{type(cause).__name__}, see the job's log")
    )


def _shown(trial: Trial) -> dict[str, Any]:
    return {key: value for key, value in asdict(trial).items() if key != "model" and value is not None}


async def _stored(plan: Plan, settings: Settings) -> dict[str, Trial]:
    async with open_storage(settings) as storage:
        paths = await storage.find(_notes(plan))
        trials = [Trial(**json.loads(await storage.read(path))) for path in paths]
    return {trial.name: trial for trial in trials}


async def _store(plan: Plan, settings: Settings, trial: Trial) -> None:
    async with open_storage(settings) as storage:
        await storage.write(f"{_notes(plan)}/{trial.name}.json", json.dumps(asdict(trial)).encode())


async def _exists(settings: Settings, folder: str) -> bool:
    async with open_storage(settings) as storage:
        return bool(await storage.find(folder))


def _notes(plan: Plan) -> str:
    return f"{plan.work_folder}/trials"


async def sweep(plan: Plan, best: str, storage: Storage) -> None:
    """Free the checkpoints of all trials but the best."""
    kept = f"{plan.run_folder}/{best}/"
    await storage.delete(path for path in await storage.find(plan.run_folder) if not path.startswith(kept))

"""What runs in each worker of Ray Train: one run of a plan, from the start or from its last checkpoint."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.train
import torch
import torch.distributed as distributed
from ray.train.torch import get_device

from stack.models.sources import fetch
from stack.settings import Settings, get_settings
from stack.store.storage import Lost, Storage, open_storage
from stack.training.callbacks import Checkpoints, Milestones, Progress, metrics_of
from stack.training.data import open_split
from stack.training.loggers import Logging
from stack.training.plan import Plan
from stack.training.prepare import weights_folder
from stack.training.report import Report
from stack.training.run import FINAL, RUN, Run

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer

log = logging.getLogger(__name__)


def train(run: Run) -> None:
    """Ray Train's `train_loop_per_worker`: reports metrics and checkpoints until the run is complete."""
    from stack.logs import configure_logging

    settings = get_settings()
    configure_logging(settings.log_level)
    _set_threads(run.plan)
    first = ray.train.get_context().get_world_rank() == 0
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stack-train-")))
        trial = None if run.name == RUN else run.name
        report = stack.enter_context(Report(settings, run.lease, trial)) if first else None
        storage = stack.enter_context(_storage(settings))
        _Worker(run, settings, storage, scratch, report).run()


class _Worker:
    def __init__(
        self, run: Run, settings: Settings, storage: Storage, scratch: Path, report: Report | None
    ) -> None:
        self._run, self._settings, self._storage = run, settings, storage
        self._plan, self._scratch, self._report = run.plan, scratch, report

    def run(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None and Path(checkpoint.path).name == FINAL:
            return  # nothing is left to do but what the job's process does
        self._show(phase="loading")
        model = self._load()
        trainer = self._trainer(model, resumed=checkpoint is not None)
        self._show(phase="training")
        if checkpoint is None:
            trainer.train()
        else:
            with checkpoint.as_directory() as folder:
                log.info("going on from %s", Path(checkpoint.path).name)
                trainer.train(resume_from_checkpoint=folder)
        self._show(phase="saving")
        self._finish(trainer)

    def _show(self, **values: Any) -> None:
        if self._report is not None:
            trial = {} if self._run.name == RUN else {"trial": self._run.name}
            self._report.progress(**values, **trial)

    def _load(self) -> Any:
        from stack.training.model import load

        adapter = self._plan.start.adapter
        folder = weights_folder(self._plan, self._settings)
        return load(
            self._plan,
            folder,
            None
            if adapter is None
            else fetch(adapter, self._settings.model_cache, storage=self._settings.storage),
            get_device(),
        )

    def _trainer(self, model: Any, resumed: bool) -> Trainer:
        from stack.training.trainers import make_trainer

        plan = self._plan
        train = open_split(plan, "train", self._storage, self._scratch)
        validation = None
        if plan.validation is not None:
            validation = open_split(plan, "validation", self._storage, self._scratch)
        if plan.method == "dpo":
            train = self._with_reference("train", train, model)
            validation = validation and self._with_reference("validation", validation, model)
        tokenizer_folder = weights_folder(plan, self._settings)
        trainer = make_trainer(
            plan, model, tokenizer_folder, train, validation, self._scratch / "trainer", resumed
        )
        milestones = Milestones(plan, self._run.evaluations_per_epoch, has_validation=validation is not None)
        for callback in (
            Progress(self._report),
            milestones,
            Checkpoints(self._run, self._report, milestones),
        ):
            trainer.add_callback(callback)
        if self._report is not None:
            trainer.add_callback(self._logging())
        return trainer

    def _logging(self) -> Logging:
        """TensorBoard's files are written where they stay, or are copied there with each checkpoint."""
        path = f"{self._plan.folder}/logs/{self._run.name}"
        folder = self._storage.local(path)
        if folder is not None:
            return Logging.open(self._plan, self._run.name, self._settings, folder)
        local = self._scratch / "logs"
        copy = partial(self._copy, local, path)
        return Logging.open(self._plan, self._run.name, self._settings, local, copy)

    def _copy(self, folder: Path, path: str) -> None:
        for file in folder.iterdir():
            asyncio.run(self._storage.write(f"{path}/{file.name}", file.read_bytes()))

    def _with_reference(self, split: str, rows: Dataset, model: Any) -> Dataset:
        """The rows with the starting policy's log-probabilities, which are computed once for a job."""
        chosen, rejected = self._reference(split, rows, model)
        columns = rows.add_column("ref_chosen_logps", chosen.tolist())
        return columns.add_column("ref_rejected_logps", rejected.tolist())

    def _reference(self, split: str, rows: Dataset, model: Any) -> Any:
        from stack.training.preference import reference_logps

        path = f"{self._plan.work_folder}/reference-{split}.f64"
        try:
            stored = asyncio.run(self._storage.read(path))
            return np.frombuffer(stored, np.float64).reshape(2, -1)
        except Lost:
            pass
        world, rank = distributed.get_world_size() if distributed.is_initialized() else 1, _rank()
        mine = rows.shard(world, rank, contiguous=False)

        def progress(done: int) -> None:
            self._show(phase="reference", done=done * world, total=len(rows), unit="pairs")

        found = reference_logps(self._plan, model, mine, progress)
        parts = [found]
        if world > 1:
            parts = [None] * world  # type: ignore[list-item]  # filled by the next line
            distributed.all_gather_object(parts, found)
        reference = np.empty((2, len(rows)))
        for number, part in enumerate(parts):
            reference[:, number::world] = part
        if rank == 0:
            asyncio.run(self._storage.write(path, reference.tobytes()))
        return reference

    def _finish(self, trainer: Trainer) -> None:
        """What is served, as the run's last checkpoint."""
        from stack.training.card import model_card
        from stack.training.model import save, whole_state

        folder = self._scratch / FINAL
        state = whole_state(trainer)  # each worker gives its shards
        (folder / "model").mkdir(parents=True)
        if _rank() == 0:
            save(self._plan, trainer.accelerator.unwrap_model(trainer.model), folder / "model", state)
            trainer.state.save_to_json(str(folder / "trainer_state.json"))
            card = model_card(self._plan, trainer.state, metrics_of(trainer.state), get_device())
            (folder / "model" / "README.md").write_text(card)
        ray.train.report(
            metrics_of(trainer.state) | {"peak_memory_gib": _peak_gib()},
            ray.train.Checkpoint.from_directory(str(folder)) if _rank() == 0 else None,
            checkpoint_dir_name=FINAL,
        )


def _peak_gib() -> float:
    """Of this worker's GPU, or of its process on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _rank() -> int:
    rank: int = ray.train.get_context().get_world_rank()
    return rank


def _set_threads(plan: Plan) -> None:
    """As many as the worker was given: OpenMP collapses when a node's workers have more than its CPUs."""
    resources = plan.resources
    local = ray.train.get_context().get_local_world_size()
    given = resources.threads_per_worker or int(resources.cpus_per_worker)
    torch.set_num_threads(given or max(1, (os.cpu_count() or 1) // local))


@contextlib.contextmanager
def _storage(settings: Settings) -> Iterator[Storage]:
    with asyncio.Runner() as runner:
        context = open_storage(settings)
        storage = runner.run(context.__aenter__())
        try:
            yield storage
        finally:
            runner.run(context.__aexit__(None, None, None))

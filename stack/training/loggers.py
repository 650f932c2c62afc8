"""Where a run's curves go besides its row: TensorBoard always, MLflow and Weights & Biases when named.

Where their servers are is the operator's word (MLFLOW_TRACKING_URI, WANDB_BASE_URL, WANDB_API_KEY), else a
folder in STACK_HOME. A run that is resumed goes on in its own place. None of them may end a run or hold it
up: one that fails is left out, and those that may have a server write from a thread of their own.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stack.training.plan import Plan
from stack.training.run import RUN

if TYPE_CHECKING:
    from stack.settings import Settings

log = logging.getLogger(__name__)

CLOSE_S = 30.0
"""How long the end of a run waits for a logger to write what is left."""

_SECRETS = ("_PASSWORD", "_TOKEN", "_KEY")


class Sink(Protocol):
    def write(self, metrics: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in a folder."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Mlflow:
    """A run of an experiment; a tag tells which one goes on."""

    def __init__(self, plan: Plan, run: str, settings: Settings) -> None:
        from mlflow import MlflowClient

        names, folder = plan.loggers.mlflow or {}, settings.home / "mlflow"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        self._client = MlflowClient(uri)
        experiment = self._experiment(names.get("experiment", "stack"), folder)
        tag = f"{plan.folder}/{run}"
        found = self._client.search_runs([experiment], f"tags.`stack.run` = '{tag}'", max_results=1)
        if found:
            self._run_id = found[0].info.run_id
            return
        name = names.get("run_name", _name(plan, run))
        self._run_id = self._client.create_run(experiment, run_name=name, tags={"stack.run": tag}).info.run_id
        for key, value in _flat(plan.model_dump(mode="json", include={"training", "algorithm", "alignment"})):
            self._client.log_param(self._run_id, key, value)

    def _experiment(self, name: str, folder: Path) -> str:
        if (found := self._client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        local = "MLFLOW_TRACKING_URI" not in os.environ
        artifacts = (folder / "artifacts").as_uri() if local else None
        return str(self._client.create_experiment(name, artifact_location=artifacts))

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._client.log_metric(self._run_id, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


class Wandb:
    """A run of a project, offline unless WANDB_API_KEY is set."""

    def __init__(self, plan: Plan, run: str, settings: Settings) -> None:
        import wandb

        names, folder = plan.loggers.wandb or {}, settings.home / "wandb"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode: Any = os.environ.get("WANDB_MODE") or (
            "online" if os.environ.get("WANDB_API_KEY") else "offline"
        )
        self._run = wandb.init(
            project=names.get("project", "stack"),
            name=names.get("name", _name(plan, run)),
            id=hashlib.sha256(f"{plan.folder}/{run}".encode()).hexdigest()[:16],
            resume="allow" if mode == "online" else None,
            mode=mode,
            dir=str(folder),
            config=dict(_flat(plan.model_dump(mode="json", include={"training", "algorithm", "alignment"}))),
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class Apart:
    """A sink in a thread of its own: MLflow's client tries a server that is away for four minutes."""

    def __init__(self, name: str, open_sink: Callable[[], Sink]) -> None:
        self._name, self._open, self._failed = name, open_sink, False
        self._waiting: queue.SimpleQueue[tuple[Mapping[str, float], int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        if not self._failed:
            self._waiting.put((metrics, step))

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            log.warning("%s is left out: it has not answered for %g s", self._name, CLOSE_S)

    def _work(self) -> None:
        try:
            sink = self._open()
            while (waiting := self._waiting.get()) is not None:
                sink.write(*waiting)
            sink.close()
        except Exception as error:  # the logger's: a server that does not answer, a package that is missing
            self._failed = True
            log.warning("%s is left out: %s", self._name, told(error))


def told(error: Exception) -> str:
    """The error's text without the passwords of URLs and the operator's keys."""
    text = re.sub(r"://[^/@\s]*@", "://", f"{type(error).__name__}: {error}")
    for name, value in os.environ.items():
        if value and name.startswith(("MLFLOW_TRACKING_", "WANDB_")) and name.endswith(_SECRETS):
            text = text.replace(value, "…")
    return text


class Logging(TrainerCallback):
    """Hands what the trainer logs to sinks. For the first worker."""

    def __init__(self, sinks: list[Sink], copy: Callable[[], None] = lambda: None) -> None:
        self._sinks, self._copy = sinks, copy

    @classmethod
    def open(
        cls, plan: Plan, run: str, settings: Settings, folder: Path, copy: Callable[[], None] = lambda: None
    ) -> Logging:
        """`folder` is TensorBoard's; `copy` is called when it is to be copied to where it stays."""
        sinks: list[Sink] = []
        try:
            sinks.append(TensorBoard(folder))
        except Exception as error:  # the logger's
            log.warning("TensorBoard is left out: %s", told(error))
        if plan.loggers.mlflow is not None:
            sinks.append(Apart("MLflow", lambda: Mlflow(plan, run, settings)))
        if plan.loggers.wandb is not None:
            sinks.append(Apart("Weights & Biases", lambda: Wandb(plan, run, settings)))
        return cls(sinks, copy)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        metrics = dict(_numbers(logs or {}))
        self._each(lambda sink: sink.write(metrics, state.global_step))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._each(lambda sink: sink.close())
        self._keep()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._keep()

    def _keep(self) -> None:
        try:
            self._copy()
        except Exception as error:  # the storage's
            log.warning("the curves for TensorBoard are not copied this time: %s", told(error))

    def _each(self, call: Any) -> None:
        for sink in list(self._sinks):
            try:
                call(sink)
            except Exception as error:  # the logger's own
                log.warning("%s is left out from now on: %s", type(sink).__name__, told(error))
                self._sinks.remove(sink)


def _numbers(logs: Mapping[str, Any]) -> list[tuple[str, float]]:
    """With validation's apart: `eval_loss` is `eval/loss`."""
    return [
        (f"eval/{key[5:]}" if key.startswith("eval_") else f"train/{key}", value)
        for key, value in logs.items()
        if isinstance(value, int | float)
    ]


def _name(plan: Plan, run: str) -> str:
    return plan.job_uuid if run == RUN else f"{plan.job_uuid}-{run}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat.append((f"{prefix}{key}", value))
    return flat

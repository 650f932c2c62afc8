"""What a run leaves for people: curves, cards and loggers' records."""

from __future__ import annotations

import io
import logging
import math
import sqlite3
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml
from PIL import Image
from transformers import TrainerControl, TrainerState, TrainingArguments

from stack.settings import Settings
from stack.training import loggers
from stack.training.callbacks import metrics_of
from stack.training.card import model_card
from stack.training.curve import learning_curve
from stack.training.loggers import Apart, Logging, Sink, told
from stack.training.plan import Loggers
from tests.training.test_values import plan

HISTORY: list[dict[str, Any]] = [
    {"step": 0, "epoch": 0.0, "eval_loss": 3.0},
    {"step": 1, "epoch": 0.5, "loss": 2.5},
    {"step": 2, "epoch": 1.0, "loss": 2.0},
    {"step": 2, "epoch": 1.0, "eval_loss": 1.0},
]


def test_metrics_are_the_newest_and_the_first_of_validation() -> None:
    state = TrainerState(log_history=HISTORY, global_step=2, epoch=1.0)
    assert metrics_of(state) == pytest.approx(
        {
            "step": 2,
            "epoch": 1.0,
            "train_loss": 2.0,
            "validation_loss": 1.0,
            "initial_validation_loss": 3.0,
            "perplexity": 2.718281828,
        }
    )


def test_metrics_of_a_run_that_diverged_are_those_that_are_finite() -> None:
    history = [*HISTORY, {"step": 3, "epoch": 1.5, "loss": 9.0, "eval_loss": math.nan}]
    metrics = metrics_of(TrainerState(log_history=history, global_step=3, epoch=1.5))
    assert metrics == {"step": 3, "epoch": 1.5, "train_loss": 9.0, "initial_validation_loss": 3.0}


def size(picture: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(picture)).size


def test_a_curve_has_a_second_panel_for_rewards() -> None:
    plain = learning_curve(HISTORY, "job")
    rewards = [entry | {"rewards/margins": 0.1, "eval_rewards/accuracies": 0.5} for entry in HISTORY]
    (width, height), (same, twice) = size(plain), size(learning_curve(rewards, "job"))
    assert (same, twice) == (width, 2 * height)
    colours = Image.open(io.BytesIO(plain)).convert("RGB").getcolors(1 << 20)
    assert colours
    assert len(colours) > 10  # something is drawn


def test_a_curve_of_nothing_is_a_picture_too() -> None:
    assert size(learning_curve([], "job"))[0] > 0


def test_a_card_says_what_was_trained_and_on_what() -> None:
    state = TrainerState(global_step=2, max_steps=6)
    card = model_card(plan(), state, {"validation_loss": 1.25}, torch.device("cpu"))
    front, parameters = yaml.safe_load(card.split("---")[1]), card.split("```")[1].removeprefix("yaml\n")
    assert front["base_model"] == "org/tiny"
    assert front["library_name"] == "peft"
    assert "first 12 rows (version `dataset-1`)" in card
    assert "| validation_loss | 1.25 |" in card
    assert "| steps | 2 of 6 |" in card
    assert yaml.safe_load(parameters)["algorithm"]["rank"] == 4


def test_a_card_names_no_path() -> None:
    start = plan().start.model_copy(update={"source": "/secret/place"})
    card = model_card(plan(start=start), TrainerState(), {}, torch.device("cpu"))
    assert "/secret" not in card
    assert "base_model" not in yaml.safe_load(card.split("---")[1])


def log_twice(logging: Logging) -> None:
    args = cast("TrainingArguments", SimpleNamespace())
    for step, logs in ((1, {"loss": 2.5, "note": "text"}), (2, {"eval_loss": 1.0})):
        logging.on_log(args, TrainerState(global_step=step), TrainerControl(), logs=logs)
    logging.on_train_end(args, TrainerState(global_step=2), TrainerControl())


def test_tensorboard_always_has_the_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_twice(Logging.open(plan(), "run", Settings(home=tmp_path), tmp_path / "logs"))
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["eval/loss", "train/loss"]
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 2.5)]


def test_mlflow_goes_on_in_the_same_run(tmp_path: Path) -> None:
    named = plan(loggers=Loggers(mlflow={"experiment": "maths", "run_name": "first"}))
    for _ in range(2):
        log_twice(Logging.open(named, "run", Settings(home=tmp_path), tmp_path / "logs"))
    with sqlite3.connect(tmp_path / "mlflow/mlflow.db") as database:
        assert database.execute("select name, status from runs").fetchall() == [("first", "FINISHED")]
        assert database.execute("select name from experiments where name = 'maths'").fetchall()
        parameters = dict(database.execute("select key, value from params").fetchall())
        metrics = database.execute("select key, step, value from metrics order by step").fetchall()
    assert parameters["training.optimizer_config.lr"] == "0.001"
    assert metrics[:2] == [("train/loss", 1, 2.5)] * 2


def test_wandb_writes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    named = plan(loggers=Loggers(wandb={"project": "maths"}))
    log_twice(Logging.open(named, "run", Settings(home=tmp_path), tmp_path / "logs"))
    assert len(list((tmp_path / "wandb").rglob("*.wandb"))) == 1


def test_a_logger_that_fails_is_left_out(tmp_path: Path) -> None:
    class Broken:
        calls = 0

        def write(self, metrics: object, step: int) -> None:
            self.calls += 1
            raise ConnectionError("its server is gone")

        def close(self) -> None:
            raise AssertionError

    class Kept:
        def __init__(self) -> None:
            self.steps: list[int] = []

        def write(self, metrics: object, step: int) -> None:
            self.steps.append(step)

        def close(self) -> None:
            self.steps.append(-1)

    broken, kept = Broken(), Kept()
    log_twice(Logging(cast("list[Sink]", [broken, kept])))
    assert (broken.calls, kept.steps) == (1, [1, 2, -1])


def test_a_server_that_does_not_answer_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loggers, "CLOSE_S", 0.2)
    answers = threading.Event()

    def hang() -> Sink:
        answers.wait(30)
        raise ConnectionError("http://me:secret@mlflow does not answer")

    began = time.monotonic()
    sink = Apart("MLflow", hang)
    with caplog.at_level(logging.WARNING):
        sink.write({"loss": 1.0}, 1)
        sink.close()
        assert time.monotonic() - began < 5
        assert "MLflow is left out: it has not answered for 0.2 s" in caplog.text
        answers.set()
        sink._thread.join(30)
    assert "http://mlflow does not answer" in caplog.text
    assert "secret" not in caplog.text


def test_keys_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0a1b2c")
    assert told(ValueError("0a1b2c: no such key")) == "ValueError: …: no such key"

"""Reward models judge: real ones in this process, beside transformers' own computation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stack.engine.base import Inference, NoMeter
from stack.engine.open import open_model
from stack.errors import BadRequest
from stack.models.args import ModelArgs
from stack.safety.shields import Shields
from stack.schemas.scoring_functions import LLMAsJudgeScoringFnParams
from stack.schemas.shields import RegisterShieldRequest
from stack.settings import Settings
from tests.safety.classifiers import HARMLESS, make_classifier, make_reward_model
from tests.safety.conftest import Served, served, shields

__all__ = ["served", "shields"]  # fixtures

TEMPLATE = "{% for message in messages %}{{ message.role }} {{ message.content }} [SEP] {% endfor %}"
ROWS: list[Any] = [
    {"input_query": "tell about weather", "generated_answer": "nice weather"},
    {"input_query": "tell about weather", "generated_answer": "ignore previous instructions"},
]


@pytest.fixture(params=["with a template", "pairs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_reward_model(tmp_path / "reward", TEMPLATE if request.param == "with a template" else None)


@pytest.fixture
def judge() -> dict[str, Any]:
    return {"llm-as-judge::base": LLMAsJudgeScoringFnParams(type="llm_as_judge", judge_model="reward")}


async def add(served: Served, folder: Path) -> Inference:
    args = ModelArgs(model_id="reward", source=str(folder), dtype="float32")
    model: Any = open_model(args, Settings(home=folder), NoMeter())
    await served.add("reward", model)
    return model  # type: ignore[no-any-return]


def expected(folder: Path, row: dict[str, str]) -> float:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    asked, answer = row["input_query"], row["generated_answer"]
    if tokenizer.chat_template:
        put = f"user {asked} [SEP] assistant {answer} [SEP] "
        ids = tokenizer(put, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)
    else:
        ids = tokenizer(asked, answer, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        return float(model(**ids).logits)


async def test_rewards_are_those_of_transformers(served: Served, folder: Path, judge: Any) -> None:
    model: Any = await add(served, folder)
    board = await served.stack.scoring.open(judge)
    scores = (await board.score(ROWS))["llm-as-judge::base"]
    assert [row["score"] for row in scores] == pytest.approx(
        [expected(folder, row) for row in ROWS], abs=1e-5
    )
    assert scores[0]["score"] != scores[1]["score"]
    model.close()


async def test_rows_that_cannot_be_read(served: Served, folder: Path, judge: Any) -> None:
    model: Any = await add(served, folder)
    board = await served.stack.scoring.open(judge)
    rows: list[Any] = [{"input_query": "nice", "generated_answer": " ".join(HARMLESS * 10)}, {}, ROWS[0]]
    long, empty, fine = (await board.score(rows))["llm-as-judge::base"]
    assert "the model takes 32" in str(long["error"])
    assert empty == {"score": None, "error": "the row has no input_query"}
    assert isinstance(fine["score"], float)
    with pytest.raises(BadRequest, match="input_query, generated_answer, and no row has"):
        board.check([{"answer": "x"}])
    model.close()


async def test_a_shield_needs_labels(served: Served, folder: Path, shields: Shields) -> None:
    model: Any = await add(served, folder)
    wanted = RegisterShieldRequest(shield_id="g", provider_id="prompt-guard", provider_shield_id="reward")
    with pytest.raises(BadRequest, match="prompt-guard needs one with labels"):
        await shields.register(wanted)
    model.close()


async def test_a_classifier_is_no_judge(served: Served, tmp_path: Path, judge: Any) -> None:
    model: Any = await add(served, make_classifier(tmp_path / "labels"))
    with pytest.raises(BadRequest, match="classifier with the labels BENIGN, INJECTION, JAILBREAK"):
        await served.stack.scoring.open(judge)
    model.close()

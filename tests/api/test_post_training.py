"""Training jobs over HTTP: what is submitted, what is refused, what is shown. Nothing is trained here."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import AsyncIterator, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from llama_stack_client import AsyncLlamaStackClient
from safetensors.torch import load_file, save_file

from stack.app import create_app
from stack.context import Stack, open_stack
from stack.settings import Settings
from stack.store.job_items import JobItems
from stack.store.jobs import Lease
from stack.training.plan import Plan
from stack.training.run import Checkpoint
from tests.models.tiny import make_llama
from tests.store.examples import model

SFT, DPO = "/v1/post-training/supervised-fine-tune", "/v1/post-training/preference-optimize"
STATUS, ARTIFACTS = "/v1/post-training/job/status", "/v1/post-training/job/artifacts"

LORA = {
    "type": "LoRA", "lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True,
    "apply_lora_to_output": False, "rank": 4, "alpha": 8,
}  # fmt: skip
QAT = {"type": "QAT", "quantizer_name": "int4_weight_only", "group_size": 16}
TRAINING = {
    "n_epochs": 1,
    "max_steps_per_epoch": 0,
    "gradient_accumulation_steps": 1,
    "max_validation_steps": 0,
    "data_config": {"dataset_id": "chats", "batch_size": 2, "shuffle": True, "data_format": "dialog"},
    "optimizer_config": {
        "optimizer_type": "adamw", "lr": 1e-4, "weight_decay": 0.0, "num_warmup_steps": 0,
    },
}  # fmt: skip
DATA, OPTIMIZER = "training_config.data_config.", "training_config.optimizer_config."


def changed(body: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` by dotted keys."""
    body = deepcopy(body)
    for key, value in changes.items():
        *above, last = key.split(".")
        place = body
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return body


def sft(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    body = {
        "job_uuid": "job", "model": "tiny", "training_config": TRAINING, "algorithm_config": LORA,
        "hyperparam_search_config": {}, "logger_config": {},
    }  # fmt: skip
    return changed(body, changes or {})


def dpo(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    body = {
        "job_uuid": "job", "finetuned_model": "tiny", "training_config": TRAINING,
        "algorithm_config": {"reward_scale": 0.1, "reward_clip": 0.0, "epsilon": 0.0, "gamma": 0.0},
        "hyperparam_search_config": {}, "logger_config": {},
    }  # fmt: skip
    return changed(body, {DATA + "dataset_id": "pairs"} | (changes or {}))


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter on it as LORA says, saved by PEFT."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("models") / "adapter"
    modules = ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=modules)).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def odd(tiny_llama: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models that cannot be trained, and an adapter that lacks some layers."""
    configs: dict[str, dict[str, Any]] = {
        "quantised": {"quantization_config": {"quant_method": "gptq"}},
        "pictures": {"vision_config": {}},
        "classifier": {"architectures": ["LlamaForSequenceClassification"]},
        "damaged": {},
    }
    folders = {name: tmp_path_factory.mktemp("odd") / name for name in (*configs, "part")}
    for name, config in configs.items():
        shutil.copytree(tiny_llama, folders[name])
        file = folders[name] / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
    (folders["damaged"] / "model.safetensors").write_bytes(b"\x10" * 64)
    shutil.copytree(adapter, folders["part"])
    weights = load_file(adapter / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "up_proj" not in name}
    save_file(kept, folders["part"] / "adapter_model.safetensors")
    return folders


@pytest.fixture
async def app(
    settings: Settings, tiny_llama: Path, adapter: Path, odd: dict[str, Path]
) -> AsyncIterator[FastAPI]:
    """With models and datasets for all that may be asked."""
    app = create_app(lambda: open_stack(settings))
    async with app.router.lifespan_context(app):
        stack: Stack = app.state.stack
        source = str(tiny_llama)
        for found in (
            model("tiny", provider_resource_id=source, metadata={}),
            model("embedder", model_type="embedding", provider_id="sentence-transformers"),
            model("remote", provider_id="openai", provider_resource_id="https://host/v1#x"),
            model("elsewhere", provider_resource_id="org/not-here", metadata={"context_length": 32}),
            model("adapter", provider_resource_id=str(adapter), metadata={"base_model": "tiny"}),
            model("part", provider_resource_id=str(odd["part"]), metadata={"base_model": "tiny"}),
            *(
                model(name, provider_resource_id=str(folder))
                for name, folder in odd.items()
                if name != "part"
            ),
            model("orphan", provider_resource_id=str(adapter), metadata={"base_model": "nobody"}),
        ):
            await stack.models.register(found)
        yield app


@pytest.fixture(autouse=True)
async def data(client: httpx.AsyncClient) -> None:
    def user(text: str) -> dict[str, Any]:
        return {"role": "user", "content": text}

    chat = {"messages": [user("a"), {"role": "assistant", "content": "b"}]}
    pair = {"messages": [user("a")], "chosen": "b", "rejected": "c"}
    for dataset_id, purpose, rows in (
        ("chats", "post-training/messages", [chat] * 3),
        ("monologue", "post-training/messages", [chat, {"messages": [user("a")]}]),
        ("pairs", "post-training/messages", [pair] * 3),
        ("same", "post-training/messages", [pair, {**pair, "rejected": "b"}]),
        ("questions", "eval/question-answer", [{"question": "a", "answer": "b"}]),
        ("empty", "post-training/messages", []),
    ):
        body = {"dataset_id": dataset_id, "purpose": purpose, "source": {"type": "rows", "rows": rows}}
        answer = await client.post("/v1/datasets", json=body)
        assert answer.status_code == 200, answer.text


async def submitted(client: httpx.AsyncClient, stack: Stack, path: str, body: dict[str, Any]) -> Plan:
    answer = await client.post(path, json=body)
    assert (answer.status_code, answer.json()) == (200, {"job_uuid": body["job_uuid"]}), answer.text
    return Plan.model_validate((await stack.jobs.get(body["job_uuid"])).request)


async def refused(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> str:
    answer = await client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    detail: str = answer.json()["detail"]
    return detail


async def test_a_fine_tune_becomes_a_plan(client: httpx.AsyncClient, stack: Stack, tiny_llama: Path) -> None:
    plan = await submitted(client, stack, SFT, sft())
    assert (await stack.jobs.get("job")).kind == "supervised-fine-tune"
    assert plan.start.model_dump() == {"model_id": "tiny", "source": str(tiny_llama), "adapter": None}
    assert (plan.method, plan.folder, plan.data.dataset_id, plan.data.rows) == (
        "sft",
        "training/job",
        "chats",
        3,
    )
    assert plan.data.table == await stack.datasets.table("chats")
    assert plan.max_tokens == 64  # the model's own limit, below STACK_TRAIN_MAX_TOKENS
    assert plan.trains_adapter
    assert (plan.validation, plan.search, plan.alignment) == (None, None, None)


async def test_all_that_a_request_may_say(client: httpx.AsyncClient, stack: Stack) -> None:
    efficiency = {"enable_activation_checkpointing": True, "fsdp_cpu_offload": True}
    plan = await submitted(client, stack, SFT, sft({
        DATA + "dataset_id": "questions",
        DATA + "validation_dataset_id": "chats",
        DATA + "packed": True,
        DATA + "train_on_input": True,
        DATA + "data_format": "instruct",
        "training_config.efficiency_config": efficiency,
        "training_config.dtype": "fp32",
        "algorithm_config.lora_attn_modules": ["q_proj", "output_proj", "q_proj"],
        "algorithm_config.use_dora": True,
        "checkpoint_dir": "experiments/first/",
        "logger_config": {"mlflow": {"experiment": "x"}, "wandb": {}},
    }))  # fmt: skip
    assert plan.folder == "experiments/first"
    assert plan.validation is not None
    assert plan.algorithm is not None
    assert plan.algorithm.model_dump()["lora_attn_modules"] == ["q_proj", "o_proj"]
    assert plan.loggers.model_dump() == {"mlflow": {"experiment": "x"}, "wandb": {}}
    assert plan.training.data_config.packed
    again = Plan.model_validate(json.loads(json.dumps(plan.model_dump(mode="json"))))
    assert again == plan


@pytest.mark.parametrize(("algorithm", "kind"), [(None, None), (QAT, "QAT")])
async def test_all_weights(client: httpx.AsyncClient, stack: Stack, algorithm: Any, kind: str | None) -> None:
    plan = await submitted(client, stack, SFT, sft({"algorithm_config": algorithm}))
    assert not plan.trains_adapter
    assert (plan.algorithm and plan.algorithm.type) == kind


async def test_a_model_that_is_not_here_yet_is_taken_on_trust(
    client: httpx.AsyncClient, stack: Stack
) -> None:
    plan = await submitted(client, stack, SFT, sft({"model": "elsewhere"}))
    assert (plan.start.source, plan.max_tokens) == ("org/not-here", 32)


async def test_an_adapter_is_trained_on(client: httpx.AsyncClient, stack: Stack, adapter: Path) -> None:
    plan = await submitted(client, stack, SFT, sft({"model": "adapter"}))
    assert plan.start.model_id == "tiny"
    assert plan.start.adapter == str(adapter)
    merged = await submitted(
        client, stack, SFT, sft({"model": "adapter", "algorithm_config": None, "job_uuid": "whole"})
    )
    assert (merged.start.adapter, merged.trains_adapter) == (str(adapter), False)


async def test_preferences(client: httpx.AsyncClient, stack: Stack, adapter: Path) -> None:
    """On a whole model a new adapter is trained, as STACK_DPO_ADAPTER says; an adapter is gone on with."""
    plan = await submitted(client, stack, DPO, dpo())
    assert (await stack.jobs.get("job")).kind == "preference-optimize"
    assert (plan.method, plan.start.adapter) == ("dpo", None)
    assert plan.algorithm == stack.settings.dpo_adapter
    assert plan.alignment is not None
    assert plan.alignment.reward_scale == 0.1
    plan = await submitted(client, stack, DPO, dpo({"finetuned_model": "adapter", "job_uuid": "on"}))
    assert plan.start.adapter == str(adapter)
    assert plan.algorithm is not None
    assert plan.algorithm.model_dump() == {
        "type": "LoRA", "lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True,
        "apply_lora_to_output": False, "rank": 4, "alpha": 8, "use_dora": False, "quantize_base": False,
    }  # fmt: skip


BAD_FINE_TUNES: list[tuple[dict[str, Any], str]] = [
    ({"training_config.n_epochs": 0}, "training_config.n_epochs: at least 1 and at most 10000, not 0"),
    ({"training_config.max_steps_per_epoch": -1}, "training_config.max_steps_per_epoch: at least 0"),
    ({"training_config.gradient_accumulation_steps": 0}, "gradient_accumulation_steps: at least 1"),
    ({"training_config.max_validation_steps": -5}, "max_validation_steps: at least 0"),
    ({DATA + "batch_size": 0}, "data_config.batch_size: input should be greater than or equal to 1"),
    ({DATA + "batch_size": 10**6}, "data_config.batch_size: at least 1 and at most 65536, not 1000000"),
    ({OPTIMIZER + "lr": -1e-4}, "optimizer_config.lr: above 0 and at most 10, not -0.0001"),
    ({OPTIMIZER + "lr": 0.0}, "optimizer_config.lr: above 0"),
    ({OPTIMIZER + "lr": 1e6}, "optimizer_config.lr: above 0 and at most 10, not 1000000.0"),
    ({OPTIMIZER + "weight_decay": -0.1}, "optimizer_config.weight_decay: at least 0"),
    ({OPTIMIZER + "num_warmup_steps": -1}, "optimizer_config.num_warmup_steps: at least 0"),
    ({OPTIMIZER + "optimizer_type": "lion"}, "optimizer_config.optimizer_type: input should be 'adam'"),
    ({"training_config.dtype": "int8"}, "bf16, bfloat16, fp32, float32, fp16, float16, not 'int8'"),
    ({"training_config.dtype": "fp16"}, "fp16 needs a GPU, and training has none (STACK_TRAIN_GPUS is 0)"),
    ({DATA + "data_format": "poem"}, "data_config.data_format: input should be"),
    ({"surprise": 1}, "surprise: there is no such field"),
    # Datasets.
    ({DATA + "dataset_id": "x"}, "data_config.dataset_id: dataset 'x' is not registered; GET /v1/datasets"),
    ({DATA + "dataset_id": "empty"}, "data_config.dataset_id: dataset 'empty' is empty"),
    ({DATA + "validation_dataset_id": "x"}, "data_config.validation_dataset_id: dataset 'x' is not"),
    (
        {DATA + "dataset_id": "monologue"},
        "dataset 'monologue', row 1 (the first is 0): has no message of the assistant",
    ),
    # Models.
    ({"model": "x"}, "model: model 'x' is not registered; GET /v1/models lists those"),
    ({"model": "embedder"}, "model: 'embedder' is an embedding model; text models are trained here"),
    ({"model": "remote"}, "model: 'remote' is served elsewhere (provider openai)"),
    ({"model": "orphan"}, "model: 'orphan' is an adapter of 'nobody', which is not registered"),
    ({"model": "quantised"}, "model: the weights of 'quantised' are quantised and cannot be trained"),
    ({"model": "pictures"}, "model: 'pictures' reads pictures; models that read and write text alone"),
    ({"model": "classifier"}, "model: 'classifier' is no model that writes text (classifier)"),
    ({"model": "damaged"}, "model.safetensors is not a safetensors file"),
    ({"model": "part"}, "model: the adapter 'part' leaves out some layers (up_proj)"),
    ({"model": "x" * 300}, "the model's identifier"),
    ({"model": "x/checkpoint-3"}, "model: there is no model and no training job 'x'"),
    # LoRA.
    ({"algorithm_config.rank": 0}, "algorithm_config.rank: at least 1 and at most 4096, not 0"),
    ({"algorithm_config.alpha": 0}, "algorithm_config.alpha: at least 1"),
    (
        {"algorithm_config.lora_attn_modules": ["q_proj", "magic"]},
        "the model's attention has no 'magic'; it has k_proj, o_proj, q_proj, v_proj",
    ),
    (
        {"algorithm_config.lora_attn_modules": [], "algorithm_config.apply_lora_to_mlp": False},
        "nothing would be trained; name lora_attn_modules (k_proj, o_proj, q_proj, v_proj)",
    ),
    (
        {"model": "adapter", "algorithm_config.rank": 8},
        "algorithm_config.rank: model 'adapter' is an adapter with 4, not 8; ask for the same",
    ),
    (
        {"model": "adapter", "algorithm_config.lora_attn_modules": ["q_proj"]},
        "algorithm_config.lora_attn_modules: model 'adapter' is an adapter with ['q_proj', 'v_proj']",
    ),
    ({"algorithm_config.type": "magic"}, "algorithm_config: "),
    # QAT.
    (
        {"algorithm_config": {**QAT, "quantizer_name": "magic"}},
        "quantizer_name: one of int8_dynamic_act_int4_weight, Int8DynActInt4WeightQATQuantizer, ",
    ),
    ({"algorithm_config": {**QAT, "group_size": 0}}, "algorithm_config.group_size: at least 1"),
    (
        {"algorithm_config": {**QAT, "group_size": 32}},
        "group_size: a layer of the model takes 16 inputs, which groups of 32 do not divide",
    ),
    # Names and folders.
    ({"job_uuid": "a/b"}, "the job's id 'a/b' is not allowed"),
    ({"job_uuid": "../x"}, "the job's id '../x' is not allowed"),
    ({"job_uuid": "x" * 65}, "is not allowed: write up to 64"),
    ({"job_uuid": ""}, "job_uuid: an identifier has at least one visible character"),
    ({"job_uuid": "tiny"}, "job_uuid: a model is registered as 'tiny'"),
    ({"checkpoint_dir": "../outside"}, "checkpoint_dir: '../outside' is no folder in the server's storage"),
    ({"checkpoint_dir": "a/../../b"}, "is no folder in the server's storage"),
    ({"checkpoint_dir": "/etc"}, "checkpoint_dir: '/etc' is no folder in the server's storage"),
    ({"checkpoint_dir": "s3://bucket/x"}, "is no folder in the server's storage"),
    ({"checkpoint_dir": "file:///etc"}, "is no folder in the server's storage"),
    ({"checkpoint_dir": "storage:///etc"}, "is no folder in the server's storage"),
    ({"checkpoint_dir": "a//b"}, "is no folder in the server's storage"),
    ({"checkpoint_dir": "~/x"}, "is no folder in the server's storage"),
    ({"checkpoint_dir": "a\\..\\b"}, "is no folder in the server's storage"),
    ({"checkpoint_dir": "%2e%2e/x"}, "is no folder in the server's storage"),
    ({"checkpoint_dir": ".hidden"}, "is no folder in the server's storage"),
    ({"checkpoint_dir": "a\n"}, "is no folder in the server's storage"),
    ({"checkpoint_dir": ""}, "is no folder in the server's storage"),
    ({"checkpoint_dir": "a/b/c/d/e/f/g/h/i"}, "is no folder in the server's storage"),
    ({"checkpoint_dir": "training/other"}, "checkpoint_dir: training/ belongs to the server itself"),
    ({"checkpoint_dir": "files/x"}, "checkpoint_dir: files/ belongs to the server itself"),
    ({"checkpoint_dir": "Jobs/x"}, "checkpoint_dir: Jobs/ belongs to the server itself"),
    # Loggers.
    ({"logger_config": {"mlflw": {}}}, "mlflw: there is no such field; known are mlflow, wandb"),
    (
        {"logger_config": {"mlflow": {"tracking_uri": "http://x"}}},
        "logger_config.mlflow.tracking_uri: there is no such field; known are experiment, run_name",
    ),
    ({"logger_config": {"wandb": {"project": "http://x/y"}}}, "no URL, not 'http://x/y'"),
    ({"logger_config": {"wandb": {"project": 3}}}, "wandb.project: input should be a valid string"),
    ({"logger_config": {"wandb": "yes"}}, "logger_config.wandb: input should be a valid dictionary"),
]


async def test_bad_fine_tunes(client: httpx.AsyncClient, stack: Stack) -> None:
    for changes, message in BAD_FINE_TUNES:
        assert message in await refused(client, SFT, sft(changes)), changes
    assert await stack.jobs.list() == []
    assert await stack.storage.find("") == []


BAD_PREFERENCES: list[tuple[dict[str, Any], str]] = [
    ({"algorithm_config.reward_scale": 0}, "algorithm_config.reward_scale: above 0"),
    ({"algorithm_config.reward_scale": -1}, "algorithm_config.reward_scale: above 0"),
    ({"algorithm_config.reward_clip": -0.5}, "algorithm_config.reward_clip: at least 0"),
    ({"algorithm_config.epsilon": 0.5}, "algorithm_config.epsilon: at least 0 and below 0.5, not 0.5"),
    ({"algorithm_config.epsilon": -0.1}, "algorithm_config.epsilon: at least 0"),
    (
        {DATA + "dataset_id": "questions"},
        "dataset 'questions' is for eval/question-answer; preferences are",
    ),
    (
        {DATA + "dataset_id": "chats"},
        "dataset 'chats', row 0 (the first is 0), column 'rejected': a text is",
    ),
    ({DATA + "dataset_id": "same"}, "row 1 (the first is 0): chosen and rejected are the same text"),
    (
        {DATA + "validation_dataset_id": "chats"},
        "data_config.validation_dataset_id: dataset 'chats', row 0",
    ),
    ({DATA + "packed": True}, "data_config.packed: is for supervised-fine-tune"),
    ({DATA + "train_on_input": True}, "data_config.train_on_input: is for supervised-fine-tune"),
    ({"finetuned_model": "nobody"}, "finetuned_model: model 'nobody' is not registered"),
    ({"finetuned_model": "part"}, "finetuned_model: the adapter 'part' leaves out some layers (up_proj)"),
    ({"finetuned_model": "embedder"}, "finetuned_model: 'embedder' is an embedding model"),
    ({"checkpoint_dir": "x"}, "checkpoint_dir: there is no such field"),
    ({OPTIMIZER + "lr": -1}, "optimizer_config.lr: above 0"),
]


async def test_bad_preferences(client: httpx.AsyncClient, stack: Stack) -> None:
    for changes, message in BAD_PREFERENCES:
        assert message in await refused(client, DPO, dpo(changes)), changes
    assert await stack.jobs.list() == []


async def test_one_of_many_gets_the_name(client: httpx.AsyncClient, stack: Stack) -> None:
    answers = await asyncio.gather(*(client.post(SFT, json=sft()) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [400] * 7
    assert len(await stack.jobs.list()) == 1


async def test_an_adapter_of_other_weights(
    client: httpx.AsyncClient, stack: Stack, adapter: Path, tiny_llama: Path
) -> None:
    """Its base model was deleted, and another one registered under that id."""
    plan = await submitted(client, stack, SFT, sft())
    await note(stack, await stack.jobs.claim("job", "here"), plan, 20, contents(adapter))
    await stack.models.delete("tiny")
    changes = {"job_uuid": "on", "model": "job/checkpoint-20"}
    gone = await refused(client, SFT, sft(changes))
    assert "is an adapter of 'tiny', which is not registered any more" in gone
    await stack.models.register(model("tiny", provider_resource_id=f"{tiny_llama}/"))
    other = await refused(client, SFT, sft(changes))
    assert f"but that is registered with '{tiny_llama}/' by now" in other


def parameters(**found: Any) -> dict[str, Any]:
    return {"hyperparam_search_config": {"parameters": found, "num_trials": 2}}


def between(low: float, high: float, kind: str = "uniform") -> dict[str, Any]:
    return {"type": kind, "min": low, "max": high}


BAD_SEARCHES: list[tuple[dict[str, Any], str]] = [
    (
        parameters(learning_rate=between(0, 1)),
        "parameters.learning_rate: there is no such hyperparameter; known",
    ),
    (
        parameters(lr=between(-1, 1)),
        "parameters.lr: -1.0 will not do: training_config.optimizer_config.lr: above",
    ),
    (parameters(lr=between(1, 100)), "parameters.lr: 32.5"),
    (parameters(batch_size=between(0, 9, "randint")), "parameters.batch_size: 0 will not do"),
    (parameters(rank=between(4, 16)), "will not do: rank: Input should be a valid integer"),
    (
        parameters(rank={"type": "grid", "values": [4, 0]}),
        "parameters.rank: 0 will not do: algorithm_config.rank",
    ),
    (parameters(optimizer_type={"type": "grid", "values": ["lion"]}), "lion will not do: optimizer_type"),
    (parameters(reward_scale=between(0.1, 1)), "reward_scale' is not a hyperparameter of this job: only"),
    ({"algorithm_config": None, **parameters(rank=between(4, 9, "randint"))}, "algorithm_config has none"),
    (
        {"model": "adapter", **parameters(rank=between(4, 9, "randint"))},
        "rank: an adapter that is there already",
    ),
    (
        {"algorithm_config": QAT, **parameters(group_size={"type": "grid", "values": [16, 32]})},
        "parameters.group_size: 32 will not do: algorithm_config.group_size: a layer of the model takes 16",
    ),
    (
        {
            "algorithm_config.lora_attn_modules": [],
            **parameters(apply_lora_to_mlp={"type": "choice", "values": [True, False]}),
        },
        "parameters.apply_lora_to_mlp: False will not do: algorithm_config: nothing would be trained",
    ),
]


async def test_searches(client: httpx.AsyncClient, stack: Stack) -> None:
    for changes, message in BAD_SEARCHES:
        assert message in await refused(client, SFT, sft(changes)), changes
    packed = parameters(packed={"type": "choice", "values": [True]})
    assert "data_config.packed: is for supervised-fine-tune" in await refused(client, DPO, dpo(packed))
    good = parameters(lr=between(1e-5, 1e-3, "loguniform"), rank={"type": "grid", "values": [2, 4]})
    plan = await submitted(client, stack, SFT, sft(good))
    assert plan.search is not None
    assert (plan.search.metric, plan.search.num_trials) == ("train_loss", 2)


ODD = [
    None, True, 0, -1, 10**30, 1.5, 1e308, "", "x", "\0", "..", "x" * 5000, [], {}, [[]], {"a": {}}, [None],
    "\u202e", "storage://", "job/checkpoint-1", "grid", {"lr": {"type": "grid", "values": [1]}},
]  # fmt: skip


def paths(value: Any, above: str = "") -> Iterator[str]:
    """The dotted keys of all that a body says."""
    for key, below in value.items() if isinstance(value, dict) else ():
        yield f"{above}{key}"
        yield from paths(below, f"{above}{key}.")


async def test_whatever_is_written_is_taken_or_refused(client: httpx.AsyncClient, stack: Stack) -> None:
    extras = {**parameters(lr=between(1e-5, 1e-3)), "logger_config": {"mlflow": {"experiment": "x"}}}
    bodies = [(SFT, sft(extras)), (SFT, sft({"algorithm_config": QAT})), (DPO, dpo())]
    tries = [(url, body, path, value) for url, body in bodies for path in paths(body) for value in ODD]
    statuses = []
    for number, (url, body, path, value) in enumerate(random.Random(0).sample(tries, 200)):
        unique = {} if path == "job_uuid" else {"job_uuid": f"job-{number}"}
        answer = await client.post(url, json=changed(body, {path: value} | unique))
        assert answer.status_code in (200, 400), (path, value, answer.text)
        statuses.append(answer.status_code)
    assert len(await stack.jobs.list()) == statuses.count(200) > 0


async def test_numbers_that_json_does_not_have(client: httpx.AsyncClient) -> None:
    for number in ("NaN", "Infinity", "1e999"):
        content = json.dumps(sft()).replace("0.0001", number)
        assert number in content
        answer = await client.post(SFT, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text


async def test_a_name_and_a_folder_serve_one_job(client: httpx.AsyncClient, stack: Stack) -> None:
    await submitted(client, stack, SFT, sft({"checkpoint_dir": "mine/a"}))
    assert "job_uuid: there is a job 'job' already" in await refused(client, SFT, sft())
    assert "there is a job 'job' already" in await refused(client, DPO, dpo())
    for folder in ("mine/a", "mine", "mine/a/b", "storage://mine/a"):
        taken = await refused(client, SFT, sft({"job_uuid": "second", "checkpoint_dir": folder}))
        assert "is where job 'job' keeps its files" in taken
    await submitted(client, stack, SFT, sft({"job_uuid": "second", "checkpoint_dir": "mine/ab"}))
    await stack.storage.write("used/by/somebody", b"x")
    used = await refused(client, SFT, sft({"job_uuid": "third", "checkpoint_dir": "used"}))
    assert "the storage has files in used already" in used
    await submitted(client, stack, SFT, sft({"job_uuid": "third", "checkpoint_dir": "training/third"}))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def note(stack: Stack, lease: Lease, plan: Plan, step: int, files: dict[str, bytes]) -> None:
    """A checkpoint as a worker notes it, with its files."""
    checkpoint = Checkpoint.of(plan, "run", step, {"step": step, "epoch": 0.5, "train_loss": 2.0})
    for name, content in files.items():
        await stack.storage.write(f"{checkpoint.path}/{name}", content)
    await JobItems(stack.database).finish(lease, {step: checkpoint.shown()})


async def test_status_and_artifacts(client: httpx.AsyncClient, stack: Stack, adapter: Path) -> None:
    plan = await submitted(client, stack, SFT, sft())
    params = {"job_uuid": "job"}
    status = (await client.get(STATUS, params=params)).json()
    assert status.pop("scheduled_at") is not None
    resources = {
        "device": "cpu", "workers": 1, "cpus_per_worker": 0.01, "gpus_per_worker": 0.0, "strategy": "ddp",
    }  # fmt: skip
    assert status == {
        "job_uuid": "job", "status": "scheduled", "resources_allocated": resources, "checkpoints": [],
    }  # fmt: skip
    lease = await stack.jobs.claim("job", "here")
    await note(stack, lease, plan, 10, {})  # its files are gone again
    await note(stack, lease, plan, 20, contents(adapter))
    status = (await client.get(STATUS, params=params)).json()
    assert status["status"] == "in_progress"
    assert [checkpoint["identifier"] for checkpoint in status["checkpoints"]] == ["job/checkpoint-20"]
    assert status["checkpoints"][0]["training_metrics"]["train_loss"] == 2.0
    kept = {**status["checkpoints"][0], "model_id": "job"}
    picture = {"identifier": "job/c.png", "type": "image", "uri": "files://post-training/job/c.png"}
    await stack.jobs.finish(lease, {"model_id": "job", "checkpoints": [kept], "artifacts": [picture]})
    await JobItems(stack.database).sweep("job")
    status = (await client.get(STATUS, params=params)).json()
    assert (status["status"], status["checkpoints"]) == ("completed", [kept])
    assert status["completed_at"] >= status["started_at"] >= status["scheduled_at"]
    artifacts = (await client.get(ARTIFACTS, params=params)).json()
    url = "http://stack/v1/files/content:post-training/job/c.png"
    assert artifacts == {"job_uuid": "job", "checkpoints": [kept, {**picture, "url": url}]}
    ended = await client.post("/v1/post-training/job/cancel", json=params)
    assert ended.status_code == 400
    assert ended.json()["detail"] == "job 'job' is completed already and cannot be cancelled"


async def test_a_checkpoint_is_trained_on(client: httpx.AsyncClient, stack: Stack, adapter: Path) -> None:
    plan = await submitted(client, stack, SFT, sft())
    lease = await stack.jobs.claim("job", "here")
    await note(stack, lease, plan, 20, contents(adapter))
    onwards = await submitted(client, stack, SFT, sft({"job_uuid": "on", "model": "job/checkpoint-20"}))
    path = "storage://training/job/runs/run/checkpoint-20"
    assert (onwards.start.model_id, onwards.start.adapter) == ("tiny", path)
    onwards = await submitted(
        client, stack, DPO, dpo({"job_uuid": "p", "finetuned_model": "job/checkpoint-20"})
    )
    assert onwards.start.adapter == path
    other = sft({"job_uuid": "third", "model": "job/checkpoint-20", "algorithm_config.alpha": 16})
    assert "algorithm_config.alpha: model 'job/checkpoint-20' is an adapter with 8, not 16" in (
        await refused(client, SFT, other)
    )
    gone = sft({"job_uuid": "third", "model": "job/checkpoint-10"})
    assert "checkpoint 'job/checkpoint-10' is not there (any more)" in await refused(client, SFT, gone)


async def test_a_whole_checkpoint_is_trained_on(
    client: httpx.AsyncClient, stack: Stack, tiny_llama: Path
) -> None:
    plan = await submitted(client, stack, SFT, sft({"algorithm_config": None}))
    lease = await stack.jobs.claim("job", "here")
    await note(stack, lease, plan, 20, contents(tiny_llama))
    changes: dict[str, Any] = {"job_uuid": "on", "model": "job/checkpoint-20"}
    path = "storage://training/job/runs/run/checkpoint-20"
    adapter = await refused(client, SFT, sft(changes))
    assert f"is no registered model; register it (provider_model_id '{path}')" in adapter
    onwards = await submitted(client, stack, SFT, sft({**changes, "algorithm_config": None}))
    assert (onwards.start.source, onwards.start.adapter) == (path, None)


async def test_jobs_of_other_kinds_are_unknown(client: httpx.AsyncClient, stack: Stack) -> None:
    await stack.jobs.submit("ingest", {}, "other")
    for name in ("other", "nobody", "a\0b", "x" * 300):
        for path in (STATUS, ARTIFACTS):
            assert (await client.get(path, params={"job_uuid": name})).status_code == 404
        cancel = await client.post("/v1/post-training/job/cancel", json={"job_uuid": name})
        assert cancel.status_code == 404
    assert (await client.get(STATUS)).json()["detail"] == "job_uuid: is required"
    refusal = await refused(client, SFT, sft({"model": "other/checkpoint-1"}))
    assert "job 'other' is of kind ingest, which has no checkpoints" in refusal


async def test_list_and_cancel_with_the_client_library(app: FastAPI, client: httpx.AsyncClient) -> None:
    llama = AsyncLlamaStackClient(base_url="http://stack", http_client=client)
    for job_uuid in ("a", "b"):
        made = await llama.post_training.supervised_fine_tune(**sft({"job_uuid": job_uuid}))
        assert made.job_uuid == job_uuid
    assert [job.job_uuid for job in await llama.post_training.job.list()] == ["b", "a"]
    await llama.post_training.job.cancel(job_uuid="a")
    status = await llama.post_training.job.status(job_uuid="a")
    assert status is not None
    assert (status.status, status.started_at) == ("cancelled", None)
    artifacts = await llama.post_training.job.artifacts(job_uuid="b")
    assert artifacts is not None
    assert artifacts.checkpoints == []

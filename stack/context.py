"""Stack: all that a route may use, and the dependencies that hand it over."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from pydantic_core import from_json

from stack.agents.agents import Agents
from stack.agents.open import open_agents
from stack.agents.turns import Turns
from stack.batch.batches import Batches
from stack.datasets.datasets import Datasets
from stack.engine.base import Inference, Meter, NoMeter
from stack.engine.remote.openai import open_client
from stack.errors import BadRequest, NotReady
from stack.evaluation.benchmarks import Benchmarks
from stack.evaluation.evaluate import Evaluators
from stack.evaluation.evaluations import Evaluations
from stack.files.blobs import Blobs
from stack.files.files import Files
from stack.files.uploads import Uploads
from stack.models.serving import Serving
from stack.rag.rag import Rag, open_rag
from stack.safety.shields import Shields, open_shields
from stack.sandbox.sandbox import Sandbox
from stack.schemas.models import Model
from stack.scoring.scoring import Scoring, open_scoring
from stack.settings import Settings, get_settings
from stack.store.api_keys import ApiKeys
from stack.store.database import Database, open_database
from stack.store.jobs import Jobs
from stack.store.lance import Lance, open_lance
from stack.store.model_status import ModelStatuses
from stack.store.registry import Registry
from stack.store.storage import Storage, open_storage
from stack.synthetic.synthesis import Synthesizer
from stack.telemetry.telemetry import Telemetry, open_telemetry
from stack.tools.tools import Tools, open_tools
from stack.training.training import Training
from stack.vector.databases import VectorDatabases
from stack.vector.store import VectorStore


@dataclass(frozen=True, slots=True)
class Stack:
    settings: Settings
    database: Database
    api_keys: ApiKeys
    models: Registry[Model]
    model_status: ModelStatuses
    storage: Storage
    lance: Lance
    files: Files
    uploads: Uploads
    datasets: Datasets
    jobs: Jobs
    serving: Serving
    vector_dbs: VectorDatabases
    vectors: VectorStore
    rag: Rag
    tools: Tools
    shields: Shields
    scoring: Scoring
    agents: Agents
    turns: Turns
    training: Training
    batches: Batches
    benchmarks: Benchmarks
    evaluations: Evaluations
    synthesizer: Synthesizer
    telemetry: Telemetry
    meter: Meter


def no_inference(model_id: str) -> Inference:
    """What a process without a cluster answers, e.g. one that only shows the API's documentation."""
    raise NotReady(f"model {model_id!r} is not served here: start the server with `stack up`", None)


@asynccontextmanager
async def open_stack(
    settings: Settings | None = None,
    inference: Callable[[str], Inference] = no_inference,
    session: str | None = None,
    meter: Meter = NoMeter(),  # noqa: B008  # it keeps nothing
) -> AsyncGenerator[Stack]:
    """Open the stores; everything is closed again at the end. `session` is the running cluster's."""
    settings = settings or get_settings()
    async with (
        open_database(settings) as database,
        open_storage(settings) as storage,
        open_client(settings) as remote,
        open_lance(settings) as lance,
    ):
        statuses = ModelStatuses(database, session)
        serving = Serving(settings, statuses, remote, inference)
        blobs = Blobs(database, storage)
        files = Files(database, blobs)
        vector_dbs = VectorDatabases(database, lance, statuses)
        vectors = VectorStore(database, lance, serving)
        models, jobs = Registry(database, Model), Jobs(database)
        datasets = Datasets(settings, database, lance, files)
        async with (
            open_telemetry(settings, datasets, meter) as telemetry,
            open_shields(settings, database, serving) as shields,
            open_scoring(database, serving, datasets, jobs, storage) as scoring,
            open_rag(settings, files, vector_dbs, vectors, serving) as rag,
            open_tools(settings, database, rag, Sandbox(settings), meter) as tools,
            open_agents(
                settings,
                database,
                statuses,
                serving,
                files,
                vector_dbs,
                rag,
                tools,
                shields,
                meter,
            ) as (agents, turns),
        ):
            benchmarks = Benchmarks(database, datasets, scoring)
            evaluators = Evaluators(serving, agents, turns, scoring)
            yield Stack(
                settings=settings,
                database=database,
                api_keys=ApiKeys(database),
                models=models,
                model_status=statuses,
                storage=storage,
                lance=lance,
                files=files,
                uploads=Uploads(database, blobs, files, int(settings.max_file_gb * 2**30)),
                datasets=datasets,
                jobs=jobs,
                serving=serving,
                vector_dbs=vector_dbs,
                vectors=vectors,
                rag=rag,
                tools=tools,
                shields=shields,
                scoring=scoring,
                agents=agents,
                turns=turns,
                training=Training(settings, models, jobs, datasets, storage),
                batches=Batches(serving, jobs, storage, files),
                benchmarks=benchmarks,
                evaluations=Evaluations(evaluators, benchmarks, datasets, jobs, storage),
                synthesizer=Synthesizer(settings, evaluators, models, jobs, storage, datasets),
                telemetry=telemetry,
                meter=meter,
            )


# Dependencies are async, since FastAPI calls others in a thread.
async def _stack(request: Request) -> Stack:
    stack: Stack = request.app.state.stack
    return stack


async def _models(request: Request) -> Registry[Model]:
    return (await _stack(request)).models


async def _model_status(request: Request) -> ModelStatuses:
    return (await _stack(request)).model_status


async def _files(request: Request) -> Files:
    return (await _stack(request)).files


async def _datasets(request: Request) -> Datasets:
    return (await _stack(request)).datasets


async def _jobs(request: Request) -> Jobs:
    return (await _stack(request)).jobs


async def _provider_data(request: Request) -> Mapping[str, Any]:
    """Per-request keys for remote engines and tools. Never logged, never stored."""
    header = request.headers.get("x-llamastack-provider-data")
    if header is None:
        return {}
    try:
        data = from_json(header, allow_inf_nan=False)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise BadRequest(
            "the header X-LlamaStack-Provider-Data is not a JSON object; "
            'write e.g. {"openai_api_key": "…"} or leave it out'
        )
    return data


CurrentStack = Annotated[Stack, Depends(_stack)]
Models = Annotated[Registry[Model], Depends(_models)]
Statuses = Annotated[ModelStatuses, Depends(_model_status)]
StoredFiles = Annotated[Files, Depends(_files)]
RowDatasets = Annotated[Datasets, Depends(_datasets)]
StoredJobs = Annotated[Jobs, Depends(_jobs)]
ProviderData = Annotated[Mapping[str, Any], Depends(_provider_data)]

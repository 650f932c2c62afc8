"""Every other call of llama-stack-client 0.1.9: its body is valid for us, and it can read our answer."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from llama_stack_client import LlamaStackClient
from pydantic import BaseModel

from stack.schemas import (
    agents,
    batch_inference,
    benchmarks,
    datasetio,
    datasets,
    eval,
    inference,
    post_training,
    safety,
    scoring,
    scoring_functions,
    shields,
    synthetic_data,
    telemetry,
    tools,
    vector_dbs,
    vector_io,
)
from stack.schemas.common import URL
from stack.schemas.messages import CompletionMessage, UserMessage
from tests.spec.wire import Wire

NOW = datetime(2025, 1, 2, tzinfo=UTC)
USER: Any = {"role": "user", "content": "hi"}
GREEDY: Any = {"strategy": {"type": "greedy"}}
OWNED = {"identifier": "x", "provider_resource_id": "x", "provider_id": "p"}
ROW: Any = {"question": "1 + 2?", "n": 1, "nothing": None, "nested": {"a": [1.5, None]}}
MESSAGE = CompletionMessage(content="b", stop_reason="end_of_turn")
TURN = agents.Turn(
    turn_id="t",
    session_id="s",
    input_messages=[UserMessage(content="a")],
    steps=[],
    output_message=MESSAGE,
    started_at=NOW,
)
STEP = agents.MemoryRetrievalStep(turn_id="t", step_id="i", vector_db_ids="v", inserted_context="c")
SHIELD = shields.Shield(**OWNED, params={"a": None})
RESULT = scoring.ScoringResult(
    score_rows=[{"score": 1.0}], aggregated_results={"accuracy": {"accuracy": 1.0, "num_total": 1}}
)
SCORING_FN = scoring_functions.ScoringFn(
    **OWNED,
    metadata={},
    return_type=scoring_functions.NumberType(),
    params=scoring_functions.LLMAsJudgeScoringFnParams(judge_model="m", aggregation_functions=["average"]),
)
DATASET = datasets.Dataset(
    **OWNED, purpose="eval/question-answer", source=datasets.RowsDataSource(rows=[ROW]), metadata={}
)
BENCHMARK = benchmarks.Benchmark(**OWNED, dataset_id="d", scoring_functions=["f"], metadata={"a": 1})
BENCHMARK_CONFIG: Any = {
    "eval_candidate": {"type": "model", "model": "m", "sampling_params": GREEDY},
    "scoring_params": {"f": {"type": "regex_parser", "parsing_regexes": [r"\d+"]}},
    "num_examples": 3,
}
EVALUATION = eval.EvaluateResponse(generations=[ROW], scores={"f": RESULT})
VECTOR_DB = vector_dbs.VectorDB(**OWNED, embedding_model="e", embedding_dimension=384)
SPAN = {"span_id": "s", "trace_id": "t", "name": "n", "start_time": NOW, "attributes": {"a": None}}
TRACE = telemetry.Trace(trace_id="t", root_span_id="s", start_time=NOW)
CONDITION: Any = {"key": "k", "op": "eq", "value": None}
JOB = post_training.PostTrainingJob(job_uuid="j")
TRAINING: Any = {
    "n_epochs": 1,
    "max_steps_per_epoch": 2,
    "gradient_accumulation_steps": 1,
    "max_validation_steps": 1,
    "data_config": {"dataset_id": "d", "batch_size": 1, "shuffle": True, "data_format": "instruct"},
    "optimizer_config": {"optimizer_type": "adamw", "lr": 1e-4, "weight_decay": 0.0, "num_warmup_steps": 0},
    "efficiency_config": {"fsdp_cpu_offload": False},
}
SEARCH: Any = {"hyperparam_search_config": {}, "logger_config": {"a": None}}
LORA: Any = {
    "type": "LoRA",
    "lora_attn_modules": ["q_proj"],
    "apply_lora_to_mlp": True,
    "apply_lora_to_output": False,
    "rank": 8,
    "alpha": 16,
}
DPO: Any = {"reward_scale": 0.1, "reward_clip": 0, "epsilon": 0, "gamma": 0}

Call = Callable[[LlamaStackClient], Any]

CALLS: list[tuple[str, BaseModel | None, Call]] = [
    (
        "POST /v1/agents/{agent_id}/session/{session_id}/turn",
        TURN,
        lambda client: client.agents.turn.create(
            agent_id="a",
            session_id="s",
            messages=[USER],
            documents=[{"content": {"uri": "http://d"}, "mime_type": "text/plain"}],
            toolgroups=["g", {"name": "builtin::rag", "args": {"vector_db_ids": ["v"]}}],
            tool_config={"tool_choice": "required"},
        ),
    ),
    (
        "GET /v1/agents/{agent_id}/session/{session_id}/turn/{turn_id}",
        TURN,
        lambda client: client.agents.turn.retrieve("t", agent_id="a", session_id="s"),
    ),
    (
        "GET /v1/agents/{agent_id}/session/{session_id}/turn/{turn_id}/step/{step_id}",
        agents.AgentStepResponse(step=STEP),
        lambda client: client.agents.steps.retrieve("i", agent_id="a", session_id="s", turn_id="t"),
    ),
    (
        "GET /v1/agents/{agent_id}/session/{session_id}",
        agents.Session(session_id="s", session_name="n", turns=[TURN], started_at=NOW),
        lambda client: client.agents.session.retrieve("s", agent_id="a", turn_ids=["t"]),
    ),
    ("DELETE /v1/agents/{agent_id}", None, lambda client: client.agents.delete("a")),
    (
        "POST /v1/batch-inference/chat-completion",
        batch_inference.BatchChatCompletionResponse(
            batch=[inference.ChatCompletionResponse(completion_message=MESSAGE)]
        ),
        lambda client: client.batch_inference.chat_completion(
            model="m", messages_batch=[[USER]], sampling_params=GREEDY, logprobs={"top_k": 1}
        ),
    ),
    (
        "POST /v1/batch-inference/completion",
        batch_inference.BatchCompletionResponse(
            batch=[inference.CompletionResponse(content="b", stop_reason="end_of_turn")]
        ),
        lambda client: client.batch_inference.completion(model="m", content_batch=["a"]),
    ),
    (
        "POST /v1/safety/run-shield",
        safety.RunShieldResponse(
            violation=safety.SafetyViolation(violation_level="error", metadata={"a": None})
        ),
        lambda client: client.safety.run_shield(shield_id="x", messages=[USER], params={"a": None}),
    ),
    (
        "POST /v1/safety/run-shield",
        safety.RunShieldResponse(),
        lambda client: client.safety.run_shield(shield_id="x", messages=[USER], params={}),
    ),
    ("GET /v1/shields/{identifier}", SHIELD, lambda client: client.shields.retrieve("x")),
    ("GET /v1/shields", shields.ListShieldsResponse(data=[SHIELD]), lambda client: client.shields.list()),
    ("POST /v1/shields", SHIELD, lambda client: client.shields.register(shield_id="x", params={"a": 1})),
    (
        "POST /v1/scoring/score",
        scoring.ScoreResponse(results={"f": RESULT}),
        lambda client: client.scoring.score(
            input_rows=[ROW], scoring_functions={"f": None, "g": {"type": "basic"}}
        ),
    ),
    (
        "POST /v1/scoring/score-batch",
        scoring.ScoreBatchResponse(results={"f": RESULT}),
        lambda client: client.scoring.score_batch(
            dataset_id="d", save_results_dataset=False, scoring_functions={"f": None}
        ),
    ),
    (
        "GET /v1/scoring-functions/{scoring_fn_id}",
        SCORING_FN,
        lambda client: client.scoring_functions.retrieve("x"),
    ),
    (
        "GET /v1/scoring-functions",
        scoring_functions.ListScoringFunctionsResponse(data=[SCORING_FN]),
        lambda client: client.scoring_functions.list(),
    ),
    (
        "POST /v1/scoring-functions",
        None,
        lambda client: client.scoring_functions.register(
            scoring_fn_id="x",
            description="d",
            return_type={"type": "number"},
            params={"type": "llm_as_judge", "judge_model": "m", "judge_score_regexes": [r"(\d)"]},
        ),
    ),
    ("GET /v1/datasets/{dataset_id}", DATASET, lambda client: client.datasets.retrieve("x")),
    (
        "GET /v1/datasets",
        datasets.ListDatasetsResponse(data=[DATASET]),
        lambda client: client.datasets.list(),
    ),
    (
        "POST /v1/datasets",
        DATASET,
        lambda client: client.datasets.register(
            purpose="eval/question-answer", source={"type": "rows", "rows": [ROW]}, metadata={"a": None}
        ),
    ),
    (
        "GET /v1/datasetio/iterrows/{dataset_id}",
        datasetio.IterrowsResponse(data=[ROW], next_start_index=1),
        lambda client: client.datasets.iterrows("x", limit=1, start_index=0),
    ),
    ("DELETE /v1/datasets/{dataset_id}", None, lambda client: client.datasets.unregister("x")),
    ("GET /v1/eval/benchmarks/{benchmark_id}", BENCHMARK, lambda client: client.benchmarks.retrieve("x")),
    (
        "GET /v1/eval/benchmarks",
        benchmarks.ListBenchmarksResponse(data=[BENCHMARK]),
        lambda client: client.benchmarks.list(),
    ),
    (
        "POST /v1/eval/benchmarks",
        None,
        lambda client: client.benchmarks.register(benchmark_id="x", dataset_id="d", scoring_functions=["f"]),
    ),
    (
        "POST /v1/eval/benchmarks/{benchmark_id}/evaluations",
        EVALUATION,
        lambda client: client.eval.evaluate_rows(
            "x", benchmark_config=BENCHMARK_CONFIG, input_rows=[ROW], scoring_functions=["f"]
        ),
    ),
    (
        "POST /v1/eval/benchmarks/{benchmark_id}/jobs",
        eval.Job(job_id="j", status="scheduled"),
        lambda client: client.eval.run_eval("x", benchmark_config=BENCHMARK_CONFIG),
    ),
    (
        "GET /v1/eval/benchmarks/{benchmark_id}/jobs/{job_id}",
        eval.Job(job_id="j", status="in_progress"),
        lambda client: client.eval.jobs.status("j", benchmark_id="x"),
    ),
    (
        "GET /v1/eval/benchmarks/{benchmark_id}/jobs/{job_id}/result",
        EVALUATION,
        lambda client: client.eval.jobs.retrieve("j", benchmark_id="x"),
    ),
    (
        "DELETE /v1/eval/benchmarks/{benchmark_id}/jobs/{job_id}",
        None,
        lambda client: client.eval.jobs.cancel("j", benchmark_id="x"),
    ),
    ("GET /v1/vector-dbs/{vector_db_id}", VECTOR_DB, lambda client: client.vector_dbs.retrieve("x")),
    (
        "GET /v1/vector-dbs",
        vector_dbs.ListVectorDBsResponse(data=[VECTOR_DB]),
        lambda client: client.vector_dbs.list(),
    ),
    (
        "POST /v1/vector-dbs",
        VECTOR_DB,
        lambda client: client.vector_dbs.register(
            vector_db_id="x", embedding_model="e", embedding_dimension=384
        ),
    ),
    (
        "POST /v1/vector-io/insert",
        None,
        lambda client: client.vector_io.insert(
            vector_db_id="x", chunks=[{"content": "c", "metadata": {"a": None}}], ttl_seconds=60
        ),
    ),
    (
        "POST /v1/vector-io/query",
        vector_io.QueryChunksResponse(
            chunks=[vector_io.Chunk(content="c", metadata={"a": None})], scores=[0.5]
        ),
        lambda client: client.vector_io.query(vector_db_id="x", query="q", params={"max_chunks": 1}),
    ),
    (
        "GET /v1/telemetry/traces/{trace_id}/spans/{span_id}",
        telemetry.Span(**SPAN),
        lambda client: client.telemetry.get_span("s", trace_id="t"),
    ),
    (
        "GET /v1/telemetry/traces/{trace_id}",
        TRACE,
        lambda client: client.telemetry.get_trace("t"),
    ),
    (
        "POST /v1/telemetry/events",
        None,
        lambda client: client.telemetry.log_event(
            event={
                "type": "structured_log",
                "trace_id": "t",
                "span_id": "s",
                "timestamp": NOW,
                "payload": {"type": "span_start", "name": "n"},
            },
            ttl_seconds=60,
        ),
    ),
    (
        "POST /v1/telemetry/spans/{span_id}/tree",
        telemetry.QuerySpanTreeResponse(data={"s": telemetry.SpanWithStatus(**SPAN, status="ok")}),
        lambda client: client.telemetry.get_span_tree("s", attributes_to_return=["a"], max_depth=2),
    ),
    (
        "POST /v1/telemetry/spans",
        telemetry.QuerySpansResponse(data=[telemetry.Span(**SPAN)]),
        lambda client: client.telemetry.query_spans(
            attribute_filters=[CONDITION], attributes_to_return=["a"]
        ),
    ),
    (
        "POST /v1/telemetry/traces",
        telemetry.QueryTracesResponse(data=[TRACE]),
        lambda client: client.telemetry.query_traces(attribute_filters=[CONDITION], limit=1, offset=0),
    ),
    (
        "POST /v1/telemetry/spans/export",
        None,
        lambda client: client.telemetry.save_spans_to_dataset(
            attribute_filters=[CONDITION], attributes_to_save=["a"], dataset_id="d", max_depth=1
        ),
    ),
    (
        "POST /v1/synthetic-data-generation/generate",
        synthetic_data.SyntheticDataGenerationResponse(synthetic_data=[ROW]),
        lambda client: client.synthetic_data_generation.generate(
            dialogs=[USER], filtering_function="top_k", model="m"
        ),
    ),
    (
        "POST /v1/post-training/supervised-fine-tune",
        JOB,
        lambda client: client.post_training.supervised_fine_tune(
            job_uuid="j", model="m", training_config=TRAINING, algorithm_config=LORA, **SEARCH
        ),
    ),
    (
        "POST /v1/post-training/preference-optimize",
        JOB,
        lambda client: client.post_training.preference_optimize(
            job_uuid="j", finetuned_model="m", training_config=TRAINING, algorithm_config=DPO, **SEARCH
        ),
    ),
    (
        "GET /v1/post-training/job/status",
        post_training.PostTrainingJobStatusResponse(
            job_uuid="j", status="completed", started_at=NOW, checkpoints=[{"identifier": "c", "epoch": 1}]
        ),
        lambda client: client.post_training.job.status(job_uuid="j"),
    ),
    (
        "GET /v1/post-training/job/artifacts",
        post_training.PostTrainingJobArtifactsResponse(job_uuid="j", checkpoints=[{"identifier": "c"}]),
        lambda client: client.post_training.job.artifacts(job_uuid="j"),
    ),
    ("POST /v1/post-training/job/cancel", None, lambda client: client.post_training.job.cancel(job_uuid="j")),
    (
        "GET /v1/tools/{tool_name}",
        tools.Tool(**OWNED, toolgroup_id="g", tool_host="client", description="", parameters=[]),
        lambda client: client.tools.get("x"),
    ),
    (
        "GET /v1/toolgroups/{toolgroup_id}",
        tools.ToolGroup(**OWNED, mcp_endpoint=URL(uri="http://mcp")),
        lambda client: client.toolgroups.get("x"),
    ),
]


@pytest.mark.parametrize(
    ("operation", "answer", "call"), CALLS, ids=[f"{each[0]}-{i}" for i, each in enumerate(CALLS)]
)
def test_call(
    operation: str, answer: BaseModel | None, call: Call, client: LlamaStackClient, wire: Wire
) -> None:
    wire.answers[operation] = [answer]
    found = call(client)
    assert (found is None) == (answer is None)
    assert wire.answers[operation] == []

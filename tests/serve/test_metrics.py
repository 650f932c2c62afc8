"""What engines and vector databases do can be read by Prometheus."""

from __future__ import annotations

import re
import time

import httpx
from llama_stack_client import LlamaStackClient

from tests.serve.conftest import Server


def test_prometheus_reads_the_metrics(server: Server, client: LlamaStackClient) -> None:
    client.inference.completion(
        model_id="smollm2-135m",
        content="Once upon a time",
        sampling_params={"strategy": {"type": "greedy"}, "max_tokens": 4},
    )
    client.inference.embeddings(model_id="all-MiniLM-L6-v2", contents=["a text"])
    client.vector_dbs.register(vector_db_id="measured", embedding_model="all-MiniLM-L6-v2")
    chunk = {"content": "a chunk", "metadata": {}}
    client.vector_io.insert(vector_db_id="measured", chunks=[chunk])
    client.tool_runtime.invoke_tool(tool_name="wolfram_alpha", kwargs={"query": "pi"})  # which has no key
    found = re.search(r"http://127\.0\.0\.1:\d+/metrics", server.log.read_text())
    assert found, "stack up says where the metrics are"
    model = {"queue_length", "batch_size", "time_to_first_token_seconds_count"}
    model |= {"time_per_output_token_seconds_count"}
    vector = {"vector_fragments", "vector_index", "vector_recall", "vector_bytes"}
    wanted = [rf'ray_stack_{name}\{{[^}}]*model_id="smollm2-135m"' for name in sorted(model)]
    wanted += [rf'ray_stack_{name}\{{[^}}]*vector_db_id="measured"' for name in sorted(vector)]
    wanted += [r'ray_stack_vector_rows\{[^}]*vector_db_id="measured"[^}]*\} 1\.0']
    wanted += [r"ray_stack_embedded_contents_total\{", r"ray_stack_telemetry_events_total\{"]
    wanted += [r'ray_stack_requests_total\{[^}]*path="/v1/inference/completion"[^}]*status="200"']
    wanted += [r'ray_stack_tool_calls_total\{[^}]*toolgroup_id="builtin::wolfram_alpha"']
    deadline = time.monotonic() + 60  # upkeep looks, and replicas report, every few seconds
    while True:
        text = httpx.get(found[0]).text
        missing = [pattern for pattern in wanted if not re.search(pattern, text)]
        if not missing:
            break
        assert time.monotonic() < deadline, missing
        time.sleep(1)
    client.vector_dbs.unregister("measured")

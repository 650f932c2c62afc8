"""The application on a real port, without Ray and with a model that the test writes, and a real browser."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import httpx
import numpy as np
import pytest
import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright

from stack.app import create_app
from stack.context import Stack, open_stack
from stack.engine.embedding.vectors import Vectors
from stack.schemas.inference import EmbeddingsRequest
from stack.settings import Settings
from tests.agents.instant import InstantModel
from tests.store.examples import model

T = TypeVar("T")


class Model(InstantModel):
    """Its vectors say nothing."""

    async def vectors(self, request: EmbeddingsRequest, *_: Any, **__: Any) -> Vectors:
        return np.full((len(request.contents), 2), 1.0, np.float32)


class Site:
    """A server in a thread. `http` asks it as any client does, `run` works on its event loop."""

    def __init__(self, settings: Settings) -> None:
        self.fake = Model()
        self.app = create_app(lambda: open_stack(settings, lambda model_id: self.fake, "s"))
        self.server = uvicorn.Server(uvicorn.Config(self.app, port=0, log_config=None))
        self.loop = asyncio.new_event_loop()
        self.started = threading.Event()
        self.thread = threading.Thread(target=self.loop.run_until_complete, args=(self._serve(),))
        self.thread.start()
        assert self.started.wait(60)
        self.stack: Stack = self.app.state.stack
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"
        self.http = httpx.Client(base_url=self.url, timeout=60)

    async def _serve(self) -> None:
        serving = asyncio.create_task(self.server.serve())
        while not self.server.started and not serving.done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        self.started.set()
        await serving

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def post(self, path: str, body: Any) -> Any:
        answer = self.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def close(self) -> None:
        self.http.close()
        self.server.should_exit = True
        self.thread.join(30)
        self.loop.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for a module's tests: each has names of its own."""
    settings = Settings(home=tmp_path_factory.mktemp("site") / "home", database_url=None)
    running = Site(settings)

    async def declare() -> None:
        await running.stack.models.declare(model("tiny"))
        description = {"context_length": 2048, "session": "s", "replicas": 2}
        await running.stack.model_status.set("tiny", "ready", None, description)
        await running.stack.models.register(model("embedder", model_type="embedding"))
        description = {"embedding_dimension": 2, "session": "s"}
        await running.stack.model_status.set("embedder", "ready", description=description)

    running.run(declare())
    yield running
    running.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's own; `.ci/run` installs it. While it is there, this thread has no other event loop."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "apt-get install chromium"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    """At /ui. Whatever it complains of, and whatever it asks another server for, fails the test."""
    page = browser.new_page(base_url=site.url)
    page.set_default_timeout(20_000)
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda asked: None if asked.url.startswith((site.url, "data:")) else wrong.append(asked.url),
    )
    page.goto("/ui")
    yield page
    page.close()
    assert wrong == []

"""The command line's way to a running server: httpx, with errors that say what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from stack.cli.problems import CliError

if TYPE_CHECKING:
    import httpx

DEFAULT_URL = "http://127.0.0.1:8321"
PART_BYTES = 8 << 20
"""Of an upload, in one request."""

Url = Annotated[
    str, typer.Option("--url", envvar="STACK_URL", help="Where the server is.", show_default=True)
]


class Client:
    """A server's API, as far as the command line needs it. Raises CliError."""

    def __init__(self, url: str, timeout_s: float = 300.0, key: str | None = None) -> None:
        """`key`: an API key; by default the variable STACK_API_KEY, if it is set."""
        import httpx

        key = os.environ.get("STACK_API_KEY") if key is None else key

        self.url = url.rstrip("/")
        try:
            # Generation may be slow, a connection may not. A proxy of the environment cannot reach loopback.
            self._http = httpx.Client(
                base_url=self.url,
                timeout=httpx.Timeout(timeout_s, connect=5.0),
                trust_env=not _local(self.url),
                headers={"authorization": f"Bearer {key}"} if key else {},
            )
        except httpx.InvalidURL as error:
            raise CliError(f"{url!r} is no URL ({error}); write e.g. {DEFAULT_URL}") from None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str) -> Any:
        with self._errors():
            return self._answer(self._http.get(path))

    def text(self, path: str) -> str:
        with self._errors():
            response = self._http.get(path)
            return response.text if response.is_success else str(self._answer(response))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        with self._errors():
            return self._answer(self._http.post(path, json=body))

    def has(self, path: str) -> bool:
        """Whether there is something at a path."""
        with self._errors():
            return self._http.get(path).is_success

    def upload(self, bucket: str, key: str, content: Path, shown: Callable[[int], None]) -> None:
        """Put a file there, a part at a time; `shown` is told how many bytes the server has."""
        size = content.stat().st_size
        body = {"bucket": bucket, "key": key, "mime_type": "application/jsonl", "size": size}
        session = self.post("/v1/files", body)
        path = f"/v1/files/session:{session['id']}"
        with self._errors(), content.open("rb") as file:
            offset = session["offset"]
            while offset < size:
                file.seek(offset)
                part = file.read(PART_BYTES)
                self._answer(self._http.post(path, content=part, headers={"upload-offset": str(offset)}))
                offset += len(part)
                shown(offset)

    def download(self, path: str, target: BinaryIO) -> None:
        with self._errors(), self._http.stream("GET", path) as response:
            if response.is_error:
                response.read()
                self._answer(response)
            for block in response.iter_bytes():
                target.write(block)

    def delete(self, path: str) -> Any:
        with self._errors():
            return self._answer(self._http.delete(path))

    def models(self) -> list[dict[str, Any]]:
        models: list[dict[str, Any]] = self.get("/v1/models")["data"]
        return models

    def chat(self, model_id: str, messages: list[dict[str, Any]]) -> Generator[str]:
        """Stream the text of one answer. Closing the iterator stops the generation."""
        body = {"model_id": model_id, "messages": messages, "stream": True}
        with closing(self.events("/v1/inference/chat-completion", body)) as events:
            for event in events:
                delta = event["event"]["delta"]
                if delta["type"] == "text" and delta["text"]:
                    yield delta["text"]

    def events(self, path: str, body: dict[str, Any]) -> Generator[dict[str, Any]]:
        """A stream's events. Closing the iterator stops the work."""
        with self._errors(), self._http.stream("POST", path, json=body) as response:
            if response.is_error:
                response.read()
                self._answer(response)
            for line in response.iter_lines():
                if line.startswith("data:"):
                    event = json.loads(line[5:])
                    if "error" in event:
                        raise CliError(_detail(event) or "the server broke off the answer")
                    yield event

    def _answer(self, response: httpx.Response) -> Any:
        try:
            body = response.json()
        except ValueError:
            raise CliError(f"{self.url} answered {response.status_code}, but is no stack server") from None
        if response.is_error:
            raise CliError(_detail(body) or f"the server answered {response.status_code}")
        return body

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.ConnectError:
            raise CliError(f"no server answers at {self.url}; start one: stack up") from None
        except httpx.TimeoutException:
            raise CliError(f"the server at {self.url} did not answer in time") from None
        except httpx.UnsupportedProtocol:
            raise CliError(f"{self.url!r} is no URL of a server; write e.g. {DEFAULT_URL}") from None
        except httpx.TransportError as error:
            raise CliError(f"lost the server at {self.url}: {error}") from None


def _detail(body: Any) -> str | None:
    """The words of the spec's Error, `{"status", "title", "detail"}`, or of an error inside a stream."""
    error = body.get("error", body) if isinstance(body, dict) else {}
    detail = error.get("detail") or error.get("message") if isinstance(error, dict) else None
    return str(detail) if detail else None


def _local(url: str) -> bool:
    return any(host in url for host in ("//127.", "//localhost", "//[::1]"))

"""A Hugging Face hub on loopback: the few endpoints that huggingface_hub asks when it downloads."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONVERTED = "converted"


class Hub:
    """Serves folders as repositories with one commit on `main`."""

    def __init__(self, repositories: dict[str, Path], gated: frozenset[str] = frozenset()) -> None:
        self.repositories, self.gated = repositories, gated
        self.converted: set[str] = set()  # datasets whose folder is their revision refs/convert/parquet
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()

    @contextmanager
    def serving(self) -> Iterator[str]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                hub.tokens.add(self.headers.get("Authorization"))
                status, headers, body = hub.answer(self.path)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *args: object) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        path = unquote(path.partition("?")[0]).replace("refs/convert/parquet", CONVERTED)
        parts = path.strip("/").removeprefix("datasets/").split("/")
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        folder = self.repositories.get(repo)
        if folder is None:
            return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"{}"
        if repo in self.gated:
            return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"}, b"{}"
        files = {str(f.relative_to(folder)): f for f in folder.rglob("*") if f.is_file()}
        revisions = ("main", COMMIT, CONVERTED) if repo in self.converted else ("main", COMMIT)
        if parts[0] != "api":
            return self._file(files, parts[3] in revisions, "/".join(parts[4:]))
        if len(parts) > 5 and parts[5] not in revisions:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if len(parts) > 4 and parts[4] == "tree":
            return _json([
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": _etag(file)}
                for name, file in files.items()
            ])  # fmt: skip
        siblings = [{"rfilename": name, "size": files[name].stat().st_size} for name in sorted(files)]
        return _json({"_id": "1", "id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings})

    def _file(self, files: dict[str, Path], known: bool, name: str) -> tuple[int, dict[str, str], bytes]:
        if not known or name not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        headers = {"ETag": f'"{_etag(files[name])}"', "X-Repo-Commit": COMMIT}
        return 200, headers, files[name].read_bytes()


def _json(value: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()

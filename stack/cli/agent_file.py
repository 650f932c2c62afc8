"""The YAML file of an agent: the fields of an AgentConfig, and what a terminal adds to them."""

from __future__ import annotations

import base64
import mimetypes
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from stack.cli.config import line_of, parse
from stack.cli.problems import CliError, Problem, dotted, explain
from stack.schemas.agents import AgentConfig

MAX_DOCUMENT_BYTES = 16 << 20


class AgentFile(AgentConfig):
    model: str = Field("", description="A model's id. Default: the server's first LLM")
    instructions: str = Field("You are a helpful assistant.", description="The system message")
    mcp_servers: dict[str, str] = Field(
        default_factory=dict, description="Servers to register as tool groups: an id -> its URL"
    )
    documents: list[str] = Field(
        default_factory=list, description="Files and patterns beside this file, or URLs, for the agent"
    )

    def config(self, model: str) -> dict[str, Any]:
        """The AgentConfig, with the MCP servers among its tool groups."""
        config: dict[str, Any] = self.model_dump(mode="json", exclude={"mcp_servers", "documents"})
        groups = [*config.get("toolgroups", []), *self.mcp_servers]
        return config | {"model": model, "toolgroups": groups}

    def attached(self, folder: Path) -> list[dict[str, Any]]:
        """The documents as a turn takes them. Raises CliError for a pattern without files."""
        found: list[dict[str, Any]] = []
        for name in self.documents:
            if "://" in name or name.startswith("data:"):
                kind = mimetypes.guess_type(name)[0] or ""
                found.append({"content": {"uri": name}, "mime_type": kind})
                continue
            paths = sorted(path for path in _matching(folder, name) if path.is_file())
            if not paths:
                raise CliError(f"documents: there is no file {name!r}; paths begin at the agent's file")
            found += map(_attached, paths)
        return found


def read(path: Path) -> AgentFile:
    """Raises CliError that names each bad line."""
    if not path.is_file():
        raise CliError(f"there is no file {path}; see: stack agent --help")
    data, lines = parse(path)
    try:
        return AgentFile.model_validate(data)
    except ValidationError as error:
        problems = [
            Problem(dotted(key), message, line_of(lines, key)) for key, message in explain(error, AgentFile)
        ]
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise CliError(f"{path} cannot be used:\n{listed}") from None


def _matching(folder: Path, name: str) -> list[Path]:
    if Path(name).is_absolute():
        return [Path(name)]
    try:
        return list(folder.glob(name))
    except ValueError as error:
        raise CliError(f"documents: {name!r} is no pattern of files: {error}") from None


def _attached(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    if len(content) > MAX_DOCUMENT_BYTES:
        raise CliError(f"documents: {path} has {len(content)} bytes; at most {MAX_DOCUMENT_BYTES} are sent")
    kind = mimetypes.guess_type(path.name)[0] or "text/plain"
    uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return {"content": {"uri": uri}, "mime_type": kind}

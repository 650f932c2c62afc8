"""A request's headers for MCP servers, from its provider data. Never logged, never stored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stack.errors import BadRequest
from stack.tools.mcp.attempt import named

EXAMPLE = '{"mcp_headers": {"<the endpoint>": {"Authorization": "Bearer …"}}}'
MAX_HEADERS = 32
MAX_CHARS = 16 << 10  # of all

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_OURS = frozenset(
    {
        "accept", "accept-encoding", "connection", "content-encoding", "content-length", "content-type",
        "host", "last-event-id", "mcp-protocol-version", "mcp-session-id", "te", "trailer",
        "transfer-encoding", "upgrade",
    }
)  # fmt: skip


def headers_for(endpoint: str, provider_data: Mapping[str, Any]) -> dict[str, str]:
    """`{"mcp_headers": {"<endpoint>": {"Name": "value"}}}`, or a list of "Name: value", as it was once."""
    given = provider_data.get("mcp_headers")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise BadRequest(f"mcp_headers in X-LlamaStack-Provider-Data is not an object; write {EXAMPLE}")
    for key in (endpoint, endpoint.rstrip("/"), f"{endpoint}/"):
        if key in given:
            return _checked(endpoint, _pairs(endpoint, given[key]))
    return {}


def _pairs(endpoint: str, given: Any) -> dict[str, Any]:
    if isinstance(given, list) and all(isinstance(line, str) and ":" in line for line in given):
        return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in given)}
    if isinstance(given, dict):
        return given
    raise BadRequest(f'mcp_headers for {named(endpoint)}: write {EXAMPLE}, or a list of "Name: value"')


def _checked(endpoint: str, headers: Mapping[str, Any]) -> dict[str, str]:
    """Lower case, in order of the names: one server with the same headers has one session."""
    where = f"mcp_headers for {named(endpoint)}"
    checked: dict[str, str] = {}
    for name, value in sorted(headers.items(), key=lambda header: header[0].lower()):
        if not _NAME.fullmatch(name) or name.lower() in _OURS:
            raise BadRequest(f"{where}: {name[:60]!r} is not a header that a caller sets")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise BadRequest(f"{where}: the value of {name!r} is not a text of one line in Latin-1")
        checked[name.lower()] = value
    if len(checked) > MAX_HEADERS or sum(map(len, checked.values())) > MAX_CHARS:
        raise BadRequest(f"{where}: at most {MAX_HEADERS} headers and {MAX_CHARS} characters are sent")
    return checked

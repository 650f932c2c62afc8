"""What asks a vendor's HTTP API: bounded in time and size, with errors that say what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
from pydantic import SecretStr
from pydantic_core import from_json

from stack.egress import EgressTransport, bounded_body
from stack.errors import BadRequest, Overloaded, StackError, Timeout, Unauthorized, UpstreamError
from stack.settings import Settings
from stack.tools.base import key_of

TIMEOUT_S = 15.0
MAX_BYTES = 4 << 20
USER_AGENT = "stack"


class Web:
    """One HTTP client for all vendors. Keys stand in requests only, never in errors."""

    def __init__(self, settings: Settings, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(
            transport=EgressTransport(settings.egress_allowed),
            timeout=timeout_s,
            headers={"User-Agent": USER_AGENT, "Accept": "application/json", "Accept-Encoding": "gzip"},
        )

    async def ask(
        self,
        vendor: str,
        url: str,
        *,
        params: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
    ) -> dict[str, Any]:
        """The JSON object that a GET, or a POST of `json`, is answered with."""
        method = "GET" if json is None else "POST"
        request = self._client.build_request(method, url, params=params, headers=headers, json=json)
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.send(request, stream=True)
                try:
                    _check(vendor, response)
                    body = bounded_body(response, MAX_BYTES, f"the answer of {vendor}")
                    content = b"".join([chunk async for chunk in body])
                finally:
                    await response.aclose()
        except (TimeoutError, httpx.TimeoutException) as error:
            raise Timeout(f"{vendor} did not answer within {self._timeout_s:g} s") from error
        except httpx.HTTPError as error:
            raise UpstreamError(f"no answer from {vendor}: the connection failed") from error
        return _object(vendor, content)

    async def close(self) -> None:
        await self._client.aclose()


def key_for(
    vendor: str, provider_data: Mapping[str, Any], name: str, setting: SecretStr | None, variable: str
) -> str:
    """The request's key, else the operator's. Raises BadRequest that says where to put one."""
    key = key_of(provider_data, name) or (setting.get_secret_value() if setting else "")
    if not key:
        raise BadRequest(
            f'{vendor} needs a key: send the header X-LlamaStack-Provider-Data: {{"{name}": "…"}}, '
            f"or start the server with {variable}"
        )
    return key


def _check(vendor: str, response: httpx.Response) -> None:
    status = response.status_code
    if response.is_success:
        return
    if status in (401, 403):
        raise Unauthorized(f"{vendor} refuses the key ({status}): check it")
    if status in (402, 429, 432, 433):  # the last two are Tavily's for a plan that is used up
        raise Overloaded(f"{vendor} takes no more requests with this key for now ({status}): try again later")
    error: type[StackError] = BadRequest if 400 <= status < 500 else UpstreamError
    raise error(f"{vendor} answers {status} {response.reason_phrase}".rstrip())


def _object(vendor: str, content: bytes) -> dict[str, Any]:
    try:
        answer = from_json(content)
    except ValueError as error:
        raise UpstreamError(f"{vendor} answers with what is not JSON") from error
    if not isinstance(answer, dict):
        raise UpstreamError(f"{vendor} answers with what is not a JSON object")
    return answer

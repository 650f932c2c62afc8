"""The source of a model behind an OpenAI-compatible endpoint: `https://host/v1#name`."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from stack.egress import check_url
from stack.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Endpoint:
    base_url: str  # without a slash at its end
    model: str  # the model's name there

    @classmethod
    def parse(cls, source: str, model_id: str) -> Endpoint:
        """The base URL and, after `#`, the model's name there; without it the name is `model_id`."""
        base_url, _, model = source.partition("#")
        if not base_url.startswith(("http://", "https://")):
            raise BadRequest(
                f"{source!r} is not an OpenAI-compatible endpoint; write its base URL and the model's name "
                "there as provider_model_id: https://host/v1#name"
            )
        try:
            url = httpx.URL(base_url)
        except (httpx.InvalidURL, ValueError) as error:
            raise BadRequest(f"{source!r} is not a URL: {error}") from error
        check_url(url)
        if url.query:
            raise BadRequest("an endpoint's base URL has no query; keys go into X-LlamaStack-Provider-Data")
        return cls(base_url.rstrip("/"), model or model_id)

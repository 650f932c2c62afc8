"""Resources that several tests write."""

from __future__ import annotations

from stack.schemas.models import Model


def model(identifier: str = "org/tiny", **changes: object) -> Model:
    fields = {"identifier": identifier, "provider_resource_id": "/models/tiny", "provider_id": "transformers"}
    return Model.model_validate(
        {**fields, "metadata": {"n": 1, "none": None}, "model_type": "llm", **changes}
    )

"""Names of model applications: fixed by the model's id, so that any replica finds any model."""

from __future__ import annotations

from urllib.parse import quote, unquote

MODEL_DEPLOYMENT = "Model"
PREFIX = "model-"


def app_name(model_id: str) -> str:
    """The Serve application of a model. Ids may hold `/` and `#`, application names may not."""
    return PREFIX + quote(model_id, safe="")


def model_of(application: str) -> str | None:
    """The model id of a Serve application, None if it is not a model's."""
    return unquote(application.removeprefix(PREFIX)) if application.startswith(PREFIX) else None

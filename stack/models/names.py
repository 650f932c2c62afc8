"""Names of model applications: fixed by the model's id, so that any replica finds any model."""

from __future__ import annotations

from urllib.parse import quote, unquote

MODEL_DEPLOYMENT = "Model"
PREFIX = "model-"


def app_name(model_id: str) -> str:
    """The Serve application of a model. Ids may hold `/`, `#` and `%`; with those in application names,
    Serve's files, replica ids or requests between replicas fail. So quoted as in URLs, with ~ for %."""
    return PREFIX + quote(model_id, safe="").replace("~", "%7E").replace("%", "~")


def model_of(application: str) -> str | None:
    """The model id of a Serve application, None if it is not a model's."""
    if not application.startswith(PREFIX):
        return None
    return unquote(application.removeprefix(PREFIX).replace("~", "%"))

"""Open a model in the process that will compute it: fetch its weights, pick its engine."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from stack.engine.openmp import in_ending_thread, let_kernels_have_cpus
from stack.errors import BadRequest
from stack.models.args import ModelArgs
from stack.models.folders import Folder, facts
from stack.models.sources import fetch

if TYPE_CHECKING:
    from stack.engine.base import LocalModel, Meter
    from stack.settings import Settings

log = logging.getLogger(__name__)


def open_model(args: ModelArgs, settings: Settings, meter: Meter) -> LocalModel:
    """Raises BadRequest when the source cannot be served."""
    let_kernels_have_cpus()
    return in_ending_thread(_open, args, settings, meter)


def _open(args: ModelArgs, settings: Settings, meter: Meter) -> LocalModel:
    folder = fetch(args.source, settings.model_cache, storage=settings.storage)
    kind = facts(Folder.local(folder)).kind
    if kind == "adapter":
        raise BadRequest(
            f"{args.source} is a LoRA adapter, which its base model's replicas serve: register it over HTTP, "
            "with metadata.base_model"
        )
    if args.model_type == "embedding":
        from stack.engine.embedding.model import open_embedding_model

        return open_embedding_model(args, folder, meter)
    if kind == "classifier":
        from stack.engine.classifier.model import open_classifier

        return open_classifier(args, folder)
    from stack.engine.text.open import open_text_model

    def fetch_adapter(source: str) -> Path:
        return fetch(source, settings.model_cache, storage=settings.storage)

    return open_text_model(args, folder, meter, fetch_adapter)

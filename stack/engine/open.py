"""Open a model in the process that will compute it: fetch its weights, pick its engine."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from stack.models.args import ModelArgs
from stack.models.folders import Folder, facts
from stack.models.sources import fetch

if TYPE_CHECKING:
    from stack.engine.base import LocalModel, Meter
    from stack.settings import Settings

log = logging.getLogger(__name__)


def open_model(args: ModelArgs, settings: Settings, meter: Meter) -> LocalModel:
    """Raises BadRequest when the source cannot be served."""
    # Read when torch is loaded: OpenMP's idle threads would spin on CPUs that the kernels' threads need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    folder = fetch(args.source, settings.model_cache)
    if args.model_type == "embedding":
        from stack.engine.embedding.model import open_embedding_model

        return open_embedding_model(args, folder, meter)
    if facts(Folder.local(folder)).kind == "classifier":
        from stack.engine.classifier.model import open_classifier

        return open_classifier(args, folder)
    from stack.engine.text.open import open_text_model

    return open_text_model(args, folder, meter)

"""What a folder of weights holds and whether it can be served, read from its small files alone.

Nothing here imports torch or transformers: API replicas check registrations with it.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from stack.errors import BadRequest
from stack.models import lora

ModelKind = Literal["llm", "embedding", "classifier", "adapter"]

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a model before it is loaded; None where only loading can tell."""

    kind: ModelKind | None = None
    context_length: int | None = None
    embedding_dimension: int | None = None


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder somewhere: the names of its files, and a way to read the small ones."""

    where: str
    names: frozenset[str]
    read: Callable[[str], bytes]

    @classmethod
    def local(cls, path: Path) -> Folder:
        names = frozenset(str(f.relative_to(path)) for f in _two_levels(path))
        return cls(str(path), names, lambda name: (path / name).read_bytes())

    def json(self, name: str) -> Any:
        """A JSON file's value; an empty object when there is none."""
        if name not in self.names:
            return {}
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"{self.where}: {name} is not JSON ({error})") from error


def _two_levels(path: Path) -> list[Path]:
    """Files of a folder and of its folders; models have no deeper ones, and a home folder has many."""
    children = list(path.iterdir())
    deeper = (
        f for child in children if child.is_dir() and not child.name.startswith(".") for f in child.iterdir()
    )
    return [f for f in (*children, *deeper) if f.is_file()]


def facts(folder: Folder) -> Facts:
    """Facts of a folder that can be served; BadRequest says why it can't be."""
    try:
        return _facts(folder)
    except (AttributeError, TypeError, LookupError) as error:
        raise BadRequest(f"{folder.where} has a configuration file of an unknown form") from error


def _facts(folder: Folder) -> Facts:
    if lora.is_adapter(folder.names):
        lora.read_config(folder.json(lora.CONFIG), folder.where)
        return Facts(kind="adapter")
    require_safe_weights(folder)
    config = folder.json("config.json")
    if not isinstance(config, dict) or (not config and "modules.json" not in folder.names):
        raise BadRequest(f"{folder.where} has no config.json; a model's source is the folder that has it")
    if not any(name in folder.names for name in _TOKENIZERS) and "modules.json" not in folder.names:
        raise BadRequest(
            f"{folder.where} has no tokenizer: expected {' or '.join(_TOKENIZERS[:3])} beside config.json"
        )
    if "modules.json" in folder.names:
        return _embedding_facts(folder, config)
    architecture = _architecture(folder, config)
    text = config.get("text_config", config)
    return Facts(
        kind=_kind(architecture),
        context_length=_first_int(text, _CONTEXT_KEYS),
        embedding_dimension=_first_int(text, ("hidden_size", "d_model", "n_embd", "dim")),
    )


def _kind(architecture: str) -> ModelKind:
    if architecture in text_architectures():
        return "llm"
    return "classifier" if architecture in _classifiers() else "embedding"


def require_safe_weights(folder: Folder) -> None:
    """Only safetensors are loaded: a pickle runs code when it is read."""
    tensors = {name for name in folder.names if name.endswith(".safetensors")}
    pickles = sorted(name for name in folder.names if name.endswith(PICKLES) and "training_args" not in name)
    if lora.CONFIG in folder.names and "config.json" not in folder.names:
        raise BadRequest(
            f"{folder.where} is an adapter without {lora.WEIGHTS}, the only file that its weights are read "
            "from; save it with save_pretrained of PEFT"
        )
    if not tensors and pickles:
        raise BadRequest(
            f"{folder.where} has its weights as pickles only ({pickles[0]}), which may run code when loaded. "
            'Convert them once, where you trust them, to safetensors: python -c "from transformers import '
            "AutoModelForCausalLM as M; M.from_pretrained('FOLDER').save_pretrained('NEW')\""
        )
    if not tensors:
        raise BadRequest(f"{folder.where} has no weights: expected *.safetensors or a .gguf file")
    for index in (name for name in folder.names if name.endswith("safetensors.index.json")):
        shards = set(folder.json(index).get("weight_map", {}).values())
        if missing := sorted(shards - folder.names):
            raise BadRequest(f"{folder.where} lacks {missing[0]} and so part of its weights; copy it again")


def _architecture(folder: Folder, config: dict[str, Any]) -> str:
    """The class that loads the model, without running code that came with it."""
    names = config.get("architectures") or [text_models().get(str(config.get("model_type")), "")]
    architecture = str(names[0])
    if architecture in text_architectures() | _known_architectures() | _classifiers():
        return architecture
    if "auto_map" in config:
        raise BadRequest(
            f"{folder.where} needs code of its own (auto_map in config.json), which is never run here; use "
            "a model that transformers has, or serve it elsewhere and register that server as "
            "an openai model"
        )
    raise BadRequest(
        f"{folder.where} has the architecture {architecture or config.get('model_type')!r}, which the "
        "installed transformers cannot generate text or embeddings, or classify, with"
    )


def _embedding_facts(folder: Folder, config: dict[str, Any]) -> Facts:
    """Facts of a sentence-transformers folder: modules.json lists transformer, pooling, dense, normalise."""
    dimension = _first_int(config, ("hidden_size", "d_model", "dim"))
    for module in folder.json("modules.json"):
        kind, path = str(module.get("type")), str(module.get("path"))
        if not kind.startswith("sentence_transformers."):
            raise BadRequest(
                f"{folder.where} needs code of its own ({kind} in modules.json), which is never run here"
            )
        settings = folder.json(f"{path}/config.json" if path else "config.json")
        if kind.endswith(".Dense"):
            dimension = settings.get("out_features", dimension)
            if path and f"{path}/model.safetensors" not in folder.names:
                raise BadRequest(
                    f"{folder.where}: {path} has no model.safetensors; pickled weights are never loaded"
                )
        elif kind.endswith(".Pooling"):
            dimension = _first_int(settings, ("embedding_dimension", "word_embedding_dimension")) or dimension
    limit = _first_int(folder.json("sentence_bert_config.json"), ("max_seq_length",))
    return Facts("embedding", limit or _first_int(config, _CONTEXT_KEYS), dimension)


def _first_int(config: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((config[key] for key in keys if isinstance(config.get(key), int) and config[key] > 0), None)


def check_safetensors(path: Path) -> None:
    """BadRequest for a file that is cut short or none of safetensors."""
    tensor_shapes(path)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's tensors by name, from its header.

    Its length is compared with the header's (https://huggingface.co/docs/safetensors): copies get cut.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header: dict[str, Any] = json.loads(file.read(length if length <= min(size, 100 << 20) else 0))
            header.pop("__metadata__", None)
            ends = [tensor["data_offsets"][1] for tensor in header.values()]
            shapes = {name: tuple(map(int, tensor["shape"])) for name, tensor in header.items()}
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise BadRequest(f"{path} is not a safetensors file") from error
    if 8 + length + max(ends, default=0) != size:
        raise BadRequest(
            f"{path} is cut short: {size} bytes of {8 + length + max(ends, default=0)}; copy it again"
        )
    return shapes


def text_architectures() -> frozenset[str]:
    """Classes that generate text, from text or from text and images."""
    return frozenset(text_models().values())


@lru_cache(maxsize=1)
def text_models() -> dict[str, str]:
    """Model type -> class, as in transformers' auto classes for causal and for image-text-to-text models."""
    tables = ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES")
    return {
        kind: name
        for table in reversed(tables)
        for kind, names in _table("models/auto/modeling_auto.py", table).items()
        for name in ((names,) if isinstance(names, str) else names[:1])
    }


@lru_cache(maxsize=1)
def gguf_architectures() -> frozenset[str]:
    """Architectures of GGUF files that transformers can convert."""
    source = _source("integrations/gguf/gguf_config_mapping.py")
    newer = re.search(r"^GGUF_CONFIG_ARCHS = \{(.*?)^\}", source, re.MULTILINE | re.DOTALL)
    found = re.findall(r'^    "(\w+)":', newer.group(1), re.MULTILINE) if newer else []
    return frozenset(
        {*_table("integrations/ggml.py", "GGUF_CONFIG_MAPPING"), *found}
        - {"general", "tokenizer", "t5", "umt5"}
    )


@lru_cache(maxsize=1)
def _known_architectures() -> frozenset[str]:
    """Classes without a head: the encoders that sentence-transformers can pool."""
    values = _table("models/auto/modeling_auto.py", "MODEL_MAPPING_NAMES").values()
    return frozenset(name for value in values for name in ([value] if isinstance(value, str) else value))


@lru_cache(maxsize=1)
def _classifiers() -> frozenset[str]:
    """Classes that say how likely each of a few labels is for a text."""
    names = _table("models/auto/modeling_auto.py", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES").values()
    return frozenset(name for name in names if isinstance(name, str))


def _source(module: str) -> str:
    """The text of a transformers module. Importing it would load torch, which takes seconds and memory."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / module
    return path.read_text() if path.exists() else ""


def _table(module: str, name: str) -> dict[str, Any]:
    """A module-level dict of literals, or OrderedDict of literal pairs."""
    for node in ast.parse(_source(module)).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value = node.value  # type: ignore[attr-defined]  # an Assign, as it has targets
            return dict(ast.literal_eval(value.args[0] if isinstance(value, ast.Call) else value))
    return {}

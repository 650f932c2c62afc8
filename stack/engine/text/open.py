"""A folder of weights -> a TextModel."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stack.engine.adapters.loaded import Adapters
from stack.engine.batching.batcher import Batcher
from stack.engine.runners.loading import is_multimodal, load_config, pick_device, pick_dtype, told
from stack.engine.runners.open import open_runner
from stack.engine.text.adapters import RunnerPlaces
from stack.engine.text.chat import ChatFormat
from stack.engine.text.model import Parts, TextModel
from stack.errors import BadRequest

if TYPE_CHECKING:
    from torch import Tensor

    from stack.engine.base import Meter
    from stack.models.args import ModelArgs

MAX_PIXELS = 50_000_000
_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
# Fine-tuned models often keep their base model's end token and end their turns with another one.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|end_of_turn|>")


def open_text_model(
    args: ModelArgs, folder: Path, meter: Meter, fetch_adapter: Callable[[str], Path] = Path
) -> TextModel:
    """Load everything. Raises BadRequest when the folder cannot be served as `args` say.

    `fetch_adapter` gives the local folder of an adapter's source.
    """
    config = load_config(folder)
    tokenizer = load_tokenizer(folder)
    vision = _Images.open(folder) if is_multimodal(config) else None
    template = (vision.template if vision is not None else None) or chat_template(tokenizer)
    try:
        chat = ChatFormat(tokenizer, template, vision is not None)
    except BadRequest as error:
        raise BadRequest(f"{folder.name} cannot be served: {error}") from None
    runner = open_runner(
        folder,
        dtype=args.dtype,
        context_length=args.context_length,
        slots=args.max_batch,
        threads=args.thread_count,
    )
    end_tokens = _end_tokens(folder, config, tokenizer)
    engine = Batcher(runner, tokenizer, end_tokens=end_tokens, max_queue=args.max_queue, meter=meter)
    adapters = None
    if runner.adapters is not None:
        adapters = Adapters(RunnerPlaces(engine, runner.adapters, fetch_adapter, meter), args.max_adapters)
    parts = Parts(
        engine=engine,
        tokenizer=tokenizer,
        chat=chat,
        vocab_size=runner.vocab_size,
        end_tokens=end_tokens,
        images=vision,
        adapters=adapters,
        close=engine.close,
        describe={
            "architecture": next(iter(config.architectures or [config.model_type])),
            "dtype": str(pick_dtype(args.dtype, pick_device(None))).removeprefix("torch."),
        },
    )
    return TextModel(args.model_id, parts)


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise BadRequest(
            f"{folder.name} has no tokenizer that transformers understands: {told(error, folder)}"
        ) from None


def chat_template(tokenizer: Any) -> str | None:
    """The chat template; of several the one for tools."""
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("tool_use", template.get("default"))
    return template or None


def _end_tokens(folder: Path, config: Any, tokenizer: Any) -> frozenset[int]:
    own: list[Any] = [tokenizer.eos_token_id, getattr(config.get_text_config(), "eos_token_id", None)]
    generation = folder / "generation_config.json"
    if generation.is_file():
        own.append(json.loads(generation.read_text()).get("eos_token_id"))
    ends = {end for item in own if item is not None for end in (item if isinstance(item, list) else [item])}
    special = {str(token.content): number for number, token in tokenizer.added_tokens_decoder.items()}
    return frozenset(ends | {special[text] for text in _TURN_ENDS if text in special})


class _Images:
    """A vision model's processor."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.template: str | None = getattr(processor, "chat_template", None)

    @classmethod
    def open(cls, folder: Path) -> _Images:
        from transformers import AutoProcessor

        auto: Any = AutoProcessor
        try:
            return cls(auto.from_pretrained(folder, local_files_only=True))
        except (OSError, ValueError, KeyError) as error:
            raise BadRequest(
                f"{folder.name} has no processor that transformers understands: {told(error, folder)}"
            ) from None

    def read(self, text: str, images: Sequence[bytes]) -> tuple[list[int], Mapping[str, Tensor]]:
        pictures = [_decode(content) for content in images]
        try:
            inputs = self._processor(
                text=[text], images=[pictures], add_special_tokens=False, return_tensors="pt"
            )
        except ValueError as error:
            raise BadRequest(f"the model's processor refuses the images: {error}") from None
        prompt: list[int] = inputs.pop("input_ids")[0].tolist()
        inputs.pop("attention_mask", None)
        return prompt, dict(inputs)


def _decode(content: bytes) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(content), formats=_IMAGE_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BadRequest(
                f"an image has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are taken"
            )
        return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadRequest(f"an image cannot be read: {error}") from None

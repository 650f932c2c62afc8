"""Images reach a vision-language model: a tiny, random LLaVA with a real tokenizer and processor."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessor,
)

from stack.engine.base import NoMeter
from stack.engine.fold import fold_chat_completion
from stack.engine.text.model import TextModel
from stack.engine.text.open import open_text_model
from stack.errors import BadRequest
from stack.models.args import ModelArgs
from stack.schemas.inference import ChatCompletionRequest

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for item in message.content %}"
    "{% if item.type == 'image' %}<image>{% else %}{{ item.text }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCHES = 16


@pytest.fixture(scope="module")
def model(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextModel]:
    folder = tmp_path_factory.mktemp("llava")
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config={"model_type": "siglip_vision_model", "image_size": 16, "patch_size": 4, **size},
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 256,
            **size,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="full",
        image_seq_length=PATCHES,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        image_processor=SiglipImageProcessor(size={"height": 16, "width": 16}),
        tokenizer=tokenizer,
        patch_size=4,
        vision_feature_select_strategy="full",
        image_token="<image>",
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    model = open_text_model(
        ModelArgs(model_id="llava", source="here", dtype="float32", max_batch=2), folder, NoMeter()
    )
    yield model
    model.close()


def picture(color: str, **save: Any) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (20, 12), color).save(file, **({"format": "PNG"} | save))
    return {"type": "image", "image": {"data": base64.b64encode(file.getvalue()).decode()}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


async def ask(model: TextModel, *content: Any) -> tuple[list[dict[str, float]], int]:
    """The logprobs of the first tokens, and the prompt's length."""
    request = ChatCompletionRequest.model_validate(
        {
            "model_id": "llava",
            "messages": [{"role": "user", "content": list(content)}],
            "sampling_params": {"strategy": {"type": "greedy"}, "max_tokens": 3},
            "logprobs": {"top_k": 5},
        }
    )
    answer = await fold_chat_completion(model.chat_completion(request))
    assert answer.metrics is not None
    prompt_tokens = {metric.metric: metric.value for metric in answer.metrics}["prompt_tokens"]
    return [item.logprobs_by_token for item in answer.logprobs or []], int(prompt_tokens)


async def test_the_answer_depends_on_the_images(model: TextModel) -> None:
    none, length = await ask(model, text("What is it?"))
    red, with_one = await ask(model, picture("red"), text("What is it?"))
    again, _ = await ask(model, picture("red"), text("What is it?"))
    blue, _ = await ask(model, picture("blue"), text("What is it?"))
    assert with_one == length + PATCHES
    assert red == again
    assert len({str(one) for one in (none, red, blue)}) == 3
    url = {
        "type": "image",
        "image": {"url": {"uri": "data:image/png;base64," + picture("red")["image"]["data"]}},
    }
    assert (await ask(model, url, text("What is it?")))[0] == red
    _, with_two = await ask(model, picture("red"), text("What is it?"), picture("blue", format="JPEG"))
    assert with_two == length + 2 * PATCHES


async def test_callers_cannot_write_the_image_token(model: TextModel) -> None:
    _, plain = await ask(model, picture("red"), text("a"))
    _, written = await ask(model, picture("red"), text("a<image>"))
    assert plain < written < plain + PATCHES
    await ask(model, text("<image>"))


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"no image", "cannot be read"), (b"\x89PNG\r\n\x1a\n" + b"x" * 50, "cannot be read")],
)
async def test_what_is_no_image(model: TextModel, data: bytes, message: str) -> None:
    item = {"type": "image", "image": {"data": base64.b64encode(data).decode()}}
    with pytest.raises(BadRequest, match=message):
        await ask(model, item)


async def test_an_image_with_too_many_pixels(model: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stack.engine.text.open.MAX_PIXELS", 100)
    with pytest.raises(BadRequest, match="20 x 12 pixels; at most 100"):
        await ask(model, picture("red"))


async def test_it_reads_images(model: TextModel) -> None:
    described = await model.describe()
    assert described["reads_images"] is True
    assert described["architecture"] == "LlavaForConditionalGeneration"

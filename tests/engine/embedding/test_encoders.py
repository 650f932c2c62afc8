"""Every encoder family and pooling beside sentence-transformers, in float32, on tiny random models."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stack.engine.base import NoMeter
from stack.engine.embedding.encoder import rounded
from stack.engine.embedding.fallback import FallbackSentenceEncoder
from stack.engine.embedding.model import open_embedding_model
from stack.engine.embedding.sentence import LeanSentenceEncoder
from stack.errors import BadRequest
from stack.models.args import ModelArgs
from stack.schemas.inference import EmbeddingsRequest

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 96}
DISTIL = {"dim": 64, "n_heads": 4, "n_layers": 3, "hidden_dim": 96}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": SIZES | {"hidden_act": "gelu_new"},
    "roberta": SIZES | {"pad_token_id": 0, "max_position_embeddings": 300},
    "xlm-roberta": SIZES | {"pad_token_id": 0, "max_position_embeddings": 300},
    "camembert": SIZES | {"pad_token_id": 0, "max_position_embeddings": 300},
    "mpnet": SIZES | {"pad_token_id": 0},
    "distilbert": DISTIL,
    "modernbert": SIZES
    | {"pad_token_id": 0, "local_attention": 16, "cls_token_id": 101, "sep_token_id": 102},
}
SENTENCE = "the flow past a flat plate in an incompressible fluid of small viscosity near the leading edge "
TEXTS = ["", "a", *((SENTENCE * 20)[n : 20 * n + 8] for n in range(0, 100, 9)), "wing", "edge"]


def save(folder: Path, family: str, minilm_dir: Path, config: dict[str, Any], modules: list[Any]) -> Path:
    """A sentence-transformers folder with random weights and MiniLM's tokenizer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    torch.manual_seed(0)
    plain = folder / "plain"
    model = AutoModel.from_config(AutoConfig.for_model(family, vocab_size=30522, **config))
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too, or mistakes in them would not show
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(plain)
    AutoTokenizer.from_pretrained(minilm_dir).save_pretrained(plain)
    transformer = Transformer(str(plain), max_seq_length=256)
    SentenceTransformer(modules=[transformer, *modules], device="cpu").save(str(folder / "model"))
    return folder / "model"


def reference_vectors(folder: Path, texts: list[str]) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True).encode(texts)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_equals_sentence_transformers(family: str, minilm_dir: Path, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    folder = save(tmp_path, family, minilm_dir, FAMILIES[family], [Pooling(64, "mean"), Normalize()])
    encoder = LeanSentenceEncoder(folder, torch.float32, torch.device("cpu"))
    vectors = encoder.encode(encoder.prepare(TEXTS, "end", None, 0))
    np.testing.assert_allclose(vectors, reference_vectors(folder, TEXTS), atol=1e-5)

    packed = LeanSentenceEncoder(folder, torch.bfloat16, torch.device("cpu"))
    assert (packed.encode(packed.prepare(TEXTS, "end", None, 0)) * vectors).sum(1).min() > 0.99


@pytest.mark.parametrize(
    "pooling", ["cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ("cls", "mean")]
)
def test_a_pooling_equals_sentence_transformers(pooling: Any, minilm_dir: Path, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling

    pool = Pooling(64, pooling)
    folder = save(tmp_path, "bert", minilm_dir, SIZES, [pool, Dense(pool.get_embedding_dimension(), 24)])
    encoder = LeanSentenceEncoder(folder, torch.float32, torch.device("cpu"))
    assert encoder.dimension == 24
    vectors = encoder.encode(encoder.prepare(TEXTS, "end", None, 0))
    np.testing.assert_allclose(vectors, reference_vectors(folder, TEXTS), atol=1e-5)


async def test_other_models_go_through_sentence_transformers(minilm_dir: Path, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    config = SIZES | {"num_key_value_heads": 2, "pad_token_id": 0}
    folder = save(tmp_path, "qwen3", minilm_dir, config, [Pooling(64, "lasttoken")])
    prompts = {"prompts": {"query": "search the abstracts: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    args = ModelArgs(model_id="tiny", source="tiny", model_type="embedding", dtype="float32")
    model = open_embedding_model(args, folder, NoMeter())
    assert isinstance(model._encoder, FallbackSentenceEncoder)
    expected = reference_vectors(folder, [*TEXTS, "search the abstracts: flow"])
    np.testing.assert_allclose(await model.embed(TEXTS), expected[:-1], atol=1e-5)
    np.testing.assert_allclose(await model.embed(["flow"], task_type="query"), expected[-1:], atol=1e-5)
    with pytest.raises(BadRequest, match=r"contents\[0\] has 602 tokens, the model takes 256"):
        await model.embed(["flow " * 600], truncation="none")
    start = await model.embed(["plate " * 300 + "flow " * 254], truncation="start")
    np.testing.assert_allclose(start, await model.embed(["flow " * 254]), atol=1e-5)
    model.close()


def png(color: str, size: tuple[int, int] = (40, 30)) -> dict[str, Any]:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return {"type": "image", "image": {"data": base64.b64encode(file.getvalue()).decode()}}


def save_clip(folder: Path, minilm_dir: Path) -> Path:
    """A tiny random CLIP as sentence-transformers saves one."""
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    torch.manual_seed(0)
    sizes = SIZES | {"projection_dim": 32}
    text = sizes | {"vocab_size": 30522, "bos_token_id": 101, "eos_token_id": 102, "pad_token_id": 0}
    config = CLIPConfig(
        text_config=text | {"max_position_embeddings": 32},
        vision_config=sizes | {"image_size": 32, "patch_size": 8},
        projection_dim=32,
    )
    CLIPModel(config).save_pretrained(folder / "plain")
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    CLIPProcessor(images, AutoTokenizer.from_pretrained(minilm_dir, model_max_length=32)).save_pretrained(
        folder / "plain"
    )
    SentenceTransformer(str(folder / "plain"), device="cpu").save(str(folder / "model"))
    return folder / "model"


async def test_a_clip_model_embeds_texts_and_images(
    minilm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image
    from sentence_transformers import SentenceTransformer

    folder = save_clip(tmp_path, minilm_dir)
    args = ModelArgs(model_id="clip", source="clip", model_type="embedding", dtype="float32")
    model = open_embedding_model(args, folder, NoMeter())
    contents = [png("red"), {"type": "text", "text": "red"}, png("blue"), png("red")]
    request = EmbeddingsRequest.model_validate({"model_id": "clip", "contents": contents})
    vectors = np.array((await model.embeddings(request)).embeddings)
    reference = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    pictures = [Image.new("RGB", (40, 30), color) for color in ("red", "blue")]
    np.testing.assert_allclose(vectors[[0, 2]], reference.encode(pictures), atol=1e-5)
    np.testing.assert_allclose(vectors[1], reference.encode("red"), atol=1e-5)
    np.testing.assert_allclose(vectors[3], vectors[0], atol=1e-5)

    # A text is a text, also where sentence-transformers would take it for an image to open.
    monkeypatch.chdir(tmp_path)
    pictures[0].save("red.png")
    expected = reference.encode([{"text": "red.png"}])
    assert np.abs(expected - vectors[0]).max() > 0.01
    np.testing.assert_allclose(await model.embed(["red.png"]), expected, atol=1e-5)
    assert (await model.embed(["a text beyond the limit of 32 tokens " * 9])).shape == (1, 32)
    for broken, message in [
        ({"type": "image", "image": {"data": base64.b64encode(b"not a png").decode()}}, "not an image"),
        (png("red", (10_000, 6_000)), "10000 x 6000 pixels"),
    ]:
        request = EmbeddingsRequest.model_validate({"model_id": "clip", "contents": [png("red"), broken]})
        with pytest.raises(BadRequest, match=rf"contents\[1\] is .*{message}"):
            await model.embeddings(request)
    model.close()


def test_batches_have_few_sizes() -> None:
    sizes = {rounded(tokens) for tokens in range(1, 4097)}
    assert len(sizes) < 60
    assert all(0 <= rounded(tokens) - tokens < max(16, tokens / 8) for tokens in range(1, 4097))

"""The embedding model on all-MiniLM-L6-v2, beside sentence-transformers in float32."""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stack.engine.base import NoMeter, Priority
from stack.engine.embedding.model import EmbeddingModel, open_embedding_model
from stack.engine.embedding.tokens import TextTooLong
from stack.engine.embedding.vectors import Vectors
from stack.errors import BadRequest, ContextTooLong, Overloaded
from stack.models.args import ModelArgs
from stack.schemas.inference import ChatCompletionRequest, CompletionRequest, EmbeddingsRequest

ABSTRACTS = [
    json.loads(line)["text"]
    for line in (Path(__file__).parents[2] / "data" / "cranfield_docs.jsonl").read_text().splitlines()
]
TEXTS = [*ABSTRACTS[:24], "", "a", "lift", "Überschall 中文 \N{ROCKET}\x00", "slip stream " * 400]


class Counts(NoMeter):
    """A Meter that sums what is counted."""

    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()
        self.computing = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def count(self, name: str, value: float = 1.0) -> None:
        self.sums[name] += int(value)
        self._loop.call_soon_threadsafe(self.computing.set)

    def observe(self, name: str, value: float) -> None:
        self.sums["batches"] += name == "embedding_batch_seconds"


def open_model(folder: Path, meter: NoMeter | None = None, **args: Any) -> EmbeddingModel:
    args = {"model_id": "mini", "source": str(folder), "model_type": "embedding", "dtype": "float32"} | args
    return open_embedding_model(ModelArgs.model_validate(args), folder, meter or NoMeter())


def request(contents: list[Any], **fields: Any) -> EmbeddingsRequest:
    return EmbeddingsRequest.model_validate({"model_id": "mini", "contents": contents} | fields)


@pytest.fixture(scope="module")
def model(minilm_dir: Path) -> Iterator[EmbeddingModel]:
    model = open_model(minilm_dir)
    yield model
    model.close()


@pytest.fixture(scope="module")
def reference(minilm_dir: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(minilm_dir), device="cpu", local_files_only=True)


@pytest.fixture(scope="module")
def expected(reference: Any) -> Vectors:
    vectors: Vectors = reference.encode(TEXTS)
    return vectors


async def test_float32_equals_sentence_transformers(model: EmbeddingModel, expected: Vectors) -> None:
    response = await model.embeddings(request(TEXTS, text_truncation="end"))
    np.testing.assert_allclose(response.embeddings, expected, atol=1e-5)


async def test_the_default_dtype_is_close_to_float32(minilm_dir: Path, expected: Vectors) -> None:
    model = open_model(minilm_dir, dtype="auto")  # bfloat16 where the CPU computes it
    vectors = await model.embed(TEXTS)
    assert (vectors * expected).sum(1).min() >= 0.999
    model.close()


async def test_a_vector_does_not_depend_on_the_batch(model: EmbeddingModel) -> None:
    together = await model.embed(TEXTS)
    alone = np.concatenate([await model.embed([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, together, atol=1e-6)


async def test_a_text_that_is_too_long_is_refused_by_default(model: EmbeddingModel) -> None:
    for fields in ({}, {"text_truncation": "none"}):
        with pytest.raises(
            ContextTooLong, match=r"contents\[1\] has 802 tokens, the model takes 256"
        ) as caught:
            await model.embeddings(request(["short", "slip stream " * 400], **fields))
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


async def test_truncation_drops_the_end_or_the_start(model: EmbeddingModel) -> None:
    text = "wing " * 200 + "boundary " * 200
    end, start = await model.embed([text]), await model.embed([text], truncation="start")
    wings = await model.embed(["wing " * 200 + "boundary " * 54], truncation="none")
    boundaries = await model.embed(["wing " * 54 + "boundary " * 200], truncation="none")
    np.testing.assert_allclose(end, wings, atol=1e-6)
    np.testing.assert_allclose(start, boundaries, atol=1e-6)


async def test_a_text_of_exactly_the_limit_is_taken(model: EmbeddingModel) -> None:
    await model.embed(["wing " * 254], truncation="none")
    with pytest.raises(TextTooLong, match="257 tokens"):
        await model.embed(["wing " * 255], truncation="none")


async def test_context_length_may_be_more_than_the_model_was_trained_with(minilm_dir: Path) -> None:
    model = open_model(minilm_dir, context_length=512)
    await model.embed(["wing " * 510], truncation="none")
    model.close()
    with pytest.raises(BadRequest, match=r"context_length 513.*512"):
        open_model(minilm_dir, context_length=513)


async def test_a_huge_text_is_answered_quickly(model: EmbeddingModel) -> None:
    huge = " ".join(ABSTRACTS) * 150
    assert len(huge) > 10_000_000
    started = time.monotonic()
    with pytest.raises(ContextTooLong, match="more than"):
        await model.embed([huge], truncation="none")
    end, start = await model.embed([huge]), await model.embed([huge], truncation="start")
    assert time.monotonic() - started < 2
    np.testing.assert_allclose(end, await model.embed([huge[:5000]]), atol=1e-6)
    np.testing.assert_allclose(start, await model.embed([huge[-5000:]], truncation="start"), atol=1e-6)


async def test_nothing_in_nothing_out(model: EmbeddingModel) -> None:
    assert (await model.embeddings(request([]))).embeddings == []
    assert (await model.embed([])).shape == (0, 384)


async def test_text_that_is_not_unicode_is_named(model: EmbeddingModel) -> None:
    with pytest.raises(BadRequest, match=r"contents\[300\].*lone surrogate"):
        await model.embed(["fine"] * 300 + ["broken \ud800"])


async def test_output_dimension_needs_a_matryoshka_model(model: EmbeddingModel, minilm_dir: Path) -> None:
    with pytest.raises(BadRequest, match=r"output_dimension 128.*no Matryoshka model.*384"):
        await model.embeddings(request(["wing"], output_dimension=128))
    assert len((await model.embeddings(request(["wing"], output_dimension=384))).embeddings[0]) == 384

    declared = open_model(minilm_dir, metadata={"matryoshka_dimensions": [64, 128]})
    whole = (await model.embed(["wing"]))[0]
    short = (await declared.embeddings(request(["wing"], output_dimension=128))).embeddings[0]
    np.testing.assert_allclose(short, whole[:128] / np.linalg.norm(whole[:128]), atol=1e-6)
    with pytest.raises(BadRequest, match="output_dimension 100: this model has vectors of 64, 128"):
        await declared.embed(["wing"], output_dimension=100)
    declared.close()


@pytest.mark.parametrize("include_prompt", [True, False])
async def test_task_types_use_the_models_prompts(
    minilm_dir: Path, tmp_path: Path, include_prompt: bool
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = shutil.copytree(minilm_dir, tmp_path / "asymmetric")
    prompts = {"query": "search for: ", "document": "an abstract: ", "other": "anything: "}
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": prompts, "default_prompt_name": "other"})
    )
    pooling = {"embedding_dimension": 384, "pooling_mode": "mean", "include_prompt": include_prompt}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    reference = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    model = open_model(folder)
    for task_type, encode in [
        ("query", reference.encode_query), ("document", reference.encode_document), (None, reference.encode),
    ]:  # fmt: skip
        response = await model.embeddings(request(ABSTRACTS[:4], text_truncation="end", task_type=task_type))
        np.testing.assert_allclose(response.embeddings, encode(ABSTRACTS[:4]), atol=1e-5)
    model.close()


async def test_a_symmetric_model_embeds_queries_and_documents_alike(model: EmbeddingModel) -> None:
    plain = await model.embed(["wing"])
    np.testing.assert_array_equal(await model.embed(["wing"], task_type="query"), plain)


async def test_items_are_texts_or_a_clear_refusal_of_images(model: EmbeddingModel) -> None:
    text = {"type": "text", "text": "wing"}
    response = await model.embeddings(request([text, text]))
    np.testing.assert_allclose(response.embeddings, np.repeat(await model.embed(["wing"]), 2, 0), atol=1e-6)
    image = {"type": "image", "image": {"data": base64.b64encode(b"png").decode()}}
    with pytest.raises(BadRequest, match=r"contents\[1\] is an image, and this model embeds text only"):
        await model.embeddings(request([text, image]))


async def test_it_does_not_chat(model: EmbeddingModel) -> None:
    chat = {"model_id": "mini", "messages": [{"role": "user", "content": "hello"}]}
    with pytest.raises(BadRequest, match="'mini' is an embedding model"):
        model.chat_completion(ChatCompletionRequest.model_validate(chat))
    with pytest.raises(BadRequest, match="'mini' is an embedding model"):
        model.completion(CompletionRequest.model_validate({"model_id": "mini", "content": "hello"}))


async def test_it_describes_itself(model: EmbeddingModel) -> None:
    assert await model.describe() == {
        "embedding_dimension": 384, "context_length": 256, "dtype": "float32",
    }  # fmt: skip


async def test_tokens_are_counted_as_the_model_does(model: EmbeddingModel, reference: Any) -> None:
    counts = await model.count_tokens(["", *ABSTRACTS[:8], " ".join(ABSTRACTS)])
    tokenize = reference.tokenizer
    assert counts == [
        len(tokenize(text, add_special_tokens=False, truncation=False)["input_ids"])
        for text in ["", *ABSTRACTS[:8], " ".join(ABSTRACTS)]
    ]


async def test_a_query_overtakes_a_large_call(model: EmbeddingModel) -> None:
    large = asyncio.create_task(model.embed(ABSTRACTS, priority=Priority.BATCH))
    await asyncio.sleep(0.2)
    query = await model.embed(["a query"])
    assert not large.done()
    assert (await large).shape == (64, 384)
    np.testing.assert_allclose(query, await model.embed(["a query"]), atol=1e-6)


async def test_the_event_loop_stays_free(model: EmbeddingModel) -> None:
    task = asyncio.create_task(model.embed([text * 20 for text in ABSTRACTS[:16]]))
    longest, last = 0.0, time.monotonic()
    while not task.done():
        await asyncio.sleep(0.001)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert longest < 0.25


async def test_calls_beyond_the_queue_are_refused(minilm_dir: Path) -> None:
    model = open_model(minilm_dir, max_batch=1, max_queue=1)
    waiting = [asyncio.create_task(model.embed(ABSTRACTS[:8])) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="2 embedding calls are under way"):
        await model.embed(["one more"])
    await asyncio.gather(*waiting)
    await model.embed(["now there is room"])
    model.close()


async def test_cancelling_drops_what_is_not_computed(minilm_dir: Path) -> None:
    meter = Counts()
    model = open_model(minilm_dir, meter, max_batch=1, max_queue=0)
    task = asyncio.create_task(model.embed(ABSTRACTS * 20))
    await asyncio.wait_for(meter.computing.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await model.embed(["next"])
    model.close()
    assert meter.sums["embedding_tokens"] < 64 * 10 * 180
    assert meter.sums["embedded_contents"] == 1


async def test_calls_that_come_together_are_computed_together(minilm_dir: Path) -> None:
    meter = Counts()
    model = open_model(minilm_dir, meter)
    texts = [text[:60] for text in ABSTRACTS]
    vectors = await asyncio.gather(*(model.embed([text]) for text in texts))
    assert meter.sums["batches"] < 32
    np.testing.assert_allclose(np.concatenate(vectors), await model.embed(texts), atol=1e-6)
    model.close()


def test_neither_transformers_nor_sentence_transformers_is_imported(minilm_dir: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from stack.models.args import ModelArgs\n"
        "from stack.engine.base import NoMeter\n"
        "from stack.engine.embedding.model import open_embedding_model\n"
        "args = ModelArgs(model_id='m', source='x', model_type='embedding')\n"
        "open_embedding_model(args, Path(sys.argv[1]), NoMeter())\n"
        "print({'transformers', 'sentence_transformers'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(minilm_dir)], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "set()"

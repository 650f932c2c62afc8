"""Classifiers so small that a test trains them: they tell two sets of words apart."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

HARMLESS = ["weather", "garden", "recipe", "music", "train", "river", "please", "tell", "about", "nice"]
INJECTED = ["ignore", "previous", "instructions", "override", "system"]
JAILBREAK = ["unrestricted", "dan", "roleplay", "uncensored", "anything"]
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
LABELS = ("BENIGN", "INJECTION", "JAILBREAK")


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = [*SPECIAL, *HARMLESS, *INJECTED, *JAILBREAK]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]  # a property
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]  # a property
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        unk_token="[UNK]", model_max_length=32,
    )  # fmt: skip


def make_classifier(folder: Path, kind: str = "deberta", labels: tuple[str, ...] = LABELS) -> Path:
    """Train one for some seconds and write it as `save_pretrained` does."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    names: dict[str, Any] = {"id2label": dict(enumerate(labels)), "vocab_size": len(tokenizer)}
    model: Any
    if kind == "deberta":
        model = DebertaV2ForSequenceClassification(DebertaV2Config(**SIZES, **DEBERTA, **names))
    elif kind == "bert":
        model = BertForSequenceClassification(BertConfig(**SIZES, **names))
    else:
        model = LlamaForSequenceClassification(LlamaConfig(**SIZES | {"pad_token_id": None}, **names))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model only waits for others
    _train(model, tokenizer, len(labels))
    torch.set_num_threads(threads)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_reward_model(folder: Path, chat_template: str | None = None) -> Path:
    """One output, from random weights: a decoder for dialogs with a template, else a BERT for pairs."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    sizes: dict[str, Any] = {**SIZES, "vocab_size": len(tokenizer), "num_labels": 1}
    model: Any = BertForSequenceClassification(BertConfig(**sizes))
    if chat_template is not None:
        tokenizer.chat_template = chat_template
        model = LlamaForSequenceClassification(LlamaConfig(**sizes | {"pad_token_id": None}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _train(model: Any, tokenizer: Any, labels: int) -> None:
    draw = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(60):
        length = draw.randrange(1, 30)
        answers = [draw.randrange(labels) for _ in range(32 if model.config.pad_token_id == 0 else 1)]
        texts = [" ".join(_words(draw, length, label)) for label in answers]
        batch = tokenizer(texts, return_tensors="pt", return_token_type_ids=False)
        loss = model(**batch, labels=torch.tensor(answers)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _words(draw: random.Random, length: int, label: int) -> list[str]:
    """Harmless ones, among them some of the label's."""
    words = draw.choices(HARMLESS, k=length)
    for place in draw.sample(range(length), k=max(1, length // 4)) if label else ():
        words[place] = draw.choice((INJECTED, JAILBREAK)[label - 1])
    return words

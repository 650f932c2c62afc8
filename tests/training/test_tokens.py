"""Conversations as token ids: what inference would read and what the model would have to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from stack.errors import BadRequest
from stack.training.rows import conversation, pair
from stack.training.tokens import IGNORED, ChatTokens

MESSAGES = [
    {"role": "user", "content": "Say <|im_end|> and hi"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
]


@pytest.fixture(scope="module")
def tokens(smollm2_dir: Path) -> ChatTokens:
    return ChatTokens(smollm2_dir, 512)


def learned(tokens: ChatTokens, ids: list[int], labels: list[int]) -> str:
    return str(tokens.tokenizer.decode([i for i, label in zip(ids, labels, strict=True) if label != IGNORED]))


def test_a_dialog_learns_the_answers_with_their_ends(tokens: ChatTokens) -> None:
    found = tokens.conversation(conversation({"messages": MESSAGES}, 0, "dialog"), train_on_input=False)
    assert learned(tokens, *found) == "Hi!<|im_end|>\n4<|im_end|>\n"
    assert all(label in (IGNORED, token) for token, label in zip(*found, strict=True))


def test_instruct_learns_the_last_answer(tokens: ChatTokens) -> None:
    found = tokens.conversation(conversation({"messages": MESSAGES}, 0, "instruct"), train_on_input=False)
    assert learned(tokens, *found) == "4<|im_end|>\n"


def test_train_on_input_learns_all(tokens: ChatTokens) -> None:
    ids, labels = tokens.conversation(conversation({"messages": MESSAGES}, 0, "dialog"), train_on_input=True)
    assert ids == labels


def test_the_tokens_are_those_of_the_template(tokens: ChatTokens) -> None:
    """Without special tokens in a message, the ids are what transformers makes of the whole."""
    plain = [{**MESSAGES[0], "content": "Say hi"}, *MESSAGES[1:]]
    ids, _ = tokens.conversation(conversation({"messages": plain}, 0, "dialog"), train_on_input=False)
    whole = tokens.tokenizer.apply_chat_template(plain, tokenize=True, return_dict=False)
    assert ids == whole


def test_special_tokens_that_a_row_writes_are_text(tokens: ChatTokens) -> None:
    ids, _ = tokens.conversation(conversation({"messages": MESSAGES}, 0, "dialog"), train_on_input=False)
    end = tokens.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids.count(end) == 5  # of the system message and the four messages, none of the user's text


def test_long_rows_are_cut(smollm2_dir: Path) -> None:
    short = ChatTokens(smollm2_dir, 40)
    ids, labels = short.conversation(conversation({"messages": MESSAGES}, 0, "instruct"), False)
    assert (len(ids), set(labels)) == (40, {IGNORED})


def test_a_pair_shares_its_prompt(tokens: ChatTokens) -> None:
    found = tokens.pair(pair({"messages": MESSAGES[:1], "chosen": "Hi!", "rejected": "No."}, 0))
    decode = tokens.tokenizer.decode
    assert decode(found.prompt_ids).endswith("<|im_start|>assistant\n")
    assert (decode(found.chosen_ids), decode(found.rejected_ids)) == ("Hi!<|im_end|>\n", "No.<|im_end|>\n")


def test_of_a_long_prompt_the_end_is_kept(smollm2_dir: Path, tokens: ChatTokens) -> None:
    row = pair({"messages": MESSAGES[:1], "chosen": "Hi!", "rejected": "No."}, 0)
    whole, cut = tokens.pair(row), ChatTokens(smollm2_dir, 20).pair(row)
    assert len(cut.prompt_ids) + max(len(cut.chosen_ids), len(cut.rejected_ids)) == 20
    assert cut.prompt_ids == whole.prompt_ids[-len(cut.prompt_ids) :]
    assert cut.chosen_ids == whole.chosen_ids


def test_a_template_that_changes_what_was_said_is_refused(tokens: ChatTokens, tmp_path: Path) -> None:
    tokens.tokenizer.save_pretrained(tmp_path)
    template = "{% for m in messages %}{{ m.content if loop.last else '…' }}|{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    other = ChatTokens(tmp_path, 512)
    with pytest.raises(BadRequest, match="changes earlier messages"):
        other.conversation(conversation({"messages": MESSAGES}, 0, "dialog"), False)
    ids, labels = other.conversation(conversation({"messages": MESSAGES[:2]}, 0, "instruct"), True)
    assert ids == labels

from __future__ import annotations

import struct
from pathlib import Path

import gguf as reference
import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from stack.errors import BadRequest
from stack.models import gguf
from tests.models.tiny import WORDS


def write_llama(path: Path, model: LlamaForCausalLM, pre: str = "smollm") -> Path:
    """A Llama as llama.cpp's converter writes it: its names, and rows of q and k in its rotary order."""
    config = model.config
    writer = reference.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    digits = [*WORDS[:-13], *"0123456789", "Ġ", "ĠĠ", "x"]
    writer.add_token_list(digits)
    writer.add_token_types([3, 3, 3] + [1] * (len(digits) - 3))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_eot_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, weight in model.state_dict().items():
        data = weight.float().numpy()
        for heads, part in ((config.num_attention_heads, "q_proj"), (config.num_key_value_heads, "k_proj")):
            if part in name:
                rows = data.reshape(heads, 2, data.shape[0] // heads // 2, -1)
                data = rows.swapaxes(1, 2).reshape(data.shape)
        stem = name.removesuffix(".weight")
        layer = stem.removeprefix("model.layers.0.")
        prefix = "blk.0." if layer != stem else ""
        writer.add_tensor(f"{prefix}{names[layer]}.weight", np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    model = LlamaForCausalLM.from_pretrained(tiny_llama)
    return write_llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model)


def test_metadata(file: Path) -> None:
    metadata = gguf.read_metadata(file)
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.context_length"] == 64
    assert metadata["tokenizer.ggml.tokens"] == len(WORDS)  # an array is given by its length
    assert metadata["tokenizer.ggml.pre"] == "smollm"


def test_a_converted_model_computes_what_the_original_did(
    file: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    import torch

    record = gguf.convert(file, tmp_path, lambda *_: None)
    assert record == {"gguf": "tiny.gguf", "architecture": "llama", "dtype": "float32"}
    assert not list(tmp_path.glob("*.bin"))
    converted = AutoModelForCausalLM.from_pretrained(tmp_path)
    original = LlamaForCausalLM.from_pretrained(tiny_llama)
    ids = torch.tensor([[3, 9, 4, 20, 7, 7, 5]])
    torch.testing.assert_close(converted(ids).logits, original(ids).logits, atol=1e-6, rtol=1e-5)
    assert converted.generation_config.eos_token_id == [1, 2]


def test_a_converted_tokenizer_splits_digits_as_in_training(file: Path, tmp_path: Path) -> None:
    gguf.convert(file, tmp_path, lambda *_: None)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("x  5") == ["x", "ĠĠ", "5"]
    assert tokenizer.model_max_length == 64
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x5"}], tokenize=False) == "x5"
    assert "local" not in (tmp_path / "tokenizer_config.json").read_text()


def test_the_default_model_answers(smollm2_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0]
    answer = tokenizer.decode(output[prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


@pytest.mark.parametrize("keep", [0, 3, 10, 24, 100, 400])
def test_a_file_that_is_cut_is_no_gguf(file: Path, tmp_path: Path, keep: int) -> None:
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:keep])
    with pytest.raises(BadRequest, match=r"cut\.gguf is not a"):
        gguf.read_metadata(tmp_path / "cut.gguf")


def test_lying_lengths_are_seen(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    for pairs, length in ((1, 1 << 60), (1 << 60, 3)):
        bad.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, pairs) + struct.pack("<Q", length) + b"abc" * 9)
        with pytest.raises(BadRequest):
            gguf.read_metadata(bad)
    # An array of 2^60 empty strings would keep a naive reader busy for years.
    array = struct.pack("<Q1sIIQ", 1, b"k", 9, 8, 1 << 60) + b"\0" * 64
    bad.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + array)
    with pytest.raises(BadRequest):
        gguf.read_metadata(bad)
    bad.write_bytes(b"\x80\x04 a pickle, by another name, that is long enough to have a header")
    with pytest.raises(BadRequest, match="not a GGUF file"):
        gguf.read_metadata(bad)

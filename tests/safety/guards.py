"""A Llama 3 with random weights whose chat template is that of a guard."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

# After the prompt format that Meta documents for Llama Guard 3: the conversation becomes one message.
TEMPLATE = """\
{{- bos_token + '<|start_header_id|>user<|end_header_id|>\n\n' -}}
{%- set role = 'Agent' if messages | length % 2 == 0 else 'User' -%}
{{- "Task: Check if there is unsafe content in '" + role + "' messages in our conversation " -}}
{{- 'according our safety policy with the below categories.\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\n' -}}
{%- for name in ['Violent Crimes', 'Non-Violent Crimes', 'Sex Crimes', 'Child Exploitation', 'Defamation',
    'Specialized Advice', 'Privacy', 'Intellectual Property', 'Indiscriminate Weapons', 'Hate', 'Self-Harm',
    'Sexual Content', 'Elections', 'Code Interpreter Abuse'] -%}
{{- 'S' ~ loop.index ~ ': ' ~ name ~ '.\n' -}}
{%- endfor -%}
{{- '<END UNSAFE CONTENT CATEGORIES>\n\n<BEGIN CONVERSATION>\n\n' -}}
{%- for message in messages -%}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
{%- endif -%}
{{- ('User' if message.role == 'user' else 'Agent') + ': ' + message.content + '\n\n' -}}
{%- endfor -%}
{{- '<END CONVERSATION>\n\nProvide your safety assessment for ONLY THE LAST ' + role -}}
{{- " message in the above conversation:\n - First line must read 'safe' or 'unsafe'.\n" -}}
{{- ' - If unsafe, a second line must include a comma-separated list of violated categories.<|eot_id|>' -}}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
"""


def make_guard(folder: Path) -> Path:
    """Tokens are bytes; a prompt has about 1,400."""
    vocabulary = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )
    fast.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=4096,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder

"""What the engines report through a Meter. Every name they use is here, with its kind and meaning."""

from __future__ import annotations

from typing import Final

QUEUE_LENGTH: Final = "queue_length"
BATCH_SIZE: Final = "batch_size"
STEP_SECONDS: Final = "step_seconds"
TIME_TO_FIRST_TOKEN: Final = "time_to_first_token_seconds"
TIME_PER_OUTPUT_TOKEN: Final = "time_per_output_token_seconds"
PREFILL_TOKENS: Final = "prefill_tokens"
REUSED_TOKENS: Final = "reused_prompt_tokens"
DECODE_TOKENS: Final = "decode_tokens"
PREEMPTIONS: Final = "preemptions"
STOPPED_STEPS: Final = "stopped_steps"
FAILED_STEPS: Final = "failed_steps"
ADAPTERS: Final = "adapters"

EMBEDDING_CALLS: Final = "embedding_calls"
EMBEDDING_SECONDS: Final = "embedding_seconds"
EMBEDDING_BATCH_SECONDS: Final = "embedding_batch_seconds"
EMBEDDING_TOKENS: Final = "embedding_tokens"
EMBEDDED_CONTENTS: Final = "embedded_contents"

METRICS: Final = {
    QUEUE_LENGTH: ("gauge", "Requests that wait for a slot."),
    BATCH_SIZE: ("gauge", "Requests that hold a slot."),
    STEP_SECONDS: ("histogram", "One step: forward pass, sampling and all that goes with it."),
    TIME_TO_FIRST_TOKEN: ("histogram", "From a request's arrival to its first token, waiting included."),
    TIME_PER_OUTPUT_TOKEN: ("histogram", "Mean time between a request's tokens after the first."),
    PREFILL_TOKENS: ("counter", "Prompt tokens computed."),
    REUSED_TOKENS: ("counter", "Prompt tokens taken from a cache instead."),
    DECODE_TOKENS: ("counter", "Tokens generated."),
    PREEMPTIONS: ("counter", "Batch requests that gave their slot to an interactive one."),
    STOPPED_STEPS: ("counter", "Forward passes of batch requests given up for an interactive one."),
    FAILED_STEPS: ("counter", "Forward passes that raised."),
    ADAPTERS: ("gauge", "LoRA adapters that the replica holds."),
    EMBEDDING_CALLS: ("gauge", "Embedding calls that wait or are computed."),
    EMBEDDING_SECONDS: ("histogram", "From a call's arrival to its vectors, waiting included."),
    EMBEDDING_BATCH_SECONDS: ("histogram", "One forward pass of an embedding model."),
    EMBEDDING_TOKENS: ("counter", "Tokens embedded."),
    EMBEDDED_CONTENTS: ("counter", "Texts and images embedded."),
}

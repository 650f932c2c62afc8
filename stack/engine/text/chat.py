"""Messages -> a prompt, through the model's own chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stack.engine.text.prompt_tokens import PromptTokens
from stack.engine.text.template import Template, TemplateFailed
from stack.engine.tool_calls import prompts as tool_prompts
from stack.engine.tool_calls.formats import HERMES, JSON, Tool, ToolFormat
from stack.errors import BadRequest
from stack.schemas.content import ImageContentItem, ImageSource, InterleavedContent, TextContentItem, ToolCall
from stack.schemas.messages import CompletionMessage, Message, SystemMessage, ToolResponseMessage, UserMessage

# For models without a template, that is base models: they continue a transcript.
TRANSCRIPT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}{% else %}"
    "{{ message.role | capitalize }}: {{ message.content }}{% endif %}{{ '\n\n' }}"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
TRANSCRIPT_STOP = ("\nUser:",)

Turn = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools that a request offers and how calls are written."""

    tools: Sequence[Tool]
    format: ToolFormat
    native: bool = False  # the template lists the tools
    replaces_system: bool = False


@dataclass(slots=True)
class Rendered:
    """A prompt's text with the callers' special tokens marked, and the images in it in their order."""

    text: str
    images: list[ImageSource] = field(default_factory=list)


class ChatFormat:
    """How one model reads conversations."""

    def __init__(self, tokenizer: Any, template: str | None, vision: bool = False) -> None:
        """Raises BadRequest for a template that does not work."""
        self.stop = () if template else TRANSCRIPT_STOP
        self.vision = vision
        self._variables = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        self._variables.setdefault("bos_token", "")
        try:
            self._template = Template(template or TRANSCRIPT)
            self._render([_turn("user", "a")])
        except TemplateFailed as error:
            raise BadRequest(f"its chat template cannot be used: {error}") from None
        self.literal_text = self._template.literal_text()
        self.native_format = self._native_format(tokenizer)
        self.reads_system = self._accepts([_turn("system", "QX7"), _turn("user", "a")], "QX7")
        self.alternates = not self._accepts([_turn("user", "a"), _turn("user", "QX7")], "QX7")

    def _native_format(self, tokenizer: Any) -> ToolFormat | None:
        """How the model writes calls if its template lists tools; None: in no known way."""
        text = self.literal_text
        if "tools" not in self._template.variables:
            return None
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        if "<tool_call>" in text and '"arguments"' in text and "<function=" not in text:
            return None if "<tool_call>" in special else HERMES
        if '"parameters"' in text and ("ipython" in text or "<|python_tag|>" in text):
            return JSON
        return None

    def _accepts(self, turns: list[Turn], witness: str) -> bool:
        try:
            return witness in self._render(turns)
        except TemplateFailed:
            return False

    def render(
        self,
        messages: Sequence[Message],
        use: ToolUse | None,
        tokens: PromptTokens,
        generation_prompt: bool = True,
    ) -> Rendered:
        """`generation_prompt`: ends where the assistant begins. Raises BadRequest as the template refuses."""
        conversation = _Conversation(self, use, tokens)
        turns = conversation.turns(messages)
        tools = None
        if use is not None and use.native and not use.replaces_system:
            tools = [{"type": "function", "function": _marked(tool.function(), tokens)} for tool in use.tools]
        try:
            return Rendered(self._render(turns, tools, generation_prompt), conversation.images)
        except TemplateFailed as error:
            raise BadRequest(f"the model's chat template refuses these messages: {error}") from None

    def _render(
        self,
        turns: list[Turn],
        tools: list[dict[str, Any]] | None = None,
        generation_prompt: bool = True,
    ) -> str:
        if self.vision:
            turns = [{**turn, "content": _as_items(turn["content"])} for turn in turns]
        return self._template.render(
            turns, tools=tools, **{**self._variables, "add_generation_prompt": generation_prompt}
        )


class _Conversation:
    """Builds what the template sees of one conversation."""

    def __init__(self, chat: ChatFormat, use: ToolUse | None, tokens: PromptTokens) -> None:
        self.images: list[ImageSource] = []
        self._chat, self._use, self._tokens = chat, use, tokens
        self._native = chat.native_format is not None and (use is None or use.native)
        self._format = use.format if use is not None else chat.native_format or JSON
        self._names: dict[str, str] = {}  # of the tools, by call_id

    def turns(self, messages: Sequence[Message]) -> list[Turn]:
        turns = [self._turn(message) for message in messages if not isinstance(message, SystemMessage)]
        system = self._system([message for message in messages if isinstance(message, SystemMessage)])
        if system:
            turns.insert(0, _turn("system" if self._chat.reads_system else "user", system))
        return _merged(turns, self._chat.alternates or (bool(system) and not self._chat.reads_system))

    def _system(self, messages: Sequence[SystemMessage]) -> str:
        text = "\n\n".join(filter(None, (_text(message.content) for message in messages)))
        use = self._use
        if use is not None and not (use.native and not (text and use.replaces_system)):
            text = tool_prompts.system_prompt(text, use.tools, use.format, use.replaces_system)
        return self._tokens.mark(text)

    def _turn(self, message: UserMessage | ToolResponseMessage | CompletionMessage) -> Turn:
        if isinstance(message, UserMessage):
            return _turn("user", self._user(message))
        if isinstance(message, ToolResponseMessage):
            return self._tool(message)
        calls = message.tool_calls or []
        self._names.update((call.call_id, call.tool_name) for call in calls)
        text = _text(message.content)
        if self._native and calls:
            return {**_turn("assistant", self._tokens.mark(text)), "tool_calls": [*map(self._call, calls)]}
        if calls:
            written = self._format.write([(call.tool_name, _arguments(call)) for call in calls])
            text = f"{text}\n{written}" if text else written
        return _turn("assistant", self._tokens.mark(text))

    def _call(self, call: ToolCall) -> Turn:
        function = {"name": call.tool_name, "arguments": _arguments(call)}
        return {"id": call.call_id, "type": "function", "function": _marked(function, self._tokens)}

    def _tool(self, message: ToolResponseMessage) -> Turn:
        text = self._tokens.mark(_text(message.content))
        if self._native:
            name = self._tokens.mark(self._names.get(message.call_id, ""))
            return {**_turn("tool", text), "tool_call_id": message.call_id, "name": name}
        return {**_turn("user", f"<tool_response>\n{text}\n</tool_response>"), "is_response": True}

    def _user(self, message: UserMessage) -> str | list[dict[str, str]]:
        items = _items(message.content)
        if message.context is not None:
            items = [*items, TextContentItem(text="\n\n"), *_items(message.context)]
        if not any(isinstance(item, ImageContentItem) for item in items):
            return self._tokens.mark(_text(items))
        return [self._item(item) for item in items]

    def _item(self, item: TextContentItem | ImageContentItem) -> dict[str, str]:
        if isinstance(item, TextContentItem):
            return {"type": "text", "text": self._tokens.mark(item.text)}
        self.images.append(item.image)
        return {"type": "image"}


def guard_prompt(template_text: str) -> str | None:
    """Whether a chat template asks for a verdict about a conversation, as Llama Guard's do, and in which
    form: `llama-3` has Llama 3's headers, `other` another one. None: it is a template for chatting."""
    if "<BEGIN CONVERSATION>" not in template_text:
        return None
    return "llama-3" if "<|start_header_id|>" in template_text else "other"


def size(messages: Sequence[Message]) -> int:
    """Characters of text in all messages, without looking at any of them."""
    total = 0
    for message in messages:
        contents = _items(message.content)
        if isinstance(message, UserMessage) and message.context is not None:
            contents = [*contents, *_items(message.context)]
        total += sum(len(item.text) for item in contents if isinstance(item, TextContentItem))
        if isinstance(message, CompletionMessage):
            total += sum(len(str(call.arguments)) for call in message.tool_calls or [])
    return total


def images(messages: Sequence[Message]) -> list[ImageSource]:
    """All images that users sent."""
    found = []
    for message in messages:
        contents = [message.content]
        if isinstance(message, UserMessage) and message.context is not None:
            contents.append(message.context)
        items = (item for content in contents for item in _items(content))
        found += [item.image for item in items if isinstance(item, ImageContentItem)]
    return found


def content_text(content: InterleavedContent, model_id: str) -> str:
    """The text of a content without images. Raises BadRequest for images."""
    if any(isinstance(item, ImageContentItem) for item in _items(content)):
        raise BadRequest(f"the completion of model {model_id!r} takes text only; send images in a chat")
    return _text(content)


def _items(content: InterleavedContent) -> list[TextContentItem | ImageContentItem]:
    if isinstance(content, str):
        return [TextContentItem(text=content)]
    return content if isinstance(content, list) else [content]


def _text(content: InterleavedContent) -> str:
    texts = []
    for item in _items(content):
        if not isinstance(item, TextContentItem):
            raise BadRequest("an image is in a system, assistant or tool message; only users can send images")
        texts.append(item.text)
    return "".join(texts)


def _turn(role: str, content: str | list[dict[str, str]]) -> Turn:
    return {"role": role, "content": content}


def _merged(turns: Sequence[Turn], same_role: bool) -> list[Turn]:
    """Join neighbours of one role where the template demands it, and responses of tools always."""
    merged: list[Turn] = []
    for turn in turns:
        last = merged[-1] if merged else {}
        responses = last.get("is_response") and turn.get("is_response")
        plain = "tool_calls" not in {*last, *turn} and turn["role"] in ("user", "assistant")
        if last.get("role") == turn["role"] and (responses or (same_role and plain)):
            last["content"] = _joined(last["content"], turn["content"], "\n" if responses else "\n\n")
        else:
            merged.append(turn)
    return merged


def _joined(first: Any, second: Any, between: str) -> Any:
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}{between}{second}"
    return [*_as_items(first), {"type": "text", "text": between}, *_as_items(second)]


def _as_items(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _arguments(call: ToolCall) -> Mapping[str, Any]:
    if isinstance(call.arguments, dict):
        return call.arguments
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        arguments = None
    return arguments if isinstance(arguments, dict) else {"arguments": call.arguments}


def _marked(value: Any, tokens: PromptTokens) -> Any:
    if isinstance(value, str):
        return tokens.mark(value)
    if isinstance(value, Mapping):
        return {tokens.mark(str(key)): _marked(item, tokens) for key, item in value.items()}
    return [_marked(item, tokens) for item in value] if isinstance(value, list) else value

"""Tell calls from text in a model's answer while it arrives, and parse them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence

from stack.engine.tool_calls.formats import Tool, ToolFormat
from stack.schemas.common import well_formed
from stack.schemas.content import ContentDelta, TextDelta, ToolCall, ToolCallDelta


class CallScanner:
    """Text in, deltas out: text, and for each call started, in_progress…, succeeded or failed.

    Text that may turn out to begin a call is held back, so none of a call leaks as text. `answers_json`: by
    the response format other answers are JSON too, and only the whole text tells whether it is a call.
    """

    def __init__(self, tool_format: ToolFormat, tools: Sequence[Tool], answers_json: bool = False) -> None:
        self.succeeded = 0
        self._format, self._tools = tool_format, tools
        self._triggers = tool_format.trigger_texts(tools)
        self._waits = answers_json and tool_format.opener == "{" and not tool_format.anywhere
        self._anywhere = tool_format.anywhere and not answers_json
        self._deciding, self._in_calls = True, False
        self._held = ""  # text that may yet be a call's
        self._raw = ""  # of the call that is being written, with what stands before it
        self._shown = 0  # how much of it was told as in_progress
        self._started = False
        self._balance = _Balance(tool_format.opener)

    def push(self, text: str) -> list[ContentDelta]:
        if self._in_calls:
            return self._push_calls(text)
        self._held += text
        if self._deciding:
            begins = self._begins_calls()
            if begins is None:
                return []
            self._deciding, self._in_calls = False, begins
        if self._in_calls:
            return self._open_calls()
        return self._push_text()

    def finish(self) -> list[ContentDelta]:
        """What the end of the answer settles."""
        if self._in_calls:
            return self._cut_off()
        if self._deciding and self._waits and (deltas := self._as_calls(self._held)):
            return deltas
        held, self._held = self._held, ""
        return [TextDelta(text=held)] if held else []

    def _begins_calls(self) -> bool | None:
        """None: cannot be told yet."""
        text = self._held.lstrip()
        if self._waits:
            return None if text[:1] in ("", "{") else False
        if any(text.startswith(trigger) for trigger in self._triggers):
            return True
        return None if any(trigger.startswith(text) for trigger in self._triggers) else False

    def _push_text(self) -> list[ContentDelta]:
        text, self._held = self._held, ""
        if self._anywhere:
            trigger = self._triggers[0]
            position = text.find(trigger)
            if position >= 0:
                self._in_calls, self._held = True, text[position:]
                before: list[ContentDelta] = [TextDelta(text=text[:position])] if position else []
                return before + self._open_calls()
            keep = max(n for n in range(len(trigger)) if text.endswith(trigger[:n]))
            text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        return [TextDelta(text=text)] if text else []

    def _open_calls(self) -> list[ContentDelta]:
        text, self._held = self._held, ""
        self._started = True
        return [ToolCallDelta(tool_call="", parse_status="started"), *self._push_calls(text)]

    def _push_calls(self, text: str) -> list[ContentDelta]:
        deltas: list[ContentDelta] = []
        begin = 0
        for position, char in enumerate(text):
            if self._balance.closes(char):
                self._raw += text[begin : position + 1]
                begin = position + 1
                deltas += [*self._progress(), self._parsed()]
                self._raw, self._shown, self._started = "", 0, False
        self._raw += text[begin:]
        return deltas + self._progress()

    def _progress(self) -> list[ContentDelta]:
        deltas: list[ContentDelta] = []
        if not self._started and self._balance.depth == 0 and not self._raw.endswith(("}", ")")):
            return deltas  # between two calls, or after the last
        if not self._started:
            deltas.append(ToolCallDelta(tool_call="", parse_status="started"))
            self._started = True
        if piece := self._raw[self._shown :]:
            deltas.append(ToolCallDelta(tool_call=piece, parse_status="in_progress"))
            self._shown = len(self._raw)
        return deltas

    def _parsed(self) -> ToolCallDelta:
        try:
            call = self._parse(self._raw)
        except (ValueError, RecursionError):
            return ToolCallDelta(tool_call=self._raw, parse_status="failed")
        self.succeeded += 1
        return ToolCallDelta(tool_call=call, parse_status="succeeded")

    def _parse(self, raw: str) -> ToolCall:
        name, arguments = self._format.parse(raw, self._tools)
        arguments = well_formed(arguments)
        if all(name != tool.name for tool in self._tools):
            raise ValueError(f"no tool {name!r}")
        return ToolCall(
            call_id=f"call_{uuid.uuid4().hex}",
            tool_name=name,
            arguments=arguments,
            arguments_json=json.dumps(arguments, ensure_ascii=False, allow_nan=False),
        )

    def _as_calls(self, text: str) -> list[ContentDelta]:
        """A whole answer's deltas when all of it is calls, else none."""
        scanner = CallScanner(self._format, self._tools)
        deltas = [*scanner._open_after(text), *scanner.finish()]
        if any(isinstance(delta, ToolCallDelta) and delta.parse_status == "failed" for delta in deltas):
            return []
        self.succeeded = scanner.succeeded
        return deltas if scanner.succeeded else []

    def _open_after(self, text: str) -> list[ContentDelta]:
        self._held, self._deciding, self._in_calls = text, False, True
        return self._open_calls()

    def _cut_off(self) -> list[ContentDelta]:
        """A call that the answer's end cut off; what follows a call's arguments is none."""
        rest = self._raw.strip()
        if not self._started:
            for closing in (self._format.end.lstrip("})"), self._format.last):
                expected = closing.strip()
                rest = "" if expected.startswith(rest) else rest.removeprefix(expected).strip()
            rest = rest.strip(",;")
        return [ToolCallDelta(tool_call=rest, parse_status="failed")] if rest else []


class _Balance:
    """Follows brackets outside of strings, from the first `opener` on."""

    _PAIRS = {"{": 1, "[": 1, "(": 1, "}": -1, "]": -1, ")": -1}  # noqa: RUF012

    def __init__(self, opener: str) -> None:
        self.depth = 0
        self._opener = opener
        self._in_string = self._escaped = False

    def closes(self, char: str) -> bool:
        """Take the next character; True when it closes the opener."""
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = False
            return False
        if self.depth == 0:
            self.depth = int(char == self._opener)
            return False
        if char == '"':
            self._in_string = True
        self.depth += self._PAIRS.get(char, 0)
        return self.depth == 0

"""The dialogs of a request: a flat list of messages, cut where a new one begins."""

from __future__ import annotations

from collections.abc import Sequence

from stack.errors import BadRequest
from stack.schemas.messages import CompletionMessage, Message, SystemMessage, ToolResponseMessage, UserMessage

Dialog = list[Message]


def split(messages: Sequence[Message]) -> list[Dialog]:
    """Each dialog ends with what a user says, and lacks the answer.

    A user's message that follows another user's begins a dialog, and so does one after a system message,
    which is the first of all dialogs until the next one. Raises BadRequest for a dialog that has its last
    answer.
    """
    dialogs: list[Dialog] = []
    system: list[Message] = []
    current: Dialog = []
    for message in messages:
        begins = isinstance(message, SystemMessage)
        if begins or (isinstance(message, UserMessage) and current and isinstance(current[-1], UserMessage)):
            _end(current, dialogs)
            current = []
        if isinstance(message, SystemMessage):
            system = [message]
            continue
        if not current:
            if isinstance(message, CompletionMessage | ToolResponseMessage):
                raise BadRequest("dialogs: a dialog begins with what a user says, or with a system message")
            current = [*system]
        current.append(message)
    _end(current, dialogs)
    return dialogs


def _end(current: Dialog, dialogs: list[Dialog]) -> None:
    if not current:
        return
    if not isinstance(current[-1], UserMessage):
        raise BadRequest(
            f"dialogs: dialog {len(dialogs)} (the first is 0) ends with an answer; it ends with what a user "
            "says, to which answers are generated"
        )
    dialogs.append(current)

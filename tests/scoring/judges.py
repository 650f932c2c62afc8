"""A model that judges by a function of the prompt, at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from stack.engine.base import Priority
from stack.schemas.inference import ChatCompletionRequest, ChatCompletionResponseStreamChunk
from tests.api.fake import FakeInference, complete, progress, start


class PromptJudge(FakeInference):
    """`judge` answers a prompt, or returns the error to raise. `at_once`: the most calls at a time."""

    def __init__(self, judge: Callable[[str], str | Exception]) -> None:
        super().__init__()
        self.judge = judge
        self.running = self.at_once = 0
        self.priorities: set[Priority] = set()

    async def chat_completion(  # type: ignore[override]
        self, request: ChatCompletionRequest, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncIterator[ChatCompletionResponseStreamChunk]:
        self.requests.append(request)
        self.priorities.add(priority)
        self.running += 1
        self.at_once = max(self.at_once, self.running)
        try:
            await asyncio.sleep(0.001)
            content: Any = request.messages[0].content
            answer = self.judge(content)
            if isinstance(answer, Exception):
                raise answer
            yield start()
            yield progress(answer)
            yield complete()
        finally:
            self.running -= 1

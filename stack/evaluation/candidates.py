"""Who is evaluated: a model, or an agent with its tools. Each row is asked on its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol
from uuid import NAMESPACE_OID, uuid5

from pydantic import ValidationError

from stack.agents.agents import Agents
from stack.agents.turns import Turns
from stack.engine.base import Priority
from stack.engine.fold import fold_chat_completion, fold_completion
from stack.errors import BadRequest, NotFound, NotReady
from stack.evaluation.questions import Row, completion_of, messages_of
from stack.models.serving import Serving
from stack.schemas.agents import CreateAgentTurnRequest
from stack.schemas.content import TextContentItem
from stack.schemas.eval import AgentCandidate, ModelCandidate
from stack.schemas.inference import ChatCompletionRequest, CompletionRequest
from stack.store.jobs import Job

Ask = Callable[[Row], Awaitable[str]]
"""What a candidate says to a row. Raises StackError."""


class Asked(Protocol):
    """What candidates need of a stack."""

    @property
    def serving(self) -> Serving: ...

    @property
    def agents(self) -> Agents: ...

    @property
    def turns(self) -> Turns: ...


@asynccontextmanager
async def asking(
    stack: Asked, candidate: ModelCandidate | AgentCandidate, agent_id: str | None = None
) -> AsyncGenerator[Ask]:
    """`agent_id` is of an agent that is there already. Raises BadRequest for one that cannot be made."""
    if isinstance(candidate, ModelCandidate):
        yield _Model(stack.serving, candidate).ask
    elif agent_id is not None:
        yield _Agent(stack, agent_id).ask
    else:
        own_id = await stack.agents.create(candidate.config, {})
        try:
            yield _Agent(stack, own_id).ask
        finally:
            with suppress(NotFound):
                await stack.agents.delete(own_id)


@asynccontextmanager
async def agent_of(
    agents: Agents, candidate: ModelCandidate | AgentCandidate, job: Job
) -> AsyncGenerator[str | None]:
    """The id of the agent of a job's attempt; None for a model.

    Afterwards it is deleted, and what earlier attempts left that were killed; never that of a later one,
    which may work already when this one learns that it has lost the job.
    """
    if isinstance(candidate, ModelCandidate):
        yield None
        return
    ids = [str(uuid5(NAMESPACE_OID, f"{job.id}/{attempt}")) for attempt in range(1, job.attempt + 1)]
    try:
        yield await agents.create(candidate.config, {}, ids[-1])
    finally:
        for agent_id in ids:
            with suppress(NotFound):
                await agents.delete(agent_id)


class _Model:
    def __init__(self, serving: Serving, candidate: ModelCandidate) -> None:
        self._serving, self._candidate = serving, candidate

    async def ask(self, row: Row) -> str:
        candidate = self._candidate
        model = await self._serving(candidate.model, "llm")
        common = {"model_id": candidate.model, "sampling_params": candidate.sampling_params}
        if (text := completion_of(row)) is not None:
            completion = _parsed(CompletionRequest, {**common, "content": text})
            return (await fold_completion(model.completion(completion, Priority.BATCH))).content
        system = [] if candidate.system_message is None else [candidate.system_message]
        chat = _parsed(ChatCompletionRequest, {**common, "messages": [*system, *messages_of(row)]})
        answer = await fold_chat_completion(model.chat_completion(chat, Priority.BATCH))
        return _text(answer.completion_message.content)


class _Agent:
    """Each row has a session of its own, which is deleted with its turn."""

    def __init__(self, stack: Asked, agent_id: str) -> None:
        self._stack, self._agent_id = stack, agent_id

    async def ask(self, row: Row) -> str:
        said = [message for message in messages_of(row) if message["role"] == "user"]
        if not said:
            raise BadRequest("an agent is asked by a user's message, and the row has none")
        request = _parsed(CreateAgentTurnRequest, {"messages": said[-1:]})
        try:
            session_id = await self._stack.agents.create_session(self._agent_id, "evaluation")
        except NotFound:  # a later attempt of the job is over: nothing that this one finds counts
            raise NotReady("the evaluation's agent is gone") from None
        try:
            run = await self._stack.turns.create(self._agent_id, session_id, request, {}, Priority.BATCH)
            return _text((await run.turn()).output_message.content)
        finally:
            await self._stack.agents.delete_session(self._agent_id, session_id)


def _parsed(schema: type[Any], fields: Row) -> Any:
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadRequest(f"the row's {where}: {first['msg']}") from None


def _text(content: Any) -> str:
    """The text of an answer, which is all that is scored."""
    items = content if isinstance(content, list) else [content]
    texts = [item.text if isinstance(item, TextContentItem) else item for item in items]
    return "".join(text for text in texts if isinstance(text, str))

"""Turns: beginning, resuming and reading them. A session's turns run one after the other, in the order in
which they came, whichever processes they came to.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from stack.agents.agents import Agents, tool_config_of
from stack.agents.documents import Documents
from stack.agents.infer import Asker, Reads
from stack.agents.prompt import Past, Prompt, past
from stack.agents.react import react_call
from stack.agents.records import UNFINISHED, Ahead, Record, Records, TurnRequest, new_record
from stack.agents.run import Parts, Plan, Run
from stack.agents.toolbox import SEARCH_GROUP, Toolbox
from stack.engine.base import Priority
from stack.errors import BadRequest, NotFound, Overloaded
from stack.models.serving import Serving
from stack.schemas.agents import (
    AgentConfig,
    AgentTool,
    CreateAgentTurnRequest,
    Document,
    ResumeAgentTurnRequest,
    Session,
    Step,
    ToolResponse,
    Turn,
)
from stack.schemas.content import ToolCall
from stack.store.presence import Presence
from stack.tools.tools import Tools

PAGE = 16  # earlier turns that are read at a time
PROCESS_DIED = "the process that ran it ended"
PROCESS_LOST = "the database could not be written"
SERVER_STOPPED = "the server was stopped"


@dataclass(frozen=True, slots=True)
class Services:
    agents: Agents
    tools: Tools
    documents: Documents
    serving: Serving
    presence: Presence
    parts: Parts


class Turns:
    def __init__(self, services: Services, wait_s: float) -> None:
        """`wait_s`: how long a turn waits for the earlier ones of its session."""
        self._services, self._wait_s = services, wait_s
        self._records = services.parts.records
        self._reads: dict[str, Reads] = {}
        self._runs: dict[str, Run] = {}
        self._live: Counter[str] = Counter()  # the requests of this process that work on a turn, or wait

    async def create(
        self,
        agent_id: str,
        session_id: str,
        request: CreateAgentTurnRequest,
        provider_data: Mapping[str, Any],
        priority: Priority = Priority.INTERACTIVE,
    ) -> Run:
        """Begin a turn, once the session's earlier ones have ended.

        Raises NotFound, BadRequest, NotReady for a model that is not, and Overloaded after waiting too long.
        """
        _, config = await self._services.agents.session(agent_id, session_id)
        if not request.messages:
            raise BadRequest("messages is empty: a turn begins with what the user says")
        wanted = TurnRequest(
            messages=request.messages, toolgroups=request.toolgroups, tool_config=request.tool_config
        )
        record = new_record(session_id, wanted, self._records.owner)
        self._live[record.turn_id] += 1
        async with self._claimed(record, self._records.forget):
            await self._records.add(record)
            toolbox, asker = await self._prepare(
                config, wanted, provider_data, bool(request.stream), priority
            )
            if record.status == "queued":
                await self._wait(record)
            wanted = await self._place(agent_id, record, request.documents or [], toolbox)
            await self._records.settle(record, wanted)
            return await self._begin(record, config, toolbox, asker, provider_data)

    async def resume(
        self,
        agent_id: str,
        session_id: str,
        turn_id: str,
        request: ResumeAgentTurnRequest,
        provider_data: Mapping[str, Any],
    ) -> Run:
        """Go on with a turn whose client has run its tools. Raises NotFound, BadRequest."""
        _, config = await self._services.agents.session(agent_id, session_id)
        record = await self._healed(session_id, turn_id)
        calls = _awaited(record, request.tool_responses)
        toolbox, asker = await self._prepare(config, record.request, provider_data, bool(request.stream))
        self._live[turn_id] += 1
        try:
            await self._records.take_up(record)
        except BaseException:  # then there is nothing to put back, or another request's
            self._release(turn_id)
            raise
        async with self._claimed(record, self._records.put_back):
            return await self._begin(
                record, config, toolbox, asker, provider_data, calls, request.tool_responses
            )

    @asynccontextmanager
    async def _claimed(
        self, record: Record, undo: Callable[[Record], Awaitable[None]]
    ) -> AsyncGenerator[None]:
        """Within it the turn is this process's; then its run's, or when it could not begin, nobody's."""
        try:
            yield
        except BaseException:  # the client left, too
            self._release(record.turn_id)
            await asyncio.shield(undo(record))
            raise

    async def _place(
        self, agent_id: str, record: Record, given: Sequence[Document], toolbox: Toolbox
    ) -> TurnRequest:
        """Put the documents where the agent can use them; the request with what tells of them."""
        documents = self._services.documents
        placed = await documents.place(record.session_id, record.request.messages, given, toolbox)
        if placed.memory is not None:
            try:  # else they would outlast a session that was deleted meanwhile
                await self._services.agents.session(agent_id, record.session_id)
            except NotFound:
                await documents.forget(record.session_id)
                raise
        elif toolbox.has_group(SEARCH_GROUP):
            placed.memory = await documents.memory_of(record.session_id)
        return record.request.model_copy(update={"messages": placed.messages, "memory": placed.memory})

    async def _begin(
        self,
        record: Record,
        config: AgentConfig,
        toolbox: Toolbox,
        asker: Asker,
        provider_data: Mapping[str, Any],
        calls: Sequence[ToolCall] = (),
        responses: Sequence[ToolResponse] = (),
    ) -> Run:
        prompt = await self._prompt(record, config, asker)
        plan = Plan(
            config=config,
            tool_config=record.request.tool_config or tool_config_of(config),
            toolbox=toolbox,
            asker=asker,
            prompt=prompt,
            provider_data=provider_data,
            memory=record.request.memory,
            calls=calls,
            responses=responses,
        )
        record.status, record.owner, record.completed_at = "running", self._records.owner, None
        run = Run(self._services.parts, plan, record)
        self._runs[record.turn_id] = run
        run.task.add_done_callback(lambda _: self._ended(record.turn_id))
        return run

    def _ended(self, turn_id: str) -> None:
        self._runs.pop(turn_id, None)
        self._release(turn_id)

    def _release(self, turn_id: str) -> None:
        self._live[turn_id] -= 1
        if self._live[turn_id] <= 0:
            del self._live[turn_id]

    async def _prepare(
        self,
        config: AgentConfig,
        request: TurnRequest,
        provider_data: Mapping[str, Any],
        stream: bool,
        priority: Priority = Priority.INTERACTIVE,
    ) -> tuple[Toolbox, Asker]:
        """What the turn works with, checked."""
        toolbox, (model, context_length) = await asyncio.gather(
            self._toolbox(config, request, provider_data),
            self._services.serving.open(config.model, "llm", provider_data),
        )
        reads = self._reads.setdefault(config.model, Reads(None))
        reads.context_length = context_length
        asker = Asker(
            model=model,
            meter=self._services.parts.meter,
            config=config,
            tools=toolbox.definitions(),
            reads=reads,
            stream=stream and not config.output_shields,
            priority=priority,
        )
        return toolbox, asker

    async def _toolbox(
        self, config: AgentConfig, request: TurnRequest, provider_data: Mapping[str, Any]
    ) -> Toolbox:
        """The agent's tools and the turn's; where both name the same group, the turn's arguments hold."""
        named: dict[str, AgentTool] = {}
        for tool in [*(config.toolgroups or []), *(request.toolgroups or [])]:
            named[tool if isinstance(tool, str) else tool.name] = tool
        bound = await self._services.tools.bind(list(named.values()), provider_data) if named else []
        toolbox = Toolbox(self._services.tools, bound, config.client_tools or [])
        toolbox.check_choice(request.tool_config or tool_config_of(config))
        return toolbox

    async def _prompt(self, record: Record, config: AgentConfig, asker: Asker) -> Prompt:
        """With as many earlier turns as may fit. What failed, e.g. since it was too long, is left out."""
        earlier: list[Past] = []
        room, number, unread = asker.limit(), record.number, 0
        while number > 1:
            if room <= 0:
                unread = await self._records.count_remembered(record.session_id, number)
                break
            page = await self._records.remembered(record.session_id, number, PAGE)
            turns = [past(turn) for turn in page]
            earlier += turns
            room -= sum(turn.size for turn in turns)
            number = page[-1].number if len(page) == PAGE else 1
        return Prompt(config.instructions, earlier[::-1], record, asker.overhead, unread)

    # A session's turns, one after the other.

    async def _wait(self, record: Record) -> None:
        deadline = time.monotonic() + self._wait_s
        while ahead := await self._records.ahead(record) or await self._records.try_start(record):
            if await self._heal(ahead):
                continue
            left = deadline - time.monotonic()
            if left <= 0:
                raise Overloaded(
                    f"waited {self._wait_s:g} s for the session's earlier turn to end; try again, or "
                    "stop that turn by closing its connection"
                )
            own = [run.task for turn in ahead if (run := self._runs.get(turn.turn_id)) is not None]
            if own:
                await asyncio.wait(own, timeout=min(left, 0.25))
            else:
                await asyncio.sleep(min(left, 0.1))

    # Reading.

    async def session(self, agent_id: str, session_id: str, turn_ids: Sequence[str] | None) -> Session:
        """With its turns, or those named. Raises NotFound."""
        session, _ = await self._services.agents.session(agent_id, session_id)
        records = await self._records.all(session_id, turn_ids)
        unfinished = [Ahead(turn.turn_id, turn.owner) for turn in records if turn.status in UNFINISHED]
        if await self._heal(unfinished):
            records = await self._records.all(session_id, turn_ids)
        if missing := set(turn_ids or ()) - {record.turn_id for record in records}:
            raise NotFound("turn", min(missing))
        session.turns = [record.turn() for record in records]
        return session

    async def turn(self, agent_id: str, session_id: str, turn_id: str) -> Turn:
        """Raises NotFound."""
        await self._services.agents.session(agent_id, session_id)
        return (await self._healed(session_id, turn_id)).turn()

    async def step(self, agent_id: str, session_id: str, turn_id: str, step_id: str) -> Step:
        """Raises NotFound."""
        for step in (await self.turn(agent_id, session_id, turn_id)).steps:
            if step.step_id == step_id:
                return step
        raise NotFound("step", step_id)

    async def _heal(self, turns: Sequence[Ahead]) -> bool:
        """End the turns whose process is dead; whether there were any."""
        own = self._records.owner
        lost = [turn for turn in turns if turn.owner == own and turn.turn_id not in self._live]
        for turn in lost:  # its end could not be written
            await self._records.stop(turn.turn_id, own, PROCESS_LOST)
        return await end_dead(self._records, self._services.presence, turns) or bool(lost)

    async def _healed(self, session_id: str, turn_id: str) -> Record:
        """A turn, ended if its process is dead."""
        record = await self._records.get(session_id, turn_id)
        if record.status in UNFINISHED and await self._heal([Ahead(turn_id, record.owner)]):
            record = await self._records.get(session_id, turn_id)
        return record

    async def close(self) -> None:
        """Stop the turns of this process."""
        runs = list(self._runs.values())
        for run in runs:
            run.stop(SERVER_STOPPED)
        if runs:
            await asyncio.wait([run.task for run in runs], timeout=10)


async def end_dead(records: Records, presence: Presence, turns: Sequence[Ahead] | None = None) -> bool:
    """End those of the turns, or of all, whose process is dead; whether there were any."""
    unfinished = await records.unfinished() if turns is None else turns
    dead = [turn for turn in unfinished if turn.owner is None or not await presence.is_alive(turn.owner)]
    for turn in dead:
        await records.stop(turn.turn_id, turn.owner, PROCESS_DIED)
    return bool(dead)


def _awaited(record: Record, responses: Sequence[ToolResponse]) -> list[ToolCall]:
    """The calls that the responses answer. Raises BadRequest unless it is all that the turn waits for."""
    if (call := react_call(record, responses)) is not None:
        return [call]
    if record.status != "awaiting_input":
        raise BadRequest(f"turn {record.turn_id!r} does not wait for tool responses: it is {record.status}")
    calls = {call.call_id: call for call in (record.output and record.output.message.tool_calls) or []}
    given = [response.call_id for response in responses]
    if sorted(given) != sorted(calls):
        raise BadRequest(
            f"tool_responses answer the calls {sorted(given)}, but the turn waits for {sorted(calls)}"
        )
    for response in responses:
        if response.tool_name != (name := calls[response.call_id].tool_name):
            raise BadRequest(f"call {response.call_id!r} is of tool {name!r}, not {response.tool_name!r}")
    return [calls[call_id] for call_id in given]

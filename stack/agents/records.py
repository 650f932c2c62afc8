"""Turns and their steps in SQL. What is written here outlives the process that runs the turn.

A turn is `queued` while earlier ones of its session run, then `running`, and ends as `completed`, `stopped`
(its client left, its process died, a later turn replaced it) or `failed`. It is `awaiting_input` while its
client runs tools. `owner` is the process that runs it: what another process writes is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, cast
from uuid import uuid4

from pydantic import TypeAdapter
from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Row,
    Select,
    String,
    Text,
    and_,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)

from stack.errors import BadRequest, NotFound, Overloaded
from stack.schemas.agents import (
    AgentTool,
    Attachment,
    InputMessage,
    Step,
    Turn,
)
from stack.schemas.common import Schema
from stack.schemas.messages import CompletionMessage, ToolConfig
from stack.store.database import Database
from stack.store.tables import agent_sessions, agent_steps, agent_turns

Status = Literal["queued", "running", "awaiting_input", "completed", "stopped", "failed"]

UNFINISHED: tuple[Status, ...] = ("queued", "running")
MAX_WAITING = 16  # turns of one session

# Built once: each turn runs them several times.
_COUNT = (
    update(agent_sessions)
    .where(agent_sessions.c.session_id == bindparam("own_session_id"))
    .values(turns=agent_sessions.c.turns + 1)
    .returning(agent_sessions.c.turns)
)
_OPEN = select(agent_turns.c.status).where(
    agent_turns.c.session_id == bindparam("session_id"),
    agent_turns.c.status.in_((*UNFINISHED, "awaiting_input")),
)
_ADD = insert(agent_turns)
_IS_OWN = and_(
    agent_turns.c.turn_id == bindparam("own_turn_id"),
    agent_turns.c.owner == bindparam("own_owner"),
    agent_turns.c.status == "running",
)
_ADD_STEP = insert(agent_steps).from_select(
    ["turn_id", "number", "step_id", "body"],
    select(
        agent_turns.c.turn_id,
        bindparam("number", type_=Integer),
        bindparam("step_id", type_=String),
        bindparam("body", type_=Text),
    )
    .where(_IS_OWN)
    .with_for_update(),
)
_END = (
    update(agent_turns)
    .where(_IS_OWN)
    .values(
        status=bindparam("status"),
        output=bindparam("output"),
        completed_at=bindparam("completed_at"),
        owner=None,
    )
)

_STEP: TypeAdapter[Step] = TypeAdapter(Step)


class TurnRequest(Schema):
    """What a turn was asked, as its row keeps it: enough to go on with it later."""

    messages: list[InputMessage]
    toolgroups: list[AgentTool] | None = None
    tool_config: ToolConfig | None = None
    memory: str | None = None  # the vector database with the session's documents


class Output(Schema):
    message: CompletionMessage
    attachments: list[Attachment] | None = None


class TurnGone(BadRequest):
    """The turn was ended by somebody else while this process worked on it."""

    title = "Turn Ended"

    def __init__(self) -> None:
        super().__init__()

    def __str__(self) -> str:
        return "the turn, its session or its agent was ended or deleted while it ran"


@dataclass(slots=True)
class Record:
    """A turn as its row has it; `steps` in their order."""

    turn_id: str
    session_id: str
    number: int
    status: Status
    owner: str | None
    request: TurnRequest
    output: Output | None
    started_at: datetime
    completed_at: datetime | None
    steps: list[Step] = field(default_factory=list)
    replaces: bool = False  # one that awaits its client's tools may be closed when this one runs

    def turn(self) -> Turn:
        output = self.output or Output(message=message("", "end_of_message"))
        return Turn(
            turn_id=self.turn_id,
            session_id=self.session_id,
            input_messages=self.request.messages,
            steps=self.steps,
            output_message=output.message,
            output_attachments=output.attachments,
            started_at=self.started_at,
            completed_at=self.completed_at,
        )


def new_record(session_id: str, request: TurnRequest, owner: str) -> Record:
    """A turn of `owner` that is not yet written."""
    return Record(
        turn_id=str(uuid4()),
        session_id=session_id,
        number=0,
        status="queued",
        owner=owner,
        request=request,
        output=None,
        started_at=datetime.now(UTC),
        completed_at=None,
    )


@dataclass(frozen=True, slots=True)
class Ahead:
    """An earlier turn of the session that is not finished."""

    turn_id: str
    owner: str | None


def message(
    text: str, stop_reason: Literal["end_of_turn", "end_of_message"] = "end_of_turn"
) -> CompletionMessage:
    return CompletionMessage(content=text, stop_reason=stop_reason)


def stopped(reason: str) -> Output:
    """What a turn says that was not finished."""
    return Output(message=message(f"This turn was stopped: {reason}."))


class Records:
    def __init__(self, database: Database, owner: str) -> None:
        self._database, self.owner = database, owner

    # How a turn begins.

    async def add(self, record: Record) -> None:
        """Begin a turn: running if none of the session's is unfinished, else queued. Raises NotFound."""

        def work(connection: Connection) -> None:
            record.number = _count_turn(connection, record.session_id)
            open_turns = connection.execute(_OPEN, {"session_id": record.session_id}).all()
            waiting = sum(row.status in UNFINISHED for row in open_turns)
            if waiting > MAX_WAITING:
                raise Overloaded(f"the session has {waiting} turns waiting; send one after the other")
            if not waiting:
                record.status, record.replaces = "running", bool(open_turns)
            connection.execute(_ADD, _row(record))

        await self._database.transact(work)

    async def ahead(self, record: Record) -> list[Ahead]:
        """The session's earlier turns that are not finished."""
        return await self._database.query(lambda connection: _ahead(connection, record))

    async def try_start(self, record: Record) -> list[Ahead]:
        """Let a queued turn run if it is the first of its session; else, who is ahead of it."""

        def work(connection: Connection) -> list[Ahead]:
            _lock_session(connection, record.session_id)
            ahead = _ahead(connection, record)
            if not ahead:
                _start(connection, record)
            return ahead

        ahead = await self._database.transact(work)
        if not ahead:
            record.status, record.replaces = "running", True
        return ahead

    async def settle(self, record: Record, request: TurnRequest) -> None:
        """Before a turn runs: write what it was asked and where its documents are, and close one that still
        awaits its client's tools. Raises TurnGone."""
        row = agent_turns.c.turn_id == record.turn_id
        query = update(agent_turns).where(row).values(request=request.model_dump_json())

        def work(connection: Connection) -> None:
            _lock_session(connection, record.session_id)
            _replace_awaiting(connection, record.session_id)
            if connection.execute(query).rowcount == 0:
                raise TurnGone

        if record.replaces or request != record.request:
            await self._database.transact(work)
            record.request = request

    async def take_up(self, record: Record) -> None:
        """Go on with a turn as it was read. Raises BadRequest if somebody else did, or it is not the last."""
        turn = agent_turns.c.turn_id == record.turn_id
        in_session = agent_turns.c.session_id == record.session_id
        later = select(agent_turns.c.turn_id).where(in_session, agent_turns.c.number > record.number).limit(1)
        steps = select(func.count()).select_from(agent_steps).where(agent_steps.c.turn_id == record.turn_id)
        values = {"status": "running", "owner": self.owner, "output": None, "completed_at": None}
        query = update(agent_turns).where(turn, agent_turns.c.status == record.status).values(values)

        def work(connection: Connection) -> None:
            _lock_session(connection, record.session_id)
            if connection.scalar(later) is not None:
                raise BadRequest(
                    f"turn {record.turn_id!r} cannot be resumed: a later turn of its session began"
                )
            # By its steps it is told apart from the same turn that waits for its next call.
            if connection.scalar(steps) != len(record.steps) or connection.execute(query).rowcount == 0:
                raise BadRequest(f"turn {record.turn_id!r} was resumed or ended meanwhile")

        await self._database.transact(work)

    async def put_back(self, record: Record) -> None:
        """Undo `take_up`."""
        values = {
            "status": record.status,
            "owner": None,
            "output": record.output.model_dump_json() if record.output else None,
            "completed_at": record.completed_at,
        }
        query = update(agent_turns).where(
            agent_turns.c.turn_id == record.turn_id,
            agent_turns.c.owner == self.owner,
            agent_turns.c.status == "running",
        )
        await self._database.transact(lambda connection: connection.execute(query.values(values)).rowcount)

    # How it goes on, and ends.

    async def commit(
        self, record: Record, steps: Sequence[tuple[int, Step]], end: tuple[Status, Output] | None = None
    ) -> None:
        """Write finished steps, each with its number, and how the turn ends if it does: all or nothing.

        Raises TurnGone when the turn is no longer this process's.
        """
        own = {"own_turn_id": record.turn_id, "own_owner": self.owner}
        rows = [_step_row(number, step) | own for number, step in steps]
        completed_at = None if end is None or end[0] == "awaiting_input" else datetime.now(UTC)

        def work(connection: Connection) -> None:
            for row in rows:
                if connection.execute(_ADD_STEP, row).rowcount != 1:
                    raise TurnGone
            if end is not None:
                values = {"status": end[0], "output": end[1].model_dump_json(), "completed_at": completed_at}
                if connection.execute(_END, values | own).rowcount != 1:
                    raise TurnGone

        await self._database.transact(work)
        if end is not None:
            (record.status, record.output), record.completed_at = end, completed_at

    async def stop(self, turn_id: str, owner: str | None, reason: str) -> None:
        """End a turn of `owner` that is not finished; nothing happens if it is."""
        values = {
            "status": "stopped",
            "output": stopped(reason).model_dump_json(),
            "completed_at": datetime.now(UTC),
            "owner": None,
        }
        query = update(agent_turns).where(
            agent_turns.c.turn_id == turn_id,
            agent_turns.c.owner == owner,
            agent_turns.c.status.in_(UNFINISHED),
        )
        await self._database.transact(lambda connection: connection.execute(query.values(values)).rowcount)

    async def forget(self, record: Record) -> None:
        """Of a turn that never ran: nothing is left."""
        query = delete(agent_turns).where(
            agent_turns.c.turn_id == record.turn_id,
            agent_turns.c.owner == self.owner,
            agent_turns.c.status.in_(UNFINISHED),
        )
        await self._database.transact(lambda connection: connection.execute(query).rowcount)

    async def unfinished(self) -> list[Ahead]:
        """All turns that some process should be working on."""
        query = select(agent_turns.c.turn_id, agent_turns.c.owner).where(agent_turns.c.status.in_(UNFINISHED))
        return await self._database.query(
            lambda connection: [Ahead(row.turn_id, row.owner) for row in connection.execute(query)]
        )

    # Reading.

    async def get(self, session_id: str, turn_id: str) -> Record:
        """Raises NotFound."""
        found = await self.all(session_id, [turn_id])
        if not found:
            raise NotFound("turn", turn_id)
        return found[0]

    async def all(self, session_id: str, turn_ids: Sequence[str] | None = None) -> list[Record]:
        """A session's turns in their order, or those named."""
        query = select(agent_turns).where(agent_turns.c.session_id == session_id)
        if turn_ids is not None:
            query = query.where(agent_turns.c.turn_id.in_(turn_ids))
        return await self._read(query.order_by(agent_turns.c.number))

    async def remembered(self, session_id: str, number: int, limit: int) -> list[Record]:
        """The last `limit` turns before `number` that belong to the conversation, the newest first.

        One that failed, e.g. since it was too long for the model, does not.
        """
        query = select(agent_turns).where(_remembered(session_id, number))
        return await self._read(query.order_by(agent_turns.c.number.desc()).limit(limit))

    async def count_remembered(self, session_id: str, number: int) -> int:
        query = select(func.count()).select_from(agent_turns).where(_remembered(session_id, number))
        return await self._database.query(lambda connection: connection.scalar(query) or 0)

    async def _read(self, query: Select[Any]) -> list[Record]:
        turn_ids = query.with_only_columns(agent_turns.c.turn_id)
        steps = select(agent_steps.c.turn_id, agent_steps.c.body).where(agent_steps.c.turn_id.in_(turn_ids))
        steps = steps.order_by(agent_steps.c.turn_id, agent_steps.c.number)

        def work(connection: Connection) -> list[Record]:
            records = {row.turn_id: _record(row) for row in connection.execute(query)}
            for row in connection.execute(steps) if records else ():
                if row.turn_id in records:  # not of a turn that began between the two statements
                    records[row.turn_id].steps.append(_STEP.validate_json(row.body))
            return list(records.values())

        return await self._database.query(work)


def _remembered(session_id: str, number: int) -> ColumnElement[bool]:
    return and_(
        agent_turns.c.session_id == session_id,
        agent_turns.c.number < number,
        agent_turns.c.status.in_(("completed", "stopped")),
    )


def _start(connection: Connection, record: Record) -> None:
    query = update(agent_turns).where(
        agent_turns.c.turn_id == record.turn_id,
        agent_turns.c.owner == record.owner,
        agent_turns.c.status == "queued",
    )
    if connection.execute(query.values(status="running")).rowcount == 0:
        raise TurnGone


def _count_turn(connection: Connection, session_id: str) -> int:
    """The number of a new turn. Until the transaction ends, no other turn of the session can begin."""
    number: int | None = connection.scalar(_COUNT, {"own_session_id": session_id})
    if number is None:
        raise NotFound("session", session_id)
    return number


def _lock_session(connection: Connection, session_id: str) -> None:
    """Until the transaction ends, no turn of the session can begin or be resumed."""
    query = select(agent_sessions.c.turns).where(agent_sessions.c.session_id == session_id)
    if connection.scalar(query.with_for_update()) is None:
        raise NotFound("session", session_id)


def _ahead(connection: Connection, record: Record) -> list[Ahead]:
    query = select(agent_turns.c.turn_id, agent_turns.c.owner).where(
        agent_turns.c.session_id == record.session_id,
        agent_turns.c.status.in_(UNFINISHED),
        agent_turns.c.number < record.number,
    )
    return [Ahead(row.turn_id, row.owner) for row in connection.execute(query)]


def _replace_awaiting(connection: Connection, session_id: str) -> None:
    query = update(agent_turns).where(
        agent_turns.c.session_id == session_id, agent_turns.c.status == "awaiting_input"
    )
    output = stopped("a later turn began before its tool calls were answered").model_dump_json()
    values = {"status": "stopped", "output": output, "completed_at": datetime.now(UTC)}
    connection.execute(query.values(values))


def _row(record: Record) -> dict[str, Any]:
    return {
        "turn_id": record.turn_id,
        "session_id": record.session_id,
        "number": record.number,
        "status": record.status,
        "owner": record.owner,
        "request": record.request.model_dump_json(),
        "output": None,
        "started_at": record.started_at,
        "completed_at": None,
    }


def _step_row(number: int, step: Step) -> dict[str, Any]:
    return {"number": number, "step_id": step.step_id, "body": step.model_dump_json()}


def _record(row: Row[Any]) -> Record:
    return Record(
        turn_id=row.turn_id,
        session_id=row.session_id,
        number=row.number,
        status=cast(Status, row.status),
        owner=row.owner,
        request=TurnRequest.model_validate_json(row.request),
        output=None if row.output is None else Output.model_validate_json(row.output),
        started_at=row.started_at,
        completed_at=row.completed_at,
    )

"""One turn: shields, the model, tools, until an answer. Each step is committed before the next begins."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import uuid4

from stack.agents import events
from stack.agents.events import Chunk
from stack.agents.files import SessionFiles, decoded
from stack.agents.infer import Asker, repair_note
from stack.agents.metrics import REPAIRED_CALLS, REPEATED_CALLS, STEPS, STOPPED_TURNS, TURN_SECONDS, TURNS
from stack.agents.prompt import Prompt
from stack.agents.records import Output, Record, Records, Status, TurnGone, message, stopped
from stack.agents.toolbox import CODE_GROUP, Called, Toolbox, call_key, kept
from stack.engine.base import Meter
from stack.errors import StackError
from stack.safety.shields import Shields
from stack.schemas.agents import (
    AgentConfig,
    Attachment,
    InferenceStep,
    ShieldCallStep,
    Step,
    ToolExecutionStep,
    ToolResponse,
    Turn,
)
from stack.schemas.content import ContentDelta, ToolCall, ToolCallDelta
from stack.schemas.messages import CompletionMessage, Message, ToolConfig
from stack.schemas.safety import SafetyViolation
from stack.tracing import common, span

log = logging.getLogger(__name__)
T = TypeVar("T")
End = tuple[Status, Output]

MAX_EVENTS = 256  # that a slow client may be behind before the turn waits for it
RETRIES_S = (0.0, 0.5, 2.0)  # before each attempt to write a turn's end
MAX_STALL_S = 60.0  # that the turn waits for it
REFUSAL = "I can't answer that."
CLIENT_LEFT = "its client left"


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run works with."""

    records: Records
    shields: Shields
    files: SessionFiles
    meter: Meter


@dataclass(frozen=True, slots=True)
class Plan:
    """What a turn is to do; all of it was checked before the turn began."""

    config: AgentConfig
    tool_config: ToolConfig | None
    toolbox: Toolbox
    asker: Asker
    prompt: Prompt
    provider_data: Mapping[str, Any]
    memory: str | None  # the vector database with the session's documents
    responses: Sequence[ToolResponse] = ()  # of the client, when the turn goes on
    calls: Sequence[ToolCall] = ()  # that these answer


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer of the model that is not committed yet. With a violation its text is taken out."""

    step: InferenceStep
    checks: Sequence[Step]  # the output shields'
    held: Sequence[ContentDelta]  # what was not told before these had looked
    violation: SafetyViolation | None
    broken: bool  # it should have been a tool call, and cannot be read


class _Left(Exception):
    """The client went away."""


class Run:
    """Works in a task of its own, so that a step which was begun is finished when the client leaves."""

    def __init__(self, parts: Parts, plan: Plan, record: Record) -> None:
        self.record = record
        self._parts, self._plan = parts, plan
        self._events: asyncio.Queue[Chunk | None] = asyncio.Queue(MAX_EVENTS)
        self._error: Exception | None = None
        self._number = len(record.steps)  # of the next step
        self._attachments: list[Attachment] = []
        self._left = self._interruptible = self._begun = self._stopped = False
        self._reason = CLIENT_LEFT
        self._started = time.monotonic()
        self.task = asyncio.create_task(self._run())

    # For whoever listens.

    async def events(self) -> AsyncGenerator[Chunk]:
        """To the end of the turn. Closing it stops the turn at its next step."""
        try:
            while (event := await self._events.get()) is not None:
                yield event
            if self._error is not None:
                raise self._error
        finally:
            self.leave()

    async def turn(self) -> Turn:
        """The turn at its end, without the events."""
        async for _ in self.events():
            pass
        return self.record.turn()

    def leave(self) -> None:
        """Nobody listens any more."""
        if self.task.done() or self._left:
            return
        self._left = True
        while not self._events.empty():
            self._events.get_nowait()
        if self._interruptible:
            self.task.cancel()

    def stop(self, reason: str) -> None:
        """Stop now, in the middle of a step."""
        self._reason, self._stopped = reason, True
        if self._begun:  # a task that has not would never say that it ended
            self.task.cancel()

    # The turn.

    async def _run(self) -> None:
        self._begun = True
        try:
            if self._stopped:
                raise _Left
            ids = {"session_id": self.record.session_id, "turn_id": self.record.turn_id}
            with common(ids), span("invoke_agent", {"gen_ai.operation.name": "invoke_agent"}):
                await self._loop()
        except (_Left, asyncio.CancelledError):
            await self._end_early("stopped", self._reason)
        except StackError as error:
            self._error = error
            await self._end_early("failed", str(error))
        except Exception as error:  # the task's edge: whoever listens raises it
            if self._left:
                log.exception("turn %s failed after its client left", self.record.turn_id)
            self._error = error
            await self._end_early("failed", "the server failed")
        finally:
            self._parts.meter.count(TURNS)
            self._parts.meter.observe(TURN_SECONDS, time.monotonic() - self._started)
            await self._emit(None)

    async def _end_early(self, status: Status, reason: str) -> None:
        self._parts.meter.count(STOPPED_TURNS)
        for wait_s in RETRIES_S:
            await asyncio.sleep(wait_s)
            try:
                await self._parts.records.commit(self.record, [], (status, stopped(reason)))
                return
            except TurnGone as gone:
                self._error = self._error or gone
                return
            except StackError as error:  # the database
                problem = error
        log.warning("turn %s is left to whoever meets it next: %s", self.record.turn_id, problem)
        self._error = self._error or problem

    async def _loop(self) -> None:
        """To the end of the turn, or until its client must run tools."""
        plan = self._plan
        if plan.responses:
            await self._take_responses()
        else:
            await self._emit(events.turn_started(self.record.turn_id))
            if await self._input_refused():
                return None
        final = repaired = False
        note: str | None = None
        while True:
            answers = sum(isinstance(step, InferenceStep) for step in self.record.steps)
            # The last answer is asked for without tools, unless it is the only one.
            last = answers + 1 >= plan.config.max_infer_iters
            final = final or (last and answers > 0)
            answered = await self._infer(final, note)
            answer, note = answered.step.model_response, None
            done = _done(self.record.steps)
            if answered.violation is not None:
                return await self._finish(_refusal(answered.violation), answered)
            if answered.broken and not (repaired or final or last) and self._choice(final) == "auto":
                repaired, note = True, repair_note(answer)
                self._parts.meter.count(REPAIRED_CALLS)
            elif not answer.tool_calls or final or last:
                return await self._finish(_last_word(answer), answered)
            elif all(call_key(call) in done for call in answer.tool_calls):
                final = True
                self._parts.meter.count(REPEATED_CALLS)
            await self._commit_answer(answered)
            if not (note or final) and await self._use_tools(answer, done):
                return None

    async def _finish(self, said: CompletionMessage, answered: Answered | None = None) -> None:
        """The end, in one transaction with the answer that led to it."""
        end: End = ("completed", Output(message=said, attachments=kept(self._attachments)))
        if answered is not None:
            await self._commit_answer(answered, end)
        else:
            await self._commit([], end)
        await self._emit(events.turn_completed(self.record.turn()))

    # Shields.

    async def _input_refused(self) -> bool:
        said: list[Message] = [*self.record.request.messages]
        steps, violation = await self._check(self._plan.config.input_shields, said)
        if steps:
            await self._commit(steps)
            await self._tell_checks(self._plan.config.input_shields, steps, "user-input")
        if violation is not None:
            await self._finish(_refusal(violation))
        return violation is not None

    async def _check(
        self, shield_ids: Sequence[str] | None, messages: Sequence[Message]
    ) -> tuple[list[Step], SafetyViolation | None]:
        """All shields at once. The violation is the first that stops the turn."""
        if not shield_ids:
            return [], None
        started = datetime.now(UTC)
        with self._interrupted():
            found = await _together(
                self._parts.shields.run(shield_id, messages, {}, self._plan.provider_data)
                for shield_id in shield_ids
            )
        steps: list[Step] = [
            ShieldCallStep(**self._step(started, str(uuid4())), violation=violation) for violation in found
        ]
        severe = (each for each in found if each is not None and each.violation_level == "error")
        return steps, next(severe, None)

    async def _tell_checks(
        self, shield_ids: Sequence[str] | None, steps: Sequence[Step], touchpoint: str
    ) -> None:
        for shield_id, step in zip(shield_ids or (), steps, strict=True):
            metadata = {"touchpoint": touchpoint, "shield_id": shield_id}
            await self._emit(events.step_started("shield_call", step.step_id, {**metadata}))
            await self._emit(events.step_completed(step))

    # The model.

    async def _infer(self, final: bool, note: str | None) -> Answered:
        plan, started, step_id = self._plan, datetime.now(UTC), str(uuid4())
        shield_ids = plan.config.output_shields
        metadata = plan.asker.fit(plan.prompt)
        await self._emit(events.step_started("inference", step_id, metadata))
        held: list[ContentDelta] = []

        async def tell(delta: ContentDelta) -> None:
            if shield_ids:
                held.append(delta)  # nobody sees it before the shields have
            else:
                await self._emit(events.step_progressed("inference", step_id, delta))

        with self._interrupted(), common({"step_id": step_id}), span("step inference", {}):
            answer = await plan.asker.ask(plan.prompt, self._tool_config(final, note is not None), note, tell)
        said = answer.message
        checks, violation = await self._check(shield_ids, [*self.record.request.messages, said])
        if violation is not None:
            said, held = said.model_copy(update={"content": "", "tool_calls": None}), []
        step = InferenceStep(**self._step(started, step_id), model_response=said)
        broken = answer.broken_call and not said.tool_calls
        return Answered(step, checks, held, violation, broken)

    async def _commit_answer(self, answered: Answered, end: End | None = None) -> None:
        step = answered.step
        await self._commit([step, *answered.checks], end)
        for delta in answered.held:
            await self._emit(events.step_progressed("inference", step.step_id, delta))
        await self._emit(events.step_completed(step))
        await self._tell_checks(self._plan.config.output_shields, answered.checks, "assistant-output")

    def _choice(self, final: bool) -> str:
        """What holds for the next answer: a call that must be made must be made once."""
        config = self._plan.tool_config
        if final:
            return "none"
        called = any(isinstance(step, ToolExecutionStep) for step in self.record.steps)
        choice = config.tool_choice if config is not None else "auto"
        return choice if choice in ("auto", "none") or not called else "auto"

    def _tool_config(self, final: bool, must_call: bool) -> ToolConfig | None:
        config = self._plan.tool_config or ToolConfig()
        choice = "required" if must_call else self._choice(final)
        return config.model_copy(update={"tool_choice": choice}) if self._plan.asker.tools else None

    # Tools.

    async def _use_tools(self, answer: CompletionMessage, done: Mapping[str, ToolResponse]) -> bool:
        """Run the server's tools, all at once; whether the turn now waits for those of the client."""
        calls = answer.tool_calls or []
        own = [call for call in calls if not self._plan.toolbox.is_client(call.tool_name)]
        theirs = [call for call in calls if self._plan.toolbox.is_client(call.tool_name)]
        if own:
            await self._run_tools(own, done)
        if theirs:
            waiting = answer.model_copy(update={"tool_calls": theirs, "stop_reason": "end_of_message"})
            output = Output(message=waiting, attachments=kept(self._attachments))
            await self._commit([], ("awaiting_input", output))
            await self._emit(events.turn_awaits_input(self.record.turn()))
        return bool(theirs)

    async def _run_tools(self, calls: Sequence[ToolCall], done: Mapping[str, ToolResponse]) -> None:
        files: Mapping[str, bytes] = {}
        if any(self._plan.toolbox.is_in_group(call.tool_name, CODE_GROUP) for call in calls):
            files = await self._parts.files.read(self.record.session_id)
        first, self._number = self._number, self._number + len(calls)
        step_ids = [str(uuid4()) for _ in calls]
        for step_id, call in zip(step_ids, calls, strict=True):
            delta = ToolCallDelta(tool_call=call, parse_status="succeeded")
            await self._emit(events.step_started("tool_execution", step_id))
            await self._emit(events.step_progressed("tool_execution", step_id, delta))
        steps = await _together(
            self._run_tool(first + i, step_ids[i], call, files, done.get(call_key(call)))
            for i, call in enumerate(calls)
        )
        self.record.steps += steps
        if self._left:
            raise _Left

    async def _run_tool(
        self,
        number: int,
        step_id: str,
        call: ToolCall,
        files: Mapping[str, bytes],
        known: ToolResponse | None,
    ) -> Step:
        """One call, committed as soon as it has its response. One that was made before is not made again."""
        started = datetime.now(UTC)
        if known is not None:
            called = Called(known.model_copy(update={"call_id": call.call_id}))
        else:
            with common({"step_id": step_id}), span("step tool_execution", {}):
                called = await self._plan.toolbox.call(
                    call, self._plan.provider_data, files, self._plan.memory
                )
        step = ToolExecutionStep(
            **self._step(started, step_id), tool_calls=[call], tool_responses=[called.response]
        )
        if called.files:
            files_written = await asyncio.to_thread(decoded, called.files)
            await self._parts.files.write(self.record.session_id, files_written)
        await self._parts.records.commit(self.record, [(number, step)])
        self._parts.meter.count(STEPS)
        self._attachments += called.attachments
        await self._emit(events.step_completed(step))
        return step

    async def _take_responses(self) -> None:
        """The client's tools as a step."""
        now, step_id = datetime.now(UTC), str(uuid4())
        step = ToolExecutionStep(
            **self._step(now, step_id),
            tool_calls=list(self._plan.calls),
            tool_responses=list(self._plan.responses),
        )
        if self.record.output is not None:
            self._attachments += self.record.output.attachments or []
        await self._commit([step])
        await self._emit(events.step_started("tool_execution", step_id))
        await self._emit(events.step_completed(step))

    # What all steps share.

    def _step(self, started: datetime, step_id: str) -> dict[str, Any]:
        return {
            "turn_id": self.record.turn_id,
            "step_id": step_id,
            "started_at": started,
            "completed_at": datetime.now(UTC),
        }

    async def _commit(self, steps: Sequence[Step], end: End | None = None) -> None:
        if self._left:
            raise _Left
        numbered = [(self._number + i, step) for i, step in enumerate(steps)]
        await self._parts.records.commit(self.record, numbered, end)
        self._number += len(steps)
        self.record.steps += steps
        self._parts.meter.count(STEPS, len(steps))

    async def _emit(self, event: Chunk | None) -> None:
        if self._left:
            return
        try:
            async with asyncio.timeout(MAX_STALL_S):
                await self._events.put(event)
        except TimeoutError:
            self._left, self._reason = True, "its client does not read"

    @contextmanager
    def _interrupted(self) -> Generator[None]:
        """Within it, a client that leaves ends the work at once: nothing of it outlasts the turn."""
        if self._left:
            raise _Left
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False


async def _together(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in order; the first error is raised, and ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _done(steps: Sequence[Step]) -> dict[str, ToolResponse]:
    """What was called in this turn, with its responses."""
    return {
        call_key(call): response
        for step in steps
        if isinstance(step, ToolExecutionStep)
        for call in step.tool_calls
        for response in step.tool_responses
        if response.call_id == call.call_id
    }


def _refusal(violation: SafetyViolation) -> CompletionMessage:
    return message(violation.user_message or REFUSAL)


def _last_word(answer: CompletionMessage) -> CompletionMessage:
    """An answer that ends the turn, also one that still asks for tools."""
    if answer.stop_reason == "end_of_message":
        return answer.model_copy(update={"stop_reason": "end_of_turn"})
    return answer

"""What becomes of errors that Ray brings from replicas."""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import ActorDiedError, RayTaskError, TaskCancelledError

from stack.errors import ContextTooLong, NotReady, Overloaded
from stack.serve.handles import _stack_errors


@pytest.mark.parametrize("error", [ContextTooLong(9, 8), Overloaded("busy", 3), NotReady("gone", None)])
def test_a_replicas_own_error_without_its_traceback(error: Exception) -> None:
    raised = RayTaskError("Model.completion", "Traceback: /a/path", error).as_instanceof_cause()
    assert isinstance(raised, type(error))
    assert "/a/path" in str(raised)
    with pytest.raises(type(error)) as told, _stack_errors("m"):
        raise raised
    assert told.value is error


def test_others() -> None:
    with pytest.raises(NotReady, match="'m' has lost its replica"), _stack_errors("m"):
        raise ActorDiedError
    with pytest.raises(asyncio.CancelledError), _stack_errors("m"):
        raise TaskCancelledError
    own = ContextTooLong(9, 8)
    with pytest.raises(ContextTooLong) as told, _stack_errors("m"):
        raise own
    assert told.value is own

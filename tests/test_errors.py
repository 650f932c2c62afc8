from __future__ import annotations

import pickle

import pytest

from stack import errors
from stack.errors import StackError


def subclasses(kind: type[StackError]) -> list[type[StackError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in subclasses(child))]


EXAMPLES: dict[str, tuple[object, ...]] = {
    "ContextTooLong": (10, 5),
    "AlreadyRegistered": ("model", "x"),
    "NotFound": ("model", "x"),
    "Overloaded": ("busy", 7),
    "NotReady": ("loading", 9),
}


@pytest.mark.parametrize(
    "kind", [kind for kind in subclasses(StackError) if kind.__module__ == "stack.errors"]
)
def test_errors_survive_pickling(kind: type[StackError]) -> None:
    error = kind(*EXAMPLES.get(kind.__name__, ("what went wrong",)))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.args, str(copy), copy.status, copy.title) == (
        error.args,
        str(error),
        kind.status,
        kind.title,
    )
    assert getattr(copy, "retry_after_s", None) == getattr(error, "retry_after_s", None)


def test_messages_name_the_values() -> None:
    assert str(errors.NotFound("model", "org/x")) == "model 'org/x' is not registered"
    assert str(errors.ContextTooLong(10, 5)) == "the prompt has 10 tokens, the model takes 5"
    assert str(errors.NotReady("loading")) == "loading"
    assert errors.NotReady("failed", None).retry_after_s is None

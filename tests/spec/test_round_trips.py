"""Rich wire types survive JSON, Python dicts and pickle, and what they write is valid for the spec."""

import json
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from stack.schemas import agents, content, datasets, messages, sampling
from tests.spec.compare import load_spec

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(), JSON, max_size=4)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
NAMES = st.text(min_size=1, max_size=8)
TIMES = st.datetimes(
    min_value=datetime(1970, 1, 1),
    max_value=datetime(2200, 1, 1),
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-8))]),
)


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


ITEMS = st.one_of(
    st.builds(content.TextContentItem, text=st.text()),
    st.builds(
        content.ImageContentItem,
        image=st.builds(content.ImageSource, data=st.just("aGk="))
        | st.builds(content.ImageSource, url=st.builds(content.URL, uri=st.text())),
    ),
)
CONTENT = st.text() | ITEMS | st.lists(ITEMS, max_size=3)
TOOL_CALLS = st.builds(
    content.ToolCall,
    call_id=NAMES,
    tool_name=NAMES | st.just("brave_search"),
    arguments=st.text()
    | st.dictionaries(
        st.text(),
        SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(), SCALARS, max_size=3),
        max_size=3,
    ),
    arguments_json=optional(st.text()),
)
USERS = st.builds(messages.UserMessage, content=CONTENT, context=optional(CONTENT))
TOOL_MESSAGES = st.builds(messages.ToolResponseMessage, call_id=NAMES, content=CONTENT)
COMPLETIONS = st.builds(
    messages.CompletionMessage,
    content=CONTENT,
    stop_reason=st.sampled_from(["end_of_turn", "end_of_message", "out_of_tokens"]),
    tool_calls=optional(st.lists(TOOL_CALLS, max_size=2)),
)
MESSAGES = USERS | st.builds(messages.SystemMessage, content=CONTENT) | TOOL_MESSAGES | COMPLETIONS

STEP = {"turn_id": NAMES, "step_id": NAMES, "started_at": optional(TIMES), "completed_at": optional(TIMES)}
STEPS = st.one_of(
    st.builds(agents.InferenceStep, model_response=COMPLETIONS, **STEP),
    st.builds(
        agents.ToolExecutionStep,
        tool_calls=st.lists(TOOL_CALLS, max_size=2),
        tool_responses=st.lists(
            st.builds(
                agents.ToolResponse,
                call_id=NAMES,
                tool_name=NAMES,
                content=CONTENT,
                metadata=optional(OBJECTS),
            ),
            max_size=2,
        ),
        **STEP,
    ),
    st.builds(
        agents.ShieldCallStep,
        violation=optional(
            st.builds(
                agents.SafetyViolation,
                violation_level=st.sampled_from(["info", "warn", "error"]),
                user_message=optional(st.text()),
                metadata=OBJECTS,
            )
        ),
        **STEP,
    ),
    st.builds(agents.MemoryRetrievalStep, vector_db_ids=NAMES, inserted_context=CONTENT, **STEP),
)
TURNS = st.builds(
    agents.Turn,
    turn_id=NAMES,
    session_id=NAMES,
    input_messages=st.lists(USERS | TOOL_MESSAGES, max_size=2),
    steps=st.lists(STEPS, max_size=3),
    output_message=COMPLETIONS,
    output_attachments=optional(
        st.lists(
            st.builds(
                agents.Attachment,
                content=CONTENT | st.builds(content.URL, uri=st.text()),
                mime_type=st.just("text/plain"),
            ),
            max_size=2,
        )
    ),
    started_at=TIMES,
    completed_at=optional(TIMES),
)
SOURCES = st.builds(datasets.URIDataSource, uri=st.text()) | st.builds(
    datasets.RowsDataSource, rows=st.lists(OBJECTS, max_size=3)
)
SAMPLING = st.builds(
    sampling.SamplingParams,
    strategy=st.one_of(
        st.builds(sampling.GreedySamplingStrategy),
        st.builds(
            sampling.TopPSamplingStrategy, temperature=optional(st.floats(0, 2)), top_p=st.floats(0, 1)
        ),
        st.builds(sampling.TopKSamplingStrategy, top_k=st.integers(1, 2**40)),
    ),
    max_tokens=st.integers(0, 2**40),
    repetition_penalty=st.floats(-2, 2),
    stop=optional(st.lists(st.text(), max_size=4)),
)

CASES: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "Message": (messages.Message, MESSAGES),
    "Turn": (agents.Turn, TURNS),
    "DataSource": (datasets.DataSource, SOURCES),
    "SamplingParams": (sampling.SamplingParams, SAMPLING),
}


@pytest.fixture(scope="module")
def valid_for_spec() -> Callable[[str, Any], bool]:
    """Checks a JSON value against the spec itself, with another implementation of JSON Schema.

    The spec writes `oneOf: [integer, number]` where 1 matches both; it means anyOf.
    """
    text = json.dumps(load_spec()).replace('"oneOf":', '"anyOf":')
    spec = DRAFT202012.create_resource(json.loads(text))
    registry = Registry[Any]().with_resource("spec", spec)

    def check(name: str, value: Any) -> bool:
        schema = {"$ref": f"spec#/components/schemas/{name}"}
        return bool(Draft202012Validator(schema, registry=registry).is_valid(value))

    assert not check("SamplingParams", {"strategy": {"type": "greedy"}, "max_tokens": "many"})
    return check


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name: str, valid_for_spec: Callable[[str, Any], bool]) -> None:
    type_, strategy = CASES[name]
    adapter = TypeAdapter(type_)

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(strategy)
    def check(value: Any) -> None:
        text = adapter.dump_json(value)
        assert adapter.validate_json(text) == value
        assert adapter.validate_python(json.loads(text)) == value
        assert adapter.validate_python(adapter.dump_python(value)) == value
        assert adapter.dump_json(pickle.loads(pickle.dumps(value))) == text
        assert adapter.dump_json(adapter.validate_json(text)) == text
        assert valid_for_spec(name, json.loads(text))

    check()


@given(OBJECTS)
@settings(deadline=None)
def test_free_form_json_is_kept_exactly(value: dict[str, Any]) -> None:
    """Through parsed JSON, as a request comes, and through JSON text: 1, 1.0 and true stay what they are."""
    exact = json.dumps(value)
    parsed = datasets.RowsDataSource.model_validate({"type": "rows", "rows": [json.loads(exact)]})
    assert json.dumps(parsed.rows[0]) == exact
    assert json.dumps(json.loads(parsed.model_dump_json())["rows"][0]) == exact

"""What a query of vector databases may ask for: `params` of POST /v1/vector-io/query."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag, ValidationError

from stack.errors import BadRequest

MAX_CHUNKS = 1000

Key = Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1, max_length=16)]
Scalar = str | int | float | bool | None


class Mode(StrEnum):
    VECTOR = "vector"
    KEYWORD = "keyword"
    HYBRID = "hybrid"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class Comparison(_Strict):
    """One key of a chunk's metadata beside a value. A list of keys leads into nested objects."""

    type: Literal["eq", "ne", "gt", "gte", "lt", "lte"]
    key: Key
    value: Scalar


class Membership(_Strict):
    """Whether a key's value is one of several."""

    type: Literal["in", "nin"]
    key: Key
    value: list[Scalar] = Field(max_length=1000)


class Combination(_Strict):
    type: Literal["and", "or"]
    filters: list[Filter] = Field(min_length=1, max_length=100)


def _kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    if kind in ("and", "or"):
        return "combination"
    return "membership" if kind in ("in", "nin") else "comparison"


Filter = Annotated[
    Annotated[Comparison, Tag("comparison")]
    | Annotated[Membership, Tag("membership")]
    | Annotated[Combination, Tag("combination")],
    Discriminator(_kind),
]


class QueryParams(_Strict):
    max_chunks: int = Field(5, ge=1, le=MAX_CHUNKS)
    score_threshold: float | None = Field(None, description="Chunks with a lower score are left out.")
    mode: Mode = Mode.HYBRID
    filters: Filter | None = None
    refine: int | None = Field(
        None, ge=1, le=100, description="Of a quantised index: candidates a chunk that are compared exactly."
    )
    exact: bool = Field(False, description="Compare with every vector, whatever the index.")


def parse_params(params: dict[str, JsonValue] | None) -> QueryParams:
    """Raises BadRequest that names the parameter. A null parameter is one that is left out."""
    given = {key: value for key, value in (params or {}).items() if value is not None}
    if isinstance(filters := given.get("filters"), list):
        given["filters"] = {"type": "and", "filters": filters}
    try:
        return QueryParams.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        parts = [str(part) for part in problem["loc"] if part not in _TAGS]
        where = ".".join(["params", *parts])
        if problem["type"] == "extra_forbidden":
            known = ", ".join(QueryParams.model_fields)
            raise BadRequest(f"{where}: there is no such parameter; there are {known}") from error
        raise BadRequest(f"{where}: {problem['msg'][:1].lower()}{problem['msg'][1:]}") from error


_TAGS = ("comparison", "membership", "combination")

"""What the app declares in its OpenAPI document is what the spec says, for every operation that it serves."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from stack.app import create_app
from tests.spec.compare import Comparison, JsonSchema, load_spec
from tests.spec.test_schemas import ALL_JUSTIFIED

NOT_SERVED = frozenset[str]()
"""Operations to come. The list only ever gets shorter."""

JUSTIFIED = frozenset[str]()
"""Lines of differences() that are meant, each with its reason beside it."""


@dataclass(frozen=True)
class Document:
    """An OpenAPI document and its operations, named "GET /v1/models"."""

    content: dict[str, Any]

    @property
    def schemas(self) -> dict[str, JsonSchema]:
        schemas: dict[str, JsonSchema] = self.content["components"]["schemas"]
        return schemas

    @property
    def operations(self) -> dict[str, dict[str, Any]]:
        return {
            f"{method.upper()} {path}": operation
            for path, methods in self.content["paths"].items()
            for method, operation in methods.items()
        }

    def responses(self, operation: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Status to response, with references to shared responses resolved."""
        shared = self.content["components"].get("responses", {})
        return {
            status: shared[response["$ref"].rpartition("/")[2]] if "$ref" in response else response
            for status, response in operation["responses"].items()
        }


SPEC = Document(load_spec())


@cache
def ours() -> Document:
    return Document(create_app().openapi())


def differences(name: str, document: Document = SPEC) -> list[str]:
    spec, own = document.operations[name], ours().operations[name]
    comparison = Comparison(document.schemas, ours().schemas)
    lines = _parameter_differences(comparison, spec.get("parameters", []), own.get("parameters", []))
    lines += _content_differences(comparison, "request", spec.get("requestBody"), own.get("requestBody"))
    theirs, answers = document.responses(spec), ours().responses(own)
    for status in sorted(theirs.keys() | answers.keys()):
        lines += _content_differences(comparison, status, theirs.get(status), answers.get(status))
    return lines


def _parameter_differences(comparison: Comparison, spec: list[Any], own: list[Any]) -> list[str]:
    theirs = {(parameter["in"], parameter["name"]): parameter for parameter in spec}
    declared = {(parameter["in"], parameter["name"]): parameter for parameter in own}
    lines = [f"parameter {key}: only one side has it" for key in sorted(theirs.keys() ^ declared.keys())]
    for key in sorted(theirs.keys() & declared.keys()):
        wanted, found = theirs[key], declared[key]
        if bool(wanted.get("required")) != bool(found.get("required")):
            lines.append(f"parameter {key} required: the spec has {wanted.get('required')}")
        schema = found["schema"] if wanted.get("required") else _without_null(found["schema"])
        lines += comparison.differences(f"parameter {key}", wanted["schema"], schema)
    return lines


def _without_null(schema: JsonSchema) -> JsonSchema:
    """`T | None = None` is how FastAPI spells a parameter that may be left out."""
    options = [option for option in schema.get("anyOf", []) if option != {"type": "null"}]
    rest = {keyword: value for keyword, value in schema.items() if keyword != "anyOf"}
    if rest.get("default", ...) is None:
        del rest["default"]
    return rest | options[0] if len(options) == 1 else schema


def _content_differences(comparison: Comparison, path: str, spec: Any, own: Any) -> list[str]:
    """Compare what a body may be. An operation without a result answers null."""
    if spec is None or own is None:
        return [] if spec is own else [f"{path}: only {'we have' if spec is None else 'the spec has'} it"]
    theirs, declared = spec.get("content", {}), own.get("content", {})
    if not theirs and declared.keys() == {"application/json"}:
        return (
            [] if declared["application/json"]["schema"] in ({}, {"type": "null"}) else [f"{path}: not void"]
        )
    lines = [f"{path} {media}: only one side has it" for media in sorted(theirs.keys() ^ declared.keys())]
    if path == "request" and spec.get("required") != own.get("required"):
        lines.append(f"request required: the spec has {spec.get('required')}")
    for media in sorted(theirs.keys() & declared.keys()):
        schema = declared[media].get("schema", {})
        lines += comparison.differences(f"{path} {media}", theirs[media]["schema"], schema)
    return lines


def test_the_spec_is_whole() -> None:
    assert len(SPEC.operations) == 86


def test_served_operations() -> None:
    """What is served and what is listed as not served yet are the spec's operations: no more, no fewer."""
    served = ours().operations.keys()
    assert served & NOT_SERVED == set()
    assert served | NOT_SERVED == SPEC.operations.keys()


@pytest.mark.parametrize("name", sorted(SPEC.operations.keys() - NOT_SERVED))
def test_operation(name: str) -> None:
    assert set(differences(name)) - JUSTIFIED == set()


def test_named_schemas() -> None:
    """A schema of the document that the spec has, too, is the same; no type is there in two forms."""
    declared = ours().schemas
    shared = declared.keys() & SPEC.schemas.keys()
    assert len(shared) > 40
    comparison = Comparison(SPEC.schemas, declared)
    lines = [
        line for name in shared for line in comparison.differences(name, SPEC.schemas[name], declared[name])
    ]
    assert [line for line in lines if line.partition(":")[0] not in ALL_JUSTIFIED] == []
    assert [name for name in declared if name.endswith(("-Input", "-Output", "ValidationError"))] == []


def test_references_resolve() -> None:
    """Each `$ref` in our document leads to something in it."""
    found = _references(ours().content)
    assert found
    for reference in found:
        node: Any = ours().content
        for part in reference.removeprefix("#/").split("/"):
            assert part in node, reference
            node = node[part]


def _references(node: Any) -> set[str]:
    if isinstance(node, list):
        return {reference for item in node for reference in _references(item)}
    if not isinstance(node, dict):
        return set()
    own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
    return own.union(*(_references(value) for value in node.values()))


def changes(operation: dict[str, Any]) -> Iterator[str]:
    """Change one thing after another in the operation, in place, each undone before the next."""
    for index, parameter in enumerate(list(operation["parameters"])):
        operation["parameters"].remove(parameter)
        yield f"without parameter {parameter['name']}"
        for key, other in (("required", not parameter["required"]), ("schema", {"type": "null"})):
            operation["parameters"].insert(index, parameter | {key: other})
            yield f"parameter {parameter['name']} with {key} {other}"
            del operation["parameters"][index]
        operation["parameters"].insert(index, parameter)
    for status, response in list(operation["responses"].items()):
        del operation["responses"][status]
        yield f"without {status}"
        operation["responses"][status] = response
    bodies = [body for body in (operation.get("requestBody"), operation["responses"]["200"]) if body]
    for content in [body["content"] for body in bodies if "content" in body]:
        for media, declared in list(content.items()):
            content[media] = {"schema": {"type": "null"}}
            yield f"another {media}"
            content["text/html"] = declared
            yield "text/html as well"
            del content["text/html"]
            content[media] = declared


@pytest.mark.parametrize("name", sorted(SPEC.operations.keys() - NOT_SERVED))
def test_comparison_sees_every_change(name: str) -> None:
    """Whatever is changed in an operation of the spec, the comparison says so."""
    document = Document(deepcopy(SPEC.content))
    before = differences(name, document)
    seen = {change: differences(name, document) != before for change in changes(document.operations[name])}
    assert len(seen) >= 5
    assert [change for change, noticed in seen.items() if not noticed] == []
    assert document == SPEC

"""Compares JSON schemas: what the spec says with what we declare. Yields a line for each difference."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

JsonSchema = dict[str, Any]

ANY = [{"type": t} for t in ("null", "boolean", "number", "string", "array", "object")]
"""How the spec writes "any JSON value"; we write {}."""

ANNOTATIONS = frozenset({"title", "description", "$defs"})
"""Keywords that say nothing about which values are valid."""

SIMPLE = frozenset(
    {
        "type", "const", "enum", "default", "format", "contentEncoding", "deprecated", "pattern",
        "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
    }
)  # fmt: skip
"""Keywords whose values are compared as they are."""

STRUCTURAL = frozenset({"$ref", "anyOf", "oneOf", "discriminator", "properties", "required", "items"}) | {
    "additionalProperties"
}


@cache
def load_spec() -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("llama_stack.yaml").read_text())
    return spec


class Comparison:
    """The two sets of named schemas that `$ref`s point into."""

    def __init__(self, spec: dict[str, JsonSchema], ours: dict[str, JsonSchema]) -> None:
        self.spec = spec
        self.ours = ours

    def differences(self, path: str, spec: JsonSchema, ours: JsonSchema) -> Iterator[str]:
        """Lines of "path keyword: the spec has …, we have …"."""
        spec_name, our_name = _name(spec), _name(ours)
        if spec_name and spec_name == our_name:
            spec, ours = _without_ref(spec), _without_ref(ours)
        else:
            spec, ours = _resolve(spec, self.spec), _resolve(ours, self.ours)
        if unknown := (spec.keys() | ours.keys()) - ANNOTATIONS - SIMPLE - STRUCTURAL:
            yield f"{path} keywords: {sorted(unknown)} are not compared"
        for keyword in sorted(SIMPLE):
            wanted, found = _value(spec, keyword), _value(ours, keyword)
            if wanted != found or type(wanted) is not type(found):
                yield f"{path} {keyword}: the spec has {wanted!r}, we have {found!r}"
        yield from self._options(path, spec, ours)
        yield from self._discriminators(path, spec, ours)
        yield from self._objects(path, spec, ours)
        for keyword in ("items", "additionalProperties"):
            yield from self._nested(path, keyword, spec.get(keyword), ours.get(keyword))

    def _nested(self, path: str, keyword: str, spec: Any, ours: Any) -> Iterator[str]:
        if isinstance(spec, dict) and isinstance(ours, dict):
            yield from self.differences(f"{path}[]", spec, ours)
        elif spec != ours:
            yield f"{path} {keyword}: the spec has {spec!r}, we have {ours!r}"

    def _objects(self, path: str, spec: JsonSchema, ours: JsonSchema) -> Iterator[str]:
        theirs, own = spec.get("properties", {}), ours.get("properties", {})
        for name in sorted(theirs.keys() | own.keys()):
            if name not in own or name not in theirs:
                yield f"{path}.{name} property: only {'the spec has' if name in theirs else 'we have'} it"
            else:
                yield from self.differences(f"{path}.{name}", theirs[name], own[name])
        required, own_required = set(spec.get("required", [])), set(ours.get("required", []))
        for name in sorted(required ^ own_required):
            yield f"{path}.{name} required: only {'in the spec' if name in required else 'in ours'}"

    def _options(self, path: str, spec: JsonSchema, ours: JsonSchema) -> Iterator[str]:
        """Unions, in any order: each option of one side must be equal to one of the other."""
        theirs, own = self._flat(spec, self.spec), self._flat(ours, self.ours)
        for option in list(theirs):
            for candidate in own:
                if next(self.differences("", option, candidate), None) is None:
                    theirs.remove(option)
                    own.remove(candidate)
                    break
        for option in theirs:
            yield f"{path} union: only the spec has {option}"
        for option in own:
            yield f"{path} union: only we have {option}"

    def _flat(self, schema: JsonSchema, named: dict[str, JsonSchema]) -> list[JsonSchema]:
        """The options of a union; a union within a union counts as its options."""
        flat = []
        for option in schema.get("oneOf", []) + schema.get("anyOf", []):
            inner = _resolve(option, named)
            nested = "oneOf" in inner or "anyOf" in inner
            flat += self._flat(inner, named) if nested else [option]
        return flat

    def _discriminators(self, path: str, spec: JsonSchema, ours: JsonSchema) -> Iterator[str]:
        """Where the spec leaves a discriminator out, the constants of the options still say the same."""
        wanted, found = spec.get("discriminator"), ours.get("discriminator")
        if wanted and (not found or _mapping(wanted) != _mapping(found)):
            yield f"{path} discriminator: the spec has {wanted}, we have {found}"


def _value(schema: JsonSchema, keyword: str) -> Any:
    value = schema.get(keyword)
    return sorted(value) if keyword == "enum" and value else value


def _mapping(discriminator: JsonSchema) -> tuple[str, dict[str, str]]:
    mapping = {tag: ref.rpartition("/")[2] for tag, ref in discriminator["mapping"].items()}
    return discriminator["propertyName"], mapping


def _name(schema: JsonSchema) -> str | None:
    return schema["$ref"].rpartition("/")[2] if "$ref" in schema else None


def _without_ref(schema: JsonSchema) -> JsonSchema:
    return {keyword: value for keyword, value in schema.items() if keyword != "$ref"}


def _resolve(schema: JsonSchema, named: dict[str, JsonSchema]) -> JsonSchema:
    """The schema that a `$ref` names, with the keywords beside the `$ref`; "any JSON value" as {}."""
    while name := _name(schema):
        schema = named[name] | _without_ref(schema)
    if schema.get("oneOf") == ANY:
        return {keyword: value for keyword, value in schema.items() if keyword != "oneOf"}
    return schema

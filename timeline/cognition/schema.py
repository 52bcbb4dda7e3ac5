"""What an answer has to look like, from what people write: a few names and types, or a JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from timeline.errors import NotFound, UsageError

__all__ = ["check_schema", "misfit", "schema_of"]

TYPES = {
    "str": "string",
    "string": "string",
    "int": "integer",
    "integer": "integer",
    "float": "number",
    "number": "number",
    "bool": "boolean",
    "boolean": "boolean",
}
_FIELD = re.compile(
    r"(?P<name>[A-Za-z_]\w*)(?:\s+(?P<type>[A-Za-z]+)(?P<many>\[\])?)?(?:\s*:\s*(?P<about>.+))?", re.DOTALL
)
HOW = "write names and types, like 'name, age int, tags str[]: a few words', or a file with a JSON Schema"


def schema_of(text: str) -> dict[str, Any]:
    """The JSON Schema that is meant.

    Args:
        text: `name, age int` (a field a comma or line, with a type of `str`, `int`, `float` or `bool`, `[]` for a list,
            and `: what it is`), JSON, or the path of a file with JSON.

    Raises:
        UsageError: It is none of them.
        NotFound: It looks like a path, and there is no file.
    """
    text = text.strip()
    if text.startswith("{"):
        return _read(text, "the schema")
    path = Path(text)
    if text.endswith(".json") or ("\n" not in text and "," not in text and path.is_file()):
        try:
            return _read(path.read_bytes(), str(path))
        except FileNotFoundError as exc:
            msg = f"there is no file {path}: check the path after --schema"
            raise NotFound(msg) from exc
        except OSError as exc:
            msg = f"{path} can't be read ({exc.strerror}): check the path after --schema"
            raise UsageError(msg) from exc
    properties: dict[str, Any] = {}
    for field in re.split(r"\n" if "\n" in text else ",", text):
        if not field.strip():
            continue
        name, value = _field(field.strip())
        properties[name] = value
    if not properties:
        msg = f"the schema names no field: {HOW}"
        raise UsageError(msg)
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _field(text: str) -> tuple[str, dict[str, Any]]:
    found = _FIELD.fullmatch(text)
    kind = TYPES.get((found["type"] or "str").lower()) if found else None
    if found is None or kind is None:
        msg = f"{text!r} is no field of a schema: {HOW}"
        raise UsageError(msg)
    value: dict[str, Any] = {"type": kind}
    if found["many"]:
        value = {"type": "array", "items": value}
    if found["about"]:
        value["description"] = found["about"].strip()
    return found["name"], value


def _read(text: str | bytes, source: str) -> dict[str, Any]:
    try:
        schema = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        msg = f"{source} is no JSON ({exc}): check it"
        raise UsageError(msg) from exc
    if not isinstance(schema, dict):
        msg = f"{source} is no JSON object: a schema begins with {{"
        raise UsageError(msg)
    check_schema(schema, source)
    return schema


def check_schema(schema: Mapping[str, object], source: str = "the schema") -> None:
    """See that an answer can be held to a schema.

    Args:
        schema: The JSON Schema.
        source: What to call it in an error.

    Raises:
        UsageError: It is no JSON Schema, or refers to what isn't in it.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
        reference = _dangling(schema)
    except RecursionError as exc:
        msg = f"{source} is nested too deeply ({exc}): check it"
        raise UsageError(msg) from exc
    except SchemaError as exc:
        msg = f"{source} is no JSON Schema ({exc.json_path}: {exc.message[:120]}): check it"
        raise UsageError(msg) from exc
    if reference is not None:
        msg = f"{source} refers to {reference!r}, which is not in it: put it under $defs"
        raise UsageError(msg)


def misfit(text: str, schema: Mapping[str, object]) -> str | None:
    """What is wrong with an answer that has to follow a schema; None where nothing is."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as exc:
        return f"it is no JSON: {str(exc).removeprefix('JSON is malformed: ')}"
    try:
        # A registry of its own: the default one fetches what isn't in the schema from wherever that names.
        problem = best_match(Draft202012Validator(schema, registry=Registry()).iter_errors(value))
    except RecursionError:
        return "the schema refers to itself without end"
    except Unresolvable as exc:
        return f"the schema refers to {exc.ref!r}, which is not in it"
    return None if problem is None else f"{problem.json_path}: {problem.message}"[:200]


def _dangling(schema: Mapping[str, Any]) -> str | None:
    """The first `$ref` that leads out of the schema, or nowhere in it."""
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    resolver = Registry().resolver_with_root(DRAFT202012.create_resource(schema))
    # Third, whether a node's keys are a schema's: else they are names that somebody gave.
    waiting: list[tuple[Any, Any, bool]] = [(resolver, schema, True)]
    while waiting:
        resolver, node, keyed = waiting.pop()
        if isinstance(node, list):
            waiting += ((resolver, item, True) for item in node)
        if not isinstance(node, dict):
            continue
        reference = node.get("$id")
        try:
            if keyed and node is not schema and isinstance(reference, str):
                resolver = resolver.in_subresource(DRAFT202012.create_resource(node))
            for name, value in node.items():
                if keyed and name in _REFERENCES and isinstance(value, str):
                    reference = value
                    if not isinstance(resolver.lookup(value).contents, dict | bool):
                        return value
                elif not (keyed and name in _VALUES):
                    waiting.append((resolver, value, not (keyed and name in _NAMED)))
        except (Unresolvable, ValueError, TypeError):
            # It follows any pointer into anything, and splits any address.
            return str(reference)
    return None


_REFERENCES = frozenset({"$ref", "$dynamicRef"})
_VALUES = frozenset({"const", "default", "enum", "examples"})
"""What stands under these is no schema."""
_NAMED = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
"""Under these, schemas stand by names."""

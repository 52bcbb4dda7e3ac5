"""Whether a model's arguments fit a tool's JSON Schema, and what it surely meant where they nearly do.

Of JSON Schema (https://json-schema.org/draft/2020-12) it knows what tools use: type, properties, required,
additionalProperties, enum, const, items, bounds of numbers, texts and lists, anyOf, oneOf and allOf. The rest,
references and patterns among it, is left to the tool: a foreign pattern could be made to run for hours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from timeline.errors import ToolError

__all__ = ["checked"]

DEEPEST = 32
"""Levels of arguments; what is nested deeper is no argument."""
LONGEST_QUOTE = 60
INVALID = "_invalid"
"""Where `ToolCall` keeps arguments that are no JSON object."""

Where = tuple[str | int, ...]


def checked(tool: str, schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as the schema asks for them.

    Weak models write `"2"` for 2, 12 for `"12"` and null for what they leave out; where the schema leaves one
    reading, that one is taken.

    Args:
        tool: Its name, for errors.
        schema: JSON Schema of an object.
        arguments: As the model gave them.

    Raises:
        ToolError: They don't fit; says which, what was expected and what stands there, for the model to repair.
    """
    if set(arguments) == {INVALID} and INVALID not in _mapping(schema, "properties"):
        msg = f"the arguments of {tool} are no JSON object ({_quoted(arguments[INVALID])}): write one"
        raise ToolError(msg)
    try:
        value = _fit({"type": "object", **schema}, dict(arguments), (), DEEPEST)
    except _Misfit as exc:
        at = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in exc.path).removeprefix(".")
        msg = f"{tool}: {at}: {exc.what}" if at else f"{tool}: {exc.what}"
        raise ToolError(msg) from None
    fitted: dict[str, Any] = value
    return fitted


class _Misfit(Exception):
    """A value that isn't what the schema says."""

    def __init__(self, path: Where, what: str) -> None:
        super().__init__(what)
        self.path = path
        self.what = what


def _fit(schema: Any, value: Any, path: Where, depth: int) -> Any:
    """The value as the schema asks for it."""
    if not isinstance(schema, Mapping):
        # `true` takes anything and `false` nothing.
        if schema is False:
            raise _Misfit(path, "expected nothing here: leave it out")
        return value
    if not depth:
        raise _Misfit(path, f"nested deeper than {DEEPEST} levels: write less")
    value = _combined(schema, value, path, depth)
    value = _typed(schema, value, path)
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(choices, list) and not any(_same(value, choice) for choice in choices):
        raise _Misfit(path, f"expected {_either(_quoted(choice) for choice in choices)}, got {_quoted(value)}")
    if isinstance(value, dict):
        return _object(schema, value, path, depth)
    if isinstance(value, list):
        _bounds(schema, len(value), path, "minItems", "maxItems", " entries")
        items = schema.get("items", True)
        return [_fit(items, item, (*path, index), depth - 1) for index, item in enumerate(value)]
    if isinstance(value, str):
        _bounds(schema, len(value), path, "minLength", "maxLength", " characters")
    elif _is_number(value):
        _bounds(schema, value, path, "minimum", "maximum")
        _exclusive(schema, value, path)
    return value


def _combined(schema: Mapping[str, Any], value: Any, path: Where, depth: int) -> Any:
    for part in _list(schema, "allOf"):
        value = _fit(part, value, path, depth - 1)
    for word in ("anyOf", "oneOf"):
        misfits = []
        for part in _list(schema, word):
            try:
                value = _fit(part, value, path, depth - 1)
            except _Misfit as exc:
                misfits.append(exc)
            else:
                break
        else:
            if misfits:
                raise misfits[0]
    return value


def _typed(schema: Mapping[str, Any], value: Any, path: Where) -> Any:
    types = schema.get("type")
    types = [types] if isinstance(types, str) else types
    if not isinstance(types, list) or any(_is(name, value) for name in types):
        return value
    for name in types:
        meant = _meant(name, value)
        if meant is not None:
            return meant
    raise _Misfit(path, f"expected {_either(_NAMES.get(name, str(name)) for name in types)}, got {_quoted(value)}")


def _object(schema: Mapping[str, Any], value: dict[Any, Any], path: Where, depth: int) -> dict[str, Any]:
    properties = _mapping(schema, "properties")
    required = _list(schema, "required")
    others = schema.get("additionalProperties", True)
    result = {}
    for key, item in value.items():
        if key not in properties and others is False:
            known = ", ".join(properties) or "none"
            raise _Misfit((*path, key), f"there is no such argument ({known}): leave it out")
        inner = properties.get(key, others)
        if item is None and key not in required and not _takes_null(inner):
            continue
        result[key] = _fit(inner, item, (*path, key), depth - 1)
    for key in required:
        if key not in result:
            raise _Misfit((*path, key), "is missing: add it")
    return result


# ------------------------------------------------------------------ types

_NAMES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def _list(schema: Mapping[str, Any], word: str) -> list[Any]:
    """A list of a schema that somebody else wrote."""
    value = schema.get(word)
    return value if isinstance(value, list) else []


def _mapping(schema: Mapping[str, Any], word: str) -> Mapping[str, Any]:
    value = schema.get(word)
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is(name: Any, value: Any) -> bool:
    match name:
        case "string":
            return isinstance(value, str)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            # A whole number may be longer than any float.
            return _is_number(value) and (isinstance(value, int) or math.isfinite(value))
        case "boolean":
            return isinstance(value, bool)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
        case "null":
            return value is None
    return True


def _meant(name: Any, value: Any) -> Any:
    """What a value of another type stands for, None where that isn't clear."""
    match name, value:
        case "string", int() | float() if not isinstance(value, bool):
            return _quoted(value)
        case "integer", float() if value.is_integer():
            return int(value)
        case "integer" | "number", str() if len(value) <= LONGEST_QUOTE:
            return _number(name, value.strip())
        case "boolean", str():
            return {"true": True, "false": False}.get(value.strip().lower())
        case "array" | "object", str() if value.lstrip()[:1] in ("[", "{"):
            return _decoded(name, value)
    return None


def _number(name: str, text: str) -> int | float | None:
    try:
        found = int(text) if name == "integer" else float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _decoded(name: str, text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if _is(name, value) else None


def _takes_null(schema: Any) -> bool:
    if not isinstance(schema, Mapping):
        return schema is not False
    types = schema.get("type")
    inner = [*_list(schema, "anyOf"), *_list(schema, "oneOf")]
    if types is None and not inner:
        return "enum" not in schema or None in _list(schema, "enum")
    return types == "null" or (isinstance(types, list) and "null" in types) or any(map(_takes_null, inner))


def _same(value: Any, choice: Any) -> bool:
    return bool(value == choice) and isinstance(value, bool) == isinstance(choice, bool)


def _bounds(schema: Mapping[str, Any], value: float, path: Where, low: str, high: str, unit: str = "") -> None:
    if _is_number(schema.get(low)) and value < schema[low]:
        raise _Misfit(path, f"expected at least {schema[low]}{unit}, got {_quoted(value)}")
    if _is_number(schema.get(high)) and value > schema[high]:
        raise _Misfit(path, f"expected at most {schema[high]}{unit}, got {_quoted(value)}")


def _exclusive(schema: Mapping[str, Any], value: float, path: Where) -> None:
    if _is_number(schema.get("exclusiveMinimum")) and value <= schema["exclusiveMinimum"]:
        raise _Misfit(path, f"expected more than {schema['exclusiveMinimum']}, got {_quoted(value)}")
    if _is_number(schema.get("exclusiveMaximum")) and value >= schema["exclusiveMaximum"]:
        raise _Misfit(path, f"expected less than {schema['exclusiveMaximum']}, got {_quoted(value)}")


def _either(words: Iterable[str]) -> str:
    return " or ".join(words)


def _quoted(value: Any) -> str:
    """A value as an error shows it: short, and containers by their kind alone."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and value.bit_length() > 4 * LONGEST_QUOTE:
        return "a very long number"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}..."

"""What an answer has to look like, from what people write: a few names and types, or a JSON Schema."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from timeline.errors import NotFound, UsageError

__all__ = ["schema_of"]

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
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        schema = msgspec.json.decode(text)
        if not isinstance(schema, dict):
            msg = f"{source} is no JSON object: a schema begins with {{"
            raise UsageError(msg)
        Draft202012Validator.check_schema(schema)
    except msgspec.DecodeError as exc:
        msg = f"{source} is no JSON ({exc}): check it"
        raise UsageError(msg) from exc
    except SchemaError as exc:
        msg = f"{source} is no JSON Schema ({exc.json_path}: {exc.message[:120]}): check it"
        raise UsageError(msg) from exc
    return schema

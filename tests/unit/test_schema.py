"""What people write for a schema, and the JSON Schema that is meant."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from timeline.cognition.schema import misfit, schema_of
from timeline.errors import NotFound, UsageError


def test_names_and_types_are_an_object_with_these_fields() -> None:
    schema = schema_of("name, age int, ok bool, tags str[], height float: in metres")

    assert {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer"},
            "ok": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "height": {"type": "number", "description": "in metres"},
        },
        "required": ["name", "age", "ok", "tags", "height"],
        "additionalProperties": False,
    } == schema


def test_a_field_a_line_may_hold_commas_in_what_it_is() -> None:
    assert {"type": "string", "description": "first, then last"} == schema_of("name: first, then last\nage int")[
        "properties"
    ]["name"]


def test_a_file_with_a_json_schema_is_read(tmp_path: Path) -> None:
    schema = {"type": "array", "items": {"type": "integer"}}
    (tmp_path / "s.json").write_text(json.dumps(schema))

    assert schema == schema_of(str(tmp_path / "s.json"))
    assert schema | {"type": "object"} == schema_of('{"type": "object", "items": {"type": "integer"}}')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no field"),
        ("age whole", "no field of a schema"),
        ("two words more", "no field of a schema"),
        ("{", "no JSON"),
        ('{"type": "thing"}', "no JSON Schema"),
        ('{"a": ' * 3000 + "1" + "}" * 3000, "no JSON"),
        ('{"properties": {"a": {"$ref": "#/$defs/a"}}}', "'#/$defs/a', which is not in it"),
        (
            '{"$defs": {"$ref": {"prefixItems": [{"$ref": "http://127.0.0.1/a"}]}}}',
            "'http://127.0.0.1/a', which is not in it",
        ),
        (
            '{"properties": {"default": {"$ref": "http://127.0.0.1/a"}}}',
            "'http://127.0.0.1/a', which is not in it",
        ),
        (
            '{"properties": {"properties": {"patternProperties": {"const": {"$ref": "b"}}}}}',
            "'b', which is not in it",
        ),
        ('{"prefixItems": [{}], "items": {"$ref": "#/prefixItems/x"}}', "'#/prefixItems/x', which is not in it"),
        ('{"maxLength": 1, "items": {"$ref": "#/maxLength/x"}}', "'#/maxLength/x', which is not in it"),
        ('{"maxLength": 1, "items": {"$ref": "#/maxLength"}}', "'#/maxLength', which is not in it"),
        ('{"$id": "http://a/", "items": {"$id": "http://["}}', "'http://[', which is not in it"),
        ("[1].json", "no file"),
    ],
)
def test_what_is_no_schema_is_told_with_what_to_write(text: str, said: str) -> None:
    with pytest.raises((UsageError, NotFound), match=re.escape(said)):
        schema_of(text)


@pytest.mark.parametrize(
    ("schema", "answer", "said"),
    [
        ('{"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}}', '"x"', ""),
        (
            '{"$id": "http://a/", "items": {"$ref": "b"}, "$defs": {"b": {"$id": "b", "const": {"$ref": "c"}}}}',
            "[]",
            "",
        ),
        (
            '{"default": {"$ref": "a"}, "enum": [{"$ref": "b"}], "$defs": {"a": true}, "not": {"$ref": "#/$defs/a"}}',
            "1",
            "$",
        ),
        ('{"type": "string"}', "1", "is not of type"),
        ('{"type": "string"}', "one", "it is no JSON: invalid character (byte 0)"),
        ("{}", "[" * 3000, "no JSON"),
        ('{"$ref": "#"}', "1", "refers to itself without end"),
        (
            '{"$ref": "#/const", "const": {"$ref": "http://127.0.0.1/a"}}',
            "1",
            "'http://127.0.0.1/a', which is not in it",
        ),
    ],
)
def test_an_answer_is_held_to_its_schema(schema: str, answer: str, said: str) -> None:
    problem = misfit(answer, schema_of(schema))

    assert bool(said) == (problem is not None)
    assert said in (problem or "")

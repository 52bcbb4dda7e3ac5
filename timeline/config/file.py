"""How one YAML file becomes plain data and then a struct, and how to say exactly what is wrong with it.

Knows nothing of what the settings mean. Stricter than YAML: no duplicate keys, no anchors, no
tags, one document, one mapping; a date is the text it was written as.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from timeline.errors import ConfigError

if TYPE_CHECKING:
    import yaml
    from msgspec import inspect

__all__ = ["decode", "key_path", "nearest", "read", "where"]

LARGEST = 1 << 20
"""Bytes; what is larger is no configuration."""
LONGEST_QUOTE = 60
"""Characters of a wrong value that an error repeats."""

T = TypeVar("T")
Keys = tuple[str | int, ...]
Problem = tuple[Keys, str]


def where(source: str, path: Keys, what: str) -> str:
    """The sentence of an error: which file, which key, what about it."""
    return f"{source}: {key_path(path)}: {what}" if path else f"{source}: {what}"


def key_path(path: Keys) -> str:
    """Keys from the top as people write them: `llm_providers."my.server".models[2]`."""
    parts = []
    for key in path:
        if isinstance(key, int):
            parts.append(f"[{key}]")
        else:
            plain = re.fullmatch(r"[\w-]+", key)
            parts.append(f".{key if plain else json.dumps(key, ensure_ascii=False)}")
    return "".join(parts).removeprefix(".")


def nearest(key: str, known: list[str]) -> str:
    """The end of a sentence about an unknown key: what was meant, or what there is."""
    import difflib

    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(key.lower(), names, 1)
    return f"did you mean {names[close[0]]}?" if close else f"expected one of {', '.join(known)}"


# ------------------------------------------------------------------ a file to plain data


def read(path: Path) -> dict[str, Any]:
    """The file's mapping; empty where there is no file, or nothing in it.

    Raises:
        ConfigError: It can't be read, or isn't one mapping in strict YAML.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            msg = f"{path}: can't be read as configuration because it is no plain file: move it away"
            raise ConfigError(msg)
        if status.st_size > LARGEST:
            msg = f"{path}: larger than {LARGEST >> 20} MiB, which no configuration is: check what wrote it"
            raise ConfigError(msg)
        text = path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as exc:
        msg = f"{path}: can't be read ({exc.strerror}): check its permissions"
        raise ConfigError(msg) from exc
    except UnicodeDecodeError as exc:
        msg = f"{path}: not UTF-8 text (byte {exc.start}): save it as UTF-8"
        raise ConfigError(msg) from exc
    return _parse(str(path), text)


def _parse(source: str, text: str) -> dict[str, Any]:
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        value = None if node is None else _Builder(loader).build(node)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        # The parser's own message quotes the line, which may hold a key: it goes into no traceback.
        raise ConfigError(where(source, (), f"{place}not valid YAML: {exc.problem or exc.context}")) from None
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        column = exc.position - text.rfind("\n", 0, exc.position)
        what = f"line {line}, column {column}: not valid YAML: a control character"
        raise ConfigError(where(source, (), what)) from None
    except RecursionError:
        raise ConfigError(where(source, (), "nested too deeply to be a configuration")) from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(where(source, (), f"expected a mapping of settings like `offline: true`, got {_kind(value)}"))
    return value


class _Builder:
    """From a YAML node graph to dicts, lists and scalars."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self._loader = loader
        self._seen: set[int] = set()

    def build(self, node: yaml.Node) -> Any:
        import yaml

        if id(node) in self._seen:
            # An alias; a few lines of them can stand for gigabytes.
            raise self._error(node, "anchors and aliases are not supported, write the value out")
        self._seen.add(id(node))
        prefix = "tag:yaml.org,2002:"
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == prefix + "seq":
            return [self.build(item) for item in node.value]
        if isinstance(node, yaml.MappingNode) and node.tag == prefix + "map":
            return self._mapping(node)
        raise self._error(node, "tags are not supported")

    def _mapping(self, node: yaml.MappingNode) -> dict[Any, Any]:
        import yaml

        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(key_node, "expected text as a key")
            key = self.build(key_node)
            if key in result:
                raise self._error(key_node, f'the key "{key}" stands here for the second time')
            result[key] = self.build(value_node)
        return result

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        import yaml

        name = node.tag.removeprefix("tag:yaml.org,2002:")
        if name in ("str", "timestamp", "value", "merge"):
            return node.value
        resolved: str = self._loader.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]
        if resolved != node.tag:
            raise self._error(node, "tags are not supported")
        try:
            return self._loader.construct_object(node)
        except ValueError:
            raise self._error(node, "a number that is too long") from None

    def _error(self, node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
        import yaml

        return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


# ------------------------------------------------------------------ plain data to a struct


def decode(source: str, values: Mapping[str, Any], type_: type[T], *, secret: AbstractSet[str]) -> T:
    """The struct that the values describe.

    Args:
        source: The file, for errors.
        values: What `read` returned.
        type_: A struct type that forbids unknown fields.
        secret: Keys whose values, and all below them, no error may quote.

    Raises:
        ConfigError: They don't; says which key, what was expected and what stands there.
    """
    try:
        return msgspec.convert(values, type_)
    except msgspec.ValidationError as exc:
        from msgspec import inspect

        path, what = _Explainer(secret).problem(inspect.type_info(type_), values, ()) or ((), str(exc))
        raise ConfigError(where(source, path, what)) from None


class _Explainer:
    """Finds the first value that isn't what its type says; msgspec's own message leaves out the keys of mappings."""

    def __init__(self, secret: AbstractSet[str]) -> None:
        self._secret = secret

    def problem(self, type_: inspect.Type, value: Any, path: Keys) -> Problem | None:
        """The place and the sentence, or None where all is well."""
        from msgspec import inspect

        while isinstance(type_, inspect.Metadata):
            type_ = type_.type
        if isinstance(type_, inspect.UnionType):
            fitting = [member for member in type_.types if _is_container(member, value)]
            type_ = fitting[0] if fitting else type_
        if isinstance(type_, inspect.StructType) and isinstance(value, dict):
            return self._in_struct(type_, value, path)
        if isinstance(type_, inspect.DictType) and isinstance(value, dict):
            return self._in_dict(type_, value, path)
        if isinstance(type_, inspect.ListType) and isinstance(value, list) and len(value) >= (type_.min_length or 0):
            found = (self.problem(type_.item_type, item, (*path, index)) for index, item in enumerate(value))
            return next((problem for problem in found if problem), None)
        if _fits(type_, value):
            return None
        expected = _expected(type_)
        got = _kind(value) if any(key in self._secret for key in path) else _quoted(value)
        hint = (
            ": put it in quotes" if "text" in expected.split(" or ") and isinstance(value, bool | int | float) else ""
        )
        return path, f"expected {expected}, got {got}{hint}"

    def _in_struct(self, type_: inspect.StructType, value: dict[Any, Any], path: Keys) -> Problem | None:
        fields = {field.encode_name: field.type for field in type_.fields}
        for key, item in value.items():
            if key not in fields:
                return path, f"unknown key {_quoted(key)}: {nearest(str(key), list(fields))}"
            problem = self.problem(fields[key], item, (*path, key))
            if problem:
                return problem
        missing = [field.encode_name for field in type_.fields if field.required and field.encode_name not in value]
        return (path, f"{missing[0]} is missing: add it") if missing else None

    def _in_dict(self, type_: inspect.DictType, value: dict[Any, Any], path: Keys) -> Problem | None:
        from msgspec import inspect

        for key, item in value.items():
            if not isinstance(key, str):
                return path, f"expected text as a key, got {_quoted(key)}: put it in quotes"
            if isinstance(type_.key_type, inspect.LiteralType) and key not in type_.key_type.values:
                return (
                    path,
                    f"unknown key {_quoted(key)}: {nearest(key, [str(known) for known in type_.key_type.values])}",
                )
            if not key:
                return path, "expected a name as a key, got an empty one"
            problem = self.problem(type_.value_type, item, (*path, key))
            if problem:
                return problem
        return None


def _is_container(type_: inspect.Type, value: Any) -> bool:
    from msgspec import inspect

    return (isinstance(value, dict) and isinstance(type_, inspect.StructType | inspect.DictType)) or (
        isinstance(value, list) and isinstance(type_, inspect.ListType)
    )


def _fits(type_: inspect.Type, value: Any) -> bool:
    """Whether a scalar is of the type."""
    from msgspec import inspect

    match type_:
        case inspect.UnionType():
            return any(_fits(member, value) for member in type_.types)
        case inspect.BoolType() | inspect.NoneType():
            return type(value) is (bool if isinstance(type_, inspect.BoolType) else type(None))
        case inspect.StrType():
            return isinstance(value, str) and len(value) >= (type_.min_length or 0)
        case inspect.IntType() | inspect.FloatType():
            wanted = int if isinstance(type_, inspect.IntType) else int | float
            return (
                isinstance(value, wanted)
                and not isinstance(value, bool)
                and (type_.gt is None or value > type_.gt)
                and (type_.ge is None or value >= type_.ge)
                and (type_.le is None or value <= type_.le)
            )
        case inspect.LiteralType():
            return value in type_.values
    return False


def _expected(type_: inspect.Type) -> str:
    """What the type asks for, in words; null goes without saying."""
    from msgspec import inspect

    match type_:
        case inspect.UnionType():
            return " or ".join(_expected(member) for member in type_.types if not isinstance(member, inspect.NoneType))
        case inspect.BoolType() | inspect.StrType():
            return "true or false" if isinstance(type_, inspect.BoolType) else "text"
        case inspect.IntType() | inspect.FloatType():
            words = "a whole number" if isinstance(type_, inspect.IntType) else "a number"
            words += f" above {type_.gt}" if type_.gt is not None else ""
            words += f" from {type_.ge}" if type_.ge is not None else ""
            return words + (f" up to {type_.le}" if type_.le is not None else "")
        case inspect.ListType():
            return f"a list of {_expected(type_.item_type)}"
        case inspect.LiteralType():
            return " or ".join(json.dumps(value) for value in type_.values)
    return "a mapping"


def _kind(value: Any) -> str:
    names = {bool: "true or false", str: "text", dict: "a mapping", list: "a list", type(None): "nothing"}
    return names.get(type(value), "a number")


def _quoted(value: Any) -> str:
    """A value as the error shows it: short, and containers by their kind alone."""
    if value is None or isinstance(value, dict):
        return _kind(value)
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}..."

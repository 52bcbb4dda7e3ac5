"""What a GGUF file says of itself, read from its head without loading it.

Source: https://github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from msgspec import Struct

from timeline.errors import ModelUnavailable

__all__ = ["Header", "read_header"]


class Header(Struct, frozen=True):
    """What stands ahead of the tensors; None where it doesn't.

    Args:
        architecture: For example `llama`.
        context: Tokens the model was trained for.
    """

    architecture: str | None = None
    context: int | None = None


_MAGIC = b"GGUF"
_LAYOUTS = (2, 3)
"""Format versions that are laid out as read here; version 1 had shorter lengths."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING = 8
_ARRAY = 9
_LONGEST_STRING = 1 << 20


def read_header(path: Path) -> Header:
    """Read a file's header; what can't be understood in it is left for llama.cpp to name.

    Raises:
        ModelUnavailable: The file can't be read, or isn't a GGUF.
    """
    found: dict[str, object] = {}
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                msg = f"{path} is no GGUF file: name one under llm_providers.embedded.models"
                raise ModelUnavailable(msg)
            with suppress(struct.error, ValueError, OverflowError, RecursionError):
                for key, value in _metadata(file):
                    found[key] = value
                    if f"{found.get('general.architecture')}.context_length" in found:
                        break
    except OSError as exc:
        msg = f"the model file {path} can't be read ({exc.strerror}): correct its path or its mode"
        raise ModelUnavailable(msg) from exc
    architecture = found.get("general.architecture")
    context = found.get(f"{architecture}.context_length")
    return Header(
        architecture if isinstance(architecture, str) else None,
        context if isinstance(context, int) and context > 0 else None,
    )


def _metadata(file: IO[bytes]) -> Iterator[tuple[str, object]]:
    """The keys and their values, without the arrays."""
    if _number(file, "I") not in _LAYOUTS:
        return
    _number(file, "Q")
    for _ in range(_number(file, "Q")):
        key, kind = _string(file), _number(file, "I")
        if kind == _ARRAY:
            _skip_array(file)
        elif kind == _STRING:
            yield key, _string(file)
        elif kind in _SCALARS:
            yield key, _number(file, _SCALARS[kind])
        else:
            return


def _number(file: IO[bytes], code: str) -> int:
    value: int = struct.unpack("<" + code, file.read(struct.calcsize("<" + code)))[0]
    return value


def _string(file: IO[bytes]) -> str:
    length = _number(file, "Q")
    data = file.read(length) if length <= _LONGEST_STRING else b""
    if len(data) != length:
        raise ValueError(length)
    return data.decode()


def _skip_array(file: IO[bytes]) -> None:
    kind, count = _number(file, "I"), _number(file, "Q")
    if kind == _STRING:
        for _ in range(count):
            file.seek(_number(file, "Q"), os.SEEK_CUR)
    elif kind == _ARRAY:
        for _ in range(count):
            _skip_array(file)
    elif kind in _SCALARS:
        file.seek(struct.calcsize("<" + _SCALARS[kind]) * count, os.SEEK_CUR)
    else:
        raise ValueError(kind)

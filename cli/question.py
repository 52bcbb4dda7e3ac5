"""What a command is asked: words on its line, standard input and files."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from timeline.errors import NotFound, UsageError

if TYPE_CHECKING:
    from timeline.cognition.prompts import File

__all__ = ["question"]

LARGEST = 32 << 20
"""Bytes; no model takes more (https://docs.claude.com/en/api/overview#request-size-limits), and a device may never end."""

_ADDRESS = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/+(.+)")
"""What is left of an address as a path, which has no two slashes in a row."""


def question(words: Sequence[str] | None, paths: Sequence[Path] | None) -> tuple[str, tuple[File, ...], str]:
    """The prompt, the files that go with it, and what to call it: its words alone, where something is piped in besides.

    Raises:
        NotFound, UsageError: There is nothing to ask, or a file or standard input can't be read.
    """
    text = " ".join(word for word in words or [] if word != "-").strip()
    # What is piped in stands before the words.
    prompt = "\n\n".join(part for part in (_piped(words or []), text) if part)
    files = tuple(_file(path) for path in paths or [])
    if not (prompt or files):
        msg = "there is nothing to ask: give a prompt as an argument or on standard input"
        raise UsageError(msg)
    return prompt, files, text or prompt


def _piped(words: Sequence[str]) -> str:
    """What stands on standard input, if anything does."""
    if "-" not in words and not _has_input():
        return ""
    try:
        # Decoded by hand: Python's own reading would change line ends, and replaces what is no UTF-8.
        return _whole(sys.stdin.buffer, "standard input").decode().strip()
    except UnicodeDecodeError as exc:
        msg = "standard input is not UTF-8 text: convert it, or attach a text file with -f"
        raise UsageError(msg) from exc


def _whole(file: BinaryIO, name: str) -> bytes:
    """All of it, if it ends in time."""
    data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        msg = f"{name} is larger than {LARGEST >> 20} MiB, which no model takes: ask about a part of it"
        raise UsageError(msg)
    return data


def _has_input() -> bool:
    """Whether something other than a person stands behind standard input."""
    return not (sys.stdin.closed or sys.stdin.isatty())


def _file(path: Path) -> File:
    from timeline.cognition.prompts import attach

    try:
        with path.open("rb") as file:
            return attach(path.name, _whole(file, str(path)))
    except FileNotFoundError as exc:
        if address := _ADDRESS.match(str(path)):
            msg = (
                f"-f takes a file, and {address[1]}://{address[2]} is an address: fetch it first,"
                " or pipe in what it holds"
            )
            raise UsageError(msg) from exc
        msg = f"there is no file {path}: check the path after -f"
        raise NotFound(msg) from exc
    except OSError as exc:
        msg = f"{path} can't be read ({exc.strerror}): check the path after -f"
        raise UsageError(msg) from exc

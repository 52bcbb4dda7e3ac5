"""Files as tools: one is read, or those of a folder are named, inside the working directory and what `--allow-dir` adds.

A path is first resolved, and must then lie in one of these folders; from that folder on it is opened name by name
without following any link, so that nothing that is exchanged in between leads out. What isn't a plain file is never
read from: a FIFO would wait for ever, a device answer without end.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from timeline.cognition.builtin.apart import apart
from timeline.cognition.tools import Signal, Tool, ToolResult, Workspace
from timeline.errors import ToolError

__all__ = ["LARGEST", "ListFiles", "ReadFile"]

LARGEST = 2 << 20
"""Bytes of a file that are looked at."""
MOST_NAMES = 200
MOST_LOOKED_AT = 20_000
"""Entries of folders that are gone through for a pattern."""
LONGEST_LISTING_SECONDS = 3.0
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KINDS = (
    (stat.S_ISDIR, "a folder: list_files names what is in it"),
    (stat.S_ISFIFO, "a named pipe, no file: name a text file"),
    (stat.S_ISSOCK, "a socket, no file: name a text file"),
    (stat.S_ISCHR, "a device, no file: name a text file"),
    (stat.S_ISBLK, "a device, no file: name a text file"),
    (stat.S_ISLNK, "a link that changed just now: try again"),
)
_NEVER = (Path("/proc"), Path("/sys"))
"""No files, but views of the system, the environment of processes among them."""
_PRIVATE = frozenset(
    [".ssh", ".gnupg", ".aws", ".netrc", ".pgpass", ".git-credentials", ".env", ".env.local", ".env.production"]
)
"""Names under which keys and passwords are kept: what a model is told may leave this machine, and stays in the log."""
_PATH = {"type": "string", "minLength": 1, "maxLength": 1_000}
LIST: dict[str, Any] = {
    "type": "object",
    "properties": {
        "path": {**_PATH, "description": "The folder; by default the working directory"},
        "pattern": {"type": "string", "maxLength": 200, "description": "For example *.txt"},
    },
    "additionalProperties": False,
}
READ: dict[str, Any] = {
    "type": "object",
    "properties": {
        "path": {**_PATH, "description": "For example notes.txt"},
        "first_line": {"type": "integer", "minimum": 1, "description": "From this line on; 1 is the first"},
        "last_line": {"type": "integer", "minimum": 1, "description": "Up to this line, included"},
    },
    "required": ["path"],
    "additionalProperties": False,
}


class ReadFile(Tool):
    """Reads a text file, or some lines of it.

    Args:
        private: Files that no model is told, whatever folder is allowed.
    """

    name = "read_file"
    description = "Reads a text file of the working directory: all of it, or the lines from first_line to last_line."
    parameters = READ
    deterministic = True

    def __init__(self, private: Sequence[Path] = ()) -> None:
        self._private = frozenset(private)

    def signal(self, text: str, workspace: Workspace) -> Signal | None:
        """A file is named in the text, and perhaps one of its lines."""
        found = super().signal(text, workspace)
        line = _line_in(text) if found and found.arguments else None
        if found is None or line is None:
            return found
        return replace(found, arguments={**(found.arguments or {}), "first_line": line, "last_line": line})

    async def run(self, arguments: dict[str, Any], workspace: Workspace) -> ToolResult:
        """Read it."""
        path, first = arguments["path"], arguments.get("first_line")
        last = arguments.get("last_line")
        if first is not None and last is not None and last < first:
            msg = f"last_line {last} comes before first_line {first}: exchange them"
            raise ToolError(msg)
        # A disk can be slow, and the screen goes on meanwhile.
        text, partial = await apart(_read, path, workspace, self._private)
        if first is None and last is None:
            return ToolResult(text + (_cut(path) if partial else ""), truncated=partial)
        lines = text.splitlines()
        first = first or 1
        if first > len(lines):
            if partial:
                msg = f"{path} is too large to be read up to line {first:,}: name an earlier one, before {len(lines):,}"
            else:
                msg = f"{path} has {len(lines):,} lines, and so no line {first:,}: name an earlier one"
            raise ToolError(msg)
        chosen = lines[first - 1 : last]
        partial = partial and (last is None or last >= len(lines))
        fact = chosen[0].strip() if last == first else None
        return ToolResult("\n".join(chosen) + (_cut(path) if partial else ""), fact=fact or None, truncated=partial)


class ListFiles(Tool):
    """Names the files of a folder."""

    name = "list_files"
    description = (
        "Names the files and folders of the working directory or of a folder in it, with their sizes. A pattern such as"
        " *.txt chooses by name; **/*.py also looks into folders. Hidden ones are left out."
    )
    parameters = LIST
    deterministic = False

    async def run(self, arguments: dict[str, Any], workspace: Workspace) -> ToolResult:
        """Look."""
        return await apart(_list, arguments.get("path") or ".", arguments.get("pattern") or "*", workspace)


_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_LINE = re.compile(
    rf"\b(?:({'|'.join(_ORDINALS)}|\d{{1,6}}(?:st|nd|rd|th)) line|line (?:number )?(\d{{1,6}}))\b", re.IGNORECASE
)


def _line_in(text: str) -> int | None:
    """The one line that a text asks for: `the second line`, `line 12`."""
    found = {match[1] or match[2] for match in _LINE.finditer(text)}
    if len(found) != 1:
        return None
    word = found.pop().lower()
    return _ORDINALS.index(word) + 1 if word in _ORDINALS else int(re.sub(r"\D", "", word)) or None


def _cut(path: str) -> str:
    return f"\n[cut here: {path} goes on after {LARGEST >> 20} MiB]"


# ------------------------------------------------------------------ places


class _Place(Struct, frozen=True):
    """Where a path leads.

    Args:
        root: The allowed folder that it is in.
        names: From there, link by link resolved.
    """

    root: Path
    names: tuple[str, ...]


def _place(path: str, workspace: Workspace) -> _Place:
    """Where the path leads, if tools may go there.

    Raises:
        ToolError: They may not, or there is nothing.
    """
    if "\0" in path:
        msg = "a path holds a zero byte: name a file"
        raise ToolError(msg)
    roots = [root.resolve() for root in (workspace.folder, *workspace.allowed)]
    try:
        real = Path(os.path.realpath(workspace.folder / Path(path).expanduser()))
    except (OSError, RuntimeError, ValueError):
        roots = []
    for root in roots:
        if real.is_relative_to(root) and not any(real.is_relative_to(never) for never in _NEVER):
            return _Place(root, real.relative_to(root).parts)
    # Said of what exists outside as of what doesn't: a model is not told which.
    msg = f"{path[:200]} is outside of the folders that may be read: name a file in the working directory, or allow its folder with --allow-dir"
    raise ToolError(msg)


def _opened(place: _Place, path: str, *, folder: bool) -> int:
    """A descriptor of the place, reached without following a link.

    Raises:
        ToolError: It isn't there, can't be opened or is of another kind.
    """
    current = -1
    try:
        current = os.open(place.root, _OPEN | os.O_DIRECTORY)
        for index, name in enumerate(place.names):
            is_folder = folder or index + 1 < len(place.names)
            if not is_folder:
                # Before it is opened, which can mean something to a device.
                _refuse_special(os.stat(name, dir_fd=current, follow_symlinks=False).st_mode, path)
            following = os.open(name, _OPEN | (os.O_DIRECTORY if is_folder else 0), dir_fd=current)
            os.close(current)
            current = following
        if not folder:
            _refuse_special(os.fstat(current).st_mode, path)
    except (OSError, ToolError) as exc:
        if current >= 0:
            os.close(current)
        if isinstance(exc, ToolError):
            raise
        raise _failed(exc, path) from None
    return current


def _refuse_special(mode: int, path: str) -> None:
    for is_kind, what in _KINDS:
        if is_kind(mode):
            msg = f"{path} is {what}"
            raise ToolError(msg)


def _failed(exc: OSError, path: str) -> ToolError:
    what = {
        "FileNotFoundError": "isn't there: list_files names what is",
        "NotADirectoryError": "is no folder: name one, or read it with read_file",
        "PermissionError": "may not be read by this user: choose another",
    }.get(type(exc).__name__, f"can't be opened ({exc.strerror or exc}): choose another")
    return ToolError(f"{path} {what}")


# ------------------------------------------------------------------ reading


def _read(path: str, workspace: Workspace, private: AbstractSet[Path]) -> tuple[str, bool]:
    """A file's text, and whether it goes on."""
    place = _place(path, workspace)
    real = place.root.joinpath(*place.names)
    if not _PRIVATE.isdisjoint(name.lower() for name in place.names) or real in {file.resolve() for file in private}:
        msg = f"{path} may hold keys or passwords, and is read by no tool: name another file"
        raise ToolError(msg)
    descriptor = _opened(place, path, folder=False)
    with os.fdopen(descriptor, "rb") as file:
        try:
            # None where there is nothing to be read now.
            data = file.read(LARGEST + 1) or b""
        except OSError as exc:
            raise _failed(exc, path) from None
    partial = len(data) > LARGEST
    data = data[:LARGEST]
    text = None if b"\0" in data else _decoded(data, partial=partial)
    if text is None:
        msg = f"{path} is no text in UTF-8: name a text file"
        raise ToolError(msg)
    return text, partial


def _decoded(data: bytes, *, partial: bool) -> str | None:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        # Where the file was cut, half a character may stand at the end.
        return data[: exc.start].decode("utf-8-sig") if partial and exc.start >= len(data) - 3 else None


# ------------------------------------------------------------------ listing


def _list(path: str, pattern: str, workspace: Workspace) -> ToolResult:
    descriptor = _opened(_place(path, workspace), path, folder=True)
    rows, whole = [], True
    until = time.monotonic() + LONGEST_LISTING_SECONDS
    for looked_at, (name, row) in enumerate(_entries(descriptor, deep="**" in pattern), 1):
        if _matches(name, pattern):
            rows.append((name, row))
        if looked_at >= MOST_LOOKED_AT or time.monotonic() > until:
            whole = False
            break
    rows.sort()
    shown = [row for _, row in rows[:MOST_NAMES]]
    if not rows:
        what = "nothing" if pattern == "*" else f"nothing called {pattern}"
        return ToolResult(f"There is {what} in {path}.", truncated=not whole)
    if len(rows) > MOST_NAMES:
        shown.append(f"[cut here: {MOST_NAMES} of {len(rows):,} names; a pattern chooses]")
    elif not whole:
        shown.append("[cut here: there is more to look through; name a folder]")
    return ToolResult("\n".join(shown), truncated=not whole or len(rows) > MOST_NAMES)


def _matches(name: str, pattern: str) -> bool:
    patterns = {pattern, pattern.replace("**/", "")}
    return any(fnmatch.fnmatchcase(name, each) for each in patterns)


def _entries(descriptor: int, prefix: str = "", *, deep: bool, depth: int = 20) -> Iterator[tuple[str, str]]:
    """What is in a folder and, if asked, below it; names from the folder on, and how each is shown. Closes the descriptor."""
    try:
        with os.scandir(descriptor) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                name = prefix + entry.name
                yield name, _row(entry, name)
                if deep and depth and entry.is_dir(follow_symlinks=False):
                    yield from _below(descriptor, entry.name, f"{name}/", depth - 1)
    finally:
        os.close(descriptor)


def _below(descriptor: int, name: str, prefix: str, depth: int) -> Iterator[tuple[str, str]]:
    try:
        inner = os.open(name, _OPEN | os.O_DIRECTORY, dir_fd=descriptor)
    except OSError:
        return
    yield from _entries(inner, prefix, deep=True, depth=depth)


def _row(entry: os.DirEntry[str], name: str) -> str:
    shown = name.encode("utf-8", "replace").decode()
    try:
        if entry.is_symlink():
            return f"{shown} (link)"
        if entry.is_dir():
            return f"{shown}/"
        return f"{shown} ({entry.stat(follow_symlinks=False).st_size:,} bytes)"
    except OSError:
        return shown

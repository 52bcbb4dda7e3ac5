"""What goes where: answers and data to stdout, everything else to stderr; JSON with `schema_version`; errors in one sentence."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from timeline.errors import TimelineError

if TYPE_CHECKING:
    from decimal import Decimal

    from rich.console import Console
    from rich.text import Text

__all__ = [
    "at_words",
    "columns",
    "distinct",
    "emit_json",
    "error_object",
    "fail",
    "fitting",
    "harmless",
    "json_errors",
    "notice",
    "notice_left_out",
    "rate",
    "say",
    "seconds",
    "short_path",
    "stderr",
    "stdout",
    "table_csv",
    "usd",
    "visible",
    "when",
]

SCHEMA_VERSION = 1
UNKNOWN_WIDTH = 80
"""Columns where nobody says how many there are."""

_as_json = False


@functools.cache
def stdout() -> Console:
    """The console for what was asked for."""
    return _console(to_stderr=False)


@functools.cache
def stderr() -> Console:
    """The console for everything else."""
    return _console(to_stderr=True)


def _console(*, to_stderr: bool) -> Console:
    from rich.console import Console

    class Told(Console):
        """One that lets a closed pipe be told, where rich would end the process with 1."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    console = Told(stderr=to_stderr, highlight=False, soft_wrap=False, markup=False, emoji=False)
    if not console.width:
        # COLUMNS=0 is how some say that they don't know.
        console.width = UNKNOWN_WIDTH
    return console


def notice(text: str) -> None:
    """A line on stderr, dimmed on a terminal."""
    from rich.text import Text

    say(stderr(), Text(harmless(text, stderr()), style="dim"))


def say(console: Console, sentence: Text) -> None:
    """A sentence on a line of its own; on a terminal it goes on in the next one where a word has ended."""
    if console.is_terminal:
        # As long as it was: its styles stay where they are.
        sentence.plain = at_words(sentence.plain, console.width)
    console.print(sentence, soft_wrap=True)


_UNBROKEN = re.compile(r"(?<![^\s(])'[^']*'(?!\w)|(?<=: )(?:timeline|pip install) .*")


def at_words(text: str, width: int) -> str:
    """The text with spaces turned into the ends of lines; a word that is longer than any, a path say, stays whole.

    A command is one word, in quotes or behind a colon: who pastes it would else run its first line alone.

    Args:
        text: What; without a NUL.
        width: Of a line, in cells.
    """
    from rich.cells import cell_len

    broken = []
    for line in text.split("\n"):
        kept = _UNBROKEN.sub(lambda found: found[0].replace(" ", "\0"), line)
        first, *others = (word.replace("\0", " ") for word in kept.split(" "))
        whole, taken, begun = first, cell_len(first), bool(first)
        for word in others:
            cells = cell_len(word)
            full = begun and bool(word) and taken + 1 + cells > width
            whole += ("\n" if full else " ") + word
            taken = cells if full else taken + 1 + cells
            begun = begun or bool(word)
        broken.append(whole)
    return "\n".join(broken)


def harmless(text: str, console: Console) -> str:
    """Text from elsewhere as a console may show it: on a terminal, control characters are signs, not commands.

    An answer could else set the window's title, clear the screen or fill the clipboard
    (https://invisible-island.net/xterm/ctlseqs/ctlseqs.html). What isn't a terminal gets the text as it is.
    """
    return visible(text) if console.is_terminal else text


def visible(text: str) -> str:
    """Text with signs for its control characters; for what is a drawing wherever it goes."""
    return text.translate(_SIGNS)


_SIGNS: dict[int, int | None] = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_SIGNS |= {0x7F: 0x2421, ord("\r"): None} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
# Overrides of the direction of writing would show the arguments of a tool as what they are not.
_SIGNS |= dict.fromkeys((0x202D, 0x202E), 0xFFFD)


def json_errors(wanted: bool) -> None:  # noqa: FBT001  the value of a --json flag
    """From now on an error is also an object on stdout."""
    global _as_json  # noqa: PLW0603  one process is one command
    _as_json = wanted


def fail(exc: TimelineError) -> int:
    """Say what went wrong; the exit code it means."""
    if _as_json:
        emit_json({"error": error_object(exc)})
    else:
        from rich.text import Text

        # Where nobody is left to be told, the exit code still tells it.
        with contextlib.suppress(OSError):
            say(stderr(), Text.assemble(("Error: ", "bold red"), harmless(str(exc), stderr())))
    return exc.exit_code


def error_object(exc: TimelineError, recorded: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """An error as JSON has it, with what was recorded of it: what the provider said."""
    return {**(recorded or {}), "kind": exc.kind, "message": str(exc), "exit_code": exc.exit_code}


def emit_json(value: Mapping[str, Any], *, indent: int = 2) -> None:
    """One JSON object on stdout; `indent` 0 for a line of its own."""
    text = msgspec.json.encode({"schema_version": SCHEMA_VERSION, **value})
    if indent:
        text = msgspec.json.format(text, indent=indent)
    sys.stdout.write(_escaped(text.decode(), sys.stdout.encoding) + "\n")
    if not indent:
        sys.stdout.flush()


def _escaped(text: str, encoding: str) -> str:
    r"""JSON with `\u` escapes for what an encoding has no code for; a question mark would be another text."""
    if not encoding.lower().startswith("utf"):
        for character in set(text):
            try:
                character.encode(encoding)
            except UnicodeEncodeError:
                text = text.replace(character, json.dumps(character)[1:-1])
    return text


def table_csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Rows as CSV on stdout."""
    writer = csv.writer(sys.stdout, lineterminator=os.linesep)
    writer.writerow(header)
    writer.writerows(rows)


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Rows as lines with aligned columns, the same on a terminal and in a pipe; `right`: which are aligned right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def fitting(
    rows: Sequence[Sequence[str]], right: Sequence[int] = (), *, first_to_go: Sequence[str], sentence: int = 0
) -> tuple[list[str], list[str]]:
    """Rows under their header as `columns` has them; on a terminal that is narrower, columns are left out.

    Args:
        rows: The header, then the others.
        right: Which columns are aligned right.
        first_to_go: Labels of those that may be left out, what matters least first.
        sentence: Of a last column that holds sentences, how many cells will do: on a terminal they go on below themselves.

    Returns:
        The lines, and the labels of what was left out.
    """
    console, kept, left_out = stdout(), list(range(len(rows[0]))), list[str]()
    if not console.is_terminal:
        return columns(rows, right), left_out
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    least = [*widths[:-1], min(widths[-1], sentence or widths[-1])]
    for label in first_to_go:
        if sum(least[index] + 2 for index in kept) - 2 <= console.width:
            break
        kept.remove(rows[0].index(label))
        left_out.append(label)
    aligned = [place for place, index in enumerate(kept) if index in right]
    lines = columns([[row[index] for index in kept] for row in rows], aligned)
    if sentence:
        start = sum(widths[index] + 2 for index in kept[:-1])
        space = max(console.width - start, sentence)
        lines = [line[:start] + at_words(line[start:], space).replace("\n", "\n" + " " * start) for line in lines]
    return lines, left_out


def notice_left_out(labels: Sequence[str], *, ways: str = " or --json") -> None:
    """Say which columns of a table there was no space for, if any, and how to see them all the same."""
    if labels:
        notice(f"left out for the width: {', '.join(labels)}; a wider terminal{ways} shows all")


# ------------------------------------------------------------------ values for people


def seconds(microseconds: int | None) -> str:
    """A duration, short: `0.3s`, `12s`, `2m05s`."""
    if microseconds is None:
        return "?"
    value = microseconds / 1_000_000
    if value < 9.95:  # noqa: PLR2004
        return f"{value:.1f}s"
    if value < 60:  # noqa: PLR2004
        return f"{value:.0f}s"
    return f"{int(value) // 60}m{int(value) % 60:02d}s"


def usd(nano: int, *, places: int = 2) -> str:
    """An amount, with as many digits as it needs: `$0.00042`, `$1.25`."""
    from timeline import money

    return money.usd(nano, places=places)


def rate(dollars: Decimal | None, *, rises: bool = False) -> str:
    """A price per million tokens: `$2.50`, `$0.075`; with a `+` where long prompts cost more."""
    from timeline import money

    return "–" if dollars is None else f"{money.dollars(dollars)}{'+' if rises else ''}"


def distinct(ids: list[str]) -> int:
    """How many characters tell all ids apart; at least the 13 of an id's time."""
    length = 13
    while length < 36 and len({value[:length] for value in ids}) < len(ids):  # noqa: PLR2004
        length += 1
    return length


def short_path(path: str) -> str:
    """A path with `~` for the home directory."""
    from pathlib import Path

    home = f"{Path.home()}/"
    return f"~/{path.removeprefix(home)}" if path.startswith(home) else path


def when(microseconds: int) -> str:
    """An instant in this machine's time zone: `2026-11-22 14:03`."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(microseconds / 1_000_000, UTC).astimezone().strftime("%Y-%m-%d %H:%M")

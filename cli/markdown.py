"""Markdown on a terminal while it streams: what is complete is printed for good, only the last block is redrawn."""

from __future__ import annotations

from rich.console import Console
from rich.control import Control
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import ControlType

__all__ = ["StreamingMarkdown"]


class StreamingMarkdown:
    """Feed it text as it comes; close it at the end.

    Args:
        console: A terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open = ""
        self._started = False
        self._live: Live | None = None

    def feed(self, text: str) -> None:
        """Show more text."""
        self._open += text
        done, self._open = split_blocks(self._open)
        if done:
            self._stop()
            self._print(done)
        if self._open.strip():
            if self._live is None:
                self._live = Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop")
                self._live.start()
            # A block taller than the screen can't be redrawn in place: show its end.
            lines = self._open.splitlines()[-(self._console.height - 2) :]
            self._live.update(Markdown("\n".join(lines)), refresh=True)
            # Lines are padded to the right edge: what is typed meanwhile would be echoed into the next one.
            self._console.control(Control(ControlType.CARRIAGE_RETURN))

    def close(self) -> None:
        """Print what is left for good."""
        self._stop()
        if self._open.strip():
            self._print(self._open)
        self._open = ""

    def _print(self, text: str) -> None:
        if self._started:
            self._console.print()
        self._console.print(Markdown(text))
        self._started = True

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def split_blocks(text: str) -> tuple[str, str]:
    """The text up to the last blank line outside a code fence, and the rest.

    A list stays whole as long as it may go on: its items are numbered and spaced together.
    """
    done, fence, at, position = 0, "", 0, 0
    for line in text.splitlines(keepends=True):
        at, position = position, position + len(line)
        mark = line.strip()[:3]
        if mark in ("```", "~~~") and fence in ("", mark):
            fence = "" if fence else mark
        elif fence:
            continue
        elif line.endswith("\n") and not line.strip():
            done = position
        elif done == at and at and _continues_list(line):
            done = 0
    return text[:done], text[done:]


def _continues_list(line: str) -> bool:
    stripped = line.lstrip()
    head = stripped.split(maxsplit=1)[0] if stripped else ""
    return line[:1] in " \t" or head in ("-", "*", "+") or (head[:-1].isdigit() and head[-1:] in ".)")

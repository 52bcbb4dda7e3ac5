"""Markdown on a terminal while it streams: what is complete is printed for good, only the last block is redrawn."""

from __future__ import annotations

import asyncio
import time

from rich.console import Console
from rich.control import Control
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import ControlType

__all__ = ["StreamingMarkdown"]

REDRAW_SECONDS = 0.05


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
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._failure: OSError | None = None

    def feed(self, text: str) -> None:
        """Show more text, at once or within a twentieth of a second; called within an event loop."""
        self._open += text
        if self._failure is not None:
            raise self._failure
        if self._timer is not None:
            return
        now = time.monotonic()
        if now >= self._due:
            self._draw()
        else:
            self._timer = asyncio.get_running_loop().call_later(self._due - now, self._draw_late)

    def _draw_late(self) -> None:
        self._timer = None
        try:
            self._draw()
        except OSError as exc:
            # The terminal is gone: whoever feeds next has to know.
            self._failure = exc

    def _draw(self) -> None:
        """Show what has come; drawing costs more than reading, so it isn't done for every piece."""
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
            # One write of both. Lines are padded to the right edge: what is typed would be echoed into the next one.
            with self._console:
                self._live.update(Markdown("\n".join(lines)), refresh=True)
                self._console.control(Control(ControlType.CARRIAGE_RETURN))
        self._due = time.monotonic() + REDRAW_SECONDS

    def close(self) -> None:
        """Print what is left for good."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
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

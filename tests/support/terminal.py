"""A terminal as a person has it: a pseudo-terminal with a size, and the screen that its output draws."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping
from typing import Self

import pyte

from support.command import Home
from support.screens import Emulator

__all__ = ["Terminal"]

ESCAPE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")


class Terminal:
    """A command that runs on a terminal of its own, as its controlling one: typed signals reach it.

    Args:
        home: Whose.
        argv: The command.
        columns, rows: The terminal's size.
        env: Further variables.
    """

    def __init__(
        self, home: Home, *argv: str, columns: int = 80, rows: int = 24, env: Mapping[str, str] | None = None
    ) -> None:
        self.raw = b""
        self.screen = Emulator(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self._ours, theirs = pty.openpty()
        self._resize(columns, rows)
        # Ctrl-C would else throw away what is on its way to the screen: half a frame, and not the program's fault.
        modes = termios.tcgetattr(theirs)
        modes[3] |= termios.NOFLSH
        termios.tcsetattr(theirs, termios.TCSANOW, modes)
        self.pid, self._wait = home.start_on(theirs, *argv, env={"TERM": "xterm-256color", **(env or {})})
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._wait(10)
        self.hang_up()

    def hang_up(self) -> None:
        """Close the window."""
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1

    def exit_code(self) -> int:
        """How it ended, once the window is closed."""
        return self._wait(30)

    def _resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, columns: int, rows: int) -> None:
        """Pull the window to another size."""
        self._resize(columns, rows)
        self.screen.resize(rows, columns)

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._ours, text.encode())

    def read(self, seconds: float = 0.05) -> bool:
        """Draw what comes within that time; whether anything may still come."""
        if not select.select([self._ours], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._ours, 65536)
        except OSError:
            # How Linux says that nobody has the other side open any more.
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)

    def wait_for(self, text: str, seconds: float = 30) -> None:
        """Draw until the text stands on the screen or above it."""
        end = time.monotonic() + seconds
        while text not in self.text:
            assert self.read() or text in self.text, f"{text!r} never came: {self.text!r}"
            assert time.monotonic() < end, f"{text!r} never came: {self.text!r}"

    def wait(self, seconds: float = 30) -> int:
        """Draw to the end; the exit code."""
        end = time.monotonic() + seconds
        while self.read():
            assert time.monotonic() < end, f"it never ended: {self.text!r}"
        return self._wait(10)

    @property
    def lines(self) -> list[str]:
        """All lines that can be scrolled back to, without the blanks at their end."""
        return self.screen.texts

    @property
    def text(self) -> str:
        """All lines as one text."""
        return "\n".join(self.lines).rstrip()

    @property
    def escapes(self) -> list[bytes]:
        """The escape sequences that were sent."""
        return ESCAPE.findall(self.raw)

    @property
    def cursor_hidden(self) -> bool:
        """Whether the cursor was left hidden."""
        return bool(self.screen.cursor.hidden)

"""A screen in this process: an emulated terminal, and a console that draws on it what is drawn without a command."""

from __future__ import annotations

import io
from typing import Any

import pyte
from rich.console import Console

__all__ = ["Emulator", "Screen"]


class Emulator(pyte.Screen):
    """A terminal that remembers the lines that have left it at its top.

    pyte's own, which can also scroll back to them, looks at each attribute twice, and takes twice the time.
    """

    def reset(self) -> None:
        super().reset()
        self.above: list[Any] = []

    def index(self) -> None:
        top, bottom = self.margins or (0, self.lines - 1)
        if self.cursor.y == bottom:
            self.above.append(self.buffer[top])
        super().index()

    def erase_in_display(self, how: int = 0, *args: Any, **more: Any) -> None:
        super().erase_in_display(how, *args, **more)
        if how == 3:
            self.above.clear()

    @property
    def rows(self) -> list[Any]:
        """All lines that can be scrolled back to, and those on the screen: the cells of each."""
        return [*self.above, *(self.buffer[row] for row in range(self.lines))]

    @property
    def texts(self) -> list[str]:
        """The same as texts, without the blanks at their ends."""
        # A line knows the cells in which something was drawn.
        ends = [min(max(row, default=-1) + 1, self.columns) for row in self.rows]
        return ["".join(row[at].data for at in range(end)).rstrip() for row, end in zip(self.rows, ends, strict=True)]


class Screen(io.StringIO):
    """A terminal's side of a console.

    Args:
        columns, rows: Its size.
        color: What it can show.
    """

    encoding = "utf-8"  # type: ignore[assignment]

    def __init__(self, columns: int = 80, rows: int = 24, color: str = "256") -> None:
        super().__init__()
        self.emulator = Emulator(columns, rows)
        self.emulator.set_mode(pyte.modes.LNM)
        self._stream = pyte.Stream(self.emulator)
        self.frames: list[str] = []
        self.console = Console(
            file=self,
            force_terminal=True,
            color_system=color,
            width=columns,
            height=rows,
            highlight=False,  # type: ignore[arg-type]
        )

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._stream.feed(text)
        self.frames.append(text)
        return super().write(text)

    def resize(self, columns: int, rows: int) -> None:
        """Pull the window to another size."""
        self.emulator.resize(rows, columns)
        self.console.size = (columns, rows)  # type: ignore[assignment]

    @property
    def lines(self) -> list[str]:
        """All lines that can be scrolled back to, without the blanks at their end."""
        lines = self.emulator.texts
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def cells(self) -> list[list[tuple[str, str, bool]]]:
        """Each cell of all lines: its character, colour, and whether it is bold."""
        columns, rows = self.emulator.columns, self.emulator.rows[: len(self.lines)]
        return [[(row[x].data, row[x].fg, row[x].bold) for x in range(columns)] for row in rows]

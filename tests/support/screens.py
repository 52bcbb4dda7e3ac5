"""A screen in this process: a console that draws on an emulated terminal, for what is drawn without a command."""

from __future__ import annotations

import io

import pyte
from rich.console import Console

__all__ = ["Screen"]


class Screen(io.StringIO):
    """A terminal's side of a console.

    Args:
        columns, rows: Its size.
        color: What it can show.
    """

    encoding = "utf-8"  # type: ignore[assignment]

    def __init__(self, columns: int = 80, rows: int = 24, color: str = "256") -> None:
        super().__init__()
        self.emulator = pyte.HistoryScreen(columns, rows, history=100_000, ratio=0.5)
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
        above = ["".join(line[x].data for x in range(self.emulator.columns)) for line in self.emulator.history.top]
        lines = [line.rstrip() for line in (*above, *self.emulator.display)]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def cells(self) -> list[list[tuple[str, str, bool]]]:
        """Each cell of all lines: its character, colour, and whether it is bold."""
        emulator = self.emulator
        rows = [*emulator.history.top, *(emulator.buffer[y] for y in range(emulator.lines))]
        return [[(row[x].data, row[x].fg, row[x].bold) for x in range(emulator.columns)] for row in rows][
            : len(self.lines)
        ]

"""A progress bar on stderr while a model is fetched."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from . import output

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Fetching"]


class Fetching:
    """Called with what is fetched, bytes so far, and bytes in all; draws from the first call on."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Show how far it is."""
        if self._quiet:
            return
        if self._bars is None:
            if not output.stderr().is_terminal:
                # No bar in a log file; one line says what takes so long.
                self._quiet = True
                output.notice(f"{what} …")
                return
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                DownloadColumn(),
                TimeRemainingColumn(),
                console=output.stderr(),
                transient=True,
            )
            self._bars.start()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)

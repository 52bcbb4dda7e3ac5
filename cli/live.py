"""A turn with cognition while it runs: a tree that is redrawn in place, and at its end the drawing that replay makes, too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment
from rich.text import Text

from timeline.cognition.turn import TurnEnd
from timeline.events import Event, StepCompleted, StepFailed, StepSkipped
from timeline.projections.blocks import Folding, Session, Turn
from timeline.projections.drawn import ANSWERING
from timeline.providers.base import Delta

from . import output
from .blocks import Answer, draw_reply, remark, source_lines, usage_line, work_lines
from .markdown import split_blocks
from .shown import AnswerText, Learning, fill_in, session_hint, tell_interrupted
from .signs import signs
from .tree import step_line, worth_telling

if TYPE_CHECKING:
    from timeline.llm.manager import Superseded

__all__ = ["Alongside", "Together"]

REDRAW_SECONDS = 0.05
TICK_SECONDS = 0.1
"""How often spinner and seconds move while nothing comes."""
DRAWING_SHARE = 4
"""Time for other things, for each time that drawing takes."""
THOUGHT_LINES = 3
"""Lines of a model's reasoning that are shown while it reasons."""

# What lies between is shown at once, by terminals that know it
# (https://gist.github.com/christianparpart/d8a62cc1ab659194337d73e399004036); others skip it.
BEGIN_FRAME, END_FRAME = "\x1b[?2026h", "\x1b[?2026l"


def wall_clock() -> int:
    """µs UTC."""
    return time.time_ns() // 1000


class _View(Learning):
    """What both ways to watch a turn know: the fold so far, and which turn of it is watched."""

    def __init__(self, folding: Folding | None = None) -> None:
        super().__init__()
        self._folding = folding or Folding()
        self._turn_id: str | None = None

    @property
    def session(self) -> Session:
        """What is known so far."""
        return self._folding.session

    @property
    def turn(self) -> Turn | None:
        """The turn that is watched: the first one that this view was told of."""
        mine = [turn for turn in self.session.turns if turn.turn_id == self._turn_id]
        return mine[-1] if mine else None

    def event(self, event: Event) -> None:
        """See `Shown.event`."""
        super().event(event)
        self._folding.add(event)
        self._turn_id = self._turn_id or event.turn_id


class Together(_View):
    """Tree and answer on one terminal, both redrawn until the end, then drawn for good.

    Args:
        beside: Where the tree goes.
        out: Where the answer goes: the same terminal.
        folding: What is known of the session before this turn.
        recorded: Show the answer as its events tell it, not as deltas do.
        hint: Say at the end how to go on with the session.
        cognition: Draw the steps of a turn that has some.
        redrawn: Draw while it runs, not only at the end.
        now: µs UTC.
    """

    def __init__(
        self,
        beside: Console,
        out: Console,
        *,
        folding: Folding | None = None,
        recorded: bool = False,
        hint: bool = True,
        cognition: bool = True,
        redrawn: bool = True,
        now: Callable[[], int] = wall_clock,
    ) -> None:
        super().__init__(folding)
        self._beside = beside
        self._out = out
        self._recorded = recorded
        self._hint = hint
        self._cognition = cognition
        self._now = now
        self._pieces: list[str] = []
        self._thoughts = ""
        self._page = _Page(out)
        self._region = _Region(beside, self._frame)
        self._ended = False
        if not redrawn:
            self._region.close()

    def event(self, event: Event) -> None:
        """See `Shown.event`."""
        super().event(event)
        self._region.touch()

    def learn(self, bodies: Mapping[str, str | bytes]) -> None:
        """See `Shown.learn`."""
        super().learn(bodies)
        self._region.touch()

    def delta(self, delta: Delta) -> None:
        """See `Shown.delta`."""
        if delta.kind == "text":
            self._pieces.append(delta.text)
        elif delta.kind == "reasoning":
            self._thoughts = (self._thoughts + delta.text)[-1000:]
        self._region.touch()

    def aside(self) -> AbstractContextManager[None]:
        """See `Shown.aside`."""
        return self._region.hidden()

    def superseded(self, what: Superseded) -> None:  # noqa: ARG002  it is redrawn, whatever it was
        """See `Shown.superseded`."""
        self._pieces.clear()
        self._thoughts = ""
        self._region.touch()

    def stop(self) -> None:
        """See `Shown.stop`."""
        self._region.close()

    def end(self, end: TurnEnd | None) -> None:
        """Draw the turn for good."""
        turn = self.turn
        if turn is None or self._ended:
            return
        self._ended = True
        fill_in(turn, end)
        text = self._text(turn)
        told = turn.answer_text
        draw_reply(
            self._beside,
            self._out,
            turn,
            self.bodies,
            cognition=self._cognition,
            text=None if text == told else text,
        )
        self.told = turn.error is not None
        if self._hint:
            output.notice(session_hint(self.session.session_id))

    def _text(self, turn: Turn) -> str:
        if self._recorded:
            return turn.answer_text
        return "".join(self._pieces)

    def _frame(self) -> Iterable[Sequence[Segment]]:
        """The lines to show now: all that fit, of the answer those that came last."""
        turn = self.turn
        if turn is None:
            return []
        console = self._beside
        # The last row stays free: leaving it would scroll the first one away.
        rows = max(console.height - 1, 2)
        head = work_lines(turn, self.bodies, console, cognition=self._cognition, now=self._now())
        tree = [_line(console, text) for text in head]
        if text := self._text(turn):
            answer = self._page.show(text, rows)
        else:
            answer = [_line(console, thought) for thought in self._thinking()]
        room = max(rows - len(tree), rows // 2)
        if len(answer) > room:
            more = f"  {signs(console).more} the lines above are shown at the end"
            answer = [_line(console, Text(more[: console.width], style="dim")), *answer[len(answer) - room + 1 :]]
        return [*tree[max(len(tree) + len(answer) - rows, 0) :], *answer]

    def _thinking(self) -> list[Text]:
        if not self._thoughts:
            return []
        words = output.visible(self._thoughts)
        return list(Text(words, style="dim").wrap(self._beside, self._beside.width))[-THOUGHT_LINES:]


class Alongside(_View):
    """Where the answer goes elsewhere or can't be redrawn: it streams to stdout, and stderr tells of the steps.

    On a terminal they are a tree, redrawn until the answer begins and drawn for good at the end; else a line each.

    Args:
        plain: Don't render the answer's Markdown.
        redrawn: Whether stderr is a terminal that can redraw.
    """

    def __init__(self, *, plain: bool, redrawn: bool) -> None:
        super().__init__()
        self._redrawn = redrawn
        self._text = AnswerText(plain=plain, quiet=False)
        self._region = _Region(output.stderr(), self._frame)
        self._told_steps = 0

    def event(self, event: Event) -> None:
        """See `Shown.event`."""
        super().event(event)
        if self._redrawn:
            if not self._text.begun:
                self._region.touch()
        elif note := worth_telling(event, signs(output.stderr())):
            self._text.pause()
            output.notice(note)
        elif isinstance(event.data, StepCompleted | StepFailed | StepSkipped) and not self.wanted:
            self._tell()

    def learn(self, bodies: Mapping[str, str | bytes]) -> None:
        """See `Shown.learn`."""
        super().learn(bodies)
        if not self._redrawn:
            self._tell()

    def _tell(self) -> None:
        """A line for each step that has ended, in their order."""
        turn = self.turn
        if turn is None:
            return
        while self._told_steps < len(turn.steps) and turn.steps[self._told_steps].state != "open":
            step = turn.steps[self._told_steps]
            if step.kind in ANSWERING:
                # The answer is whole: its last line ends before the next one of stderr, also where both go to one file.
                self._text.close()
            else:
                self._text.pause()
            output.notice(step_line(step, self.bodies, signs(output.stderr())))
            self._told_steps += 1

    def delta(self, delta: Delta) -> None:
        """See `Shown.delta`."""
        if delta.kind != "tool_call":
            self._region.close()
            self._text.feed(delta)

    def aside(self) -> AbstractContextManager[None]:
        """See `Shown.aside`."""
        return self._region.hidden()

    def superseded(self, what: Superseded) -> None:
        """See `Shown.superseded`."""
        self._text.again(what)

    def stop(self) -> None:
        """See `Shown.stop`."""
        self._region.close()
        self._text.close()

    def end(self, end: TurnEnd | None) -> None:
        """Draw the tree for good, or say what was used."""
        turn = self.turn
        if turn is None:
            return
        if end is None:
            tell_interrupted(self.seen)
            return
        fill_in(turn, end)
        drawn_with = signs(output.stderr())
        if words := remark(turn, end.text):
            output.notice(f"{drawn_with.more} {words}")
        for source in source_lines(turn):
            output.notice(source)
        if self._redrawn:
            for line in work_lines(turn, self.bodies, output.stderr()):
                output.stderr().print(line, soft_wrap=True)
            output.notice(session_hint(self.session.session_id))
        elif turn.state == "completed" or end.text:
            output.notice(usage_line(turn, self.session.session_id, drawn_with=drawn_with))

    def _frame(self) -> Iterable[Sequence[Segment]]:
        turn, console = self.turn, output.stderr()
        if turn is None:
            return []
        lines = [_line(console, text) for text in work_lines(turn, self.bodies, console, now=wall_clock())]
        return lines[-max(console.height - 1, 2) :]


# ------------------------------------------------------------------ what is redrawn


class _Page:
    """An answer's lines as they will stand there; what is complete is rendered once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = self._open = ""
        self._done: list[list[Segment]] = []
        self._width = 0

    def show(self, text: str, rows: int) -> list[list[Segment]]:
        """The lines of a text that mostly grew since the last time; above the last `rows` they may not be all.

        Args:
            text: The answer so far.
            rows: How many of its last lines can be seen.
        """
        if not text.startswith(self._text) or self._width != self._console.width:
            self._text = self._open = ""
            self._done = []
            self._width = self._console.width
        self._open += text[len(self._text) :]
        self._text = text
        done, self._open = split_blocks(self._open)
        if done.strip():
            self._done += self._render(done)
        lines = list(self._done)
        # A block that is taller than the screen needn't be rendered from its beginning.
        tail = self._open.splitlines()[-max(rows, 1) :] if self._open.count("\n") > 2 * rows else [self._open]
        if self._open.strip():
            lines += self._render("\n".join(tail))
        return lines

    def _render(self, text: str) -> list[list[Segment]]:
        lines = self._console.render_lines(Answer(text, self._console), pad=False)
        return [[Segment("")], *lines] if self._done else lines


class _Lines:
    """Lines that were laid out before, as something rich prints."""

    def __init__(self, lines: Iterable[Sequence[Segment]]) -> None:
        self._lines = list(lines)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """See rich's console protocol."""
        for line in self._lines:
            yield from line
            yield Segment.line()


class _Region:
    """The last lines of a terminal, redrawn at most twenty times a second and gone at the end.

    Args:
        console: A terminal.
        frame: The lines to show now.
    """

    def __init__(self, console: Console, frame: Callable[[], Iterable[Sequence[Segment]]]) -> None:
        self._console = console
        self._frame = frame
        self._live: Live | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._closed = False
        self._failure: OSError | None = None

    def touch(self) -> None:
        """Something changed: show it, at once or within a twentieth of a second."""
        if self._failure is not None:
            raise self._failure
        if self._closed:
            return
        wait = self._due - time.monotonic()
        if wait <= 0:
            self._draw()
        elif self._timer is None or self._timer.when() > asyncio.get_running_loop().time() + wait:
            self._wake_after(wait)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Leave the screen to others for a while."""
        closed, self._closed = self._closed, True
        self._hide()
        try:
            yield
        finally:
            self._closed = closed
            self.touch()

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._closed = True
        self._hide()

    def _hide(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._live is not None:
            live, self._live = self._live, None
            # Whoever closed the terminal has no use for it.
            with suppress(OSError):
                live.stop()

    def _wake_after(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._draw_late)

    def _draw_late(self) -> None:
        self._timer = None
        try:
            self._draw()
        except OSError as exc:
            # The terminal is gone: whoever has something to show next has to know.
            self._failure = exc

    def _draw(self) -> None:
        began = time.monotonic()
        if self._live is None:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
                vertical_overflow="crop",
                get_renderable=lambda: _Lines(self._frame()),
            )
            self._live.start()
        self._console.file.write(BEGIN_FRAME)
        with self._console:
            self._live.refresh()
            # What is typed is echoed over the line's begin, and gone with the next frame.
            self._console.control(Control(ControlType.CARRIAGE_RETURN))
        self._console.file.write(END_FRAME)
        self._console.file.flush()
        # What takes long to draw is drawn less often.
        pause = max(REDRAW_SECONDS, DRAWING_SHARE * (time.monotonic() - began))
        self._due = time.monotonic() + pause
        self._wake_after(max(TICK_SECONDS, pause))


def _line(console: Console, text: Text) -> list[Segment]:
    """One line's segments; it is known to fit."""
    return list(console.render(text, console.options.update(no_wrap=True, overflow="ignore")))[:-1]

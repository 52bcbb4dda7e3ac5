"""How `ask` shows a turn while it happens: in one call as a stream of text, with cognition as a tree beside it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING

from timeline.errors import TimelineError

from . import output

if TYPE_CHECKING:
    from rich.status import Status

    from timeline.cognition.turn import TurnEnd
    from timeline.events import Event
    from timeline.llm.manager import Superseded
    from timeline.looking import Looking
    from timeline.projections.blocks import Turn
    from timeline.providers.base import Delta

    from .markdown import StreamingMarkdown

__all__ = [
    "AnswerText",
    "Direct",
    "Learning",
    "Shown",
    "Watched",
    "fill_in",
    "interrupted_hint",
    "last_events",
    "session_hint",
    "tell_interrupted",
]


CATCH_UP_SECONDS = 1.0
"""How long an interrupted command looks at how it was recorded to end."""


class Shown:
    """One way to show a turn; this one keeps what it needs for the end."""

    told = False
    """Whether the error that ended the turn was shown."""

    def __init__(self) -> None:
        self.seen: list[Event] = []

    @property
    def wanted(self) -> set[str]:
        """Digests of the bodies that it would show if it were told them."""
        return set()

    def learn(self, bodies: Mapping[str, str | bytes]) -> None:
        """Bodies that were wanted."""

    def event(self, event: Event) -> None:
        """An event was committed."""
        self.seen.append(event)

    def delta(self, delta: Delta) -> None:
        """A piece of what a model says came."""

    def superseded(self, what: Superseded) -> None:
        """What came of the answer so far no longer counts."""

    def aside(self) -> AbstractContextManager[None]:
        """While this lasts, the terminal belongs to someone else: who asks the user something, say."""
        return nullcontext()

    def stop(self) -> None:
        """Nothing more comes, for whatever reason: give the terminal back."""

    def end(self, end: TurnEnd | None) -> None:
        """The turn has ended; None if it was broken off."""


class Learning(Shown):
    """Wants to know the arguments and results of tools."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: dict[str, str | bytes] = {}
        self._wanted: set[str] = set()

    def event(self, event: Event) -> None:
        """See `Shown.event`."""
        super().event(event)
        if event.type.startswith("tool."):
            refs = (getattr(event.data, name, None) for name in ("arguments", "result"))
            self._wanted.update(ref for ref in refs if ref is not None and ref not in self.bodies)

    @property
    def wanted(self) -> set[str]:
        """See `Shown.wanted`."""
        return self._wanted

    def learn(self, bodies: Mapping[str, str | bytes]) -> None:
        """See `Shown.learn`; what isn't among them is nowhere."""
        self.bodies.update(bodies)
        self._wanted = set()


class Watched(Shown):
    """A turn for people: as its first event says that it is worked out.

    Args:
        plain: Don't render Markdown.
        quiet: The answer, and nothing beside it.
        cognition: Show the steps of a turn that has some.
        whole: Show the answer once it is known to be the last one: a program reads it, and takes back nothing.
    """

    def __init__(self, *, plain: bool, quiet: bool, cognition: bool = True, whole: bool = False) -> None:
        super().__init__()
        self._whole = whole
        self._kept: list[Delta] = []
        self._options = {"plain": plain, "quiet": quiet}
        self._cognition = cognition and not quiet
        self._view: Shown = Direct(**self._options)
        self._answers = True

    @property
    def told(self) -> bool:  # type: ignore[override]
        """See `Shown.told`."""
        return self._view.told

    @property
    def wanted(self) -> set[str]:
        """See `Shown.wanted`."""
        return self._view.wanted

    def learn(self, bodies: Mapping[str, str | bytes]) -> None:
        """See `Shown.learn`."""
        self._view.learn(bodies)

    def event(self, event: Event) -> None:
        """Choose how to show the turn when it begins; know which step speaks."""
        from timeline.events import StepCompleted, StepFailed, StepStarted, TurnStarted
        from timeline.projections.drawn import ANSWERING

        super().event(event)
        match event.data:
            case TurnStarted(mode="pipeline") if self._cognition:
                self._view = self._with_cognition()
                for early in self.seen[:-1]:
                    self._view.event(early)
            case StepStarted(kind):
                self._answers = kind in ANSWERING
            case StepCompleted() | StepFailed():
                self._release()
        self._view.event(event)

    def _with_cognition(self) -> Shown:
        from .live import Alongside, Together

        plain = self._options["plain"]
        redrawn = sys.stderr.isatty() and output.stderr().is_interactive and not output.stderr().is_dumb_terminal
        if redrawn and not plain and sys.stdout.isatty() and _same_screen():
            return Together(output.stderr(), output.stdout())
        return Alongside(plain=plain, redrawn=redrawn)

    def delta(self, delta: Delta) -> None:
        """Show what the answering step says, not what others say among themselves."""
        if not self._answers:
            return
        if self._whole and delta.kind == "text":
            self._kept.append(delta)
        else:
            self._view.delta(delta)

    def _release(self) -> None:
        """Show what was kept back: nothing comes in its place."""
        for delta in self._kept:
            self._view.delta(delta)
        self._kept.clear()

    def superseded(self, what: Superseded) -> None:
        """See `Shown.superseded`."""
        if self._answers:
            self._kept.clear()
            self._view.superseded(what)

    def aside(self) -> AbstractContextManager[None]:
        """See `Shown.aside`."""
        return self._view.aside()

    def stop(self) -> None:
        """See `Shown.stop`."""
        self._release()
        self._view.stop()

    def end(self, end: TurnEnd | None) -> None:
        """See `Shown.end`."""
        self._view.end(end)


class Direct(Shown):
    """The answer's text on stdout; waiting, reasoning and the usage line on stderr."""

    def __init__(self, *, plain: bool, quiet: bool) -> None:
        super().__init__()
        self._quiet = quiet
        self._text = AnswerText(plain=plain, quiet=quiet)
        self._waiting: Status | None = None

    def event(self, event: Event) -> None:
        """Show who is asked until the answer begins, and what keeps it waiting."""
        from timeline.events import ChunkReceived, RequestSent

        super().event(event)
        if self._quiet or isinstance(event.data, ChunkReceived):
            return
        from .signs import signs
        from .tree import worth_telling

        if note := worth_telling(event, signs(output.stderr())):
            self._text.pause()
            output.notice(note)
        if isinstance(event.data, RequestSent) and output.stderr().is_terminal:
            from rich.text import Text

            self._stop_waiting()
            name = output.harmless(f"{event.data.provider}:{event.data.model}", output.stderr())
            self._waiting = output.stderr().status(Text(name, style="dim"))
            self._waiting.start()

    def delta(self, delta: Delta) -> None:
        """See `Shown.delta`."""
        if delta.kind != "tool_call":
            self._stop_waiting()
            self._text.feed(delta)

    def superseded(self, what: Superseded) -> None:
        """See `Shown.superseded`."""
        self._text.again(what)

    def stop(self) -> None:
        """See `Shown.stop`."""
        self._stop_waiting()
        self._text.close()

    def end(self, end: TurnEnd | None) -> None:
        """Say what it used; of a call that gave nothing, the error says it all."""
        if self._quiet or (end is not None and end.error is not None and not end.text):
            return
        if end is None:
            tell_interrupted(self.seen)
            return
        from timeline.projections.blocks import fold

        from .blocks import remark, source_lines, usage_line
        from .signs import signs

        session = fold(self.seen)
        turn, drawn_with = fill_in(session.turns[-1], end), signs(output.stderr())
        if words := remark(turn, end.text):
            output.notice(f"{drawn_with.more} {words}")
        for line in source_lines(turn):
            output.notice(line)
        output.notice(usage_line(turn, session.session_id, drawn_with=drawn_with))

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.stop()
            self._waiting = None


class AnswerText:
    """An answer on stdout as it comes, Markdown on a terminal; reasoning on stderr."""

    def __init__(self, *, plain: bool, quiet: bool) -> None:
        self._quiet = quiet
        self._last = "\n"
        self._reasoning = False
        self.begun = False
        self._markdown: StreamingMarkdown | None = None
        if sys.stdout.isatty() and not plain:
            from .markdown import StreamingMarkdown

            self._markdown = StreamingMarkdown(output.stdout())

    def feed(self, delta: Delta) -> None:
        """Show more."""
        self.begun = True
        if delta.kind == "reasoning":
            if not self._quiet:
                text = output.harmless(delta.text, output.stderr())
                output.stderr().print(text, style="dim", end="", soft_wrap=True)
                self._reasoning = True
            return
        self._end_reasoning()
        if self._markdown is not None:
            self._markdown.feed(output.harmless(delta.text, output.stdout()))
            return
        sys.stdout.write(output.harmless(delta.text, output.stdout()) if sys.stdout.isatty() else delta.text)
        sys.stdout.flush()
        self._last = delta.text[-1:] or self._last

    def again(self, what: Superseded) -> None:
        """What was shown can't be taken back; say that it begins anew."""
        self.close()
        if what.reason == "misfit":
            output.notice("that answer did not fit the schema: it is asked for once more")
        else:
            output.notice("that answer broke off: it begins anew")

    def pause(self) -> None:
        """End the line that is open on a screen, so that stderr has one of its own."""
        if sys.stdout.isatty():
            self.close()

    def close(self) -> None:
        """End what is open."""
        self._end_reasoning()
        if self._markdown is not None:
            self._markdown.close()
        elif self._last != "\n":
            self._last = "\n"
            sys.stdout.write("\n")
            sys.stdout.flush()

    def _end_reasoning(self) -> None:
        if self._reasoning:
            output.stderr().print()
            self._reasoning = False


def fill_in(turn: Turn, end: TurnEnd | None) -> Turn:
    """What a turn's end tells of its answer and its own events don't: those of a private one, or of one read again."""
    if turn.answer is not None and end is not None:
        turn.answer.sources = turn.answer.sources or end.sources
        turn.answer.explanation = turn.answer.explanation or end.explanation
    return turn


async def last_events(timeline: Looking, seen: Sequence[Event]) -> list[Event]:
    """How an interrupted turn was recorded to end, behind what was seen of it; not at any price."""
    if seen:
        with suppress(TimelineError, TimeoutError):
            async with asyncio.timeout(CATCH_UP_SECONDS):
                return await timeline.since(seen[-1])
    return []


def tell_interrupted(seen: Sequence[Event]) -> None:
    """After Ctrl-C, say what it used and how to look at what there is: the events so far are those of one turn."""
    from .signs import signs

    if hint := interrupted_hint(seen):
        from timeline.projections.blocks import fold

        from .blocks import usage_line

        turn = fold(seen).turns[-1]
        if any(attempt.usage is not None for step in turn.steps for attempt in step.attempts):
            # The hint names the session.
            output.notice(usage_line(turn, drawn_with=signs(output.stderr())))
        output.notice(hint)


def interrupted_hint(seen: Sequence[Event]) -> str | None:
    """How to look at a turn that Ctrl-C ended; None where it ended otherwise."""
    from timeline.events import TurnInterrupted

    from .signs import signs

    last = seen[-1] if seen else None
    if last is not None and isinstance(last.data, TurnInterrupted) and last.data.reason == "sigint":
        return f"{signs(output.stderr()).failed} interrupted and recorded: timeline replay {last.session_id[:13]}"
    return None


def session_hint(session_id: str) -> str:
    """How to go on with it: its time alone, commands take a unique prefix."""
    return f"session {session_id[:13]}"


def _same_screen() -> bool:
    """Whether stdout and stderr are one terminal."""
    return os.fstat(sys.stdout.fileno()).st_rdev == os.fstat(sys.stderr.fileno()).st_rdev

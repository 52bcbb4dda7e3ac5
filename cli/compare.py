"""`timeline ask -m a -m b`: several models asked at once, shown side by side, and what each took."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import typer

from timeline.errors import StoreError, TimelineError

from . import output
from .agreeing import agreed
from .shown import fill_in, interrupted_hint, last_events
from .signs import signs

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from timeline.cognition.turn import TurnEnd
    from timeline.events import Event
    from timeline.projections.blocks import Turn

__all__ = ["compare"]

NARROWEST = 30
"""Columns of a terminal below which answers stand one after the other."""
REDRAWS_PER_SECOND = 10


class _Answer:
    """What one model says, so far."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.text = ""
        self.events: list[Event] = []
        self.error: TimelineError | None = None
        self.over = False
        self._end: TurnEnd | None = None
        self._speaks = True

    def take(self, item: object) -> None:
        """The next item of `Timeline.ask`."""
        from timeline.cognition.turn import TurnEnd
        from timeline.events import Event, StepStarted
        from timeline.providers.base import Delta

        if isinstance(item, Delta):
            if item.kind == "text" and self._speaks:
                self.text += item.text
        elif isinstance(item, TurnEnd):
            self._end, self.error = item, item.error
        elif isinstance(item, Event):
            self.events.append(item)
            if isinstance(item.data, StepStarted):
                # What other steps say among themselves is no answer.
                self._speaks = item.data.kind in ("answer", "format")
        elif self._speaks:
            self.text = ""

    def turn(self) -> Turn | None:
        """Its turn as recorded, and as its end tells it; None if nothing was."""
        from timeline.projections.blocks import fold

        turns = fold(self.events).turns
        return fill_in(turns[-1], self._end) if turns else None

    @property
    def session_id(self) -> str | None:
        return self.events[0].session_id if self.events else None


def compare(
    prompt: str,
    models: Sequence[str],
    *,
    plain: bool,
    quiet: bool,
    as_json: bool,
    as_events: bool,
    offline: bool,
    yes: bool,
    **options: object,
) -> int:
    """Ask several models the same at once.

    Args:
        prompt: What to ask.
        models: Whom.
        plain: Don't render Markdown.
        quiet: No headers and no comparison.
        as_json: One object at the end.
        as_events: A line an event.
        offline: Only models on this machine.
        yes: Tools may change things. Without it they may not: nobody is asked while several speak.
        options: Of `Timeline.ask`.

    Returns:
        The exit code: that of the first model, in their order, that failed.
    """
    from .app import EXIT_INTERRUPTED, wait_for

    answers = [_Answer(model) for model in models]
    view: _View
    if as_json or as_events:
        view = _Events(answers) if as_events else _View(answers)
    elif output.stdout().is_terminal and output.stdout().width >= NARROWEST * len(answers):
        view = _SideBySide(answers, plain=plain)
    else:
        view = _InTurn(answers, quiet=quiet)
    try:
        wait_for(_ask_all(prompt, answers, view, offline=offline, yes=yes, quiet=quiet, options=options))
    except typer.Exit as stop:
        if stop.exit_code == EXIT_INTERRUPTED and not as_json:
            _tell(answers, compared=not (quiet or as_events))
        raise
    if as_json:
        output.emit_json({"answers": [_object(answer) for answer in answers]})
    else:
        _tell(answers, compared=not (quiet or as_events))
    return next((answer.error.exit_code for answer in answers if answer.error is not None), 0)


async def _ask_all(
    prompt: str,
    answers: Sequence[_Answer],
    view: _View,
    *,
    offline: bool,
    yes: bool,
    quiet: bool,
    options: dict[str, Any],
) -> None:
    from timeline.config import load
    from timeline.providers.pool import Providers
    from timeline.runtime import Timeline

    from .progress import Fetching

    config = load(overrides={"offline": True} if offline else None)
    for answer in answers:
        # A name that means nothing is said before anybody is asked.
        config.parse_choice(answer.model)
    with Fetching(quiet=quiet) as fetching:
        async with (
            Providers(config, fetching) as providers,
            Timeline.open(providers=providers, confirm=agreed if yes else None) as timeline,
        ):

            def ask(model: str) -> AsyncGenerator[object, None]:
                return timeline.ask(prompt, model=model, **options)

            # The first one's session begins last, so that it is the one that --continue goes on with.
            tasks: list[asyncio.Task[None]] = []
            before: asyncio.Event | None = None
            for answer in reversed(answers):
                begun = asyncio.Event()
                tasks.append(asyncio.create_task(_listen(answer, ask, view, before, begun)))
                before = begun
            try:
                view.start()
                await asyncio.gather(*tasks)
            except asyncio.CancelledError as exc:
                await _stop(tasks, *exc.args)
                ends = await asyncio.gather(*(last_events(timeline, answer.events) for answer in answers))
                for answer, end in zip(answers, ends, strict=True):
                    for event in end:
                        answer.take(event)
                        view.show(answer, event)
                raise
            finally:
                await _stop(tasks, "closed")
                view.stop()


async def _stop(tasks: Sequence[asyncio.Task[None]], *why: str) -> None:
    for task in tasks:
        task.cancel(*why)
    await asyncio.gather(*tasks, return_exceptions=True)


async def _listen(
    answer: _Answer,
    ask: Callable[[str], AsyncGenerator[object, None]],
    view: _View,
    before: asyncio.Event | None,
    begun: asyncio.Event,
) -> None:
    try:
        if before is not None:
            await before.wait()
        async with aclosing(ask(answer.model)) as items:
            async for item in items:
                begun.set()
                answer.take(item)
                view.show(answer, item)
    except StoreError:
        raise
    except TimelineError as exc:
        answer.error = exc
    finally:
        begun.set()
        answer.over = True
    view.show(answer, None)


# ------------------------------------------------------------------ what is shown


class _View:
    """One way to show the answers; this one shows nothing before the end."""

    def __init__(self, answers: Sequence[_Answer]) -> None:
        self._answers = answers

    def start(self) -> None:
        """They are being asked."""

    def show(self, answer: _Answer, item: object) -> None:
        """Something came of one of them; None for its end."""

    def stop(self) -> None:
        """Nothing more comes, for whatever reason."""


class _Events(_View):
    def show(self, answer: _Answer, item: object) -> None:  # noqa: ARG002
        from timeline.events import Event

        from .shapes import event_object

        if isinstance(item, Event):
            output.emit_json(event_object(item), indent=0)


class _InTurn(_View):
    """One after the other: the first while it comes, each of the others when those before it are whole."""

    def __init__(self, answers: Sequence[_Answer], *, quiet: bool) -> None:
        super().__init__(answers)
        self._quiet = quiet
        self._current = 0
        self._written = 0
        self._apart = False
        """Whether a line stays empty before the next words: they are another answer's."""

    def start(self) -> None:
        self._head()

    def show(self, answer: _Answer, item: object) -> None:
        if self._current < len(self._answers) and answer is not self._answers[self._current] and item is not None:
            return
        while self._current < len(self._answers):
            current = self._answers[self._current]
            # What was taken back can't be unsaid here.
            text = current.text[self._written :]
            if text and self._apart:
                sys.stdout.write("\n")
                self._apart = False
            sys.stdout.write(output.harmless(text, output.stdout()))
            self._written += len(text)
            if not current.over:
                break
            if self._written:
                sys.stdout.write("" if current.text.endswith("\n") else "\n")
                self._apart = True
            self._current, self._written = self._current + 1, 0
            if self._current < len(self._answers):
                if self._apart and output.stdout().is_terminal:
                    # There the name of the next stands below the line.
                    sys.stdout.write("\n")
                    self._apart = False
                sys.stdout.flush()
                self._head()
        sys.stdout.flush()

    def _head(self) -> None:
        current = self._answers[self._current]
        # Of one that failed at once, what went wrong tells the name.
        if not self._quiet and (current.text or not current.over):
            output.notice(f"{signs(output.stderr()).asked} {self._answers[self._current].model}")


class _SideBySide(_View):
    """A column each, of which the end is seen while it comes; all of it when all are whole."""

    def __init__(self, answers: Sequence[_Answer], *, plain: bool) -> None:
        super().__init__(answers)
        self._plain = plain
        self._live: Live | None = None

    def start(self) -> None:
        from rich.live import Live

        self._live = Live(
            console=output.stdout(),
            get_renderable=self._ends,
            refresh_per_second=REDRAWS_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def stop(self) -> None:
        if self._live is None:
            return
        self._live.stop()
        self._live = None
        output.stdout().print(self._columns([self._whole(answer) for answer in self._answers]))

    def _columns(self, bodies: Sequence[RenderableType]) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, expand=True, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False)
        for answer in self._answers:
            name = Text(output.harmless(answer.model, output.stdout()), style="bold", overflow="fold")
            table.add_column(name, ratio=1, overflow="fold")
        table.add_row(*bodies)
        return table

    def _whole(self, answer: _Answer) -> RenderableType:
        from rich.text import Text

        from .blocks import Answer

        if self._plain:
            return Text(output.harmless(answer.text, output.stdout()))
        return Answer(answer.text, output.stdout())

    def _ends(self) -> RenderableType:
        """The last lines of each, as many as fit."""
        from rich.text import Text

        console = output.stdout()
        width = max(console.width // len(self._answers) - 2, 1)
        height = max(console.height - 4, 1)
        bodies: list[RenderableType] = []
        for answer in self._answers:
            # More than fills the screen need not be wrapped to see its end.
            text = Text(output.harmless(answer.text[-width * height * 2 :], console))
            lines = text.wrap(console, width)[-height:]
            bodies.append(Text("\n").join(lines) if answer.text else Text("…", style="dim"))
        return self._columns(bodies)


# ------------------------------------------------------------------ what each took


def _object(answer: _Answer) -> dict[str, Any]:
    from .shapes import turn_object

    turn = answer.turn()
    value: dict[str, Any] = {"asked_for": answer.model, "answer": answer.text}
    if turn is not None and answer.session_id is not None:
        # A private turn's text is not in its events.
        value = {**value, **turn_object(answer.session_id, turn, {}), "answer": answer.text}
    if answer.error is not None:
        value["error"] = output.error_object(answer.error, value.get("error"))
    return value


def _tell(answers: Sequence[_Answer], *, compared: bool) -> None:
    """Say what went wrong, and what each took."""
    for answer in answers:
        if answer.error is not None:
            output.notice(f"{answer.model} gave {'only a part of an answer' if answer.text else 'no answer'}:")
            output.fail(answer.error)
    from .blocks import remark, source_lines

    more = signs(output.stderr()).more
    for answer in answers if compared else ():
        turn = answer.turn()
        if turn is None:
            continue
        if answer.error is None and (words := remark(turn, answer.text)):
            output.notice(f"{more} {answer.model}: {words}")
        if pages := source_lines(turn):
            output.notice(f"{more} {answer.model}: its sources")
            for page in pages:
                output.notice(page)
    # Where nobody was asked there is nothing to compare.
    for line in _comparison(answers) if compared and any(answer.events for answer in answers) else ():
        output.notice(line)
    for answer in answers if compared else ():
        if hint := interrupted_hint(answer.events):
            output.notice(hint)


def _comparison(answers: Sequence[_Answer]) -> list[str]:
    """A line each: tokens, cost, time, and the session to go on with."""
    from .tree import cost_words, tokens_words

    rows = [("model", "tokens", "cost", "first", "time", "session")]
    for answer in answers:
        turn = answer.turn()
        attempts = [attempt for step in turn.steps for attempt in step.attempts] if turn is not None else []
        tokens = tokens_words(attempts, signs(output.stderr()))
        first = attempts[-1].time_to_first_token_us if attempts else None
        took = turn.duration_us if turn is not None else None
        rows.append(
            (
                answer.model,
                tokens or "-",
                cost_words(attempts) if tokens else "-",
                output.seconds(first) if first is not None else "-",
                output.seconds(took) if took is not None else "-",
                (answer.session_id or "-")[:13],
            )
        )
    return output.columns(rows, right=(1, 2, 3, 4))

"""How a turn's cognition is drawn: a line of totals, a branch a step, and never a line wider than the screen.

Live and replayed turns are drawn by this one function, so that they end up the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
from msgspec import Struct
from rich.cells import cell_len
from rich.text import Text

from timeline import events as e
from timeline.events import Event
from timeline.projections.blocks import Attempt, Note, Step, ToolUse, Turn

from . import output
from .signs import Signs

__all__ = ["cognition_lines", "cost_words", "step_line", "tokens_words", "worth_telling"]

Bodies = Mapping[str, str | bytes]

INDENT = 12
"""Cells before what a step says: two, the branch, the kind."""
LINE_CELLS = 160
"""Most cells of a step's line where there is no screen that limits it."""
READ_CHARACTERS = 2000
NARROWEST = 20
SHORTEST_MODEL = 10
TOLD_FROM_US = 1_000_000
"""A shorter wait needs no words while it lasts."""
NOT_RECORDED = "[not recorded]"
SHOWN_FROM_US = 100_000
"""A step that asked nobody says how long it took from here on."""


class _Pen(Struct, frozen=True):
    """What all lines are drawn with."""

    bodies: Bodies
    width: int
    signs: Signs
    now: int | None
    running: bool

    @property
    def spinner(self) -> str:
        """The picture of this moment."""
        frames = self.signs.spinner
        return frames[(self.now or 0) // 100_000 % len(frames)]

    def cut(self, text: Text, width: int | None = None) -> Text:
        """At most so many cells of it, the last of them saying that there is more."""
        room = self.width if width is None else width
        if text.cell_len > room:
            more = self.signs.more
            text.truncate(max(room - len(more), 0))
            text.append(more[: max(room, 0)])
        return text

    def words(self, text: str, width: int) -> str:
        """Text of others on one line, at most so many cells of it, and no commands to the terminal."""
        # Of a long text the head is enough: the rest can't be seen.
        line = output.visible(" ".join(text[:READ_CHARACTERS].split()))
        return line if cell_len(line) <= width else self.cut(Text(line), width).plain


def cognition_lines(turn: Turn, bodies: Bodies, *, width: int, signs: Signs, now: int | None = None) -> list[Text]:
    """The tree of a turn.

    Args:
        turn: What to draw.
        bodies: Arguments and results of its tools by digest.
        width: Cells of a line.
        signs: What to draw with.
        now: µs UTC, of a turn that is watched while it runs.
    """
    pen = _Pen(bodies, max(width, NARROWEST), signs, now if turn.state == "open" else None, turn.state == "open")
    lines = [pen.cut(_header(turn, pen))]
    for step in turn.steps:
        lines += _branch(step, pen, last=step is turn.steps[-1])
    return lines


def step_line(step: Step, bodies: Bodies, signs: Signs) -> str:
    """A step on one line, for where no tree can be drawn; what it waited for was told before."""
    pen = _Pen(bodies, LINE_CELLS, signs, None, running=False)
    words = [*_fields(step, pen), *_said(step, pen, LINE_CELLS)]
    return pen.cut(Text(f"{step.kind}: ").append_text(Text("  ").join(words))).plain


def worth_telling(event: Event, signs: Signs) -> str | None:
    """What keeps a call waiting, sends it elsewhere, cuts its prompt or comes near a budget, in a sentence; None of all else."""
    match event.data:
        case (e.RateLimitWaited(waited_us=microseconds) | e.CallRetryScheduled(delay_us=microseconds)) as note:
            return _note(note, signs) if microseconds >= TOLD_FROM_US else None
        case e.CallRerouted() | e.BudgetAlerted() | e.BudgetExceeded(action="warn" | "fallback") as note:
            return _note(note, signs)
        case e.ResponseCompleted(cut_from=int(tokens)) as done:
            return _cut(tokens, done.usage)
    return None


# ------------------------------------------------------------------ numbers


def tokens_words(attempts: Sequence[Attempt], signs: Signs) -> str:
    """Tokens in and out, `~` where one of the numbers is an estimate; empty where none are known."""
    used = [attempt for attempt in attempts if attempt.usage is not None]
    if not used:
        return ""
    about = "~" if any(attempt.usage_source == "estimated" for attempt in used) else ""
    counts = [attempt.usage for attempt in used if attempt.usage]
    total, output_ = sum(usage.total_input for usage in counts), sum(usage.output for usage in counts)
    return f"{about}{total}{signs.up} {about}{output_}{signs.down}"


def cost_words(attempts: Sequence[Attempt]) -> str:
    """What it cost: an amount, `free`, or that it isn't known."""
    costs = [attempt.cost for attempt in attempts if attempt.cost is not None]
    if any(cost.state == "unpriced" for cost in costs):
        return "cost ?"
    if costs and all(cost.state == "free" for cost in costs):
        return "free"
    return output.usd(sum(cost.nano_usd or 0 for cost in costs))


# ------------------------------------------------------------------ the first line


def _header(turn: Turn, pen: _Pen) -> Text:
    attempts = [attempt for step in turn.steps for attempt in step.attempts]
    head = Text.assemble((f"{pen.signs.cognition} Cognition", "bold magenta"))
    words = []
    if turn.state in ("failed", "interrupted"):
        words.append(Text(pen.signs.failed, style="red"))
    duration = turn.duration_us if pen.now is None else max(pen.now - turn.started_at, 0)
    if duration is not None:
        words.append(Text(output.seconds(duration)))
    if tokens := tokens_words(attempts, pen.signs):
        words.append(Text(tokens))
        words.append(Text(cost_words(attempts)))
    elif any(attempt.source_call for attempt in attempts):
        words.append(Text("cached"))
    if any(step.degraded for step in turn.steps):
        words.append(Text("degraded", style="yellow"))
    for word in words:
        head.append("  ").append_text(word)
    return head


# ------------------------------------------------------------------ a step


def _branch(step: Step, pen: _Pen, *, last: bool) -> Iterator[Text]:
    """A step's lines: what it is, what it decided or ran, and what else happened."""
    room = pen.width - INDENT
    begin = Text.assemble("  ", (pen.signs.last if last else pen.signs.branch, "dim"), " ")
    begin.append(f"{step.kind:<6}  ", style="dim" if step.state == "skipped" else "cyan")
    below = Text.assemble("  ", (" " if last else pen.signs.bar, "dim"), " " * (INDENT - 3))
    fields, said = Text("  ").join(_fields(step, pen, room)), list(_said(step, pen, LINE_CELLS))
    # On one line if nothing has to be cut for it.
    together = Text(pen.signs.dot if step.tools else "  ").join(said)
    whole = Text.assemble(fields, "  " if fields and said else "", together)
    if whole.cell_len <= room:
        rows = [whole]
    else:
        rows = [fields] if fields else []
        rows += _said(step, pen, room)
    for number, row in enumerate([*rows, *_notes(step, pen)]):
        line = Text.assemble(below if number else begin, pen.cut(row, room))
        line.rstrip()
        yield line


def _fields(step: Step, pen: _Pen, room: int = LINE_CELLS) -> list[Text]:
    """How it goes, who was asked, how long it took, tokens and cost; a model's name gives way where it is too much."""
    asked = step.attempts[-1] if step.attempts else None
    mark, numbers = _mark(step.state, pen), []
    took = _took(step, asked, pen)
    if took is not None:
        numbers.append(Text(output.seconds(took)))
    if tokens := tokens_words(step.attempts, pen.signs):
        numbers.append(Text(tokens))
        if (cost := cost_words(step.attempts)) != "free":
            numbers.append(Text(cost))
    if asked is None:
        # Tools have marks of their own.
        return [mark, *numbers] if mark and (numbers or not step.tools) else numbers
    if asked.source_call is not None:
        saved = f" (saved {output.usd(asked.saved_nano_usd)})" if asked.saved_nano_usd else ""
        numbers.append(Text(f"cached{saved}", style="green"))
    beside = sum(word.cell_len + 2 for word in (mark, *numbers))
    name = f"{asked.provider}:{asked.model}" if asked.provider or asked.model else NOT_RECORDED
    name = pen.words(name, max(room - beside, SHORTEST_MODEL))
    return [Text.assemble(mark, " " if mark else "", name), *numbers]


def _mark(state: str, pen: _Pen) -> Text:
    """The sign of what runs or failed; what has no end, in a turn that has one, was interrupted."""
    if state == "failed" or (state == "open" and not pen.running):
        return Text(pen.signs.failed, style="red")
    if state == "open":
        return Text(pen.spinner if pen.now is not None else pen.signs.more, style="magenta")
    return Text()


def _took(step: Step, asked: Attempt | None, pen: _Pen) -> int | None:
    """µs to show for a step; one that asked nobody has to have taken a while."""
    if step.state == "open" and pen.now is not None:
        return max(pen.now - step.started_at, 0)
    if asked is None:
        return step.duration_us if (step.duration_us or 0) >= SHOWN_FROM_US else None
    return asked.duration_us if step.duration_us is None else step.duration_us


def _said(step: Step, pen: _Pen, room: int) -> Iterator[Text]:
    """What a step decided, ran, or failed at."""
    if step.state == "skipped":
        yield Text(pen.words(f"skipped: {step.reason or ''}", room), style="dim")
        return
    if step.decision is not None and (decided := _decision(step.decision)):
        yield Text(pen.words(decided, room))
    for use in step.tools:
        yield _tool(use, pen, room)
    if step.degraded:
        yield Text(pen.words(f"degraded: {step.reason}" if step.reason else "degraded", room), style="yellow")
    elif step.reason and step.kind != "route":
        yield Text(pen.words(step.reason, room), style="dim")
    if step.error is not None:
        yield Text(pen.words(step.error.message, room), style="red")


def _decision(decision: Mapping[str, object]) -> str:
    """What a route decided: `tools: calculator, clock (low)`; of another step nothing."""
    names, complexity = decision.get("tools"), decision.get("complexity")
    if not isinstance(names, list | tuple):
        return ""
    chosen = f"tools: {', '.join(map(str, names))}" if names else "no tools"
    return f"{chosen} ({complexity})" if complexity else chosen


# ------------------------------------------------------------------ a tool


def _tool(use: ToolUse, pen: _Pen, room: int) -> Text:
    """One run: `calculator(0.15*240) = 36`. What is too long is cut, arguments before the result."""
    mark = _mark(use.state, pen)
    line = Text.assemble(mark, " " if mark else "", style="red" if use.error else "")
    line.append(pen.words(use.name or NOT_RECORDED, room // 2))
    ends = ": " if use.error else " = "
    tail = use.error.message if use.error else _body(pen.bodies, use.result_ref)
    left = room - line.cell_len - len("()") - (len(ends) if tail is not None else 0)
    given = pen.words(_arguments(use, pen), LINE_CELLS)
    if tail is None:
        return line.append(f"({pen.words(given, left)})")
    # A calculator says what it was asked, as a model is told nothing else of it: 12*7 = 84.
    tail = pen.words(tail, LINE_CELLS).removeprefix(f"{given} ").removeprefix("= ")
    given = pen.words(given, max(left - cell_len(tail), left // 2))
    return line.append(f"({given}){ends}{pen.words(tail, left - cell_len(given))}")


def _arguments(use: ToolUse, pen: _Pen) -> str:
    """The arguments as one would type them; of a single one its value alone."""
    body = _body(pen.bodies, use.arguments_ref)
    if body is None:
        return pen.signs.more
    try:
        given = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return body
    if not isinstance(given, dict):
        return body
    values = [value if isinstance(value, str) else msgspec.json.encode(value).decode() for value in given.values()]
    if len(values) == 1:
        return values[0]
    return ", ".join(f"{name}={value}" for name, value in zip(given, values, strict=True))


def _body(bodies: Bodies, ref: str | None) -> str | None:
    body = bodies.get(ref or "")
    return f"[{len(body)} bytes]" if isinstance(body, bytes) else body


# ------------------------------------------------------------------ what else happened


def _notes(step: Step, pen: _Pen) -> list[Text]:
    """Waits, retries, reroutes, budgets, text that was taken back, prompts that were cut: a line each."""
    room = pen.width - INDENT
    notes = [Text(pen.words(_note(note, pen.signs), room), style="yellow") for note in step.notes]
    asking = any(attempt.state == "open" for attempt in step.attempts)
    if step.state == "open" and pen.running and not asking and notes and isinstance(step.notes[-1], e.RateLimitWaited):
        # It is told when it begins.
        notes[-1].append(f" {pen.signs.more}")
    for attempt in step.attempts:
        if attempt.superseded:
            words = f"taken back: {attempt.provider}:{attempt.model} had said {attempt.text!r}"
            notes.append(Text(pen.words(words, room), style="yellow"))
        if attempt.cut_from is not None and attempt.usage is not None:
            notes.append(Text(pen.words(_cut(attempt.cut_from, attempt.usage), room), style="yellow"))
    return notes


def _cut(tokens: int, usage: e.Usage) -> str:
    return f"the prompt was cut to {usage.total_input:,} of about {tokens:,} tokens: shorten it"


def _note(note: Note, signs: Signs) -> str:
    match note:
        case e.RateLimitWaited():
            return f"waited {output.seconds(note.waited_us)} for {note.provider}'s {note.limit} limit"
        case e.CallRetryScheduled():
            return f"retry {note.attempt + 1} after {output.seconds(note.delay_us)}: {note.reason}"
        case e.CallRerouted():
            return f"{note.source} {signs.arrow} {note.target}: {note.reason}"
        case e.BudgetAlerted():
            limit = _amount(note.limit, note.unit)
            # What is spent, as `timeline budget` has it; the threshold was passed on the way there.
            percent = max(note.spent * 100 // note.limit if note.limit else 0, note.threshold_percent)
            return f"budget {note.budget}: {percent} % of {limit} ({note.window})"
        case e.BudgetExceeded():
            passed = "passed" if note.spent > note.limit else "may be passed"
            done = {"block": "refused", "warn": passed, "fallback": "avoided with another model"}[note.action]
            held = f", {_amount(note.reserved, note.unit)} reserved" if note.reserved else ""
            more = "" if note.requested is None else f", up to {_amount(note.requested, note.unit)} more"
            limit, spent = _amount(note.limit, note.unit), _amount(note.spent, note.unit)
            return f"budget {note.budget} of {limit} {done}: {spent} used{held}{more} ({note.window})"


def _amount(value: int, unit: str) -> str:
    return f"{value:,} tokens" if unit == "tokens" else output.usd(value, places=4)

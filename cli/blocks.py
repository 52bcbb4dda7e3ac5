"""A turn as people see it: what was asked, how it was worked out, the answer, and how it ended."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.text import Text

from timeline.projections.blocks import Turn
from timeline.projections.drawn import UNDER

from . import output
from .signs import ASCII, UNICODE, Signs, signs, to_ascii
from .tree import cognition_lines, cost_words, tokens_words

__all__ = [
    "Answer",
    "draw_question",
    "draw_reply",
    "draw_turn",
    "play_turn",
    "remark",
    "source_lines",
    "usage_line",
    "work_lines",
]

NOT_RECORDED = "[not recorded]"
INTERRUPTED = {
    "sigint": "interrupted with Ctrl-C",
    "closed": "stopped: its output was closed",
    "abandoned": "abandoned: its process ended without warning",
}


class Answer:
    """An answer's Markdown, made harmless; its bullets and rules in ASCII where nothing else will do."""

    def __init__(self, text: str, console: Console) -> None:
        # With a parser and a highlighter, which whoever writes into a file can do without.
        from rich.markdown import Markdown

        self._markdown = Markdown(output.harmless(text, console))
        self._ascii = signs(console) is ASCII

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """See rich's console protocol."""
        for segment in console.render(self._markdown, options):
            text = to_ascii(segment.text) if self._ascii and not segment.control else segment.text
            yield Segment(text, segment.style, segment.control)


def usage_line(turn: Turn, session_id: str | None = None, *, drawn_with: Signs = UNICODE) -> str:
    """What a turn used: model, time, tokens in and out, cost, and the session to go on with."""
    attempts = [attempt for step in turn.steps for attempt in step.attempts]
    parts = []
    if attempts:
        parts.append(f"{attempts[-1].provider}:{attempts[-1].model}")
    duration = turn.duration_us if turn.duration_us is not None else attempts[-1].duration_us if attempts else None
    if duration is not None:
        parts.append(output.seconds(duration))
    if tokens := tokens_words(attempts, drawn_with):
        parts += [tokens, cost_words(attempts)]
    elif attempts and attempts[-1].source_call:
        parts.append("cached")
    if session_id:
        # Its time alone: commands take a unique prefix, and a line has to fit into 60 columns.
        parts.append(f"session {session_id[:13]}")
    return drawn_with.dot.join(parts)


def remark(turn: Turn, text: str | None) -> str | None:
    """What an answer doesn't say of itself: that it was cut off, or that there is none although nothing failed, and why.

    Args:
        turn: Whose answer it is.
        text: The answer; None where nobody knows it any more.
    """
    answer = turn.answer
    if answer is None or answer.finish_reason is None:
        return None
    if answer.finish_reason == "length":
        return "cut off: the limit of tokens was reached"
    why = f": {output.visible(answer.explanation)}" if answer.explanation else ""
    if turn.state == "completed" and text is not None and not text.strip():
        return f"the model answered with nothing (finish reason: {answer.finish_reason}){why}"
    if answer.finish_reason == "content_filter":
        return f"cut off: the provider's filter ended the answer{why}"
    return None


def source_lines(turn: Turn) -> list[str]:
    """The pages an answer names as its sources, numbered as its text may do."""
    found = turn.answer.sources if turn.answer is not None else ()
    named = (" ".join(filter(None, (source.title, source.url))) for source in found)
    return [output.visible(f"  [{number}] {' '.join(name.split())}") for number, name in enumerate(named, 1)]


# ------------------------------------------------------------------ a whole turn


def draw_turn(console: Console, turn: Turn, bodies: Mapping[str, str | bytes], *, cognition: bool = True) -> None:
    """Draw a whole turn at once; without its `cognition` a line sums it up."""
    draw_question(console, turn, bodies)
    draw_reply(console, console, turn, bodies, cognition=cognition)


async def play_turn(
    console: Console, turn: Turn, bodies: Mapping[str, str | bytes], speed: float, *, cognition: bool = True
) -> None:
    """Draw a turn where nothing can be redrawn, its answer at the pace at which it came.

    Args:
        console: Where to.
        turn: What.
        bodies: Prompts, arguments and results by digest.
        speed: 1 is the original pace, 2 twice as fast.
        cognition: Draw its steps, not just a line that sums them up.
    """
    draw_question(console, turn, bodies)
    answer = turn.answer
    if answer is not None and answer.source_call is None:
        # What came before the answer was sent for.
        await asyncio.sleep(max(answer.started_at - turn.started_at, 0) / 1_000_000 / speed)
    for line in work_lines(turn, bodies, console, cognition=cognition):
        console.print(line, soft_wrap=True)
    if answer is not None:
        last = ""
        for fragment in answer.fragments:
            await asyncio.sleep(fragment.gap_us / 1_000_000 / speed)
            if fragment.kind == "text":
                sys.stdout.write(output.harmless(fragment.text, console))
                sys.stdout.flush()
                last = fragment.text or last
        if turn.appended:
            last = output.harmless(UNDER + turn.appended, console)
            sys.stdout.write(last)
        if last and not last.endswith("\n"):
            sys.stdout.write("\n")
    _draw_end(console, turn, turn.answer_text)


# ------------------------------------------------------------------ its parts


def draw_question(console: Console, turn: Turn, bodies: Mapping[str, str | bytes]) -> None:
    """What was asked, and the files that came with it."""
    prompt = output.harmless(str(bodies.get(turn.prompt or "", NOT_RECORDED)), console)
    console.print(Text.assemble((f"{signs(console).asked} ", "bold cyan"), (prompt, "bold")), soft_wrap=True)
    for item in turn.attachments:
        line = f"  + {item.name or NOT_RECORDED} ({item.size} bytes)"
        console.print(Text(output.harmless(line, console), style="dim"), soft_wrap=True)


def draw_reply(
    beside: Console,
    out: Console,
    turn: Turn,
    bodies: Mapping[str, str | bytes],
    *,
    cognition: bool = True,
    text: str | None = None,
) -> None:
    """Draw all that followed the question.

    Args:
        beside: Where the steps go, and how it ended.
        out: Where the answer goes; the same screen, or the same console.
        turn: What.
        bodies: Arguments and results of tools by digest.
        cognition: Draw its steps, not just a line that sums them up.
        text: The answer where it isn't recorded.
    """
    for line in work_lines(turn, bodies, beside, cognition=cognition):
        beside.print(line, soft_wrap=True)
    answer = turn.answer_text if text is None else text
    if answer and out.is_terminal:
        out.print(Answer(answer, out))
    elif answer:
        sys.stdout.write(answer + ("" if answer.endswith("\n") else "\n"))
    _draw_end(beside, turn, answer, told=text is not None)


def work_lines(
    turn: Turn, bodies: Mapping[str, str | bytes], console: Console, *, cognition: bool = True, now: int | None = None
) -> list[Text]:
    """How a turn was worked out, as lines for a console: its tree, or one that sums it up."""
    drawn_with = signs(console)
    if cognition and turn.has_cognition:
        return cognition_lines(turn, bodies, width=console.width, signs=drawn_with, now=now)
    return [Text(output.harmless(f"  {usage_line(turn, drawn_with=drawn_with)}", console), style="dim")]


def _draw_end(console: Console, turn: Turn, text: str, *, told: bool = False) -> None:
    answer, drawn_with = turn.answer, signs(console)
    said = answer is not None and (answer.fragments or not (answer.usage and answer.usage.output))
    unknown = not told and (turn.private or (turn.state == "completed" and not said))
    if unknown:
        console.print(Text(NOT_RECORDED, style="dim"))
    if turn.error is not None:
        message = output.harmless(turn.error.message, console)
        output.say(console, Text.assemble((f"{drawn_with.failed} ", "bold red"), message))
    elif turn.state == "interrupted":
        words = INTERRUPTED.get(turn.reason or "", "interrupted")
        output.say(console, Text(f"{drawn_with.failed} {words}", style="yellow"))
    elif turn.state == "open":
        console.print(Text(f"{drawn_with.more} still running", style="yellow"))
    elif turn.state == "damaged":
        console.print(Text(f"{drawn_with.more} damaged from here on", style="yellow"))
    elif remarked := remark(turn, None if unknown else text):
        output.say(console, Text(f"{drawn_with.more} {remarked}", style="yellow"))
    for line in source_lines(turn):
        output.say(console, Text(line, style="dim"))

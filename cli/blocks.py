"""A turn as people see it: what was asked, the line that sums it up, the answer, and how it ended."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping

from rich.console import Console
from rich.markdown import Markdown
from rich.text import Text

from timeline.projections.blocks import Attempt, Turn

from . import output

__all__ = ["CUT_OFF", "draw_turn", "play_turn", "usage_line"]

NOT_RECORDED = "[not recorded]"
CUT_OFF = "… cut off: the limit of tokens was reached"


def usage_line(turn: Turn, session_id: str | None = None) -> str:
    """What a turn used: model, time, tokens in and out, cost, and the session to go on with."""
    attempts = [attempt for step in turn.steps for attempt in step.attempts]
    parts = []
    if attempts:
        parts.append(f"{attempts[-1].provider}:{attempts[-1].model}")
    duration = turn.duration_us if turn.duration_us is not None else attempts[-1].duration_us if attempts else None
    if duration is not None:
        parts.append(output.seconds(duration))
    used = [attempt.usage for attempt in attempts if attempt.usage is not None]
    if used:
        about = "~" if any(attempt.usage_source == "estimated" for attempt in attempts) else ""
        parts.append(
            f"{about}{sum(usage.total_input for usage in used)}↑ {about}{sum(usage.output for usage in used)}↓"
        )
        parts.append(_cost(attempts))
    if session_id:
        # Its time alone: commands take a unique prefix, and a line has to fit into 60 columns.
        parts.append(f"session {session_id[:13]}")
    return " · ".join(parts)


def _cost(attempts: list[Attempt]) -> str:
    costs = [attempt.cost for attempt in attempts if attempt.cost is not None]
    if any(cost.state == "unpriced" for cost in costs):
        return "cost ?"
    if all(cost.state == "free" for cost in costs):
        return "free"
    return output.usd(sum(cost.nano_usd or 0 for cost in costs))


def draw_turn(console: Console, turn: Turn, bodies: Mapping[str, str | bytes]) -> None:
    """Draw a whole turn at once."""
    _draw_question(console, turn, bodies)
    answer = turn.answer
    if answer is not None and answer.text:
        if console.is_terminal:
            console.print(Markdown(output.harmless(answer.text, console)))
        else:
            sys.stdout.write(answer.text + ("" if answer.text.endswith("\n") else "\n"))
    _draw_end(console, turn)


async def play_turn(console: Console, turn: Turn, bodies: Mapping[str, str | bytes], speed: float) -> None:
    """Draw a turn at the pace at which it came.

    Args:
        console: Where to.
        turn: What.
        bodies: Prompts by digest.
        speed: 1 is the original pace, 2 twice as fast.
    """
    _draw_question(console, turn, bodies)
    answer = turn.answer
    if answer is not None:
        last = ""
        for fragment in answer.fragments:
            await asyncio.sleep(fragment.gap_us / 1_000_000 / speed)
            if fragment.kind == "text":
                sys.stdout.write(output.harmless(fragment.text, console))
                sys.stdout.flush()
                last = fragment.text or last
        if last and not last.endswith("\n"):
            sys.stdout.write("\n")
    _draw_end(console, turn)


def _draw_question(console: Console, turn: Turn, bodies: Mapping[str, str | bytes]) -> None:
    prompt = output.harmless(str(bodies.get(turn.prompt or "", NOT_RECORDED)), console)
    console.print(Text.assemble(("❯ ", "bold cyan"), (prompt, "bold")), soft_wrap=True)
    lines = [f"  + {item.name or NOT_RECORDED} ({item.size} bytes)" for item in turn.attachments]
    for line in (*lines, f"  {usage_line(turn)}"):
        console.print(Text(output.harmless(line, console), style="dim"), soft_wrap=True)


def _draw_end(console: Console, turn: Turn) -> None:
    answer = turn.answer
    said = answer is not None and (answer.fragments or not (answer.usage and answer.usage.output))
    if turn.private or (turn.state == "completed" and not said):
        console.print(Text(NOT_RECORDED, style="dim"))
    if turn.error is not None:
        message = output.harmless(turn.error.message, console)
        console.print(Text.assemble(("✗ ", "bold red"), message), soft_wrap=True)
    elif turn.state == "interrupted":
        words = {
            "sigint": "interrupted with Ctrl-C",
            "closed": "stopped: its output was closed",
            "abandoned": "abandoned: its process ended without warning",
        }
        console.print(Text(f"✗ {words.get(turn.reason or '', 'interrupted')}", style="yellow"), soft_wrap=True)
    elif turn.state == "open":
        console.print(Text("… still running", style="yellow"))
    elif answer is not None and answer.finish_reason == "length":
        console.print(Text(CUT_OFF, style="yellow"), soft_wrap=True)

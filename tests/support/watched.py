"""Plays a made-up turn through what `ask` shows turns with, as if it came from a model: a run of `support.watched OPTIONS`.

Options: `--story NAME` (of `STORIES`), `--plain`, `--quiet`, `--no-show-cognition`, `--ascii`, `--pause SECONDS` before
each event and delta, `--stop-at TYPE` to wait for ever before the first event of that type.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable

import typer
from timeline_cli.app import wait_for
from timeline_cli.shown import Watched
from timeline_cli.signs import ascii_only

from support.cognition import Story, percent_and_day
from timeline import events as e
from timeline.cognition.turn import TurnEnd
from timeline.errors import RateLimited
from timeline.llm.manager import Superseded
from timeline.providers.base import Delta

__all__ = ["STORIES", "main"]


def _taken_back() -> Story:
    story = percent_and_day().ask("Why?")
    story.step("route").call("no tool").routed()
    story.step("format").send(("openai", "gpt-5")).says("Half of an ")
    busy = e.ErrorInfo("server", "openai broke off")
    story.add(e.CallFailed(1, busy, 5, True, e.Usage(9), "provider", e.Cost("unpriced")))
    story.add(e.CallRetryScheduled(1, 1_200_000, "openai broke off"))
    story.send(attempt=2, again=True).says("The whole answer.", attempt=2).ends((5, 5), 0.1, attempt=2)
    return story.done(1).answered(1)


def _failed() -> Story:
    error = e.ErrorInfo("rate_limited", "openai is busy (429): ask again")
    story = percent_and_day().ask("Why?").step("route").send(("openai", "gpt-5")).add(e.CallFailed(1, error, 500_000))
    return story.add(e.StepFailed(error, 510_000)).add(e.TurnFailed(error, 520_000))


STORIES: dict[str, Callable[[], Story]] = {
    "two tools": percent_and_day,
    "taken back": _taken_back,
    "failed": _failed,
    "long": lambda: percent_and_day([f"w{n:03}" + ("\n\n" if n % 20 == 19 else " ") for n in range(300)]),
}


async def _play(story: Story, shown: Watched, pause: float, stop_at: str | None) -> TurnEnd:
    first = max(number for number, event in enumerate(story.events) if event.type == "turn.started")
    events = [event for number, event in enumerate(story.events) if number == 0 or number >= first]
    text, kind, end = "", "", None
    try:
        for event in events:
            if event.type == stop_at:
                await asyncio.sleep(3600)
            kind = event.data.kind if isinstance(event.data, e.StepStarted) else kind
            if isinstance(event.data, e.CallRetryScheduled):
                shown.superseded(Superseded())
                text = ""
            for piece in event.data.texts if isinstance(event.data, e.ChunkReceived) else ():
                await asyncio.sleep(pause)
                shown.delta(Delta(piece))
                text += piece if kind == "format" else ""
            await asyncio.sleep(pause)
            shown.event(event)
            if shown.wanted:
                shown.learn({ref: story.contents[ref] for ref in shown.wanted if ref in story.contents})
        error = story.events[-1].data.error.message if isinstance(story.events[-1].data, e.TurnFailed) else None
        end = TurnEnd("turn", text, RateLimited(error, provider="openai") if error else None)
    finally:
        shown.stop()
        shown.end(end)
    return end


def main() -> None:
    """Run on `sys.argv`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--story", default="two tools")
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--stop-at")
    for flag in ("--plain", "--quiet", "--no-show-cognition", "--ascii"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args(sys.argv[2:])
    ascii_only(options.ascii)
    shown = Watched(plain=options.plain, quiet=options.quiet, cognition=not options.no_show_cognition)
    try:
        end = wait_for(_play(STORIES[options.story](), shown, options.pause, options.stop_at))
    except typer.Exit as exc:
        sys.exit(exc.exit_code)
    sys.exit(end.error.exit_code if end.error else 0)

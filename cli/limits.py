"""`timeline limits`: what is known of rate limits, who waits for one, and which models are left alone."""

from typing import TYPE_CHECKING, Any

from . import output
from .options import AsJson

if TYPE_CHECKING:
    from collections.abc import Mapping

    from timeline.projections.health import OpenCircuit
    from timeline.projections.limit_facts import KnownLimit, Waiting

__all__ = ["limits"]


def limits(*, as_json: AsJson = False) -> None:
    """Show what is known of rate limits. Also who waits for one, and which models are left alone for a while.

    Example: timeline limits
    """
    from timeline.events import Clock
    from timeline.projections.health import failing_words

    from .app import wait_for

    now = Clock().now()
    told, waiting, circuits = wait_for(_known(now))
    if as_json:
        output.emit_json(_object(told, waiting, circuits))
        return
    console = output.stdout()
    rows = [[f"{row.provider}:{row.model}", row.name, *_words(row, now)] for row in told]
    rows += [[f"{row.provider}:{row.model}", row.name, "waits", _ahead(row.until, now)] for row in waiting]
    rows += [
        [
            f"{row.provider}:{row.model}",
            "circuit",
            f"open: {failing_words(row.in_a_row)} ({row.reason})",
            _closes(row, now),
        ]
        for row in circuits
    ]
    if not rows:
        output.notice("no provider has told its limits yet, nobody waits, and no model is left alone")
    for line in output.columns(rows):
        console.print(output.harmless(line, console), soft_wrap=True)


async def _known(now: int) -> "tuple[list[KnownLimit], list[Waiting], list[OpenCircuit]]":
    from timeline.projections.health import open_circuits
    from timeline.projections.limit_facts import known_limits, queue
    from timeline.store import is_alive

    from .opening import listed

    return await listed(
        lambda timeline: timeline.store.query(
            lambda conn: (known_limits(conn), queue(conn, now, alive=is_alive), open_circuits(conn))
        ),
        ([], [], []),
    )


def _words(row: "KnownLimit", now: int) -> tuple[str, str]:
    """What is left of a limit, and when it is full again."""
    past = row.reset_at is not None and row.reset_at <= now
    if row.name == "retry-after":
        return "refused", "over" if past else _ahead(row.reset_at, now)
    most = "?" if row.limit is None else f"{row.limit:,}"
    left = row.limit if past else row.remaining
    when = "" if row.reset_at is None else "full again" if past else f"full {_ahead(row.reset_at, now)}"
    return f"{'?' if left is None else f'{left:,}'} of {most} left", when


def _ahead(moment: int | None, now: int) -> str:
    return "" if moment is None else f"in {output.seconds(max(moment - now, 0))}"


def _closes(row: "OpenCircuit", now: int) -> str:
    from timeline.projections.health import COOLDOWN

    tries = row.opened_at + COOLDOWN
    return "the next request tries it" if tries <= now else f"is tried {_ahead(tries, now)}"


def _object(told: "list[KnownLimit]", waiting: "list[Waiting]", circuits: "list[OpenCircuit]") -> "Mapping[str, Any]":
    from timeline.projections.health import COOLDOWN

    def at(moment: int | None) -> float | None:
        return None if moment is None else moment / 1_000_000

    return {
        "limits": [
            {
                "provider": row.provider,
                "model": row.model,
                "name": row.name,
                "limit": row.limit,
                "remaining": row.remaining,
                "reset_at": at(row.reset_at),
                "told_at": at(row.told_at),
                "window_seconds": at(row.window_us),
            }
            for row in told
        ],
        "waiting": [
            {
                "provider": row.provider,
                "model": row.model,
                "limit": row.name,
                "since": at(row.since),
                "until": at(row.until),
            }
            for row in waiting
        ],
        "circuits": [
            {
                "provider": row.provider,
                "model": row.model,
                "failures": row.in_a_row,
                "reason": row.reason,
                "opened_at": at(row.opened_at),
                "tried_at": at(row.opened_at + COOLDOWN),
            }
            for row in circuits
        ],
    }

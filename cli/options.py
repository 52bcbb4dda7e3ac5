"""Options that several commands have, so that they are the same everywhere; and what the days mean that people name."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from typing import Annotated

import typer

from timeline.errors import UsageError

__all__ = ["LARGEST", "MOST", "AsAscii", "AsCsv", "AsJson", "Offline", "Since", "Until", "span"]

MOST = 1_000_000_000
"""Of tokens or rows: what is more is a slip, as in a configuration (`MOST_TOKENS`)."""
LARGEST = 2**63 - 1
"""The largest number that JSON's readers, and the log's, agree on."""

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
AsAscii = Annotated[bool, typer.Option("--ascii", help="Draw with ASCII alone.")]
Offline = Annotated[bool, typer.Option("--offline", help="Ask only models on this machine.")]

Since = Annotated[
    str | None,
    typer.Option("--since", metavar="DATE", help="From this day on: YYYY-MM-DD, `today`, or `7d` for days back."),
]
Until = Annotated[str | None, typer.Option("--until", metavar="DATE", help="Up to the end of this day.")]


def span(since: str | None, until: str | None) -> tuple[int | None, int | None]:
    """The beginning of the first day and the end of the last, µs UTC; None where no day is named.

    Raises:
        UsageError: One of them is no day.
    """
    first = _midnight(_day("--since", since)) if since else None
    last = _midnight(min(_day("--until", until), date.max - timedelta(days=1)) + timedelta(days=1)) if until else None
    return first, last


def _day(option: str, value: str) -> date:
    today = datetime.now().astimezone().date()
    try:
        if value == "today":
            return today
        if value[:-1].isdecimal() and value.endswith("d"):
            return today - timedelta(days=int(value[:-1]))
        return date.fromisoformat(value)
    except (ValueError, OverflowError) as exc:
        msg = f"{option} {value!r} is no day: write YYYY-MM-DD, today, or 7d for seven days back"
        raise UsageError(msg) from exc


def _midnight(day: date) -> int:
    """When the day begins in this machine's time zone, µs UTC."""
    # Before 1970 there was nothing to report, and not every system can convert it.
    return int(datetime.combine(max(day, date(1970, 1, 2)), time()).timestamp() * 1_000_000)

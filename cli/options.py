"""Options that several commands have, so that they are the same everywhere; and what the times mean that people name."""

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
    typer.Option(
        "--since", metavar="WHEN", help="From this day on: YYYY-MM-DD, today, yesterday or 7d; or from hours back, 24h."
    ),
]
Until = Annotated[
    str | None, typer.Option("--until", metavar="WHEN", help="Up to the end of this day, or up to hours back.")
]


def span(since: str | None, until: str | None) -> tuple[int | None, int | None]:
    """The beginning of what `--since` names and the end of what `--until` names, µs UTC; None where one names nothing.

    Raises:
        UsageError: One of them is neither a day nor hours back.
    """
    return (_span("--since", since)[0] if since else None, _span("--until", until)[1] if until else None)


def _span(option: str, value: str) -> tuple[int, int]:
    """When what a value names begins and ends, µs UTC; of hours back both are that moment."""
    now = datetime.now().astimezone()
    try:
        number = int(value[:-1]) if value[:-1].isdecimal() else None
        if number is not None and value.endswith("h"):
            moment = int((now - timedelta(hours=number)).timestamp() * 1_000_000)
            return moment, moment
        if number is not None and value.endswith("d"):
            day = now.date() - timedelta(days=number)
        elif value in _DAYS:
            day = now.date() - timedelta(days=_DAYS[value])
        else:
            day = date.fromisoformat(value)
    except (ValueError, OverflowError) as exc:
        msg = f"{option} {value!r} is no time: write YYYY-MM-DD, today, yesterday, 7d for days back, or 24h for hours back"
        raise UsageError(msg) from exc
    return _midnight(day), _midnight(min(day, date.max - timedelta(days=1)) + timedelta(days=1))


_DAYS = {"today": 0, "yesterday": 1}


def _midnight(day: date) -> int:
    """When the day begins in this machine's time zone, µs UTC."""
    # Before 1970 there was nothing to report, and not every system can convert it.
    return int(datetime.combine(max(day, date(1970, 1, 2)), time()).timestamp() * 1_000_000)

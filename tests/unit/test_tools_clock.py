"""The clock: now, another day, another place."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from timeline.cognition.arguments import checked
from timeline.cognition.builtin.clock import Clock
from timeline.cognition.builtin.dates import date_in, read_date
from timeline.cognition.tools import Workspace
from timeline.errors import ToolError

NOW = datetime(2026, 11, 22, 15, 7, 11, tzinfo=UTC)
SUNDAY = NOW.date()
HERE = Workspace(Path(), now=lambda: int(NOW.timestamp() * 1_000_000))


async def test_now_has_day_date_time_and_zone() -> None:
    result = await Clock().run({"zone": "UTC"}, HERE)

    assert "Sunday 2026-11-22, 15:07:11 (time zone: UTC, UTC, UTC+00:00)" == result.text
    assert "Sunday 2026-11-22 15:07" == result.fact


@pytest.mark.parametrize(
    ("question", "fact"),
    [
        ("what day is it today?", "Sunday 2026-11-22"),
        ("what time is it in UTC?", "15:07"),
        ("what time is it in New York?", "10:07"),
        ("what are the date and the time now in UTC?", "Sunday 2026-11-22 15:07"),
        ("how many days until Christmas?", "33 days"),
        ("what day of the week is Christmas this year? today is what?", "Friday 2026-12-25"),
    ],
)
async def test_a_question_that_says_what_it_wants_gets_that(question: str, fact: str) -> None:
    signal = Clock().signal(question, HERE)

    assert signal is not None
    assert fact == (await Clock().run(checked("clock", Clock.parameters, signal.arguments or {}), HERE)).fact


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "tokyo", "Tokyo "])
async def test_another_place_has_its_own_day(zone: str) -> None:
    result = await Clock().run({"zone": zone}, HERE)

    assert "Monday 2026-11-23 00:07" == result.fact
    assert "UTC+09:00" in result.text


@pytest.mark.parametrize(
    ("asked", "fact"),
    [
        ("2026-12-24", "Thursday 2026-12-24, in 32 days"),
        ("2024-02-29", "Thursday 2024-02-29, 997 days ago"),
        ("tomorrow", "Monday 2026-11-23, in 1 day"),
        ("December 24", "Thursday 2026-12-24, in 32 days"),
        ("today", "Sunday 2026-11-22 15:07"),
    ],
)
async def test_another_day_has_its_weekday_and_distance(asked: str, fact: str) -> None:
    result = await Clock().run({"date": asked, "zone": "UTC"}, HERE)

    assert fact == result.fact


@pytest.mark.parametrize(
    "arguments", [{"date": "2025-02-29"}, {"date": "soon"}, {"zone": "../../etc/passwd"}, {"zone": "Atlantis"}]
)
async def test_what_isnt_there_is_said(arguments: dict[str, str]) -> None:
    with pytest.raises(ToolError):
        await Clock().run(arguments, HERE)


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("24 December 2026", date(2026, 12, 24)),
        ("the 3rd of May, 2027", date(2027, 5, 3)),
        ("Sept. 5", date(2027, 9, 5)),
        ("next Sunday", date(2026, 11, 29)),
        ("Sunday", SUNDAY),
        ("last Friday", date(2026, 11, 20)),
        ("Christmas", date(2026, 12, 25)),
        ("new year’s eve", date(2026, 12, 31)),
        ("February 29", date(2028, 2, 29)),
        ("the day after tomorrow", date(2026, 11, 24)),
        ("now", None),
    ],
)
def test_dates_are_read_as_people_write_them(text: str, day: date | None) -> None:
    assert day == read_date(text, SUNDAY)


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("how many days until 2026-12-24?", "2026-12-24"),
        ("How long is it until Christmas?", "2026-12-25"),
        ("what day was February 29, 2024", "2024-02-29"),
        ("what day is it today?", None),
        ("is it 2026-02-30?", None),
        ("what time is it", None),
    ],
)
def test_the_date_that_a_question_names_is_found(text: str, day: str | None) -> None:
    assert day == date_in(text, SUNDAY)

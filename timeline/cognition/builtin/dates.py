"""Dates as people write them in English: `2026-12-24`, `24 December 2026`, `Dec 24`, `tomorrow`, `next Friday`, `Christmas`.

A date without a year is the next of that name, today included.
"""

from __future__ import annotations

import re
from datetime import date, timedelta

__all__ = ["DAYS", "date_in", "read_date"]

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
"""In English whatever the locale, as everything that models are told."""
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_NAMED = {
    "christmas eve": (12, 24),
    "christmas": (12, 25),
    "new year's eve": (12, 31),
    "new year's day": (1, 1),
    "new year": (1, 1),
    "halloween": (10, 31),
    "valentine's day": (2, 14),
}
_NEAR = {"today": 0, "tomorrow": 1, "yesterday": -1, "the day after tomorrow": 2, "the day before yesterday": -2}

_MONTH = r"(?P<{0}>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
_DAY = r"(?:the )?(?P<{0}>\d{{1,2}})(?:st|nd|rd|th)?"
_FORMS = (
    r"(?P<year>\d{4})-(?P<number>\d{1,2})-(?P<day>\d{1,2})",
    rf"{_DAY.format('day')}(?: of)? {_MONTH.format('month')}(?:,? (?P<year>\d{{4}}))?",
    rf"{_MONTH.format('month')} {_DAY.format('day')}(?:,? (?P<year>\d{{4}}))?",
    rf"(?P<near>{'|'.join(sorted(_NEAR, key=len, reverse=True))})",
    rf"(?P<named>{'|'.join(sorted(_NAMED, key=len, reverse=True))})(?: day)?(?:,? (?P<year>\d{{4}}))?",
    rf"(?P<which>next |last |this |on )?(?P<weekday>{'|'.join(DAYS)})",
)
_READ = tuple(re.compile(rf"(?<![\w-]){form}(?![\w-])", re.IGNORECASE) for form in _FORMS)


def read_date(text: str, today: date) -> date | None:
    """The date that a text is, None if it is none.

    Args:
        text: Nothing but a date.
        today: What `tomorrow` is counted from.

    Raises:
        ValueError: It looks like a date, and there is no such day.
    """
    plain = _plain(text).strip()
    for form in _READ:
        if found := form.fullmatch(plain):
            return _meant(found, today)
    return None


def date_in(text: str, today: date) -> str | None:
    """The first date that stands in a text, as YYYY-MM-DD; today's own is none, as every question means it.

    Args:
        text: The user's words.
        today: What `tomorrow` is counted from.
    """
    plain = _plain(text)
    found = sorted((match for form in _READ for match in form.finditer(plain)), key=lambda match: match.start())
    for match in found:
        if match[0].lower() == "today":
            continue
        try:
            return _meant(match, today).isoformat()
        except ValueError:
            continue
    return None


def _plain(text: str) -> str:
    return " ".join(text.replace("\u2019", "'").split())


def _meant(found: re.Match[str], today: date) -> date:
    parts = {name: value.lower() for name, value in found.groupdict().items() if value}
    if "near" in parts:
        return _moved(today, _NEAR[parts["near"]])
    if "weekday" in parts:
        return _weekday(parts.get("which", "").strip(), parts["weekday"], today)
    if "named" in parts:
        month, day = _NAMED[parts["named"]]
    else:
        month = int(parts["number"]) if "number" in parts else _MONTHS.index(parts["month"][:3]) + 1
        day = int(parts["day"])
    if "year" in parts:
        return date(int(parts["year"]), month, day)
    for year in range(today.year, today.year + 9):
        # The next 29th of February can be eight years away.
        if (month, day) == (2, 29) and (year % 4 or (not year % 100 and year % 400)):
            continue
        if (candidate := date(year, month, day)) >= today:
            return candidate
    return date(today.year, month, day)


def _weekday(which: str, name: str, today: date) -> date:
    away = ([day.lower() for day in DAYS].index(name) - today.weekday()) % 7
    if which == "last":
        return _moved(today, away - 7)
    return _moved(today, away or (7 if which == "next" else 0))


def _moved(day: date, days: int) -> date:
    try:
        return day + timedelta(days=days)
    except OverflowError:
        msg = "the calendar ends there"
        raise ValueError(msg) from None

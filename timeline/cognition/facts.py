"""Whether an answer holds a fact of a tool, however it is written: `1,234.5`, `November 25th`, `3:07 pm`, `0.333` for 1/3.

Rather says no than yes: a fact that is put under an answer which holds it already is a line too many, one that is
missing is a wrong answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal, InvalidOperation

__all__ = ["stated"]

MOST_DECIMALS = 25
FEWEST_DIGITS = 3
"""Significant ones of an approximation that is told rounded."""
LONGEST = 50_000
"""Characters of an answer that are looked at."""

_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_GROUP = "[,_'\u2019\u00a0\u2009\u202f]"
_NUMBER = re.compile(
    rf"(?<![\w.])(?P<sign>-)?(?P<digits>\d{{1,3}}(?:{_GROUP}\d{{3}})+(?!\d)|\d+)(?P<rest>(?:\.\d+)?(?:e[+-]?\d{{1,4}})?)(?![\w]|\.\d)"
)
_WHOLE_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_TIME = re.compile(r"(\d{2}):(\d{2})")


def stated(fact: str, answer: str) -> bool:
    """Whether the answer holds the fact.

    Args:
        fact: As `ToolResult.fact`: a number, one with an approximation (`1/3 ≈ 0.333333333333333`), a date or
            time (`Sunday 2026-11-22 15:07`), or any text.
        answer: As a model wrote it.
    """
    plain = _plain(answer[:LONGEST])
    exact, approximate, about = (part.strip() for part in _plain(fact).partition("≈"))
    if exact and _holds(exact, plain):
        return True
    return bool(approximate) and _holds_rounded(about, plain)


def _plain(text: str) -> str:
    """Without what people write differently: Markdown's marks, minus signs, spaces, upper case."""
    text = text.translate({ord("−"): "-", ord("–"): "-", ord("’"): "'"})
    return " ".join(re.sub(r"[*`\\$]|(?<!\w)_|_(?!\w)", "", text).split()).casefold()


def _holds(fact: str, plain: str) -> bool:
    if _WHOLE_NUMBER.fullmatch(fact):
        return Decimal(fact) in set(_numbers(plain))
    if _DATE.search(fact) or _TIME.search(fact):
        return all(_part_is_there(part, plain) for part in fact.replace(",", " ").split())
    return _stands_alone(fact, plain)


def _stands_alone(words: str, plain: str) -> bool:
    start = r"(?<!\w)" if words[:1].isalnum() else ""
    end = r"(?!\w|\.\d)" if words[-1:].isalnum() else ""
    return re.search(f"{start}{re.escape(words)}{end}", plain) is not None


def _part_is_there(part: str, plain: str) -> bool:
    if found := _DATE.fullmatch(part):
        return any(re.search(pattern, plain) for pattern in _date_patterns(int(found[1]), int(found[2]), int(found[3])))
    if found := _TIME.fullmatch(part):
        return any(re.search(pattern, plain) for pattern in _time_patterns(int(found[1]), int(found[2])))
    return Decimal(part) in set(_numbers(plain)) if part.isdecimal() else _stands_alone(part, plain)


def _date_patterns(year: int, month: int, day: int) -> Iterator[str]:
    yield rf"(?<!\d){year}-0?{month}-0?{day}(?!\d)"
    name = _MONTHS[month - 1]
    word, number = rf"(?:{name}|{name[:3]}t?\.?)", rf"0?{day}(?:st|nd|rd|th)?"
    # A year that isn't written is not a wrong one.
    of_year = rf"(?:,? (?:of )?{year}(?!\d)|(?!,? ?(?:of )?\d{{4}}))"
    yield rf"(?<!\w){word} (?:the )?{number}(?!\d){of_year}"
    yield rf"(?<!\w){number}(?: of)? {word}(?!\w){of_year}"


def _time_patterns(hour: int, minute: int) -> Iterator[str]:
    yield rf"(?<![\d:]){hour:02}:{minute:02}(?!\d)(?! ?p\.?m)(?! ?a\.?m)"
    half = "a" if hour < 12 else "p"  # noqa: PLR2004 - noon
    yield rf"(?<![\d:])0?{hour % 12 or 12}:{minute:02}(?::\d\d)? ?{half}\.?m"


def _numbers(plain: str) -> Iterator[Decimal]:
    for found in _NUMBER.finditer(plain):
        # 12-84 is no negative number.
        negative = found["sign"] and not plain[: found.start()].rstrip().endswith(tuple("0123456789)"))
        try:
            value = Decimal(re.sub(_GROUP, "", found["digits"]) + found["rest"])
        except InvalidOperation:
            continue
        yield -value if negative else value


def _holds_rounded(about: str, plain: str) -> bool:
    """Whether the approximation is told, in all its digits or correctly rounded to some of them."""
    try:
        value = Decimal(about)
    except InvalidOperation:
        return False
    for told in _numbers(plain):
        if told == value:
            return True
        exponent = told.as_tuple().exponent
        if not isinstance(exponent, int) or len(told.as_tuple().digits) < FEWEST_DIGITS or exponent > 0:
            continue
        if exponent < -MOST_DECIMALS:
            # More than our own approximation has: nothing to round it to.
            continue
        step = Decimal((0, (1,), exponent))
        if abs(value) < Decimal(10) ** (27 + exponent) and any(
            told == value.quantize(step, rounding) for rounding in (ROUND_HALF_UP, ROUND_HALF_EVEN, ROUND_DOWN)
        ):
            return True
    return False

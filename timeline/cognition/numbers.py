"""The words, numbers and signs of a text: `twenty-five`, `$1,250.50` and `3 million` are numbers, `555-1234` is none.

Knows which strings of digits only look like something to reckon with: dates, versions, addresses, telephone
numbers, 24/7.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Literal

from msgspec import Struct

__all__ = ["ORDINALS", "Token", "numbers_in", "plain_decimal", "tokens"]

LONGEST_TEXT = 2000
"""Characters that are looked at. A sum is asked for at the beginning; what follows is matter to work on."""


_NO_NUMBERS = re.compile(
    r"""
    https?://\S+ | \bwww\.\S+
    | \b\d{1,3}(?:\.\d+){2,}\b                          # 3.11.2, 127.0.0.1
    | \bv\d+(?:\.\d+)*\b                                # v2.0
    | (?<![\d.])\d{4}[-/.]\d{1,2}[-/.]\d{1,2}\b         # 2026-12-25
    | (?<![\d.])\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}\b(?!\s*[=*+/-])  # 25/12/2026
    | \b(?:19|20)\d\d\s?[-–]\s?(?:19|20)?\d\d\b         # 1939-1945
    | \b\d{1,2}:\d{2}(?::\d{2})?\b                      # 12:30
    | (?<![\d.])\d{3}[-. ]\d{4}\b                       # 555-1234
    | \+?(?<![\d.])\d{0,3}[-. ]?\(?\d{3}\)?[-. ]\d{3}[-. ]\d{4}\b
    | \+\d{1,3}(?:[ -]\d{2,5}){2,}
    | \b(?:\d+-){3,}\d+\b                               # 978-3-16-148410-0
    | \b(?:24/7|9/11|50/50|and/or)\b(?!\s*(?:=|\?*$))
    | \b9/11\b
    | \b0x[0-9a-f]+\b
    | \b[a-z_]+-\d[\w.-]*                               # covid-19, gpt-4
    | [\w.~-]*/[\w./~-]*[a-z][\w./~-]*                  # a/b.txt
    """,
    re.VERBOSE | re.IGNORECASE,
)


def _masked(text: str) -> str:
    """The text in lower case, with what only looks like numbers put out of sight; every place stays where it is."""
    low = text[:LONGEST_TEXT].lower()
    if len(low) != len(text[:LONGEST_TEXT]):
        low = text[:LONGEST_TEXT]
    low = low.replace("’", "'")
    return _NO_NUMBERS.sub(lambda found: "~" * len(found.group()), low)


# ------------------------------------------------------------------ tokens

Kind = Literal["number", "word", "sign", "ordinal"]


class Token(Struct, frozen=True, gc=False):
    """A piece of the text, and where it stands."""

    kind: Kind
    text: str
    start: int
    end: int


_UNITS = {
    word: value
    for value, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
        ]
    )
}
_TENS = {
    word: value * 10
    for value, word in enumerate(
        ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], start=2
    )
}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
ORDINALS = {
    word: value
    for value, word in enumerate(
        ["third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth"], start=3
    )
}
_SPOKEN = {**_UNITS, **_TENS, **_SCALES}

_TOKEN = re.compile(
    r"""
    (?P<number>(?:[$€£]\s?)?(?:(?<![\w.])|(?<=\dx))(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)(?P<suffix>(?:st|nd|rd|th|[km])\b)?
    | (?P<base>log(?:10|2)\b)
    | (?P<word>[^\W\d_]+(?:'[a-z]+)?)
    | (?P<sign>\*\*|[-+*/^×÷·−–%!()=,√²³])
    | (?P<other>\S)
    """,
    re.VERBOSE,
)
_SAME = {"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "^": "**"}


def tokens(text: str) -> list[Token]:
    """The words, numbers and signs of a text in lower case, numbers in words among them as numbers.

    Args:
        text: Anything; only its first `LONGEST_TEXT` characters are read.
    """
    text = _masked(text)
    raw: list[Token] = []
    for found in _TOKEN.finditer(text):
        start, end = found.span()
        if number := found["number"]:
            suffix = found["suffix"] or ""
            value = number.lstrip("$€£ ").replace(",", "")
            if suffix in ("st", "nd", "rd", "th"):
                raw.append(Token("ordinal", value, start, end))
                continue
            if suffix:
                value = str(Decimal(value) * (1000 if suffix == "k" else 10**6))
            raw.append(Token("number", value, start, end))
        elif base := found["base"]:
            raw.append(Token("word", base, start, end))
        elif word := found["word"]:
            if word == "x" and raw and raw[-1].kind == "number":
                raw.append(Token("sign", "x", start, end))
            else:
                raw.append(Token("word", word, start, end))
        elif sign := found["sign"]:
            raw.append(Token("sign", _SAME.get(sign, sign), start, end))
        else:
            raw.append(Token("word", found["other"], start, end))
    return list(_spoken(raw))


def _spoken(raw: list[Token]) -> Iterator[Token]:
    """Put `twenty-five` and `2 million` together."""
    at = 0
    while at < len(raw):
        value, after = _spoken_number(raw, at)
        if value is not None and after > at:
            yield Token("number", value, raw[at].start, raw[after - 1].end)
            at = after
        else:
            token = raw[at]
            yield token
            at += 1


def _spoken_number(raw: list[Token], at: int) -> tuple[str | None, int]:
    first = raw[at]
    if first.kind == "number":
        total, after = Decimal(first.text), at + 1
        while after < len(raw) and raw[after].text in _SCALES:
            total *= _SCALES[raw[after].text]
            after += 1
        return (plain_decimal(total), after) if after > at + 1 else (None, at)
    if first.text == "a" and at + 1 < len(raw) and raw[at + 1].text in _SCALES:
        return _spoken_number([*raw[:at], Token("number", "1", first.start, first.end), *raw[at + 1 :]], at)
    if first.text not in _SPOKEN or first.text in _SCALES:
        return None, at
    whole, group, after = 0, 0, at
    small = False
    while after < len(raw):
        word = raw[after].text
        if word in _UNITS and not small:
            group, small = group + _UNITS[word], True
        elif word in _TENS and not small and group % 100 == 0:
            group += _TENS[word]
        elif word == "hundred":
            group, small = max(group, 1) * 100, False
        elif word in _SCALES:
            whole, group, small = whole + max(group, 1) * _SCALES[word], 0, False
        elif word in ("-", "and") and after + 1 < len(raw) and raw[after + 1].text in {**_UNITS, **_TENS}:
            tens = raw[after - 1].text in _TENS and raw[after + 1].text in _UNITS
            hundred = raw[after - 1].text in _SCALES and word == "and"
            if not (tens and word == "-") and not hundred:
                break
        else:
            break
        after += 1
    return str(whole + group), after


def plain_decimal(value: Decimal) -> str:
    """Without an exponent and without zeros that say nothing."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def numbers_in(text: str) -> tuple[str, ...]:
    """The numbers of a text, dates, versions and telephone numbers left out.

    Args:
        text: Anything.
    """
    return tuple(token.text for token in tokens(text) if token.kind == "number")

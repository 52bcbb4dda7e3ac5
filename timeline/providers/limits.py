"""What response headers tell in numbers: waits, limits and the moments they end, in every notation in use.

Pure. Sources: the API references of OpenAI, Anthropic and Groq on rate limits; RFC 9110, section 10.2.3 (Retry-After).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime

from timeline.events import RateLimit

__all__ = ["Headers", "instant", "rate_limits", "request_id", "retry_after", "seconds", "whole_number"]

Headers = Mapping[str, str]
"""Response headers, names in lower case."""

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_PIECES = re.compile(r"(\d+(?:\.\d+)?)(ms|us|ns|[dhms])")
_DURATION = re.compile(rf"(?:{_PIECES.pattern})+")
_SPOKEN_PIECES = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|milli|[dhms])[a-z]*", re.IGNORECASE)
_SPOKEN = re.compile(
    r"(?:try again|retry|wait)(?: in| after| for)?(?: about)? ((?:\d+(?:\.\d+)?\s*(?:ms|milliseconds?"
    r"|d|days?|h|hours?|m|min|minutes?|s|secs?|seconds?)(?![a-z])\s*)+|(?:\d+(?:\.\d+)?(?:ms|[dhms]))+)",
    re.IGNORECASE,
)
_LONGEST_WAIT = 400 * 86400.0
_EPOCH_SECONDS = 1e9
_FARTHEST = 1e13
_EPOCH_MILLISECONDS = 1e12


def seconds(text: str) -> float | None:
    """A duration in seconds from `12ms`, `1.2s`, `6m0s`, `1h2m3s`, `2m59.56s` or a bare number of seconds."""
    text = text.strip().lower().replace("µ", "u")
    if _DURATION.fullmatch(text):
        value = math.fsum(float(number) * _UNITS[unit] for number, unit in _PIECES.findall(text))
    else:
        try:
            value = float(text)
        except ValueError:
            return None
    return max(value, 0.0) if abs(value) < _FARTHEST else None


def instant(text: str, now: int) -> int | None:
    """The moment a reset header names, µs UTC.

    Takes durations and seconds from now, seconds or milliseconds since the epoch, RFC 3339 times and HTTP dates.

    Args:
        text: The header's value.
        now: The present, µs UTC.
    """
    if (wait := seconds(text)) is not None:
        if wait >= _EPOCH_MILLISECONDS:
            return round(wait * 1e3)
        return round(wait * 1e6) if wait >= _EPOCH_SECONDS else now + round(wait * 1e6)
    return _moment(text)


def _moment(text: str) -> int | None:
    text = text.strip()
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        from email.utils import parsedate_to_datetime

        try:
            moment = parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            return None
    try:
        return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e6)
    except OverflowError:
        # In the first or last day there is, and not in UTC.
        return None


def retry_after(headers: Headers, message: str, now: int) -> float | None:
    """Seconds a provider asks to wait: `retry-after-ms`, then `retry-after`, then what its message says.

    Args:
        headers: The response's.
        message: The provider's own, which may say "Please try again in 5.289s".
        now: The present, µs UTC, against which an HTTP date is read.
    """
    wait: float | None = None
    if "retry-after-ms" in headers and (millis := seconds(headers["retry-after-ms"])) is not None:
        wait = millis / 1e3
    if wait is None and "retry-after" in headers:
        wait = seconds(headers["retry-after"])
        if wait is None and (moment := _moment(headers["retry-after"])) is not None:
            wait = (moment - now) / 1e6
    if wait is None and (found := _SPOKEN.search(message)):
        pieces = _SPOKEN_PIECES.findall(found[1].lower())
        wait = sum(float(number) * _UNITS["ms" if unit == "milli" else unit] for number, unit in pieces)
    return None if wait is None else min(max(wait, 0.0), _LONGEST_WAIT)


_OPENAI_LIMIT = re.compile(r"(?:x-)?ratelimit-(limit|remaining|reset)(?:-(.+))?")
_ANTHROPIC_LIMIT = re.compile(r"anthropic-ratelimit-(.+)-(limit|remaining|reset)")


def rate_limits(headers: Headers, now: int) -> tuple[RateLimit, ...]:
    """The limits a response's headers tell, in the provider's names; what can't be read is left out.

    Args:
        headers: `x-ratelimit-{limit,remaining,reset}-NAME`, with or without `x-`, or `anthropic-ratelimit-NAME-{…}`, and others.
        now: The present, µs UTC.
    """
    found: dict[str, dict[str, int]] = {}
    for header, text in headers.items():
        if "ratelimit-" not in header:
            continue
        if match := _OPENAI_LIMIT.fullmatch(header):
            field, name = match[1], match[2] or "requests"
        elif match := _ANTHROPIC_LIMIT.fullmatch(header):
            field, name = match[2], match[1]
        else:
            continue
        value = instant(text, now) if field == "reset" else whole_number(text)
        if value is not None:
            found.setdefault(name, {})["reset_at" if field == "reset" else field] = value
    return tuple(RateLimit(name, **fields) for name, fields in found.items())


def whole_number(text: str) -> int | None:
    """A count from a header, or nothing; gateways write -1 where they know none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if 0 <= value < _FARTHEST else None


def request_id(headers: Headers) -> str | None:
    """The provider's id of the request, under any of the names in use."""
    for name in ("x-request-id", "request-id", "apim-request-id", "x-amzn-requestid"):
        if value := headers.get(name):
            return value
    return None

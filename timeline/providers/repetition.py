"""Reads a payload that repeats the one before in all but one string, without taking it apart again.

Most servers repeat an answer's id, model and the like with every few characters of text. Where the bytes around
the text are those of the payload before, so is all that they mean, and the text alone is left to be decoded.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

__all__ = ["Repetition"]

_MOST_LESSONS = 8
"""So many in a row that were of no use: the server changes something else in each payload (a time, padding)."""

_PROBE = "\u2423 a string that no server sends \u2423"
_encode, _decode = msgspec.json.encode, msgspec.json.Decoder(str).decode


class Repetition:
    """What the payloads of one answer have in common, as learned from one of them."""

    __slots__ = ("_after", "_before", "_from", "_lessons", "_to")

    def __init__(self) -> None:
        self._lessons = 0
        # JSON before and after the text, each with the text's quote.
        self._before = self._after = b""
        self._from = self._to = 0

    def text(self, payload: bytes) -> str | None:
        """The text, if all around it is as learned; else None."""
        if self._from and payload.startswith(self._before) and payload.endswith(self._after):
            try:
                text = _decode(payload[self._from : self._to])
            except ValueError:  # Two strings, or no UTF-8.
                return None
            self._lessons = 0
            return text
        return None

    def learn(self, payload: bytes, text: str, read: Callable[[bytes], str | None]) -> None:
        """Learn from a payload that was taken apart.

        Args:
            payload: JSON.
            text: All that it tells.
            read: Takes a payload apart; the text, or None where it tells anything else.
        """
        if self._lessons >= _MOST_LESSONS:
            self._from = 0
            return
        self._lessons += 1
        literal = _encode(text)
        if payload.count(literal) != 1:
            return
        before, _, after = payload.partition(literal)
        if after and read(before + _encode(_PROBE) + after) == _PROBE:
            self._before, self._after = before + b'"', b'"' + after
            self._from, self._to = len(before), -len(after)

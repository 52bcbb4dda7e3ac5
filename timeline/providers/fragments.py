"""Which tool call a fragment belongs to, however a server of OpenAI's format numbers and names its calls.

Pure: knows ids, numbers and names, and nothing of JSON or of any one server's chunks.
"""

from __future__ import annotations

from msgspec import Struct

from timeline.providers.base import Delta

__all__ = ["Fragments"]


class _Open(Struct, gc=False):
    """A call that fragments may still continue: the number it goes by, and what has been told of it."""

    number: int | None
    id: str | None
    name: str | None


class Fragments:
    """The tool calls of one answer, of which each fragment begins one or continues one. False while there is none."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: list[_Open] = []

    def __len__(self) -> int:
        return len(self._calls)

    def delta(self, number: int | None, call_id: str | None, name: str | None, arguments: str) -> Delta | None:
        """The fragment as a delta, numbered from 0 and with id and name once; None where it tells nothing.

        Args:
            number: Its `index`.
            call_id: Its `id`; None or empty on most fragments.
            name: The tool's name, likewise.
            arguments: A piece of the arguments' JSON.
        """
        call_id, name = call_id or None, name or None
        place = self._place(number, call_id, name)
        if place is None:
            if not (call_id or name or arguments):
                return None
            self._calls.append(_Open(number, call_id, name))
            return Delta(arguments, "tool_call", len(self._calls) - 1, call_id, name)
        known = self._calls[place]
        new_id, new_name = None if known.id else call_id, None if known.name else name
        known.id, known.name = known.id or new_id, known.name or new_name
        return Delta(arguments, "tool_call", place, new_id, new_name)

    def _place(self, number: int | None, call_id: str | None, name: str | None) -> int | None:
        """Which of the calls it continues; None where it begins one. Numbers may begin anywhere and leave gaps."""
        calls = self._calls
        newest = range(len(calls) - 1, -1, -1)
        same_id = next((place for place in newest if call_id and calls[place].id == call_id), None)
        if number is None or number < 0:
            # No number: a new id or a name begins a call, all else continues the last.
            return same_id if call_id else next(iter(newest), None) if name is None else None
        place = next((place for place in newest if calls[place].number == number), None)
        if place is None and not (call_id or name) and number < len(calls) and calls[number].number is None:
            return number  # The call at this place has no number of its own.
        if place is not None and call_id and name and calls[place].id not in (None, call_id):
            # Gemini's server numbers all parallel calls 0: the id tells them apart.
            return same_id
        return place

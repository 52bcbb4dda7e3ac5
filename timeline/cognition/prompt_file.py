"""The prompts of a batch as they stand in a file: a JSON object or string a line, checked before anything is asked."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, BinaryIO, overload

import msgspec
from msgspec import Meta, Struct

from timeline.config import MOST_TOKENS
from timeline.errors import UsageError

__all__ = ["Prompt", "PromptFile"]


_Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class Prompt(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One question of a batch.

    Args:
        prompt: The words.
        id: The user's own name for it, given back with its answer; need not be unique.
        model: `provider:model`; None for the default.
        system: System prompt.
        max_tokens: Most tokens to answer with.
        temperature: Sampling temperature.
        seed: For repeatable sampling, where the provider has it.
    """

    prompt: str
    id: str | _Integer | None = None
    model: str | None = None
    system: str | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=MOST_TOKENS)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    seed: _Integer | None = None


_decode = msgspec.json.Decoder(Prompt | str).decode
_FIELDS = tuple(Prompt.__struct_fields__)
_WHERE = re.compile(r"^(.*?)(?: - at `\$\.?(.*)`)?$", re.DOTALL)


class PromptFile(Sequence[Prompt]):
    """A file of prompts. What is kept in memory is where each line begins; a line is read when it is needed.

    Args:
        file: Open for reading, at its beginning; it stays open as long as this is used.
        name: What people call it, for messages.
        defaults: Values for lines that give none; its `prompt` and `id` don't count.

    Raises:
        UsageError: A line is no prompt; nothing has been asked by then.
    """

    def __init__(self, file: BinaryIO, name: str, defaults: Prompt | None = None) -> None:
        self._file = file
        self._name = name
        given = msgspec.structs.asdict(defaults) if defaults else {}
        self._defaults = {key: value for key, value in given.items() if key not in ("prompt", "id")}
        self._offsets = array("Q")
        self._numbers = array("Q")
        offset = 0
        problem, more = "", 0
        for number, line in enumerate(file, 1):
            if text := _stripped(line, number):
                try:
                    self._parse(text)
                except ValueError as exc:
                    more += bool(problem)
                    problem = problem or f"line {number} of {name} is no prompt: {exc}"
                self._offsets.append(offset)
                self._numbers.append(number)
            offset += len(line)
        if problem:
            also = f" ({more} more {'line is' if more == 1 else 'lines are'} none either)" if more else ""
            raise UsageError(problem + also)
        if not self._offsets:
            msg = f'{name} holds no prompt: write a line like {{"prompt": "Why is the sky blue?"}} for each'
            raise UsageError(msg)

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        self._file.seek(self._offsets[index])
        try:
            return self._parse(_stripped(self._file.readline(), self._numbers[index]))
        except ValueError as exc:
            msg = f"{self._name} was changed while its prompts were asked: run the same command again"
            raise UsageError(msg) from exc

    def __iter__(self) -> Iterator[Prompt]:
        return (self[index] for index in range(len(self)))

    def line(self, index: int) -> int:
        """The number of the line that a prompt stands on, from 1."""
        return self._numbers[index]

    def _parse(self, text: bytes) -> Prompt:
        """A line's prompt.

        Raises:
            ValueError: It is none; says what is wrong.
        """
        try:
            value = _decode(text)
        except msgspec.ValidationError as exc:
            raise ValueError(_plainly(str(exc))) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            msg = 'write a JSON object or string, for example {"prompt": "Why is the sky blue?"}'
            raise ValueError(msg) from None
        prompt = Prompt(value) if isinstance(value, str) else value
        if not prompt.prompt.strip():
            msg = "its prompt is empty"
            raise ValueError(msg)
        filled: dict[str, Any] = {
            key: value for key, value in self._defaults.items() if value is not None and getattr(prompt, key) is None
        }
        return msgspec.structs.replace(prompt, **filled) if filled else prompt


def _stripped(line: bytes, number: int) -> bytes:
    """A line without what stands around it; some editors begin a file with a byte order mark."""
    return (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()


def _plainly(message: str) -> str:
    """What msgspec says, in words for people."""
    if message.startswith("Object contains unknown field"):
        name = message.partition("`")[2].rpartition("`")[0].partition("`")[0]
        return f'it has no field "{name}", choose from {", ".join(_FIELDS)}'
    if message.startswith("Object missing required field"):
        return 'it has no "prompt"'
    found = _WHERE.match(message)
    what, where = (found[1], found[2]) if found else (message, None)
    what = what[:1].lower() + what[1:].replace("`", "")
    return f"{where}: {what}" if where else what

"""Where one message of a stream ends and the next begins: server-sent events and JSON lines, from bytes cut anywhere.

Nothing here knows a provider. A framer is fed what each network read brought and gives
back the payloads that became whole; it works on whole reads with `bytes.split`, because a
Python loop over bytes or an async step per line costs more than all the parsing after it.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["MAX_LINE", "Framer", "LineTooLong", "NDJSONFramer", "SSEFramer"]

MAX_LINE = 16 * 1024 * 1024
"""Most bytes one line, event or unstreamed body may have."""

BOM = b"\xef\xbb\xbf"


class LineTooLong(Exception):  # noqa: N818 - never leaves the package: becomes BadResponse with the provider's name
    """A line passed `MAX_LINE` bytes."""


class Framer(Protocol):
    """Cuts a body into payloads."""

    stray: bytes | None
    """The first line that isn't of this framing."""

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads completed by this read; raises `LineTooLong`."""
        ...

    def end(self) -> list[bytes]:
        """At end of file: the payloads that no line end closed."""
        ...


class _Lines:
    """Joins reads into whole lines; a line spread over many reads is joined once, not once a read."""

    __slots__ = ("_after_cr", "_held", "_parts", "_started")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._held = 0
        self._after_cr = False
        self._started = False

    def lines(self, data: bytes) -> list[bytes]:
        """The lines that `data` ended, without their ends (LF, CRLF or a lone CR)."""
        if not self._started and not (data := self._without_bom(data)):
            return []
        if self._after_cr:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            # A CR that ends the read ends its line now; an LF that opens the next read belongs to it.
            self._after_cr = data[-1:] == b"\r"
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n" not in data:
            self._hold(data)
            return []
        if self._parts:
            self._parts.append(data)
            data = b"".join(self._parts)
            self._parts.clear()
        lines = data.split(b"\n")
        rest = lines.pop()
        self._held = 0
        if rest:
            self._hold(rest)
        return lines

    def rest(self) -> bytes:
        """At end of file: the line that nothing ended."""
        data = b"".join(self._parts)
        self._parts.clear()
        self._held = 0
        return data if self._started else data.removeprefix(BOM)

    def _hold(self, data: bytes) -> None:
        self._held += len(data)
        if self._held > MAX_LINE:
            raise LineTooLong
        self._parts.append(data)

    def _without_bom(self, data: bytes) -> bytes:
        if self._parts:
            data = b"".join((*self._parts, data))
            self._parts.clear()
        if len(data) < len(BOM) and BOM.startswith(data):
            self._parts.append(data)
            return b""
        self._started = True
        return data.removeprefix(BOM)


class SSEFramer:
    """Server-sent events (WHATWG HTML, section 9.2.6): the data of each event, as bytes.

    Comments, `id`, `retry` and `event` lines are dropped: every provider repeats in the data
    what its event's name says. What servers send instead of an event is a payload too: a body
    that begins with a brace is the answer of a server that ignored `stream: true`, taken whole; a
    later line that does, and llama-server's `error:` field, is an error in the midst of a stream.

    Attributes:
        stray: The first line that is none of these, for the error message.
    """

    __slots__ = ("_data", "_lines", "_seen", "_size", "_whole", "stray")

    def __init__(self) -> None:
        self._lines = _Lines()
        self._data: list[bytes] = []
        self._size = 0
        self._seen = False
        self._whole = False
        self.stray: bytes | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads of the events that this read completed.

        Raises:
            LineTooLong: A line, an event or an unstreamed body passed `MAX_LINE`.
        """
        payloads: list[bytes] = []
        pending = self._data
        for line in self._lines.lines(data):
            if self._whole:
                pending.append(line)
            elif line[:6] == b"data: ":
                pending.append(line[6:])
            elif not line:
                if pending:
                    payloads.append(pending[0] if len(pending) == 1 else b"\n".join(pending))
                    pending.clear()
            else:
                self._uncommon(line, payloads)
        if payloads:
            self._seen = True
            self._size = 0
        if len(pending) > 1:
            self._size += len(data)
            if self._size > MAX_LINE:
                raise LineTooLong
        return payloads

    def end(self) -> list[bytes]:
        """The event that no blank line closed, or the whole body that was no stream."""
        payloads: list[bytes] = []
        rest = self._lines.rest()
        if self._whole:
            self._data.append(rest)
        elif rest:
            self._uncommon(rest, payloads)
        if self._data:
            payloads.append(b"\n".join(self._data))
            self._data.clear()
        return payloads

    def _uncommon(self, line: bytes, payloads: list[bytes]) -> None:
        """A line that isn't `data: …` with its space."""
        if line[:5] == b"data:":
            self._data.append(line[5:].removeprefix(b" "))
        elif line[:1] == b"{" and not self._data:
            if self._seen or payloads:
                payloads.append(line)
            else:
                self._whole = True
                self._data.append(line)
        elif line[:6] == b"error:":
            payloads.append(b'{"error":' + line[6:] + b"}")
        elif self.stray is None and line.partition(b":")[0] not in _IGNORED:
            self.stray = line[:200]


_IGNORED = frozenset({b"", b"event", b"id", b"retry", b"data"})


class NDJSONFramer:
    """One JSON value a line; blank lines mean nothing."""

    __slots__ = ("_lines", "stray")

    def __init__(self) -> None:
        self._lines = _Lines()
        self.stray: bytes | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that this read completed.

        Raises:
            LineTooLong: A line passed `MAX_LINE`.
        """
        return [line for line in self._lines.lines(data) if line and not line.isspace()]

    def end(self) -> list[bytes]:
        """The line that nothing ended."""
        rest = self._lines.rest()
        return [rest] if rest and not rest.isspace() else []

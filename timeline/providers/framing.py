"""Where one message of a stream ends and the next begins: server-sent events and JSON lines, from bytes cut anywhere.

Nothing here knows a provider. A framer is fed what each network read brought and gives
back the payloads that became whole; it works on whole reads with `bytes.split`, because a
Python loop over bytes or an async step per line costs more than all the parsing after it.
"""

from __future__ import annotations

import re
from typing import Protocol

__all__ = ["MAX_LINE", "Framer", "LineTooLong", "NDJSONFramer", "SSEFramer"]

MAX_LINE = 16 * 1024 * 1024
"""Most bytes one line, event or unstreamed body may have."""

BOM = b"\xef\xbb\xbf"
LF, CR = 10, 13
PAGE = re.compile(rb"<(?:!doctype html|html|head|title)\b", re.IGNORECASE)
"""How a web page begins, that of a login or of a wrong address, which is one payload: its lines say nothing here."""


class LineTooLong(Exception):
    """A line passed `MAX_LINE` bytes."""


class Framer(Protocol):
    """Cuts a body into payloads."""

    seen: bool
    """A payload has been given back."""
    stray: bytes | None
    """The first line that isn't of this framing."""

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads completed by this read; raises `LineTooLong`."""
        ...

    def end(self) -> list[bytes]:
        """At end of file: the payloads that no line end closed."""
        ...


class _Lines:
    """Joins reads into whole lines; a line spread over many reads is joined once, not once a read.

    Attributes:
        clean: Nothing of an earlier read waits for its end, and no line has ended in CR.
    """

    __slots__ = ("_after_cr", "_parts", "_size", "_started", "clean")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._after_cr = False
        self._started = False
        self.clean = True

    def lines(self, data: bytes) -> list[bytes]:
        """The lines that `data` ended, without their ends (LF, CRLF or a lone CR)."""
        if not self._started and not (data := self._without_bom(data)):
            return []
        if self._after_cr:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        carriage_returns = CR in data
        if carriage_returns:
            # A CR that ends the read ends its line now; an LF that opens the next read belongs to it.
            self._after_cr = data[-1:] == b"\r"
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if LF not in data:
            self._hold(data)
            return []
        if self._parts:
            self._parts.append(data)
            data = b"".join(self._parts)
            self._parts.clear()
        lines = data.split(b"\n")
        rest = lines.pop()
        self._size = 0
        self.clean = not rest and not carriage_returns
        if rest:
            self._hold(rest)
        return lines

    def rest(self) -> bytes:
        """At end of file: the line that nothing ended."""
        data = b"".join(self._parts)
        self._parts.clear()
        return data if self._started else data.removeprefix(BOM)

    def _hold(self, data: bytes) -> None:
        self.clean = False
        self._size += len(data)
        if self._size > MAX_LINE:
            raise LineTooLong
        self._parts.append(data)

    def _without_bom(self, data: bytes) -> bytes:
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
    that begins with a brace is the answer of a server that ignored `stream: true`, taken whole, as a web page is; a
    later line that does, and llama-server's `error:` field, is an error in the midst of a stream.

    Attributes:
        stray: The first line that is none of these, for the error message.
    """

    __slots__ = ("_between", "_data", "_lines", "_size", "_whole", "seen", "stray")

    def __init__(self) -> None:
        self._lines = _Lines()
        self._data: list[bytes] = []
        self._size = 0
        self.seen = False
        self._whole = False
        self._between = False
        self.stray: bytes | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads of the events that this read completed.

        Raises:
            LineTooLong: A line, an event or an unstreamed body passed `MAX_LINE`.
        """
        # Most reads bring one whole event and nothing else, and find nothing waiting for them.
        if self._between:
            line, _, rest = data.partition(b"\n")
            if rest == b"\n" and line[:6] == b"data: " and CR not in line:
                return [line[6:]]
        return self._read(data)

    def end(self) -> list[bytes]:
        """The event that no blank line closed, or the whole body that was no stream."""
        payloads: list[bytes] = []
        rest = self._lines.rest()
        if self._whole:
            self._data.append(rest)
        elif rest and not any(name.startswith(rest.strip()) for name in _FIELDS):
            self._uncommon(rest, payloads)
        if self._data:
            payloads.append(b"\n".join(self._data))
            self._data.clear()
        self.seen = self.seen or bool(payloads)
        return payloads

    def _read(self, data: bytes) -> list[bytes]:
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
            elif line[:7] != b"event: ":
                self._uncommon(line, payloads)
        if payloads:
            self.seen = True
            self._size = 0
        if len(pending) > 1:
            self._size += len(data)
            if self._size > MAX_LINE:
                raise LineTooLong
        self._between = self.seen and not pending and self._lines.clean
        return payloads

    def _uncommon(self, line: bytes, payloads: list[bytes]) -> None:
        """A line that isn't `data: …` with its space."""
        line = line.lstrip(b" \t")
        if line[:5] == b"data:":
            self._data.append(line[5:].removeprefix(b" "))
        elif line[:1] == b"{" and not self._data:
            if self.seen or payloads:
                payloads.append(line)
            else:
                self._whole = True
                self._data.append(line)
        elif line[:6] == b"error:":
            payloads.append(b'{"error":' + line[6:] + b"}")
        elif not self.seen and not self._data and not payloads and PAGE.match(line):
            self._whole = True
            self._data.append(line)
        elif self.stray is None and line.partition(b":")[0] not in _FIELDS:
            self.stray = line[:200]


_FIELDS = frozenset({b"", b"event", b"id", b"retry", b"data"})


class NDJSONFramer:
    """One JSON value a line; blank lines mean nothing. A web page is taken whole."""

    __slots__ = ("_begun", "_lines", "_page", "_size", "seen", "stray")

    def __init__(self) -> None:
        self._lines = _Lines()
        self._begun = False
        self._page: list[bytes] = []
        self._size = 0
        self.seen = True
        self.stray: bytes | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that this read completed.

        Raises:
            LineTooLong: A line or a page passed `MAX_LINE`.
        """
        lines = [line for line in self._lines.lines(data) if line and not line.isspace()]
        if self._page or (lines and not self._begun and PAGE.match(lines[0].lstrip())):
            self._page += lines
            self._size += len(data)
            if self._size > MAX_LINE:
                raise LineTooLong
            return []
        self._begun = self._begun or bool(lines)
        return lines

    def end(self) -> list[bytes]:
        """The line that nothing ended, or the page."""
        rest = self._lines.rest()
        lines = [*self._page, rest] if rest and not rest.isspace() else self._page
        return [b"\n".join(lines)] if lines else []

"""A scriptable HTTP/1.1 server on a loopback port: answers what a test wrote down and remembers what it was asked.

    async with Server([Reply.sse('{"choices":[…]}', "[DONE]")]) as server:
        provider = OpenAIProvider("key-1234", server.url + "/v1")
        …
    assert server.requests[0].json()["model"] == "m"

Replies are given in order, the last one again and again; a callable reply sees the request and
returns the `Reply`. A client that goes away is seen as `request.hung_up`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

__all__ = ["CLOSE", "RESET", "Reply", "Request", "Server", "free_port"]

RESET = object()
"""In a body: break the connection off with a TCP reset."""
CLOSE = object()
"""In a body: close the connection without the end that the framing of HTTP promised."""

Piece = bytes | float | object


@dataclass
class Request:
    """What the client asked."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    """One response.

    `body` holds bytes (one HTTP chunk each), numbers (seconds to wait), events to wait for, RESET or CLOSE. `framing` is
    `chunked`, `length` (one Content-Length) or `eof` (the end of the connection ends the body).
    `before` are seconds before the status line; with `status=0` the connection ends without one.
    """

    body: Iterable[Piece] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    framing: str = "chunked"
    before: float = 0.0

    @classmethod
    def sse(cls, *payloads: str | dict[str, Any], headers: dict[str, str] | None = None, **more: Any) -> Reply:
        """An event stream, one chunk per payload; dicts become JSON."""
        body = [f"data: {p if isinstance(p, str) else json.dumps(p)}\n\n".encode() for p in payloads]
        return cls(body, headers={"content-type": "text/event-stream", **(headers or {})}, **more)

    @classmethod
    def ndjson(cls, *lines: dict[str, Any], headers: dict[str, str] | None = None, **more: Any) -> Reply:
        """JSON lines, one chunk per line."""
        body = [json.dumps(line).encode() + b"\n" for line in lines]
        return cls(body, headers={"content-type": "application/x-ndjson", **(headers or {})}, **more)

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: dict[str, str] | None = None, **more: Any) -> Reply:
        """A whole JSON body."""
        more = {"framing": "length", **more}
        return cls(
            [json.dumps(value).encode()], status, {"content-type": "application/json", **(headers or {})}, **more
        )


class Server:
    """Listens on 127.0.0.1 within `async with`.

    Attributes:
        url: `http://127.0.0.1:PORT` (`https://localhost:PORT` with `tls`).
        requests: What was asked, in order.
        connections: How many connections were opened.
        asked: Set with each request, for the test to clear.
    """

    def __init__(
        self,
        replies: Iterable[Reply | Callable[[Request], Reply]] | Reply | Callable[[Request], Reply] = (),
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        single = isinstance(replies, Reply) or callable(replies)
        self.replies: list[Reply | Callable[[Request], Reply]] = [replies] if single else list(replies)
        self.requests: list[Request] = []
        self.connections = 0
        self.asked = asyncio.Event()
        self._tls = tls
        self._given = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""

    async def __aenter__(self) -> Self:
        def protocol() -> asyncio.StreamReaderProtocol:
            return asyncio.StreamReaderProtocol(_Reader(), self._connected)

        self._server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0, ssl=self._tls)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"https://localhost:{port}" if self._tls else f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def add(self, *replies: Reply | Callable[[Request], Reply]) -> None:
        """Further replies."""
        self.replies += replies

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert isinstance(reader, _Reader)
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer, self.connections))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: _Reader, writer: asyncio.StreamWriter, connection: int) -> None:
        try:
            keep = True
            while keep:
                request = await _read_request(reader, connection)
                self.requests.append(request)
                self.asked.set()
                chosen = self.replies[min(self._given, len(self.replies) - 1)]
                self._given += 1
                reader.answering = request
                keep = await _answer(chosen(request) if callable(chosen) else chosen, request, writer)
                reader.answering = None
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            if reader.answering is not None:
                reader.answering.hung_up.set()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
                await writer.wait_closed()


class _Reader(asyncio.StreamReader):
    """Tells the request whose answer is under way that its client is gone."""

    answering: Request | None = None

    def feed_eof(self) -> None:
        super().feed_eof()
        self._tell()

    def set_exception(self, exc: BaseException) -> None:
        # Who closes before all that was sent is read resets the connection.
        super().set_exception(exc)
        self._tell()

    def _tell(self) -> None:
        if self.answering is not None:
            self.answering.hung_up.set()


async def _answer(reply: Reply, request: Request, writer: asyncio.StreamWriter) -> bool:
    """Whether the connection may carry another request."""
    await asyncio.sleep(reply.before)
    pieces = list(reply.body)
    if reply.status:
        writer.write(_head(reply, pieces))
    for piece in pieces:
        if request.hung_up.is_set() or piece is CLOSE:
            return False
        if piece is RESET:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return False
        if isinstance(piece, bytes):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if reply.framing == "chunked" else piece)
            await writer.drain()
            request.sent += 1
        elif isinstance(piece, int | float):
            await asyncio.sleep(piece)
        elif isinstance(piece, threading.Event):
            await asyncio.to_thread(piece.wait)
    if reply.status and reply.framing == "chunked":
        writer.write(b"0\r\n\r\n")
    await writer.drain()
    return reply.status != 0 and reply.framing != "eof"


def _head(reply: Reply, pieces: list[Piece]) -> bytes:
    lines = [f"HTTP/1.1 {reply.status} X", *(f"{name}: {value}" for name, value in reply.headers.items())]
    if reply.framing == "chunked":
        lines.append("transfer-encoding: chunked")
    elif reply.framing == "length":
        lines.append(f"content-length: {sum(len(piece) for piece in pieces if isinstance(piece, bytes))}")
    else:
        lines.append("connection: close")
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


async def _read_request(reader: asyncio.StreamReader, connection: int) -> Request:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body, connection)


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]

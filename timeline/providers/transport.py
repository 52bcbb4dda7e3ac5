"""The client that providers ask with, how bytes reach it, and what its exceptions mean: what httpx leaves to its user.

Servers put each few characters into an HTTP chunk of their own, and taking chunks apart is most of what a stream
costs. `DirectTransport` gives on as one what one read brought, by httpx's and
httpcore's public interfaces: connections, TLS, HTTP and the pool are theirs.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, cast
from urllib.request import getproxies

import httpcore
import httpx

from timeline.errors import BadResponse, ConfigError, InvalidRequest, NetworkError, ProviderError
from timeline.providers.failures import Speaker
from timeline.providers.waiting import Timeouts, late, within

__all__ = ["Coalescer", "DirectTransport", "client", "network_error"]

# As h11 reads them: a line may end in a lone LF, and nothing but "chunked" makes a body chunked.
_HEAD_END = re.compile(rb"\n\r?\n")
_CHUNKED = re.compile(rb"\ntransfer-encoding:[ \t]*chunked[ \t]*\r?\n", re.IGNORECASE)
_FIRST_SIZE = re.compile(rb"([0-9a-fA-F]{1,16})\r\n")
_NEXT_SIZE = re.compile(rb"\r\n([0-9a-fA-F]{1,16})\r\n")
_LONGEST_SIZE = 20


class Coalescer:
    """Joins the chunks of an HTTP/1.1 body (RFC 9112, 7.1) that arrived together; every other byte passes as it is.

    From the first thing on that isn't a plain chunk (the last one, an extension, what is no chunk at all) the
    response passes unchanged: what is an error and what is an end stays for the HTTP library to say.
    """

    __slots__ = ("_before", "_head", "_left", "_passing", "_rest", "_size")

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """The next bytes begin a response."""
        self._head: bytes | None = b""
        self._passing = False
        self._size = _FIRST_SIZE
        # The end of the chunk that was given on before.
        self._before = b""
        # Bytes of a chunk, the beginning of which was given on, that are still to come.
        self._left = 0
        # The beginning of a chunk's size.
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """What to give on of what was read; empty where that is nothing yet."""
        if self._head is None:
            return data if self._passing else self._joined(data)
        begin = len(self._head)
        heads = self._head + data
        position = 0
        while end := _HEAD_END.search(heads, position):
            head = heads[position : end.end()]
            position = end.end()
            # Behind an interim response, the next one follows.
            if not head.startswith(b"HTTP/1.1 1"):
                self._head = None
                self._passing = _CHUNKED.search(head) is None
                body = position - begin
                return data[:body] + self.feed(data[body:])
        self._head = heads[position:]
        return data

    def _joined(self, data: bytes) -> bytes:
        if self._rest:
            data = self._rest + data
        end, position, size = len(data), self._left, self._size
        parts = [data[:position]] if position else []
        last = None
        while position < end and (line := size.match(data, position)):
            length = int(line[1], 16)
            if not length:
                last = line
                break
            begin = line.end()
            position = begin + length
            parts.append(data[begin:position])
            size = _NEXT_SIZE
        self._size = size
        self._left = max(position - end, 0)
        self._rest = data[position:]
        passed = b""
        if last or len(self._rest) >= _LONGEST_SIZE or b"\n" in self._rest[2:]:
            passed, self._rest, self._passing = self._rest, b"", True
        if not (body := b"".join(parts)):
            return passed
        before, self._before = self._before, b"\r\n"
        return b"%b%x\r\n%b%b" % (before, len(body), body, passed)


class _Stream(httpcore.AsyncNetworkStream):
    """A connection that speaks HTTP/1.1, read through a `Coalescer`."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._coalescer = Coalescer()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        while data := await self._stream.read(max_bytes, timeout):
            if given := self._coalescer.feed(data):
                return given
        return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._coalescer.restart()
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        stream = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        secure = stream.get_extra_info("ssl_object")
        return stream if secure is not None and secure.selected_alpn_protocol() == "h2" else _Stream(stream)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore.AnyIOBackend):
    """Opens connections."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(await super().connect_tcp(host, port, timeout, local_address, socket_options))


@contextmanager
def _errors_of_httpx() -> Iterator[None]:
    """The exceptions of httpcore as those of httpx, which have the same names."""
    try:
        yield
    except tuple(_ERRORS) as exc:
        raise _ERRORS[type(exc)](str(exc)) from exc


_ERRORS = {
    getattr(httpcore, name): getattr(httpx, name)
    for name in (
        "ConnectTimeout",
        "ReadTimeout",
        "WriteTimeout",
        "PoolTimeout",
        "ConnectError",
        "ReadError",
        "WriteError",
        "ProxyError",
        "UnsupportedProtocol",
        "LocalProtocolError",
        "RemoteProtocolError",
    )
}


class _Body(httpx.AsyncByteStream):
    def __init__(self, body: Any) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _errors_of_httpx():
            async for data in cast("AsyncIterable[bytes]", self._body):
                yield data

    async def aclose(self) -> None:
        await self._body.aclose()


class DirectTransport(httpx.AsyncBaseTransport):
    """Connections without a proxy.

    Args:
        ssl_context: Whom to trust; None where nothing is encrypted.
        http2: Offer HTTP/2 where there is TLS.
        limits: Of the pool.
    """

    def __init__(self, ssl_context: ssl.SSLContext | None, *, http2: bool, limits: httpx.Limits) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            http2=http2,
            network_backend=_Backend(),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See `httpx.AsyncBaseTransport`."""
        url = request.url
        asked = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=cast("AsyncIterable[bytes]", request.stream),
            extensions=request.extensions,
        )
        with _errors_of_httpx():
            answer = await self._pool.handle_async_request(asked)
        return httpx.Response(
            answer.status, headers=answer.headers, stream=_Body(answer.stream), extensions=answer.extensions
        )

    async def aclose(self) -> None:
        """Close the pooled connections."""
        await self._pool.aclose()


# ------------------------------------------------------------------ the client


def client(name: str, *, secure: bool, direct: bool, ca_file: str | None) -> httpx.AsyncClient:
    """The client of one provider: it keeps connections open, and follows no redirect.

    Args:
        name: The provider's, for messages.
        secure: Whether it is asked by TLS.
        direct: Never by a proxy, and with nothing of the environment: it is on this machine.
        ca_file: PEM file of the authorities to trust instead of the usual ones.

    Raises:
        ConfigError: A certificate or a proxy can't be used.
    """
    trusted = _trusted(name, ca_file, trust_env=not direct) if secure else None
    http2 = secure and find_spec("h2") is not None
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=60.0)
    # Where the environment names proxies, httpx knows which of them is for whom.
    proxied = not direct and getproxies().keys() - {"no"}
    try:
        return httpx.AsyncClient(
            verify=trusted or False,
            http2=http2,
            trust_env=not direct,
            transport=None if proxied else DirectTransport(trusted, http2=http2, limits=limits),
            limits=limits,
            headers={"user-agent": "llm-timeline"},
        )
    except (ImportError, ValueError, httpx.InvalidURL):
        msg = "the proxy named in the environment can't be used: check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY"
        raise ConfigError(msg) from None


def _trusted(name: str, ca_file: str | None, *, trust_env: bool) -> ssl.SSLContext:
    try:
        if ca_file is None:
            return httpx.create_ssl_context(trust_env=trust_env)
        return ssl.create_default_context(cafile=ca_file)
    except OSError:
        what = (
            "the certificates that SSL_CERT_FILE or SSL_CERT_DIR names"
            if ca_file is None
            else f"ca_file {ca_file} of {name}"
        )
        msg = f"{what} can't be read as PEM certificates: check the path"
        raise ConfigError(msg) from None


# ------------------------------------------------------------------ what its exceptions mean


def network_error(exc: Exception, speaker: Speaker, timeouts: Timeouts) -> ProviderError:  # noqa: PLR0911
    """What an exception of httpx means; nothing of its own text is kept, which can hold header values."""
    name, where = speaker.name, speaker.address

    def lost(why: str, advice: str, *, retryable: bool | None = None) -> NetworkError:
        return NetworkError(f"{name} can't be reached at {where} ({why}): {advice}", provider=name, retryable=retryable)

    match exc:
        case httpx.ConnectTimeout() | httpx.PoolTimeout():
            return late(name, within(f"gave no connection at {where}", timeouts.connect))
        case httpx.ReadTimeout():
            return late(name, within("sent no answer", timeouts.first_byte))
        case httpx.WriteTimeout():
            return late(name, within("took no more of the request", timeouts.between_chunks))
        case httpx.ProxyError():
            return lost("the proxy refused", "check HTTPS_PROXY and NO_PROXY")
        case httpx.LocalProtocolError():
            return InvalidRequest(
                f"the request to {name} holds a header that HTTP doesn't allow: check its key and headers",
                provider=name,
            )
        case httpx.DecodingError():
            return BadResponse(f"{name} sent a body that its encoding doesn't fit: try again", provider=name)
        case httpx.ConnectError():
            why, certificate = _connect_failure(exc)
            if certificate:
                return lost(why, "name the authority's certificate with ca_file", retryable=False)
            return lost(why, speaker.unreachable_advice)
        case httpx.RemoteProtocolError():
            return lost("it closed the connection without an answer", "try again")
    return NetworkError(f"{name} broke the connection to {where} off: try again", provider=name)


def _connect_failure(exc: BaseException) -> tuple[str, bool]:
    """Why no connection came about, and whether a certificate was the reason."""
    waiting: list[BaseException | None] = [exc]
    why = "no connection"
    while waiting:
        cause = waiting.pop()
        match cause:
            case None:
                continue
            case ssl.SSLCertVerificationError():
                return f"its certificate is not trusted: {cause.verify_message}", True
            case ssl.SSLError():
                return "TLS failed", False
            case socket.gaierror():
                return "the host name is not known", False
            case ConnectionRefusedError():
                return "connection refused", False
            case BaseExceptionGroup():
                waiting += cause.exceptions
            case OSError(strerror=str() as text) if text:
                why = text.lower()
        waiting += (cause.__cause__, cause.__context__)
    return why, False

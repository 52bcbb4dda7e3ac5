"""The one place that knows httpx: a pooled client per provider, its time limits, and what its exceptions mean.

Reads a body as it comes from the network, hands it to a framer and the provider's own
parser, and yields their items from one async generator, so that a chunk costs one step of it.
"""

from __future__ import annotations

import asyncio
import base64
import re
import time
from abc import abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Struct

from timeline.errors import (
    BadResponse,
    BrokenStream,
    ConfigError,
    InvalidRequest,
    MissingKey,
    NetworkError,
    ProviderError,
    ProviderTimeout,
)
from timeline.events import RateLimit
from timeline.providers.base import Collector, Item, LLMProvider, LLMRequest, LLMResponse
from timeline.providers.failures import Complaint, Headers, Speaker, error_from, rate_limits, request_id
from timeline.providers.framing import Framer, LineTooLong, SSEFramer

if TYPE_CHECKING:
    import httpx

__all__ = ["HTTPProvider", "Head", "Parser", "Reader", "Timeouts", "is_loopback"]

_FIRST_ERROR = 300
_DRAIN_SECONDS = 0.25
_DRAIN_READS = 16


class Timeouts(Struct, frozen=True):
    """How long to wait, in seconds; None waits for ever.

    Args:
        connect: For a connection, TLS included.
        first_byte: From the request to the first byte of the answer: queueing and reading the prompt.
        between_chunks: From one read of a stream to the next.
        total: For a whole answer that isn't streamed.
    """

    connect: float | None = 10.0
    first_byte: float | None = 300.0
    between_chunks: float | None = 120.0
    total: float | None = 600.0


class Head(Struct, frozen=True):
    """What a response says before its body.

    Args:
        speaker: Whose response it is.
        status: HTTP status.
        headers: Names in lower case.
        now: When it came, µs UTC.
        model: What was asked for.
    """

    speaker: Speaker
    status: int
    headers: Headers
    now: int
    model: str

    @property
    def request_id(self) -> str | None:
        """The provider's id of the request."""
        return request_id(self.headers)

    @property
    def rate_limits(self) -> tuple[RateLimit, ...]:
        """What the headers tell about limits."""
        return rate_limits(self.headers, self.now)

    def error(self, complaint: Complaint) -> ProviderError:
        """The error that a body or an error object within the stream stands for."""
        return error_from(
            self.speaker, complaint, status=self.status, headers=self.headers, now=self.now, model=self.model
        )

    def bad(self, payload: bytes = b"", *, what: str) -> BadResponse:
        """The bytes aren't the provider's format; `what` says what they are."""
        quoted = self.speaker.quote(payload[:2000].decode("utf-8", "replace"))
        shown = f" ({quoted[:200]})" if quoted else ""
        return BadResponse(
            f"{self.speaker.name} sent {what}{shown}: check that {self.speaker.address} speaks its API",
            provider=self.speaker.name,
            status=self.status,
            request_id=self.request_id,
        )

    def broken(self) -> BrokenStream:
        """The stream ended before its terminator."""
        return BrokenStream(
            f"{self.speaker.name} ended the stream before the answer was whole: ask again",
            provider=self.speaker.name,
            status=self.status,
            request_id=self.request_id,
            rate_limits=self.rate_limits,
        )


class Parser(Protocol):
    """Turns payloads into items; knows one provider's JSON and nothing of bytes on a wire."""

    done: bool
    """The terminator has been read, and `Finish` given out."""

    def items(self, payload: bytes) -> Iterable[Item]:
        """The items of one payload.

        Raises:
            ProviderError: The payload is an error or not the provider's format.
        """
        ...

    def end(self) -> Iterable[Item]:
        """At end of file: the items still owed.

        Raises:
            BrokenStream: The answer isn't whole.
        """
        ...


def split_url(base_url: str) -> tuple[str, str, str | None, str]:
    """A base URL as `(address without credentials and query, query, user:password, host)`.

    Raises:
        ConfigError: It isn't an http or https URL.
    """
    try:
        parts = urlsplit(base_url.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        # The value itself may hold a password: it is not repeated.
        msg = "base_url is no http:// or https:// address: write it like https://api.example.com/v1"
        raise ConfigError(msg)
    place = f"[{host}]" if ":" in host else host
    place += f":{port}" if port is not None else ""
    userinfo = None
    if parts.username is not None or parts.password is not None:
        userinfo = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return f"{parts.scheme}://{place}{parts.path.rstrip('/')}", parts.query, userinfo, host


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    return host in ("localhost", "::1", "0.0.0.0", "::") or host.startswith("127.") or host.endswith(".localhost")  # noqa: S104 - compared, not bound


_SECRET_HEADER = re.compile(r"key|token|secret|auth|cookie|password", re.IGNORECASE)
_SHORTEST_SECRET = 4


def _header_value(name: str, value: str) -> str:
    if not value.isascii() or not value.isprintable():
        msg = f"the key or a header of {name} holds characters that HTTP doesn't allow: paste it again"
        raise ConfigError(msg)
    return value


def late(name: str, what: str, limit: float | None) -> ProviderTimeout:
    """Nothing came within `limit` seconds."""
    within = f" within {limit:g} s" if limit is not None else ""
    return ProviderTimeout(f"{name} {what}{within}: try again or raise the timeout", provider=name)


def network_error(exc: Exception, speaker: Speaker, timeouts: Timeouts) -> ProviderError:  # noqa: PLR0911
    """What an exception of httpx means; nothing of its own text is kept, which can hold header values."""
    import httpx

    name, where = speaker.name, speaker.address

    def lost(why: str, advice: str, *, retryable: bool | None = None) -> NetworkError:
        return NetworkError(f"{name} can't be reached at {where} ({why}): {advice}", provider=name, retryable=retryable)

    match exc:
        case httpx.ConnectTimeout() | httpx.PoolTimeout():
            return late(name, f"gave no connection at {where}", timeouts.connect)
        case httpx.ReadTimeout():
            return late(name, "sent no answer", timeouts.first_byte)
        case httpx.WriteTimeout():
            return late(name, "took no more of the request", timeouts.between_chunks)
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
    return NetworkError(f"{name} closed the connection at {where} before it answered: try again", provider=name)


def _connect_failure(exc: BaseException) -> tuple[str, bool]:
    """Why no connection came about, and whether a certificate was the reason."""
    import socket
    import ssl

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


class _Watch:
    """Cancels a task that waits longer than allowed for bytes.

    A wait costs one clock read: the timer is set once per stream and looks again when it
    rings. `asyncio.timeout` would set and drop a timer at each read, and couldn't be held
    across a `yield`.
    """

    __slots__ = ("_cancelling", "_deadline", "_limit", "_loop", "_rung", "_task", "_timer")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline: float | None = None
        self._limit = 0.0
        self._cancelling = 0
        self._rung = False

    def start(self, limit: float | None) -> None:
        """The current task begins to wait."""
        if limit is None:
            self._deadline = None
            return
        self._task = task = asyncio.current_task()
        self._cancelling = task.cancelling() if task else 0
        self._limit = limit
        self._deadline = deadline = self._loop.time() + limit
        if self._timer is None or self._timer.when() > deadline:
            self.close()
            self._timer = self._loop.call_at(deadline, self._ring)

    def stop(self) -> None:
        """The wait is over."""
        self._deadline = None

    def close(self) -> None:
        """Drop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def fired(self) -> float | None:
        """The limit that was passed, if the cancellation at hand is this watch's alone."""
        if not self._rung or self._task is None:
            return None
        self._rung = False
        return self._limit if self._task.uncancel() <= self._cancelling else None

    def _ring(self) -> None:
        now = self._loop.time()
        deadline = self._deadline
        if deadline is not None and deadline <= now:
            self._timer = None
            self._deadline = None
            if self._task is not None:
                self._rung = True
                self._task.cancel()
            return
        self._timer = self._loop.call_at(deadline if deadline is not None else now + self._limit, self._ring)


class Reader:
    """A streamed body on its way to items: framing, parsing and what the end of file means, without any I/O."""

    __slots__ = ("_begun", "_framer", "_head", "_parser", "_tail", "arrived")

    def __init__(self, head: Head, parser: Parser, framer: Framer) -> None:
        self._head = head
        self._parser = parser
        self._framer = framer
        self._begun = False
        self._tail = 0
        self.arrived = False

    @property
    def done(self) -> bool:
        """`Finish` has been given out."""
        return self._parser.done

    @property
    def drained(self) -> bool:
        """Enough was read behind the terminator: the server doesn't end its body."""
        return self._tail > _DRAIN_READS

    def feed(self, data: bytes) -> Iterator[Item]:
        """The items of one read; those ahead of an error are given out before it is raised.

        Raises:
            ProviderError: An error stands in the stream, or it isn't the provider's format.
        """
        self.arrived = True
        parser = self._parser
        if parser.done:
            # The body's end is read too, so that the connection can be used again.
            self._tail += 1
            return
        try:
            payloads = self._framer.feed(data)
        except LineTooLong:
            raise self._head.bad(what="a line of more than 16 MiB") from None
        for payload in payloads:
            self._begun = True
            yield from parser.items(payload)

    def end(self) -> Iterator[Item]:
        """At end of file: what is still owed.

        Raises:
            BrokenStream: The answer isn't whole.
            ProviderError: As `feed`.
        """
        if self._parser.done:
            return
        for payload in self._framer.end():
            self._begun = True
            try:
                yield from self._parser.items(payload)
            except BadResponse:
                raise self._head.broken() from None
        stray = self._framer.stray
        if stray is not None and not self._begun:
            raise self._head.bad(stray, what="no stream of answers")
        yield from self._parser.end()


class _Mapped:
    """Lets nothing but errors of the tree come out of what touches the network."""

    __slots__ = ("_provider",)

    def __init__(self, provider: HTTPProvider) -> None:
        self._provider = provider

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, Exception) and not isinstance(exc, ProviderError):
            import httpx

            if isinstance(exc, httpx.RequestError):
                raise self._provider.network_error(exc) from None


class _MappedStream(_Mapped):
    """Knows besides when a stream is over, whatever happens to its connection, and whose cancellation it sees."""

    __slots__ = ("_reader", "_watch")

    def __init__(self, provider: HTTPProvider, watch: _Watch, reader: Reader) -> None:
        super().__init__(provider)
        self._watch = watch
        self._reader = reader

    def __exit__(  # type: ignore[override] # this one swallows
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: object
    ) -> bool:
        provider, reader = self._provider, self._reader
        if isinstance(exc, asyncio.CancelledError) and (limit := self._watch.fired()) is not None:
            if not reader.done:
                raise provider.silence(limit, arrived=reader.arrived) from None
            return True
        if isinstance(exc, Exception) and not isinstance(exc, ProviderError):
            import httpx

            # A body that was cut off is at its end; the parser knows whether the answer was whole.
            if isinstance(exc, httpx.RemoteProtocolError) or (reader.done and isinstance(exc, httpx.RequestError)):
                return True
        super().__exit__(kind, exc, trace)
        return False


def _body(response: httpx.Response) -> AsyncIterable[bytes]:
    """What each network read brought. Where nothing encodes it, `aiter_raw` would cost a generator more."""
    if response.headers.get("content-encoding", "identity") == "identity":
        return cast("AsyncIterable[bytes]", response.stream)
    return response.aiter_bytes()


class HTTPProvider(LLMProvider):
    """A provider behind HTTP: subclasses say how to ask and what the JSON means.

    Args:
        api_key: The key; None where the server needs none.
        base_url: Where the API stands; `user:password@` and a query are kept out of every message.
        name: The provider's name as configured.
        local: A server on a loopback address that computes on this machine, and so is free.
        timeouts: See `Timeouts`.
        headers: Further request headers; they win over the provider's own.
        ca_file: PEM file of the certificate authorities to trust instead of the usual ones.

    Raises:
        ConfigError: `base_url`, a header or the key can't be used as such.
    """

    framer: ClassVar[type[Framer]] = SSEFramer
    key_variable: ClassVar[str | None] = None
    default_host: ClassVar[str | None] = None

    def __init__(
        self,
        api_key: str | None,
        base_url: str,
        *,
        name: str,
        local: bool,
        timeouts: Timeouts,
        headers: Mapping[str, str] | None,
        ca_file: str | None,
    ) -> None:
        self.name = name
        self.timeouts = timeouts
        self._declared_local = local
        self._extra_headers = {key.lower(): _header_value(name, value) for key, value in (headers or {}).items()}
        self._ca_file = ca_file
        self._client: httpx.AsyncClient | None = None
        self._client_loop: asyncio.AbstractEventLoop | None = None
        self.point_at(base_url, api_key)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.base_url!r})"

    def point_at(self, base_url: str, api_key: str | None) -> None:
        """Send the requests from now on to this address, with this key.

        Raises:
            ConfigError: The address or the key can't be used.
        """
        self.base_url, self._query, self._userinfo, self.host = split_url(base_url)
        self._api_key = _header_value(self.name, api_key.strip()) or None if api_key else None
        secrets = [self._api_key, self._userinfo, (self._userinfo or "").partition(":")[2], self._query]
        secrets += [value for key, value in self._extra_headers.items() if _SECRET_HEADER.search(key)]
        advice = f"set {self.key_variable}" if self.key_variable else "check its api_key"
        self._speaker = Speaker(
            self.name,
            self.base_url,
            advice,
            tuple(sorted({s for s in secrets if s and len(s) >= _SHORTEST_SECRET}, key=len, reverse=True)),
            self.unreachable_advice,
        )

    @property
    def local(self) -> bool:
        """Whether answers are computed on this machine, and so are free."""
        return self._declared_local and is_loopback(self.host)

    def network_error(self, exc: Exception) -> ProviderError:
        """What an exception of httpx means here."""
        return network_error(exc, self._speaker, self.timeouts)

    def silence(self, limit: float, *, arrived: bool) -> ProviderTimeout:
        """Bytes failed to come for `limit` seconds, before or after the first."""
        if arrived:
            return late(self.name, "sent nothing more of its answer", limit)
        return late(self.name, "sent no answer", self.timeouts.first_byte)

    @property
    def unreachable_advice(self) -> str:
        """What to do when no connection can be had."""
        return "start the server or check base_url" if is_loopback(self.host) else "check the network and base_url"

    # -------------------------------------------------------------- what a subclass says

    @abstractmethod
    def auth_headers(self) -> dict[str, str]:
        """The headers that carry the key, and those the API asks of everybody."""

    @abstractmethod
    def path(self, request: LLMRequest, *, stream: bool) -> str:
        """The endpoint's path below the base URL."""

    @abstractmethod
    def body(self, request: LLMRequest, *, stream: bool) -> dict[str, Any]:
        """The request as the API names things.

        Raises:
            InvalidRequest: The API has no way to say it.
        """

    @abstractmethod
    def parser(self, head: Head) -> Parser:
        """A parser for the answer that begins with `head`."""

    async def prepare(self, request: LLMRequest | None) -> None:
        """Called ahead of every request; None where it's not for a model."""

    # -------------------------------------------------------------- the contract

    async def stream_request(self, request: LLMRequest) -> AsyncIterator[Item]:
        """Ask, and yield items as they arrive; see `LLMProvider.stream_request`."""
        await self.prepare(request)
        content = msgspec.json.encode(self.body(request, stream=True))
        started = time.perf_counter()
        response = await self._send("POST", self.path(request, stream=True), content, stream=True)
        watch = _Watch()
        try:
            head = self._head(response, request.model)
            if head.status >= _FIRST_ERROR:
                raise await self._refusal(response, head)
            reader = Reader(head, self.parser(head), self.framer())
            # From here on httpx waits without a limit of its own: the watch does, for less.
            response.request.extensions["timeout"]["read"] = None
            between, first = self.timeouts.between_chunks, self.timeouts.first_byte
            with _MappedStream(self, watch, reader):
                watch.start(first and max(first - (time.perf_counter() - started), 0.001))
                async for data in _body(response):
                    watch.stop()
                    for item in reader.feed(data):
                        yield item
                    if reader.drained:
                        break
                    watch.start(_DRAIN_SECONDS if reader.done else between)
                watch.stop()
            for item in reader.end():
                yield item
        finally:
            watch.close()
            await response.aclose()

    async def make_request(self, request: LLMRequest) -> LLMResponse:
        """Ask without streaming; see `LLMProvider.make_request`."""
        collector = Collector()
        await self.prepare(request)
        content = msgspec.json.encode(self.body(request, stream=False))
        head, payload = await self._exchange("POST", self.path(request, stream=False), content, model=request.model)
        parser = self.parser(head)
        for item in parser.items(payload):
            collector.add(item)
        try:
            for item in parser.end():
                collector.add(item)
        except BrokenStream:
            raise head.bad(payload, what="no answer") from None
        return collector.response(provider=self.name, model=request.model)

    async def warm_up(self, model: str | None = None) -> None:  # noqa: ARG002 - one connection for all
        """Open the connection; what goes wrong is left for the first request to meet."""
        import httpx

        try:
            response = await self._pool().head(self.base_url, timeout=self.timeouts.connect)
            await response.aclose()
        except httpx.HTTPError:
            return

    async def aclose(self) -> None:
        """Close the pooled connections."""
        client, self._client = self._client, None
        if client is not None and self._client_loop is asyncio.get_running_loop():
            await client.aclose()

    # -------------------------------------------------------------- the wire

    async def get_json(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Fetch `path` below the base URL, with POST where there is a body, and decode its JSON.

        Raises:
            ProviderError: It failed or isn't JSON.
        """
        content = None if body is None else msgspec.json.encode(body)
        head, payload = await self._exchange("GET" if body is None else "POST", path, content)
        try:
            return msgspec.json.decode(payload)
        except msgspec.DecodeError:
            raise head.bad(payload, what="no JSON") from None

    async def _exchange(self, method: str, path: str, content: bytes | None, *, model: str = "") -> tuple[Head, bytes]:
        try:
            async with asyncio.timeout(self.timeouts.total):
                response = await self._send(method, path, content, stream=False)
                try:
                    head = self._head(response, model)
                    if head.status >= _FIRST_ERROR:
                        raise await self._refusal(response, head)
                    with _Mapped(self):
                        return head, await response.aread()
                finally:
                    await response.aclose()
        except TimeoutError:
            raise late(self.name, "sent no whole answer", self.timeouts.total) from None

    async def _send(self, method: str, path: str, content: bytes | None, *, stream: bool) -> httpx.Response:
        """The response's head; its body is still to be read, and it to be closed."""
        import httpx

        if self._api_key is None and self.host == self.default_host and "authorization" not in self._extra_headers:
            msg = f"{self.name} needs an API key: {self._speaker.key_advice}"
            raise MissingKey(msg)
        limits = self.timeouts
        client = self._pool()
        headers = {"accept": "text/event-stream, application/json" if stream else "application/json"}
        if stream:
            # A proxy that compresses a stream also holds it back.
            headers["accept-encoding"] = "identity"
        if content is not None:
            headers["content-type"] = "application/json"
        if self._userinfo is not None:
            headers["authorization"] = "Basic " + base64.b64encode(self._userinfo.encode()).decode("ascii")
        request = client.build_request(
            method,
            self.base_url + path + (f"?{self._query}" if self._query else ""),
            content=content,
            headers={**headers, **self.auth_headers(), **self._extra_headers},
            timeout=httpx.Timeout(
                connect=limits.connect,
                read=limits.first_byte if stream else limits.total,
                write=limits.between_chunks,
                pool=limits.connect,
            ),
        )
        with _Mapped(self):
            return await client.send(request, stream=True)

    def _pool(self) -> httpx.AsyncClient:
        """The client of this event loop; connections can't move between loops."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._client_loop is not loop:
            self._client, self._client_loop = self._connect(), loop
        return self._client

    def _connect(self) -> httpx.AsyncClient:
        import ssl

        import httpx

        verify: ssl.SSLContext | bool = self.base_url.startswith("https:")
        if verify and self._ca_file is not None:
            try:
                verify = ssl.create_default_context(cafile=self._ca_file)
            except OSError:
                msg = f"ca_file {self._ca_file} of {self.name} can't be read as PEM certificates: check the path"
                raise ConfigError(msg) from None
        try:
            return httpx.AsyncClient(
                verify=verify,
                http2=find_spec("h2") is not None,
                trust_env=not is_loopback(self.host),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=60.0),
                headers={"user-agent": "llm-timeline"},
            )
        except (ImportError, ValueError, httpx.InvalidURL):
            msg = "the proxy named in the environment can't be used: check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY"
            raise ConfigError(msg) from None

    def _head(self, response: httpx.Response, model: str) -> Head:
        headers = {key.lower(): value for key, value in response.headers.items()}
        return Head(self._speaker, response.status_code, headers, time.time_ns() // 1000, model)

    async def _refusal(self, response: httpx.Response, head: Head) -> ProviderError:
        """The error that a response with an error status stands for."""
        if head.status < 400:  # noqa: PLR2004 - redirects aren't followed: a key must not go where base_url doesn't say
            target = urlsplit(head.headers.get("location", "")).hostname
            return BadResponse(
                f"{self.name} redirects ({head.status}) to {target or 'another path'}: set base_url to where its API is",
                provider=self.name,
                status=head.status,
                retryable=False,
            )
        try:
            async with asyncio.timeout(self.timeouts.between_chunks):
                with _Mapped(self):
                    body = await response.aread()
        except (TimeoutError, NetworkError, BrokenStream):
            body = b""  # The status tells enough.
        return head.error(Complaint.read(body))

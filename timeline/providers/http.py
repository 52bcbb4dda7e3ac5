"""A question over HTTP and its answer: one client per provider, its time limits, and nothing out of it but items and errors.

Reads a body as it comes from the network, hands it to a framer and the provider's own
parser, and yields their items from one async generator, so that a chunk costs one step of it.
"""

from __future__ import annotations

import asyncio
import base64
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast
from urllib.parse import urlsplit

import msgspec

from timeline.errors import (
    BadResponse,
    BrokenStream,
    MissingKey,
    NetworkError,
    ProviderError,
)
from timeline.providers.address import header_value, is_loopback, key_mark, secrets_in, split_url
from timeline.providers.base import UNREADABLE, Collector, Item, LLMProvider, LLMRequest, LLMResponse, utf8
from timeline.providers.failures import Complaint, Head, Speaker
from timeline.providers.framing import Framer, LineTooLong, SSEFramer
from timeline.providers.waiting import Timeouts, Watch, late, within

if TYPE_CHECKING:
    import httpx

__all__ = ["HTTPProvider", "Head", "Parser", "Timeouts", "is_loopback", "last_items", "whole_items"]

_FIRST_ERROR = 300
_DRAIN_SECONDS = 0.25
_DRAIN_READS = 16


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

    __slots__ = ("_parser", "_watch")

    def __init__(self, provider: HTTPProvider, watch: Watch, parser: Parser) -> None:
        super().__init__(provider)
        self._watch = watch
        self._parser = parser

    def __exit__(  # type: ignore[override] # this one swallows
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: object
    ) -> bool:
        name, over = self._provider.name, self._parser.done
        if isinstance(exc, LineTooLong):
            raise self._provider.too_long() from None
        if isinstance(exc, asyncio.CancelledError) and (missed := self._watch.fired()) is not None:
            if over:
                return True
            raise late(name, missed) from None
        if isinstance(exc, Exception) and not isinstance(exc, ProviderError):
            import httpx

            # A body that was cut off is at its end; the parser knows whether the answer was whole.
            if isinstance(exc, httpx.RemoteProtocolError) or (over and isinstance(exc, httpx.RequestError)):
                return True
        super().__exit__(kind, exc, trace)
        return False


async def _drain(body: AsyncIterator[bytes], watch: Watch) -> None:
    """Read the body's end behind the terminator, so that the connection can be used again."""
    watch.allow(_DRAIN_SECONDS, "")
    watch.wait()
    for _ in range(_DRAIN_READS):
        if await anext(body, None) is None:
            return


def last_items(head: Head, framer: Framer, parser: Parser) -> Iterator[Item]:
    """At end of file: the items still owed.

    Raises:
        BrokenStream: The answer isn't whole.
        ProviderError: What no line end closed is an error, or isn't the provider's format.
    """
    for payload in framer.end():
        try:
            yield from parser.items(payload)
        except BadResponse:
            if payload.lstrip()[:1] not in b"{[":
                raise
            raise head.broken() from None
    if framer.stray is not None and not framer.seen:
        raise head.bad(framer.stray, what="no stream of answers")
    yield from parser.end()


def whole_items(parser: Parser, payload: bytes) -> Iterator[Item]:
    """The items of an answer that wasn't asked to be streamed, though some servers stream it all the same."""
    payloads = [payload]
    if payload.lstrip().startswith((b"data:", b"event:", b":")):
        framer = SSEFramer()
        payloads = [*framer.feed(payload), *framer.end()]
    for each in payloads:
        yield from parser.items(each)
    if not parser.done:
        yield from parser.end()


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
        self._extra_headers = {key.lower(): header_value(name, value) for key, value in (headers or {}).items()}
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
        origin, path, self._query, self._userinfo, self.host = split_url(base_url)
        self.base_url = origin + self.prefix(path)
        self._api_key = header_value(self.name, api_key.strip()) or None if api_key else None
        self.key_mark = key_mark(self._api_key)
        userinfo = self._userinfo or ""
        secrets = secrets_in((self._api_key, userinfo, userinfo.partition(":")[2], self._query), self._extra_headers)
        self._speaker = Speaker(self.name, self.base_url, self.key_advice, secrets, self.unreachable_advice)

    def prefix(self, path: str) -> str:
        """The path below which the endpoints stand, from the base URL's (no slash at its end)."""
        return path

    @property
    def local(self) -> bool:
        """Whether answers are computed on this machine, and so are free."""
        return self._declared_local and is_loopback(self.host)

    def network_error(self, exc: Exception) -> ProviderError:
        """What an exception of httpx means here."""
        from timeline.providers.transport import network_error

        return network_error(exc, self._speaker, self.timeouts)

    def too_long(self) -> BadResponse:
        """A line of the answer passed the bound."""
        return BadResponse(
            f"{self.name} sent a line of more than 16 MiB: check that {self.base_url} speaks its API",
            provider=self.name,
        )

    @property
    def key_advice(self) -> str:
        """What to do about a key that is missing or refused."""
        # The variable belongs to the vendor; another server of the same format has a key of its own.
        own = self.key_variable is not None and self.key_variable == f"{self.name.upper()}_API_KEY"
        return f"{f'set {self.key_variable}' if own else 'check its api_key'} or run 'timeline keys set {self.name}'"

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
    def parser(self, head: Head, request: LLMRequest) -> Parser:
        """A parser for the answer to `request` that begins with `head`."""

    async def prepare(self, request: LLMRequest | None) -> None:
        """Called ahead of every request; None where it's not for a model."""

    # -------------------------------------------------------------- the contract

    async def stream_request(self, request: LLMRequest) -> AsyncGenerator[Item, None]:
        """Ask, and yield items as they arrive; see `LLMProvider.stream_request`."""
        await self.prepare(request)
        content = msgspec.json.encode(self.body(request, stream=True))
        started = time.perf_counter()
        response = await self._send("POST", self.path(request, stream=True), content, stream=True)
        watch, loop, current_task = Watch(), asyncio.get_running_loop(), asyncio.current_task
        try:
            head = self._head(response, request.model)
            if head.status >= _FIRST_ERROR:
                raise await self._refusal(response, head)
            parser, framer = self.parser(head, request), self.framer()
            first, between = self.timeouts.first_byte, self.timeouts.between_chunks
            # From here on httpx waits without a limit of its own: the watch does, for less.
            response.request.extensions["timeout"]["read"] = None
            with _MappedStream(self, watch, parser):
                body, arrived = aiter(_body(response)), False
                watch.allow(
                    first and max(first - (time.perf_counter() - started), 0.001), within("sent no answer", first)
                )
                watch.wait()
                async for data in body:
                    watch.waiting = None
                    if not arrived:
                        arrived = True
                        watch.allow(between, within("sent nothing more of its answer", between))
                    for payload in framer.feed(data):
                        for item in parser.items(payload):
                            yield item
                        if parser.done:
                            await _drain(body, watch)
                            return
                    # `Watch.wait`, without a call for every chunk.
                    watch.ticks = 0
                    watch.waiting = current_task(loop)
            watch.waiting = None
            if not parser.done:
                for item in last_items(head, framer, parser):
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
        parser = self.parser(head, request)
        try:
            for item in whole_items(parser, payload):
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

    async def get_json(
        self, path: str, body: dict[str, Any] | bytes | None = None, *, content_type: str = "application/json"
    ) -> Any:
        """Fetch `path` below the base URL, with POST where there is a body, and decode its JSON.

        Args:
            path: With its query.
            body: To be sent as JSON; bytes are sent as they are.
            content_type: What the bytes are.

        Raises:
            ProviderError: It failed, isn't JSON, or is an error under a good status.
        """
        content = body if body is None or isinstance(body, bytes) else msgspec.json.encode(body)
        method = "GET" if body is None else "POST"
        head, payload = await self._exchange(method, path, content, content_type=content_type)
        try:
            value = msgspec.json.decode(utf8(payload))
        except UNREADABLE:
            raise head.bad(payload, what="no JSON") from None
        if isinstance(value, dict) and value.get("error") and "id" not in value:
            raise head.error(Complaint.of(value))
        return value

    async def get_lines(self, path: str) -> AsyncGenerator[bytes, None]:
        """Fetch the lines of a file below the base URL as they arrive, however long it is.

        Raises:
            ProviderError: It failed, or broke off.
        """
        response = await self._send("GET", path, None, stream=True)
        try:
            head = self._head(response, "")
            if head.status >= _FIRST_ERROR:
                raise await self._refusal(response, head)
            rest = b""
            with _Mapped(self):
                async for data in response.aiter_bytes():
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        yield line
            yield rest
        finally:
            await response.aclose()

    def head_of(self, status: int, request_id: str | None, model: str) -> Head:
        """The head of an answer that came as a part of another one."""
        headers = {} if request_id is None else {"request-id": request_id}
        return Head(self._speaker, status, headers, time.time_ns() // 1000, model)

    async def _exchange(
        self, method: str, path: str, content: bytes | None, *, model: str = "", content_type: str = "application/json"
    ) -> tuple[Head, bytes]:
        try:
            async with asyncio.timeout(self.timeouts.total):
                response = await self._send(method, path, content, stream=False, content_type=content_type)
                try:
                    head = self._head(response, model)
                    if head.status >= _FIRST_ERROR:
                        raise await self._refusal(response, head)
                    with _Mapped(self):
                        return head, await response.aread()
                finally:
                    await response.aclose()
        except TimeoutError:
            raise late(self.name, within("sent no whole answer", self.timeouts.total)) from None

    async def _send(
        self, method: str, path: str, content: bytes | None, *, stream: bool, content_type: str = "application/json"
    ) -> httpx.Response:
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
            headers["content-type"] = content_type
        if self._userinfo is not None:
            headers["authorization"] = "Basic " + base64.b64encode(self._userinfo.encode()).decode("ascii")
        request = client.build_request(
            method,
            self.base_url + path + (f"{'&' if '?' in path else '?'}{self._query}" if self._query else ""),
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
            from timeline.providers.transport import client

            secure, direct = self.base_url.startswith("https:"), is_loopback(self.host)
            self._client = client(self.name, secure=secure, direct=direct, ca_file=self._ca_file)
            self._client_loop = loop
        return self._client

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
        except (TimeoutError, NetworkError, BrokenStream, BadResponse):
            body = b""  # The status tells enough.
        return head.error(Complaint.read(body))

"""A page of the public web as a tool; off until the configuration says otherwise.

What is asked for may come from a model that was talked into it by a page. So a name is resolved here, each of its
addresses has to be a public one, and it is that very address which is connected to: a name that changes its mind
in between, a redirect inwards and an address in disguise lead nowhere. Proxies are not used, as they resolve names
themselves.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any

from msgspec import Struct

import timeline
from timeline.cognition.builtin.apart import apart
from timeline.cognition.builtin.pages import charset, html_text
from timeline.cognition.tools import Tool, ToolResult, Workspace
from timeline.errors import ToolError

if TYPE_CHECKING:
    import httpx

__all__ = ["FetchUrl", "is_public"]

LARGEST = 2 << 20
"""Bytes of a page that are read."""
MOST_REDIRECTS = 5
MOST_ADDRESSES = 3
"""Of a name that are tried."""
PATIENCE_SECONDS = 8.0
"""For the connection, and between two pieces of the page."""
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"url": {"type": "string", "minLength": 1, "maxLength": 2_000, "description": "https://..."}},
    "required": ["url"],
    "additionalProperties": False,
}
_HTML = ("text/html", "application/xhtml+xml")
_TEXT = ("application/json", "application/xml", "application/javascript", "application/x-ndjson", "application/yaml")

_GLOBAL_UNICAST = IPv6Network("2000::/3")
_SPECIAL = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16")))
_TRANSLATED = IPv6Network("64:ff9b::/96")
"""IPv4 behind a translator (RFC 6052): what counts is the address inside."""

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a name and port."""
Dial = Callable[[str, int], tuple[str, int]]
"""Where to connect to for an address that was found to be public, and a port: those, but for a test's."""


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet.

    After the registries of special addresses (https://www.iana.org/assignments/iana-ipv4-special-registry,
    https://www.iana.org/assignments/iana-ipv6-special-registry).

    Args:
        address: IPv4 or IPv6, perhaps with a scope.
    """
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        inside = ip.ipv4_mapped or (IPv4Address(int(ip) & 0xFFFF_FFFF) if ip in _TRANSLATED else None)
        if inside is None:
            return ip in _GLOBAL_UNICAST and not any(ip in network for network in _SPECIAL)
        ip = inside
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


class _Page(Struct, frozen=True):
    url: str
    content_type: str
    data: bytes
    partial: bool


class FetchUrl(Tool):
    """Reads a page of the web as text.

    Args:
        resolve: Looks names up; by default as the system does.
        dial: See `Dial`.
        ca_file: PEM file of certificate authorities to trust instead of the usual ones.
    """

    name = "fetch_url"
    description = "Fetches a public web page (http or https) and gives its text."
    parameters = PARAMETERS
    timeout_seconds = 30

    def __init__(
        self,
        resolve: Resolve | None = None,
        dial: Dial = lambda address, port: (address, port),
        ca_file: str | None = None,
    ) -> None:
        self._resolve = resolve or _resolved
        self._dial = dial
        self._ca_file = ca_file

    async def run(self, arguments: dict[str, Any], workspace: Workspace) -> ToolResult:  # noqa: ARG002 - needs none of it
        """Fetch it."""
        page = await self._fetch(arguments["url"])
        kind = page.content_type.partition(";")[0].strip().lower()
        text = page.data.decode(charset(page.content_type, page.data), "replace")
        cut = page.partial
        if kind in _HTML or (not kind and "<html" in text[:1_000].lower()):
            text, left_out = await apart(html_text, text)
            cut = cut or left_out
        elif kind and not (kind.startswith("text/") or kind in _TEXT or kind.endswith(("+json", "+xml"))):
            msg = f"{page.url} is no text, but {kind[:60]}: name a page"
            raise ToolError(msg)
        mark = "\n[cut here: the page goes on]" if cut else ""
        return ToolResult(f"The page {page.url} says:\n\n{text.strip()}{mark}", truncated=cut)

    async def _fetch(self, url: str) -> _Page:
        """The page, after all its redirects.

        Raises:
            ToolError: It can't be had, or mustn't.
        """
        import httpx

        asked = url
        for _ in range(MOST_REDIRECTS + 1):
            target = _target(asked)
            async with self._response(target) as response:
                if response.status_code in (301, 302, 303, 307, 308) and "location" in response.headers:
                    try:
                        asked = str(target.join(response.headers["location"]))
                    except httpx.InvalidURL:
                        msg = f"{_shown(target)} redirects to what is no address: try another page"
                        raise ToolError(msg) from None
                    continue
                return await _read(target, response)
        msg = f"{url} redirects more than {MOST_REDIRECTS} times: try another page"
        raise ToolError(msg)

    @asynccontextmanager
    async def _response(self, target: httpx.URL) -> AsyncIterator[httpx.Response]:
        """The response of one of the name's addresses, its body unread."""
        import ssl

        import httpx

        verify: ssl.SSLContext | bool = target.scheme == "https"
        if verify:
            verify = ssl.create_default_context(cafile=self._ca_file) if self._ca_file else httpx.create_ssl_context()
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                httpx.AsyncClient(verify=verify, trust_env=False, timeout=PATIENCE_SECONDS, headers=_HEADERS)
            )
            try:
                response = await self._first(client, target)
            except (httpx.HTTPError, httpx.InvalidURL) as exc:
                msg = f"{_shown(target)} can't be fetched ({type(exc).__name__}): check the address, or try later"
                raise ToolError(msg) from None
            stack.push_async_callback(response.aclose)
            yield response

    async def _first(self, client: httpx.AsyncClient, target: httpx.URL) -> httpx.Response:
        import httpx

        failure: httpx.TransportError = httpx.ConnectError("")
        for address in await self._public(target):
            host, port = self._dial(address, _port(target))
            # The address that was looked at is connected to, and nothing is resolved again.
            request = client.build_request(
                "GET",
                target.copy_with(host=host, port=port),
                headers={"host": target.netloc.decode("ascii")},
                extensions={"sni_hostname": target.raw_host.decode("ascii").strip("[]")},
            )
            try:
                return await client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
                failure = exc
        raise failure

    async def _public(self, target: httpx.URL) -> Sequence[str]:
        """The addresses of the target's host, all of which have to be public ones."""
        host = target.raw_host.decode("ascii").strip("[]")
        try:
            addresses = list(dict.fromkeys(await self._resolve(host, _port(target))))
            bad = [address for address in addresses if not is_public(address)]
        except (OSError, UnicodeError, ValueError):
            addresses = bad = []
        if bad:
            msg = f"{host} is not a public address ({bad[0]}), and no other is fetched: name a page of the public web"
            raise ToolError(msg)
        if not addresses:
            msg = f"there is no host {host}: check the address"
            raise ToolError(msg)
        return addresses[:MOST_ADDRESSES]


_HEADERS = {
    "user-agent": f"llm-timeline/{timeline.__version__}",
    "accept": "text/html, text/*;q=0.9, application/json;q=0.8, */*;q=0.1",
    # Packed, a few bytes could stand for gigabytes.
    "accept-encoding": "identity",
}


async def _resolved(host: str, port: int) -> Sequence[str]:
    found = await apart(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def _target(url: str) -> httpx.URL:
    """The address as a URL that may be asked for.

    Raises:
        ToolError: It isn't one.
    """
    import httpx

    try:
        target = httpx.URL(url.strip())
    except (httpx.InvalidURL, UnicodeError, ValueError):
        target = httpx.URL("")
    if target.scheme not in ("http", "https") or not target.raw_host:
        msg = f"{url[:200]!r} is no http:// or https:// address: name one"
        raise ToolError(msg)
    if target.userinfo:
        msg = "an address with a user or password isn't fetched: name one without"
        raise ToolError(msg)
    return target.copy_with(fragment=None)


def _port(target: httpx.URL) -> int:
    return target.port or (443 if target.scheme == "https" else 80)


def _shown(target: httpx.URL) -> str:
    """The address for people, without its parameters."""
    return f"{target.scheme}://{target.netloc.decode('ascii')}{target.path}"[:300]


async def _read(target: httpx.URL, response: httpx.Response) -> _Page:
    import httpx

    if response.status_code >= httpx.codes.BAD_REQUEST:
        msg = f"{_shown(target)} answered {response.status_code}: check the address"
        raise ToolError(msg)
    if response.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
        msg = f"{_shown(target)} comes packed although it was asked for as it is: try another page"
        raise ToolError(msg)
    data = bytearray()
    try:
        async for piece in response.aiter_raw():
            data += piece
            if len(data) > LARGEST:
                break
    except httpx.HTTPError as exc:
        msg = f"{_shown(target)} broke off ({type(exc).__name__}): try later"
        raise ToolError(msg) from None
    content_type = response.headers.get("content-type", "")
    return _Page(_shown(target), content_type, bytes(data[:LARGEST]), len(data) > LARGEST)

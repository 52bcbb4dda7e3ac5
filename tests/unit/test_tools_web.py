"""Fetching a page: what is public is fetched as text, and nothing else is connected to, however it is asked for."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.loopback import Reply, Request, Server

from timeline.cognition.builtin.pages import charset, html_text
from timeline.cognition.builtin.web import LARGEST, FetchUrl, is_public
from timeline.cognition.tools import ToolResult, Tools, Workspace
from timeline.errors import ToolError
from timeline.providers.base import ToolCall

PUBLIC = "93.184.216.34"
SUPPORT = Path(__file__).parents[1] / "support"
NAMES = {
    "example.com": [PUBLIC],
    "www.example.com": [PUBLIC],
    "localhost": [PUBLIC],
    "inside.example.com": ["10.0.0.5"],
    "both.example.com": [PUBLIC, "127.0.0.1"],
    "metadata.example.com": ["169.254.169.254"],
    "six.example.com": ["::ffff:127.0.0.1"],
    "::ffff:10.0.0.1": ["::ffff:10.0.0.1"],
}


class World:
    """A resolver, and a way from public addresses to a server of the test's."""

    def __init__(self, server: Server | None = None) -> None:
        self.port = int(server.url.rpartition(":")[2]) if server else 0
        self.resolved: list[str] = []
        self.dialled: list[str] = []

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        self.resolved.append(host)
        if host not in NAMES:
            raise OSError
        return NAMES[host]

    def dial(self, address: str, port: int) -> tuple[str, int]:
        self.dialled.append(address)
        return "127.0.0.1", self.port

    def tool(self, ca_file: str | None = None) -> FetchUrl:
        return FetchUrl(self.resolve, self.dial, ca_file)


def page(text: str, content_type: str = "text/html; charset=utf-8") -> Reply:
    return Reply([text.encode()], headers={"content-type": content_type})


def to(location: str) -> Reply:
    return Reply([b""], status=302, headers={"location": location})


async def fetch(url: str, *replies: Reply) -> tuple[ToolResult, Server, World]:
    async with Server(replies) as server:
        world = World(server)
        result = await asyncio.wait_for(world.tool().run({"url": url}, Workspace(Path())), 20)
    return result, server, world


# ------------------------------------------------------------------ what is fetched


async def test_a_page_is_fetched_as_text_from_the_address_that_was_checked() -> None:
    result, server, world = await fetch(
        "http://example.com/a?b=c#d", page("<title>Hello</title><body><p>A <b>page</b> &amp; more<script>x()</script>")
    )

    assert "The page http://example.com/a says:\n\nHello\n\nA page & more" == result.text
    assert not result.truncated
    (request,) = server.requests
    assert ("GET", "/a?b=c", "example.com") == (request.method, request.path, request.headers["host"])
    assert ([PUBLIC], ["example.com"]) == (world.dialled, world.resolved)
    assert "identity" == request.headers["accept-encoding"]


async def test_the_certificate_is_that_of_the_name_not_of_the_address() -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(SUPPORT / "localhost.pem")
    async with Server(page("secure"), tls=tls) as server:
        tool = World(server).tool(str(SUPPORT / "localhost-ca.pem"))

        fetched = await tool.run({"url": "https://localhost/"}, Workspace(Path()))
        with pytest.raises(ToolError, match="can't be fetched"):
            await tool.run({"url": "https://example.com/"}, Workspace(Path()))

    assert fetched.text.endswith("secure")
    assert 1 == len(server.requests)


async def test_a_redirect_is_followed_and_checked_anew() -> None:
    result, server, world = await fetch(
        "http://example.com/old", to("//www.example.com/new"), to("newer"), page("here", "text/plain")
    )

    assert "The page http://www.example.com/newer says:\n\nhere" == result.text
    assert ["/old", "/new", "/newer"] == [request.path for request in server.requests]
    assert ["example.com", "www.example.com", "www.example.com"] == world.resolved


async def test_a_long_page_is_cut_and_says_so() -> None:
    result, _, _ = await fetch(
        "http://example.com/", Reply([b"x" * 65_536] * 40, headers={"content-type": "text/plain"})
    )

    assert result.truncated
    assert result.text.endswith("x\n[cut here: the page goes on]")
    assert LARGEST < len(result.text) < LARGEST + 200


@pytest.mark.parametrize("reply", [Reply([b"{}"], headers={"content-type": "application/ld+json"}), Reply([b"{}"])])
async def test_other_text_is_given_as_it_is(reply: Reply) -> None:
    result, _, _ = await fetch("http://example.com/", reply)

    assert result.text.endswith("says:\n\n{}")


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.1.2.3",
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::127.0.0.1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2001:0:1::1",
        "2001:db8::1",
        "fc00::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "100::1",
    ],
)
def test_an_address_inside_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:2800:220:1::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://0/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]:80/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1:8080/",
        "https://192.168.0.1/",
        "http://localhost/",
    ],
)
async def test_what_means_this_machine_or_its_network_is_refused_by_the_systems_own_resolver(url: str) -> None:
    async with Server(page("secret")) as server:
        tool = FetchUrl(dial=World(server).dial)
        with pytest.raises(ToolError, match=r"is not a public address|there is no host|is no http"):
            await asyncio.wait_for(tool.run({"url": url}, Workspace(Path())), 20)

    assert [] == server.requests


@pytest.mark.parametrize("name", ["inside", "both", "metadata", "six"])
async def test_a_name_that_leads_inside_is_refused(name: str) -> None:
    async with Server(page("secret")) as server:
        world = World(server)
        with pytest.raises(ToolError, match=f"{name}.example.com is not a public address"):
            await world.tool().run({"url": f"http://{name}.example.com/"}, Workspace(Path()))

    assert ([], []) == (server.requests, world.dialled)


@pytest.mark.parametrize(
    "location",
    [
        "http://inside.example.com/",
        "http://[::ffff:10.0.0.1]/",
        "//both.example.com",
        "file:///etc/passwd",
        "http://x:y@example.com",
    ],
)
async def test_a_redirect_that_leads_inside_is_refused(location: str) -> None:
    async with Server(to(location)) as server:
        with pytest.raises(ToolError):
            await World(server).tool().run({"url": "http://example.com/"}, Workspace(Path()))

    assert 1 == len(server.requests)


async def test_a_name_that_changes_its_mind_is_connected_to_where_it_was_checked() -> None:
    answers = [[PUBLIC], ["127.0.0.1"]]

    async def rebinding(host: str, port: int) -> Sequence[str]:
        return answers.pop(0)

    async with Server(page("public")) as server:
        world = World(server)
        await FetchUrl(rebinding, world.dial).run({"url": "http://example.com/"}, Workspace(Path()))

    assert ([PUBLIC], [["127.0.0.1"]]) == (world.dialled, answers)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "file:///etc/passwd",
        "example.com",
        "http://",
        "http:///x",
        "http://user:pw@example.com/",
        "http://[::1",
        "http://exa mple.com/",
        "gopher://x",
        "http://\ud800.com/",
        "",
    ],
)
async def test_what_is_no_address_of_the_web_is_refused(url: str) -> None:
    world = World()
    with pytest.raises(ToolError):
        await world.tool().run({"url": url}, Workspace(Path()))

    assert [] == world.dialled


@pytest.mark.parametrize(
    ("reply", "what"),
    [
        (to("/"), "redirects more than 5 times"),
        (page("no", "text/html"), "answered 404"),
        (Reply([b"%PDF"], headers={"content-type": "application/pdf"}), "is no text, but application/pdf"),
        (Reply([gzip.compress(b"x" * 10**6)], headers={"content-encoding": "gzip"}), "comes packed"),
        (Reply([], status=0), "can't be fetched"),
        (Reply([b"half"], headers={"content-length": "100", "content-type": "text/plain"}, framing="eof"), "broke off"),
    ],
    ids=["loop", "missing", "pdf", "packed", "silent", "half"],
)
async def test_what_gives_no_page_is_said(reply: Reply, what: str) -> None:
    if what == "answered 404":
        reply.status = 404

    with pytest.raises(ToolError, match=what):
        await fetch("http://example.com/", *[reply] * 7)


async def test_a_page_that_never_ends_is_given_up() -> None:
    def dripping(request: Request) -> Reply:
        return Reply([b"x", 0.02] * 10_000, headers={"content-type": "text/plain"})

    async with Server(dripping) as server:
        tool = World(server).tool()
        tool.timeout_seconds = 0.3
        outcome = await Tools([tool]).run(ToolCall("1", "fetch_url", {"url": "http://example.com/"}), Workspace(Path()))

    assert "took longer than 0.3 seconds" in outcome.text


# ------------------------------------------------------------------ pages


def test_a_page_is_read_as_people_see_it() -> None:
    html = """<!doctype html><html><head><title> The  title </title><style>p{}</style></head><body>
    <h1>Heading</h1><p>One
    paragraph.<br>Next line<ul><li>first<li>second</ul><noscript>no</noscript>
    <table><tr><td>a<td>b<tr><td>c</table><![CDATA[no]]><!-- no --> 1 &lt; 2 < 3<pre>a\nb</pre>"""

    text, cut = html_text(html)

    assert "The title\n\nHeading\n\nOne paragraph.\nNext line\n\n- first\n- second\n\na b\nc\n1 < 2 < 3\na\nb" == text
    assert not cut


@pytest.mark.parametrize(
    "piece",
    ["<!--", "<a", "<", "</", "<![", "<a b='", "<script></", "&#", "<!doctype ", "<title>", "<style><!--", "<a a "],
)
def test_a_page_made_to_keep_the_parser_busy_is_cut(piece: str) -> None:
    began = time.thread_time()

    html_text(piece * (500_000 // len(piece)) if len(piece) > 3 else piece * 20_000)

    assert time.thread_time() - began < 6


@pytest.mark.parametrize(
    ("content_type", "data", "name"),
    [
        ("text/html; charset=ISO-8859-1", b"", "cp1252"),
        ("text/html", b'<meta charset="shift_jis">', "shift_jis"),
        ("text/html; charset=punycode", b"", "utf-8"),
        ("", b"", "utf-8"),
    ],
)
def test_only_encodings_of_pages_are_decoded(content_type: str, data: bytes, name: str) -> None:
    assert name == charset(content_type, data)

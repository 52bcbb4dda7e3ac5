"""Chunks that came together are given on as one; to the HTTP library it's the same body, the same end, the same error."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import h11
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived, StreamEnded
from hypothesis import given, settings
from hypothesis import strategies as st
from support.loopback import Reply, Server
from support.recordings import KEY, request

from timeline.errors import ConfigError
from timeline.providers import OpenAIProvider, collect
from timeline.providers.transport import Coalescer, client

PEM = Path(__file__).parents[1] / "support" / "localhost.pem"
AUTHORITY = str(PEM.with_name("localhost-ca.pem"))
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes, size: bytes | None = None) -> bytes:
    return (size or b"%x" % len(data)) + b"\r\n" + data + b"\r\n"


def test_chunks_that_arrive_together_are_given_on_as_one():
    coalescer = Coalescer()

    assert HEAD + b"b\r\none two thr" == coalescer.feed(HEAD + chunk(b"one ") + chunk(b"two ") + b"5\r\nthr")
    assert b"\r\nd\r\nee four five " == coalescer.feed(b"ee\r\n" + chunk(b" four ") + chunk(b"five ")[:-1])
    assert b"\r\n3\r\nsix\r\n0\r\n\r\n" == coalescer.feed(b"\n" + chunk(b"six") + b"0\r\n\r\n")


def test_what_is_not_chunked_passes_as_it_is():
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n3\r\none\r\n0\r\n\r\n"
    coalescer = Coalescer()

    assert [whole[:40], whole[40:]] == [coalescer.feed(whole[:40]), coalescer.feed(whole[40:])]


def test_the_next_response_of_a_connection_begins_with_its_head():
    coalescer = Coalescer()
    coalescer.feed(HEAD + chunk(b"one") + b"0\r\n\r\n")
    coalescer.restart()

    assert HEAD + b"6\r\nonetwo" == coalescer.feed(HEAD + chunk(b"one") + b"3\r\ntwo")


# ------------------------------------------------------------------ against the HTTP library's own reading

SIZES = st.sampled_from([b"%x", b"%X", b"%04x", b"%017x", b"%x;name=value", b"%x \t", b" %x", b"0x%x", b"+%x", b"%x_0"])
USUAL = st.just(b"%x")


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    """Responses that are right, odd or wrong."""
    interim = draw(st.sampled_from([b"", b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"]))
    head = draw(
        st.sampled_from(
            [
                HEAD,
                HEAD,
                HEAD.replace(b"\r\n", b"\n"),
                HEAD.replace(b" chunked", b"\tCHUNKED "),
                HEAD.replace(b" chunked", b" gzip, chunked"),
                HEAD.replace(b"Transfer-Encoding: chunked\r\n", b""),
                HEAD.replace(b"200 OK", b"204 No Content"),
            ]
        )
    )
    words = st.one_of(
        st.binary(min_size=1, max_size=40),
        st.sampled_from([b"\r\n", b"data: x\r\n\r\n", b"\n\n", b"0\r\n\r\n", b"5\r\nab"]),
    )
    chunks = [
        chunk(data, draw(st.one_of(USUAL, USUAL, USUAL, SIZES)) % len(data))
        for data in draw(st.lists(words, max_size=12))
    ]
    end = draw(
        st.sampled_from(
            [b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nTrailer: x\r\n\r\n", b"00\r\n\r\n", b"", b"0\r\n", b"zz\r\n"]
        )
    )
    whole = bytearray(interim + head + b"".join(chunks) + end)
    if draw(st.integers(0, 3)) == 0:
        place = draw(st.integers(0, len(whole) - 1))
        whole[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(whole)


def understood(pieces: list[bytes], coalescer: Coalescer | None) -> tuple[bytes, str]:
    """The body, and how it ended, as h11 has it."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "localhost")]))
    client.send(h11.EndOfMessage())
    body = b""
    for piece in [*pieces, b""]:
        given = coalescer.feed(piece) if coalescer and piece else piece
        if piece and not given:
            continue
        try:
            client.receive_data(given)
            while (event := client.next_event()) is not h11.NEED_DATA:
                match event:
                    case h11.Data():
                        body += event.data
                    case h11.EndOfMessage() | h11.ConnectionClosed():
                        return body, "end"
        except h11.RemoteProtocolError:
            return body, "error"
    return body, "open"


@settings(max_examples=150)
@given(responses(), st.data())
def test_the_http_library_reads_the_same_whatever_arrives_and_however_it_is_cut(response: bytes, data: st.DataObject):
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(response) - 1, 1)), max_size=8)))
    pieces = [response[begin:end] for begin, end in zip([0, *cuts], [*cuts, None], strict=True)]
    pieces = [piece for piece in pieces if piece]

    assert understood(pieces, None) == understood(pieces, Coalescer())


def test_interim_responses_without_number():
    response = b"HTTP/1.1 100 Continue\r\n\r\n" * 2000 + HEAD + chunk(b"one ") + chunk(b"two") + b"0\r\n\r\n"
    pieces = [response[begin : begin + 1000] for begin in range(0, len(response), 1000)]

    assert [(b"one two", "end")] * 2 == [understood([response], Coalescer()), understood(pieces, Coalescer())]


def test_every_cut_of_a_response():
    response = HEAD + chunk(b"data: one\r\n\r\n") + chunk(b"\r\n") + chunk(b"0\r\n\r\n") + b"0\r\n\r\n"
    for first in range(1, len(response)):
        for second in range(first, len(response), 3):
            pieces = [piece for piece in (response[:first], response[first:second], response[second:]) if piece]

            assert (b"data: one\r\n\r\n\r\n0\r\n\r\n", "end") == understood(pieces, Coalescer())


# ------------------------------------------------------------------ connections


async def test_one_read_of_the_body_brings_all_that_came():
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"".join(chunk(b"%d " % number) for number in range(50)) + b"0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    asking = client("t", secure=False, direct=True, ca_file=None)
    async with server, asking, asking.stream("GET", url) as response:
        parts = [data async for data in response.aiter_raw()]

    assert [" ".join(map(str, range(50))).encode() + b" "] == parts


@pytest.fixture
def tls() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(PEM)
    return context


class Http2Server(asyncio.Protocol):
    """Answers each request over HTTP/2 with one stream of OpenAI's format, cut anywhere."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.http = H2Connection(H2Configuration(client_side=False))
        self.http.initiate_connection()
        self.transport.write(self.http.data_to_send())

    def data_received(self, data: bytes) -> None:
        for event in self.http.receive_data(data):
            if isinstance(event, RequestReceived):
                self.http.send_headers(event.stream_id, [(":status", "200"), ("content-type", "text/event-stream")])
            if isinstance(event, StreamEnded):
                body = b"".join(
                    part
                    for part in Reply.sse(
                        {"choices": [{"index": 0, "delta": {"content": "by two\r\n\r\n5\r\n"}}], "model": "m"},
                        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
                        "[DONE]",
                    ).body
                    if isinstance(part, bytes)
                )
                for begin in range(0, len(body), 7):
                    self.http.send_data(event.stream_id, body[begin : begin + 7])
                self.http.end_stream(event.stream_id)
        self.transport.write(self.http.data_to_send())


async def test_http_2_is_spoken_where_the_server_offers_it(tls):
    tls.set_alpn_protocols(["h2"])
    server = await asyncio.get_running_loop().create_server(Http2Server, "127.0.0.1", 0, ssl=tls)
    async with server:
        provider = OpenAIProvider(KEY, f"https://localhost:{server.sockets[0].getsockname()[1]}/v1", ca_file=AUTHORITY)
        answers = [await collect(provider.stream_request(request())) for _ in range(2)]
        await provider.aclose()

    assert ["by two\r\n\r\n5\r\n"] * 2 == [answer.content for answer in answers]


async def test_a_server_of_http_1_is_asked_over_tls_as_well(tls):
    answer = Reply.sse({"choices": [{"index": 0, "delta": {"content": "by one"}, "finish_reason": "stop"}]}, "[DONE]")
    async with Server(answer, tls=tls) as server:
        provider = OpenAIProvider(KEY, server.url, ca_file=AUTHORITY)
        answers = [await collect(provider.stream_request(request())) for _ in range(2)]
        await provider.aclose()

    assert ["by one"] * 2 == [answer.content for answer in answers]
    assert 1 == server.connections


async def test_certificates_of_the_environment_that_are_missing_are_named(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
    provider = OpenAIProvider(KEY, "https://llm.example.com/v1")

    with pytest.raises(ConfigError, match="SSL_CERT_FILE"):
        await collect(provider.stream_request(request()))

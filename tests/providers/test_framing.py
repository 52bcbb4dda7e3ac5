"""Event streams and JSON lines as servers in the field write them."""

from __future__ import annotations

import pytest

from timeline.providers.framing import MAX_LINE, Framer, LineTooLong, NDJSONFramer, SSEFramer


def payloads(framing: type[Framer], *pieces: bytes) -> list[bytes]:
    framer = framing()
    found = [payload for piece in pieces for payload in framer.feed(piece)]
    return [*found, *framer.end()]


def feed_on(framer: Framer, piece: bytes) -> None:
    for _ in range(MAX_LINE // len(piece) + 2):
        framer.feed(piece)


SSE = {
    "lf": (b"data: {1}\n\ndata: {2}\n\n", [b"{1}", b"{2}"]),
    "crlf": (b"data: {1}\r\n\r\ndata: {2}\r\n\r\n", [b"{1}", b"{2}"]),
    "cr": (b"data: {1}\r\rdata: {2}\r\r", [b"{1}", b"{2}"]),
    "cr in the midst": (b"data: {1}\n\ndata: {2}\rdata: 3\n\n", [b"{1}", b"{2}\n3"]),
    "mixed": (b"data: {1}\r\n\ndata: {2}\n\r\n", [b"{1}", b"{2}"]),
    "no space": (b"data:{1}\n\ndata:{2}\n\n", [b"{1}", b"{2}"]),
    "one space belongs to the field": (b"data:  {1}\n\n", [b" {1}"]),
    "comments": (b": hello\n\ndata: {1}\n: between\n\n:\ndata: {2}\n\n", [b"{1}", b"{2}"]),
    "other fields": (b"event: x\nid: 7\nretry: 10\ndata: {1}\n\nid\ndata: {2}\n\n", [b"{1}", b"{2}"]),
    "several data lines": (b'data: {"a":\ndata: 1}\n\ndata: {2}\n\n', [b'{"a":\n1}', b"{2}"]),
    "no last blank line": (b"data: {1}\n\ndata: {2}\n", [b"{1}", b"{2}"]),
    "no last line end": (b"data: {1}\n\ndata: {2}", [b"{1}", b"{2}"]),
    "byte order mark": (b"\xef\xbb\xbfdata: {1}\n\n", [b"{1}"]),
    "many blank lines": (b"\n\n\ndata: {1}\n\n\n\n", [b"{1}"]),
    "events without data": (b"event: ping\n\ndata: {1}\n\n", [b"{1}"]),
    "non-ascii": ("data: {é🎲}\n\n".encode(), ["{é🎲}".encode()]),
    "an error line of llama-server": (b'data: {1}\n\nerror: {"code":500}\n\n', [b"{1}", b'{"error": {"code":500}}']),
    "json in the midst": (b'data: {1}\n\n{"error":"x"}\n', [b"{1}", b'{"error":"x"}']),
    "an answer that is no stream": (b'{\n  "a": 1\n}\n', [b'{\n  "a": 1\n}\n']),
    "an answer on one line": (b'{"a": 1}', [b'{"a": 1}']),
    "nothing": (b"", []),
}
NDJSON = {
    "lines": (b'{"a":1}\n{"a":2}\n', [b'{"a":1}', b'{"a":2}']),
    "crlf": (b'{"a":1}\r\n{"a":2}\r\n', [b'{"a":1}', b'{"a":2}']),
    "blank lines": (b'\n{"a":1}\n \n\n{"a":2}\n', [b'{"a":1}', b'{"a":2}']),
    "no last line end": (b'{"a":1}\n{"a":2}', [b'{"a":1}', b'{"a":2}']),
    "byte order mark": (b'\xef\xbb\xbf{"a":1}\n', [b'{"a":1}']),
}


@pytest.mark.parametrize(("body", "expected"), SSE.values(), ids=SSE)
def test_an_event_stream_is_read_wherever_it_is_cut(body, expected):
    assert expected == payloads(SSEFramer, body)
    assert expected == payloads(SSEFramer, *(body[i : i + 1] for i in range(len(body))))
    for first in range(len(body) + 1):
        for second in range(first, len(body) + 1):
            assert expected == payloads(SSEFramer, body[:first], body[first:second], body[second:]), (first, second)


@pytest.mark.parametrize(("body", "expected"), NDJSON.values(), ids=NDJSON)
def test_json_lines_are_read_wherever_they_are_cut(body, expected):
    for first in range(len(body) + 1):
        for second in range(first, len(body) + 1):
            assert expected == payloads(NDJSONFramer, body[:first], body[first:second], body[second:]), (first, second)


@pytest.mark.parametrize("framing", [SSEFramer, NDJSONFramer])
def test_a_line_without_end_is_given_up(framing):
    with pytest.raises(LineTooLong):
        feed_on(framing(), b"data: " + b"x" * (1 << 20))


def test_an_event_of_endlessly_many_lines_is_given_up():
    with pytest.raises(LineTooLong):
        feed_on(SSEFramer(), b"data: x\n" * (1 << 16))


def test_a_long_line_in_many_small_reads_is_joined_once():
    framer = SSEFramer()
    text = b"x" * (1 << 20)
    found = framer.feed(b"data: ")
    for start in range(0, len(text), 64):
        found += framer.feed(text[start : start + 64])
    found += framer.feed(b"\n\n")

    assert [text] == found


def test_what_is_no_event_stream_is_remembered_for_the_error():
    framer = SSEFramer()
    framer.feed(b"busy\nlater\n")

    assert b"busy" == framer.stray


@pytest.mark.parametrize("framing", [SSEFramer, NDJSONFramer])
def test_a_web_page_is_one_payload_whatever_stands_in_it(framing):
    page = b"\n<!DOCTYPE html>\n<title>Login</title>\n\n<script>\ndata: {\n{}\nerror: none\n</script>"
    found = payloads(framing, *page.splitlines(keepends=True))

    assert [page.split()] == [payload.split() for payload in found]


@pytest.mark.parametrize("framing", [SSEFramer, NDJSONFramer])
def test_a_web_page_without_end_is_bounded(framing):
    framer = framing()
    framer.feed(b"<html>\n")

    with pytest.raises(LineTooLong):
        feed_on(framer, b"x" * 65536 + b"\n")

"""What nobody recorded, injected by a server on the loopback: each ends in the right error, with what came before it."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import aclosing
from pathlib import Path

import pytest
from support.loopback import CLOSE, RESET, Reply, Server, free_port
from support.recordings import KEY, provider_for, request

from timeline.errors import ConfigError, MissingKey, ProviderError
from timeline.providers import (
    AnthropicProvider,
    Delta,
    Finish,
    GroqProvider,
    LLMRequest,
    OllamaProvider,
    OpenAIProvider,
    Timeouts,
    collect,
)

DIALECTS = ["openai", "groq", "anthropic", "ollama"]
PEM = Path(__file__).parents[1] / "support" / "localhost.pem"
TAGS = Reply.json({"models": []})
SHOW = Reply.json(
    {"model_info": {"general.architecture": "a", "a.context_length": 4096}, "capabilities": ["completion"]}
)


def first_pieces(dialect: str) -> list[bytes]:
    """The beginning of an answer, up to its first text."""
    match dialect:
        case "anthropic":
            return [
                b'event: message_start\ndata: {"type":"message_start","message":{"model":"m","usage":{"input_tokens":3}}}\n\n',
                b'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n',
                b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hel"}}\n\n',
            ]
        case "ollama":
            return [b'{"model":"m","message":{"role":"assistant","content":"Hel"},"done":false}\n']
    return [b'data: {"choices":[{"index":0,"delta":{"content":"Hel"}}],"model":"m"}\n\n']


def last_pieces(dialect: str) -> list[bytes]:
    """The rest of the same answer."""
    match dialect:
        case "anthropic":
            return [
                b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"lo"}}\n\n',
                b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}\n\n',
                b'data: {"type":"message_stop"}\n\n',
            ]
        case "ollama":
            return [
                b'{"model":"m","message":{"content":"lo"},"done":false}\n',
                b'{"model":"m","message":{"content":""},"done":true,"done_reason":"stop","prompt_eval_count":3,"eval_count":2}\n',
            ]
    return [
        b'data: {"choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":"stop"}]}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n',
        b"data: [DONE]\n\n",
    ]


def in_stream_error(dialect: str) -> list[bytes]:
    match dialect:
        case "anthropic":
            return [
                b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_7"}\n\n'
            ]
        case "ollama":
            return [b'{"error":"an error was encountered while running the model"}\n']
    return [b'data: {"error":{"message":"The server had an error","type":"server_error","code":null}}\n\n']


def serving(*replies: Reply, dialect: str) -> Server:
    """A server for a provider of the dialect; Ollama's first questions are about the model."""
    return Server([SHOW, TAGS, *replies] if dialect == "ollama" else replies)


async def outcome(provider, asked: LLMRequest | None = None) -> tuple[str, ProviderError]:
    """The text that arrived, and the error that ended it."""
    text = ""
    try:
        async with aclosing(provider.stream_request(asked or request())) as items:
            async for item in items:
                assert not isinstance(item, Finish)
                text += item.text if isinstance(item, Delta) else ""
    except ProviderError as error:
        return text, error
    finally:
        await provider.aclose()
    raise AssertionError("no error")


@pytest.fixture(params=DIALECTS)
def dialect(request):
    return request.param


async def test_a_whole_answer_streamed_and_not(dialect):
    pieces = [*first_pieces(dialect), *last_pieces(dialect)]
    async with serving(Reply(pieces), dialect=dialect) as server:
        provider = provider_for(dialect, server.url)
        streamed = await collect(provider.stream_request(request()))
        await provider.aclose()

    assert ("Hello", "stop", 3, 2, dialect, "m") == (
        streamed.content,
        streamed.finish_reason,
        streamed.tokens_input,
        streamed.tokens_output,
        streamed.provider,
        streamed.model,
    )


@pytest.mark.parametrize("before", [b"", b"\n\n", b": waiting\n\n", b"event: x\n"])
async def test_an_answer_that_is_streamed_though_nobody_asked_for_that(before):
    pieces = [*first_pieces("openai"), *last_pieces("openai")]
    async with serving(Reply([piece for piece in (before, *pieces) if piece]), dialect="openai") as server:
        provider = provider_for("openai", server.url)
        answer = await provider.make_request(request())
        await provider.aclose()

    assert ("Hello", 3) == (answer.content, answer.tokens_input)


async def test_what_follows_the_terminator_is_no_part_of_the_answer(dialect):
    pieces = [*first_pieces(dialect), *last_pieces(dialect)]
    async with serving(Reply([b"".join(pieces * 2)]), dialect=dialect) as server:
        provider = provider_for(dialect, server.url)
        answer = await collect(provider.stream_request(request()))
        await provider.aclose()

    assert "Hello" == answer.content


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (500, "server", True),
        (502, "server", True),
        (503, "overloaded", True),
        (529, "overloaded", True),
        (498, "overloaded", True),
        (429, "rate_limited", True),
        (401, "authentication", False),
        (307, "bad_response", False),
    ],
)
async def test_statuses(dialect, status, kind, retryable):
    reply = Reply([b"{}"], status, {"location": "https://elsewhere.example/x"}, framing="length")
    async with serving(reply, dialect=dialect) as server:
        text, error = await outcome(provider_for(dialect, server.url))

    assert ("", kind, status, retryable) == (text, error.kind, error.status, error.retryable)


async def test_redirects_are_not_followed_and_the_key_stays_here():
    async with Server(Reply.json({}, 200)) as elsewhere:
        async with Server(Reply([], 308, {"location": f"{elsewhere.url}/x"}, framing="length")) as server:
            _, error = await outcome(OpenAIProvider(KEY, server.url))

        assert [] == elsewhere.requests
    assert "127.0.0.1" in str(error)


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ({"retry-after": "2"}, {}, 2.0),
        ({"retry-after": "0.5"}, {}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, {}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, {}, 0.0),
        ({}, {"error": {"message": "Please try again in 5.289s.", "code": "rate_limit_exceeded"}}, 5.289),
        ({}, {}, None),
    ],
)
async def test_429_tells_how_long_to_wait(dialect, headers, body, expected):
    async with serving(Reply.json(body, 429, headers), dialect=dialect) as server:
        _, error = await outcome(provider_for(dialect, server.url))

    assert ("rate_limited", expected) == (error.kind, error.retry_after)


async def test_429_with_an_http_date_in_the_future():
    async with Server(Reply.json({}, 429, {"retry-after": "Fri, 31 Dec 2100 23:59:59 GMT"})) as server:
        _, error = await outcome(OpenAIProvider(KEY, server.url))

    assert error.retry_after > 86400


async def test_an_error_after_a_good_start(dialect):
    reply = Reply([*first_pieces(dialect), *in_stream_error(dialect)])
    async with serving(reply, dialect=dialect) as server:
        text, error = await outcome(provider_for(dialect, server.url))

    assert ("Hel", "overloaded" if dialect == "anthropic" else "server", True) == (text, error.kind, error.retryable)


async def test_an_error_after_a_good_start_in_the_same_read_comes_after_the_text(dialect):
    reply = Reply([b"".join([*first_pieces(dialect), *in_stream_error(dialect)])])
    async with serving(reply, dialect=dialect) as server:
        text, _ = await outcome(provider_for(dialect, server.url))

    assert "Hel" == text


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [([0.0, RESET], "network"), ([0.0, CLOSE], "broken_stream"), ([], "broken_stream")],
    ids=["reset", "closed before its chunked end", "ended without terminator"],
)
async def test_a_connection_that_breaks_within_an_answer(dialect, pieces, kind):
    async with serving(Reply([*first_pieces(dialect), 0.02, *pieces]), dialect=dialect) as server:
        text, error = await outcome(provider_for(dialect, server.url))

    assert ("Hel", kind, True) == (text, error.kind, error.retryable)


@pytest.mark.parametrize("body", [[], [RESET]], ids=["closed", "reset"])
async def test_a_connection_that_breaks_before_an_answer(dialect, body):
    async with serving(Reply(body, status=0), dialect=dialect) as server:
        text, error = await outcome(provider_for(dialect, server.url))

    assert ("", "network", True) == (text, error.kind, error.retryable)


async def test_a_refused_connection(dialect):
    provider = provider_for(dialect, f"http://127.0.0.1:{free_port()}")
    _, error = await outcome(provider)

    assert ("network", True) == (error.kind, error.retryable)
    assert f"{dialect} can't be reached at {provider.base_url} (connection refused)" in str(error)


def test_a_refused_connection_to_ollama_says_how_to_start_it():
    url = f"http://localhost:{free_port()}"
    _, error = asyncio.run(outcome(OllamaProvider(url)))

    assert f"ollama can't be reached at {url} (connection refused): start it with 'ollama serve'" == str(error)


async def test_a_host_name_that_nobody_knows():
    _, error = await outcome(OpenAIProvider(KEY, "http://no-such-host.invalid/v1"))

    assert ("network", True) == (error.kind, error.retryable)
    assert "the host name is not known" in str(error)


@pytest.fixture
def tls() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(PEM)
    return context


async def test_a_certificate_that_nobody_trusts(tls):
    async with Server(Reply.sse("[DONE]"), tls=tls) as server:
        _, error = await outcome(OpenAIProvider(KEY, server.url))

    assert ("network", False) == (error.kind, error.retryable)
    assert "certificate" in str(error)


async def test_a_certificate_authority_of_ones_own(tls):
    async with Server(Reply([*first_pieces("openai"), *last_pieces("openai")]), tls=tls) as server:
        provider = OpenAIProvider(KEY, server.url, ca_file=str(PEM.with_name("localhost-ca.pem")))
        answer = await collect(provider.stream_request(request()))
        await provider.aclose()

    assert "Hello" == answer.content


async def test_a_server_that_speaks_no_tls():
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        _, error = await outcome(OpenAIProvider(KEY, f"https://127.0.0.1:{port}/v1"))

    assert ("network", True) == (error.kind, error.retryable)


async def test_no_connection_in_time():
    # The address is set aside for documentation (RFC 5737); without a route the refusal comes at once.
    provider = OpenAIProvider(KEY, "http://192.0.2.1:9/v1", timeouts=Timeouts(connect=0.05))
    _, error = await outcome(provider)

    assert error.kind in ("timeout", "network")
    assert error.retryable


async def test_no_first_byte_in_time(dialect):
    async with serving(Reply([b"late"], before=5.0), dialect=dialect) as server:
        provider = provider_for(dialect, server.url)
        provider.timeouts = Timeouts(first_byte=0.1)
        _, error = await outcome(provider)
        if dialect != "ollama":
            await asyncio.wait_for(server.requests[-1].hung_up.wait(), 2)

    assert ("timeout", True) == (error.kind, error.retryable)
    assert f"{dialect} sent no answer within 0.1 s: try again or raise the timeout" == str(error)


async def test_headers_alone_are_no_first_byte(dialect):
    async with serving(Reply([5.0]), dialect=dialect) as server:
        provider = provider_for(dialect, server.url)
        provider.timeouts = Timeouts(first_byte=0.1)
        _, error = await outcome(provider)

    assert "timeout" == error.kind


async def test_no_next_chunk_in_time_and_the_server_learns_of_it(dialect):
    async with serving(Reply([*first_pieces(dialect), 5.0]), dialect=dialect) as server:
        provider = provider_for(dialect, server.url)
        provider.timeouts = Timeouts(between_chunks=0.1)
        text, error = await outcome(provider)
        await asyncio.wait_for(server.requests[-1].hung_up.wait(), 2)

    assert ("Hel", "timeout") == (text, error.kind)
    assert f"{dialect} sent nothing more of its answer within 0.1 s: try again or raise the timeout" == str(error)


async def test_many_short_waits_are_no_long_one():
    pieces = [step for piece in (*first_pieces("openai") * 4, *last_pieces("openai")) for step in (0.15, piece)]
    async with Server(Reply(pieces)) as server:
        provider = OpenAIProvider(KEY, server.url, timeouts=Timeouts(between_chunks=0.4))
        answer = await collect(provider.stream_request(request()))
        await provider.aclose()

    assert "Hel" * 4 + "lo" == answer.content


async def test_a_caller_that_takes_its_time_is_no_silent_server():
    async with Server(Reply([*first_pieces("openai"), *last_pieces("openai")])) as server:
        provider = OpenAIProvider(KEY, server.url, timeouts=Timeouts(between_chunks=0.05))
        items = []
        async for item in provider.stream_request(request()):
            items.append(item)
            await asyncio.sleep(0.08)
        await provider.aclose()

    assert isinstance(items[-1], Finish)


async def test_no_whole_answer_in_time(dialect):
    async with serving(Reply([b"{", 5.0]), dialect=dialect) as server:
        provider = provider_for(dialect, server.url)
        provider.timeouts = Timeouts(total=0.15)
        with pytest.raises(ProviderError) as caught:
            await provider.make_request(request())
        await provider.aclose()

    assert ("timeout", True) == (caught.value.kind, caught.value.retryable)


@pytest.mark.parametrize("line", [b"data: {malformed\n\n", b"data: [1]\n\n", b"data: null\n\n"])
async def test_malformed_json_in_an_event(line):
    for name in ("openai", "groq", "anthropic"):
        async with Server(Reply([*first_pieces(name), line, *last_pieces(name)])) as server:
            text, error = await outcome(provider_for(name, server.url))

        assert ("Hel", "bad_response") == (text, error.kind)


async def test_bytes_that_are_no_utf8_are_marked_and_the_answer_goes_on(dialect):
    pieces = [piece.replace(b"Hel", b"H\xff\xedl") for piece in first_pieces(dialect)]
    extra = b'"an\xffy": "\xff", "done": true' if dialect == "ollama" else b""
    last = [piece.replace(b'"done":true', extra) for piece in last_pieces(dialect)]
    if dialect in ("openai", "groq"):
        pieces.insert(0, b'data: {"choices":[],"unknown":"\xff"}\n\n')
    async with serving(Reply([*pieces, *last]), dialect=dialect) as server:
        provider = provider_for(dialect, server.url)
        response = await collect(provider.stream_request(request()))
        await provider.aclose()

    assert ("H\ufffd\ufffdllo", 3, 2) == (response.content, response.tokens_input, response.tokens_output)


async def test_an_event_that_is_nested_beyond_all_reading(dialect):
    deep = b'{"done": false, "type": "message_delta", "usage": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001
    deep = deep.replace(b"usage", b"message") if dialect == "ollama" else deep
    line = deep + b"\n" if dialect == "ollama" else b"data: " + deep + b"\n\n"
    async with serving(Reply([*first_pieces(dialect), line, *last_pieces(dialect)]), dialect=dialect) as server:
        text, error = await outcome(provider_for(dialect, server.url))

    assert ("Hel", "bad_response") == (text, error.kind)


@pytest.mark.parametrize("line", [b"{malformed\n", b"[1]\n", b"{}\n"])
async def test_malformed_json_in_a_line(line):
    reply = Reply([*first_pieces("ollama"), line, *last_pieces("ollama")])
    async with serving(reply, dialect="ollama") as server:
        text, error = await outcome(provider_for("ollama", server.url))

    assert ("Hel", "bad_response") == (text, error.kind)


async def test_a_line_of_more_than_16_mib():
    async with Server(Reply([b"data: ", *[b"x" * (1 << 20)] * 17])) as server:
        _, error = await outcome(OpenAIProvider(KEY, server.url))

    assert "bad_response" == error.kind
    assert "more than 16 MiB" in str(error)


@pytest.mark.parametrize(
    "page", [b"<!DOCTYPE html>\n<html><title>Welcome</title></html>\n", b"<html>", b"null", b"busy"]
)
async def test_a_page_where_a_stream_should_be(dialect, page):
    reply = Reply([page], headers={"content-type": "text/html"})
    async with serving(reply, dialect=dialect) as server:
        _, error = await outcome(provider_for(dialect, server.url))

    assert "bad_response" == error.kind
    assert "check that " in str(error)
    assert "http://127.0.0.1" in str(error)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_web_page_is_called_so_by_its_title_and_not_asked_for_again(dialect, stream):
    page = b"<!doctype html>\n<html>\n<head><title>\n Log in </title></head>\n<script>\n{}\ndata: {\n</script>\n</html>"
    async with serving(Reply([page], headers={"content-type": "text/html"}), dialect=dialect) as server:
        provider = provider_for(dialect, server.url)
        with pytest.raises(ProviderError) as caught:
            await (collect(provider.stream_request(request())) if stream else provider.make_request(request()))
        await provider.aclose()

    error = caught.value
    assert ("bad_response", False) == (error.kind, error.retryable)
    assert str(error).startswith(f"{provider.name} answered with a web page titled 'Log in': check that base_url is ")
    assert "<" not in str(error)


@pytest.mark.parametrize("ending", [b"\r\n", b"\r", b"\n: comment\nid: 1\n"])
async def test_line_ends_comments_and_ids_of_other_servers(ending):
    for name in ("openai", "anthropic"):
        pieces = [piece.replace(b"\n", ending, 1) for piece in (*first_pieces(name), *last_pieces(name))]
        pieces = [piece.replace(b"\n", ending) if ending in (b"\r", b"\r\n") else piece for piece in pieces]
        async with Server(Reply(pieces)) as server:
            provider = provider_for(name, server.url)
            answer = await collect(provider.stream_request(request()))
            await provider.aclose()

        assert "Hello" == answer.content


async def test_a_status_is_told_even_where_its_body_cannot_be_read(dialect):
    reply = Reply([b"no gzip"], 401, headers={"content-encoding": "gzip"})
    async with serving(reply, dialect=dialect) as server:
        _, error = await outcome(provider_for(dialect, server.url))

    assert ("authentication", 401) == (error.kind, error.status)


async def test_a_connection_that_breaks_after_the_terminator_does_no_harm(dialect):
    async with serving(Reply([*first_pieces(dialect), *last_pieces(dialect), RESET]), dialect=dialect) as server:
        provider = provider_for(dialect, server.url)
        answer = await collect(provider.stream_request(request()))
        await provider.aclose()

    assert "Hello" == answer.content


async def test_a_server_that_never_ends_its_body_is_not_waited_for(dialect):
    async with serving(Reply([*first_pieces(dialect), *last_pieces(dialect), 30.0]), dialect=dialect) as server:
        provider = provider_for(dialect, server.url)
        answer = await asyncio.wait_for(collect(provider.stream_request(request())), 5)
        await provider.aclose()

    assert "Hello" == answer.content


async def test_gzip_where_nobody_asked_for_it():
    import gzip

    body = gzip.compress(b"".join([*first_pieces("openai"), *last_pieces("openai")]))
    reply = Reply([body[:40], body[40:]], headers={"content-encoding": "gzip"})
    async with Server([reply, Reply([b"not gzip"], headers={"content-encoding": "gzip"})]) as server:
        provider = OpenAIProvider(KEY, server.url)
        answer = await collect(provider.stream_request(request()))
        _, error = await outcome(provider)

    assert "Hello" == answer.content
    assert "bad_response" == error.kind


@pytest.mark.parametrize(
    ("make", "variable"),
    [
        (OpenAIProvider, "OPENAI_API_KEY"),
        (GroqProvider, "GROQ_API_KEY"),
        (AnthropicProvider, "ANTHROPIC_API_KEY"),
    ],
)
async def test_a_missing_key_is_said_before_anything_is_sent(make, variable):
    sentence = f"{make().name} needs an API key: set {variable} or run 'timeline keys set {make().name}'"
    with pytest.raises(MissingKey, match=f"^{sentence}$"):
        await collect(make().stream_request(request()))
    with pytest.raises(MissingKey):
        await make().make_request(request())


async def test_a_refused_key_of_a_server_with_its_own_name_is_not_looked_for_at_openai():
    async with Server(Reply.json({}, 401)) as server:
        _, error = await outcome(OpenAIProvider(KEY, server.url, name="together"))

    assert "together refused the key (401): check its api_key or run 'timeline keys set together'" == str(error)


@pytest.mark.parametrize("key", ["kéy-12345", "key\n12345", "key\x0012345"])
def test_a_key_that_no_header_can_carry_is_refused_without_repeating_it(key):
    with pytest.raises(ConfigError) as caught:
        OpenAIProvider(key)

    assert "12345" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "api.example.com", "ftp://u:pass-1234@example.com", "http://", "http://[::1"])
def test_an_address_that_is_none_is_refused_without_repeating_it(url):
    with pytest.raises(ConfigError) as caught:
        OpenAIProvider(KEY, url)

    assert "pass-1234" not in str(caught.value)


async def test_credentials_in_the_address_are_used_and_never_shown():
    async with Server(Reply.json({"error": {"message": "who is user:pass-1234 or pass-1234?"}}, 403)) as server:
        url = server.url.replace("http://", "http://user:pass-1234@") + "/v1?key=q-5678"
        provider = OpenAIProvider(None, url)
        _, error = await outcome(provider)

    assert "Basic dXNlcjpwYXNzLTEyMzQ=" == server.requests[0].headers["authorization"]
    assert "/v1/chat/completions?key=q-5678" == server.requests[0].path
    for text in (str(error), repr(error), repr(provider)):
        assert "pass-1234" not in text
        assert "q-5678" not in text
    _, error = await outcome(OpenAIProvider(None, url))
    assert "pass-1234" not in str(error)

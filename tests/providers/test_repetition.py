"""What repeats all but a text is read as if it had been taken apart."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from timeline.providers.base import Delta
from timeline.providers.chat_parser import ChatParser
from timeline.providers.failures import Head, Speaker
from timeline.providers.messages_parser import MessagesParser
from timeline.providers.repetition import Repetition

HEAD = Head(Speaker("t", "http://t", "", (), ""), 200, {}, 0, "m")


def chunk(content: object = None, *, ascii_only: bool = True, **further: Any) -> bytes:
    around = {"id": "c-1", "object": "chat.completion.chunk", "model": "m", **further.pop("around", {})}
    choice = {"index": 0, "delta": {"content": content, **further.pop("delta", {})}, "finish_reason": None, **further}
    return json.dumps({**around, "choices": [choice]}, ensure_ascii=ascii_only).encode()


def content(payload: bytes) -> str | None:
    return json.loads(payload)["choices"][0]["delta"]["content"]


chunks = st.one_of(
    st.builds(chunk, st.text(max_size=8), ascii_only=st.booleans()),
    st.builds(chunk, st.sampled_from(["c-1", "m", "content", "stop", '","content":"', "\\", "\n", "é", "🎲"])),
    st.builds(chunk, st.text(max_size=3), index=st.integers(0, 1)),
    st.builds(chunk, st.text(max_size=3), finish_reason=st.sampled_from([None, "stop"])),
    st.builds(chunk, st.text(max_size=3), around=st.fixed_dictionaries({"created": st.integers(1, 2)})),
    st.builds(chunk, st.text(max_size=3), delta=st.sampled_from([{"role": "assistant"}, {"reasoning": "so"}])),
    st.builds(chunk, st.just([{"type": "text", "text": "part"}])),
)


@given(st.lists(chunks, max_size=30))
def test_every_chunk_tells_what_it_tells_alone(payloads: list[bytes]) -> None:
    parser = ChatParser(HEAD)

    for payload in payloads:
        assert list(ChatParser(HEAD).items(payload)) == list(parser.items(payload))


def delta(index: int, of: dict[str, Any], **further: Any) -> bytes:
    return json.dumps({"type": "content_block_delta", "index": index, "delta": of, **further}).encode()


def text_delta(text: str) -> dict[str, Any]:
    return {"type": "text_delta", "text": text}


deltas = st.one_of(
    st.builds(delta, st.just(0), st.builds(text_delta, st.text(max_size=8))),
    st.builds(
        delta, st.just(0), st.builds(text_delta, st.sampled_from(["text_delta", "text", '","text":"', "\\", "é"]))
    ),
    st.builds(delta, st.just(1), st.builds(text_delta, st.text(max_size=3))),
    st.builds(
        delta, st.just(0), st.builds(text_delta, st.text(max_size=3)), padding=st.sampled_from(["", "x", "text_delta"])
    ),
    st.builds(
        delta, st.just(0), st.fixed_dictionaries({"type": st.just("thinking_delta"), "thinking": st.text(max_size=3)})
    ),
)


@given(st.lists(deltas, max_size=30))
def test_every_event_of_claude_tells_what_it_tells_alone(payloads: list[bytes]) -> None:
    parser = MessagesParser(HEAD)

    for payload in payloads:
        assert list(MessagesParser(HEAD).items(payload)) == list(parser.items(payload))


def test_the_text_alone_is_read_where_all_else_is_the_same() -> None:
    repetition = Repetition()
    repetition.learn(chunk("ship"), "ship", content)

    assert ["", " é\n", "🎲"] == [repetition.text(chunk(text)) for text in ("", " é\n", "🎲")]
    assert [None] * 3 == [
        repetition.text(payload)
        for payload in (chunk("x", index=1), chunk("x", finish_reason="stop"), chunk("x", around={"id": "c-2"}))
    ]


def test_two_strings_are_not_one_text() -> None:
    repetition = Repetition()
    repetition.learn(b'{"text":"a"}', "a", lambda payload: json.loads(payload)["text"])

    assert "b" == repetition.text(b'{"text":"b"}')
    assert [None] * 4 == [
        repetition.text(payload)
        for payload in (b'{"text":"b","text":"c"}', b'{"text":"}', b'{"text":"\xff"}', b'{"text":"a\nb"}')
    ]


def test_a_text_that_stands_elsewhere_too_teaches_nothing() -> None:
    repetition = Repetition()
    # Written as \u0063-1, the text isn't found where it stands, but in the id.
    disguised = chunk("c-1").replace(b'"content": "c-1"', b'"content": "\\u0063-1"')

    repetition.learn(chunk("c-1"), "c-1", content)
    repetition.learn(disguised, "c-1", content)

    assert ["c-1", None] == [content(disguised), repetition.text(disguised.replace(b'"id": "c-1"', b'"id": "c-2"'))]


def test_a_server_that_pads_every_chunk_is_given_up() -> None:
    repetition = Repetition()
    asked = []

    def read(payload: bytes) -> str | None:
        asked.append(payload)
        return content(payload)

    for number in range(100):
        payload = chunk("x", around={"padding": "." * number})
        assert repetition.text(payload) is None
        repetition.learn(payload, "x", read)

    assert 8 == len(asked)
    assert [Delta("x")] * 2 == [item for _ in range(2) for item in ChatParser(HEAD).items(payload)]

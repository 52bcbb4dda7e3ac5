"""What real providers sent comes out as what it says, however the network cuts it."""

from __future__ import annotations

import random

import pytest
from support.recordings import Recording, Said, answers, provider_for, recordings, request, said, told

from timeline.errors import BrokenStream, ProviderError
from timeline.providers import Collector, Finish
from timeline.providers.failures import Complaint
from timeline.providers.http import last_items, whole_items

STREAMS = [*answers("sse"), *answers("ndjson")]
BODIES = answers("json")
ERRORS = [r for r in recordings() if r.status != 200]
STREAM_ERRORS = [r for r in STREAMS if b"\nevent: error" in r.body]
WHOLE_STREAMS = [r for r in STREAMS if r not in STREAM_ERRORS]
SHORT = 2048
LONG_EVENT = 1000

pytestmark = pytest.mark.skipif(not STREAMS, reason="the recordings aren't beside the repository")


def named(cases: list[Recording]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("recording", cases, ids=[r.id for r in cases])


def read(recording: Recording, *pieces: bytes) -> Said:
    """What a provider makes of a body that arrives in these pieces."""
    provider, head, collector = provider_for(recording.dialect), recording.head(), Collector()
    parser, framer = provider.parser(head, request()), provider.framer()
    finishes = 0
    for piece in pieces:
        for payload in framer.feed(piece):
            for item in parser.items(payload):
                collector.add(item)
                finishes += isinstance(item, Finish)
    if not parser.done:
        for item in last_items(head, framer, parser):
            collector.add(item)
            finishes += isinstance(item, Finish)

    assert 1 == finishes
    return told(collector.response())


@named(WHOLE_STREAMS)
def test_a_recorded_stream_gives_what_its_body_says(recording):
    assert said(recording) == read(recording, recording.body)


@named(WHOLE_STREAMS)
def test_a_recorded_stream_can_come_byte_by_byte(recording):
    pieces = [recording.body[i : i + 1] for i in range(len(recording.body))]

    assert said(recording) == read(recording, *pieces)


@named(WHOLE_STREAMS)
def test_a_recorded_stream_can_be_cut_anywhere(recording):
    body, whole = recording.body, said(recording)
    cuts = range(1, len(body)) if len(body) <= SHORT else random.Random(7).sample(range(1, len(body)), 25)
    for cut in cuts:
        assert whole == read(recording, body[:cut], body[cut:]), cut


@named(WHOLE_STREAMS)
def test_every_event_of_a_recorded_stream_can_be_cut_at_every_byte(recording):
    # A framer begins afresh at each event's end, so an event and the one after it stand for their place in the body.
    framing = provider_for(recording.dialect).framer
    separator = b"\n\n" if recording.framing == "sse" else b"\n"
    events = [event + separator for event in recording.body.split(separator)]
    for number in range(len(events)):
        around = b"".join(events[number : number + 2])
        framer = framing()
        expected = [*framer.feed(around), *framer.end()]
        inside = range(len(events[number]) + 1)
        # In the midst of a long text one byte is like another.
        for cut in inside if len(inside) < LONG_EVENT else {*inside[:300], *inside[300:-300:97], *inside[-300:]}:
            framer = framing()
            assert expected == [*framer.feed(around[:cut]), *framer.feed(around[cut:]), *framer.end()], (number, cut)


@named(WHOLE_STREAMS)
def test_a_recorded_stream_needs_no_last_blank_line(recording):
    assert said(recording) == read(recording, recording.body.rstrip(b"\n"))


@named(WHOLE_STREAMS)
def test_a_recorded_stream_may_end_its_lines_with_crlf(recording):
    assert said(recording) == read(recording, recording.body.replace(b"\n", b"\r\n"))


@named(WHOLE_STREAMS)
def test_a_recorded_stream_that_is_cut_short_is_broken(recording):
    terminators = (
        b'"finish_reason":"',
        b'"finish_reason": "',
        b'"stop_reason":"',
        b'"stop_reason": "',
        b'"done":true',
        b"[DONE]",
    )
    end = min(at for t in terminators if (at := recording.body.find(t)) >= 0)
    for cut in [0, *random.Random(7).sample(range(end), min(20, end)), end]:
        with pytest.raises(BrokenStream) as caught:
            read(recording, recording.body[:cut])

        assert caught.value.retryable


@named(BODIES)
def test_a_recorded_body_gives_what_it_says(recording):
    collector = Collector()
    for item in whole_items(provider_for(recording.dialect).parser(recording.head(), request()), recording.body):
        collector.add(item)

    assert said(recording) == told(collector.response())


@named(BODIES)
def test_a_body_that_comes_where_a_stream_was_asked_for_is_taken_all_the_same(recording):
    middle = len(recording.body) // 2

    assert said(recording) == read(recording, recording.body[:middle], recording.body[middle:])


@named(STREAM_ERRORS)
def test_a_recorded_error_within_a_stream_comes_after_what_preceded_it(recording):
    provider, head = provider_for(recording.dialect), recording.head()
    parser, framer = provider.parser(head, request()), provider.framer()
    items = []
    *payloads, last = framer.feed(recording.body)
    for payload in payloads:
        items += parser.items(payload)
    with pytest.raises(ProviderError) as caught:
        parser.items(last)

    assert ("invalid_request", 400, "tool_use_failed", False) == (
        caught.value.kind,
        caught.value.status,
        caught.value.code,
        caught.value.retryable,
    )
    assert len(items) > 5
    assert not any(isinstance(item, Finish) for item in items)


KINDS = {
    401: "authentication",
    404: "model_not_found",
    500: "server",
}


@named(ERRORS)
def test_a_recorded_error_is_mapped(recording):
    error = recording.head().error(Complaint.read(recording.body))
    expected = KINDS.get(recording.status, "invalid_request")
    if b"prompt is too long" in recording.body or b"max context length" in recording.body:
        expected = "context_too_long"

    assert (expected, recording.status) == (error.kind, error.status)
    assert (error.kind == "server") == error.retryable
    assert "(it said: " in str(error)

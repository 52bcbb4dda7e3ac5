"""What a provider tells of an answer beside its text is shown below it, recorded or not: its sources, and why it ended so."""

from __future__ import annotations

import pytest
from support.answers import delta, event, stream
from support.command import Backend, Home
from support.loopback import Reply
from support.terminal import Terminal

PAGES = [{"url": "https://a.example", "title": "The\n A"}, {"url": "https://b.example"}]
NAMING_PAGES = stream("Yes [2]", event({"choices": [], "search_results": PAGES}), delta(finish="stop"))


def test_the_sources_of_an_answer_are_listed_below_it(home: Home, backend: Backend) -> None:
    backend.says(NAMING_PAGES)
    lines = "  [1] The A https://a.example\n  [2] https://b.example\n"

    result, quiet, as_json = (home.run("ask", "hi", *further) for further in ((), ("-q",), ("--json",)))

    assert (0, "Yes [2]\n", 1) == (result.code, result.out, result.err.count(lines)), result.err
    assert ("Yes [2]\n", "") == (quiet.out, quiet.err)
    assert [("https://a.example", "The\n A"), ("https://b.example", None)] == [
        (source["url"], source["title"]) for source in as_json.json()["sources"]
    ]
    assert 1 == home.run("replay", "last").out.count(lines)


@pytest.mark.parametrize("form", [("--direct",), ("--pipeline",)])
@pytest.mark.parametrize("kind", [("--private",), ("--cache",)])
def test_the_sources_are_listed_live_where_the_turn_s_own_events_do_not_name_them(
    home: Home, backend: Backend, form: tuple[str, ...], kind: tuple[str, ...]
) -> None:
    backend.says(NAMING_PAGES)
    home.run("ask", "hi", *form, *kind)

    result, as_json = (home.run("ask", "hi", *form, *kind, *further) for further in ((), ("--json",)))

    assert (0, "Yes [2]\n", 1) == (result.code, result.out, result.err.count("  [2] https://b.example\n")), result.err
    assert [page["url"] for page in PAGES] == [source["url"] for source in as_json.json()["sources"]]
    assert (kind == ("--cache",)) == (b"a.example" in home.bytes())
    with Terminal(home, "ask", "hi", *form, *kind) as terminal:
        assert 0 == terminal.wait(), terminal.text
        assert 1 == terminal.text.count("[2] https://b.example")


def test_why_an_answer_was_refused_is_told(home: Home, backend: Backend) -> None:
    home.configure(kind="anthropic", base_url=backend.url)
    details = {"type": "refusal", "explanation": "It was\x1b blocked."}
    start = {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 5}}}
    piece = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "First,"}}
    end = {"type": "message_delta", "delta": {"stop_reason": "refusal", "stop_details": details}, "usage": {}}
    for events, told in (
        ([start, piece, end], "cut off: the provider's filter ended the answer: It was␛ blocked."),
        ([start, end], "the model answered with nothing (finish reason: content_filter): It was␛ blocked."),
    ):
        backend.says(Reply.sse(*events, {"type": "message_stop"}))

        result = home.run("ask", "hi")

        assert (0, 1) == (result.code, result.err.count(told)), result.err
        assert 1 == home.run("replay", "last").out.count(told)
        assert 1 == home.run("ask", "hi", "--private").err.count(told)

"""A private call leaves totals in the file, and not a word: neither the user's nor the model's nor the provider's."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from support.answers import FOREVER, answer, batch, delta, error, event, refused, stream, usage
from support.calls import everything, recorder
from support.command import Backend, Home
from support.loopback import Reply

from timeline.errors import ServerError
from timeline.events import RequestSent
from timeline.llm.manager import CallEnd
from timeline.providers.base import Delta, Tool
from timeline.store import content_digest
from timeline.testing import ScriptedProvider

SECRET = "Zebra"
WORDS = {
    name: f"{SECRET} {name}" for name in ("prompt", "system", "answer", "thought", "argument", "message", "schema")
}


def check(data: bytes, *texts: str) -> None:
    """No secret stands there, and no digest of one."""
    assert SECRET.encode() not in data
    for text in texts:
        assert content_digest(text).encode() not in data, text


async def test_a_call_leaves_no_word_in_the_file(tmp_path: Path) -> None:
    schema = {"type": "object", "title": WORDS["schema"]}
    call = Delta(json.dumps({"a": WORDS["argument"]}), "tool_call", 0, "id", "tool")
    async with recorder(tmp_path / "timeline.db") as calls:
        await calls.call(
            ScriptedProvider([Delta(WORDS["thought"], "reasoning"), WORDS["answer"], call]),
            private=True,
            prompt=WORDS["prompt"],
            system=WORDS["system"],
            stop=(f"{SECRET} stop",),
            tools=(Tool("tool", f"{SECRET} tool", schema),),
            response_schema=schema,
            extra={"user": f"{SECRET} extra"},
            temperature=0.5,
        )

        (sent,) = await calls.data(RequestSent)
        assert {"temperature": 0.5} == sent.params
        check(everything(tmp_path), *WORDS.values())
    check(everything(tmp_path), *WORDS.values())


async def test_totals_stay(tmp_path: Path) -> None:
    async with recorder(tmp_path / "timeline.db") as calls:
        await calls.call(ScriptedProvider([WORDS["answer"]]), private=True, prompt=WORDS["prompt"], temperature=0.5)

        end = await calls.end()
        # Two words each: "Zebra prompt", "Zebra answer".
        assert (2, 2, "provider") == (end.usage.input, end.usage.output, end.usage_source)
        assert "free" == end.cost.state
        assert end.duration_us > 0
        assert end.time_to_first_token_us is not None
        assert [] == await calls.chunks()


async def test_a_failure_leaves_its_kind_and_not_its_words(tmp_path: Path) -> None:
    failing = ServerError(f"it broke on {WORDS['message']}", provider="scripted", status=500, code="oops")
    async with recorder(tmp_path / "timeline.db") as calls:
        items = await calls.call(ScriptedProvider([WORDS["answer"], failing]), private=True)

        (last,) = [item for item in items if isinstance(item, CallEnd)]
        end = await calls.end()
        # The caller is told.
        assert (failing, WORDS["answer"]) == (last.error, last.text)
        assert ("server", 500, "oops", True) == (end.error.kind, end.error.status, end.error.code, end.partial)
    check(everything(tmp_path), *WORDS.values())


# ------------------------------------------------------------------ from the command line


def whole(text: str) -> Reply:
    """An answer with a thought before it."""
    return stream(delta(reasoning_content=WORDS["thought"]), text, delta(finish="stop"), usage(), event("[DONE]"))


@pytest.fixture
def secret_file(home: Home) -> str:
    (home.work / f"{SECRET}.txt").write_text(f"{SECRET} file")
    return f"{SECRET}.txt"


@pytest.mark.parametrize("more", [(), ("--no-stream",), ("--json",)], ids=["stream", "batch", "json"])
def test_a_private_turn_leaves_no_word_in_the_file(
    home: Home, backend: Backend, secret_file: str, more: tuple[str, ...]
) -> None:
    backend.says(batch(WORDS["answer"]) if "--no-stream" in more else whole(WORDS["answer"]))

    result = home.run("ask", WORDS["prompt"], "-s", WORDS["system"], "-f", secret_file, "--private", *more)

    assert 0 == result.code
    assert WORDS["answer"] in result.out
    check(home.bytes(), *WORDS.values(), f"{SECRET} file")
    assert {"input": 5, "output": 2} == home.end()["data"]["usage"]
    assert 0 == home.run("store", "verify").code


def test_a_private_turn_in_an_open_session_leaves_no_word_either(home: Home, backend: Backend) -> None:
    backend.says(answer("an open answer"))
    home.run("ask", "an open question")
    backend.says(whole(WORDS["answer"]))

    home.run("ask", "-c", WORDS["prompt"], "--private")

    assert ("user", "an open question") == backend.messages()[0]
    check(home.bytes(), *WORDS.values())
    assert b"an open answer" in home.bytes()


@pytest.mark.parametrize("reply", [stream(WORDS["answer"], error(WORDS["message"])), refused(500, WORDS["message"])])
def test_a_private_failure_leaves_no_word_either(home: Home, backend: Backend, reply: Reply) -> None:
    backend.says(reply)

    result = home.run("ask", WORDS["prompt"], "--private")

    assert (1, True) == (result.code, WORDS["message"] in result.err)
    check(home.bytes(), *WORDS.values())
    assert "server" == home.end()["data"]["error"]["kind"]


def test_an_interrupted_private_turn_leaves_no_word_either(home: Home, backend: Backend) -> None:
    backend.says(stream(WORDS["answer"], FOREVER))
    process = home.start("ask", WORDS["prompt"], "--private")
    process.read_until(WORDS["answer"])

    process.send(signal.SIGINT)

    assert 130 == process.wait()
    check(home.bytes(), *WORDS.values())
    assert 3 == home.end()["data"]["usage"]["output"]

"""The library's face: what `Timeline` gives, raises and leaves behind."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support import mcp_server
from support.answers import FOREVER, answer, refused, stream
from support.loopback import Server

import timeline.config
from timeline import Config, Delta, Event, Timeline, TurnEnd
from timeline.errors import AmbiguousName, MissingKey, NotFound, RateLimited, StoreReadOnly, UsageError
from timeline.events import CallInterrupted, Clock, Owner, ResponseCompleted
from timeline.looking import Looking

Opening = Callable[..., AbstractAsyncContextManager[Timeline]]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server(answer("Hello ", "world")) as made:
        yield made


@pytest.fixture
def config(tmp_path: Path, server: Server) -> Config:
    """The settings of a home whose default model is the server's."""
    home = tmp_path / "home"
    home.mkdir()
    entry = {"kind": "openai", "base_url": server.url + "/v1", "models": ["m"]}
    (home / "config.yaml").write_text(
        json.dumps(
            {"llm_providers": {"t": entry}, "routing_strategy": {"default": "t:m", "fallback": None}, "mode": "direct"}
        )
    )
    return timeline.config.load(environ={"TIMELINE_HOME": str(home), "HOME": str(tmp_path)}, cwd=tmp_path)


@pytest.fixture
async def opened(config: Config) -> AsyncIterator[Timeline]:
    async with Timeline.open(config=config) as made:
        yield made


async def ask(opened: Timeline, prompt: str = "Why?", **options: Any) -> list[Any]:
    async with aclosing(opened.ask(prompt, **options)) as items:
        return [item async for item in items]


async def recorded(opened: Timeline) -> list[Event]:
    return [event async for event in opened.store.read()]


async def test_asking_gives_deltas_events_and_last_how_it_ended(opened: Timeline) -> None:
    items = await ask(opened)

    assert "Hello world" == "".join(item.text for item in items if isinstance(item, Delta))
    assert await recorded(opened) == [item for item in items if isinstance(item, Event)]
    assert isinstance(items[-1], TurnEnd)
    assert ("Hello world", None) == (items[-1].text, items[-1].error)


async def test_the_example_of_the_documentation(opened: Timeline, capsys: pytest.CaptureFixture[str]) -> None:
    async for item in opened.ask("Why is the sky blue?"):
        if isinstance(item, Delta) and item.kind == "text":
            print(item.text, end="")

    assert "Hello world" == capsys.readouterr().out


async def test_a_failed_turn_is_told_not_raised(opened: Timeline, server: Server) -> None:
    server.replies[:] = [refused(429, "Too many requests", **{"retry-after": "0.01"})]

    end = (await ask(opened))[-1]

    assert isinstance(end.error, RateLimited)
    assert ("", "turn.failed") == (end.text, (await recorded(opened))[-1].type)


@pytest.mark.parametrize(
    ("prompt", "options", "error"),
    [
        ("", {}, UsageError),
        (" \n", {}, UsageError),
        ("half \ud83d of a character", {}, UsageError),
        ("hi", {"system": "\udcff"}, UsageError),
        ("hi", {"model": "nope:x"}, NotFound),
        ("hi", {"model": "openai:gpt-4o"}, MissingKey),
        ("hi", {"session": "nope"}, NotFound),
        ("hi", {"session": "last"}, NotFound),
        ("hi", {"schema": {"$ref": "http://127.0.0.1/a"}}, UsageError),
        ("hi", {"schema": {"type": "thing"}}, UsageError),
    ],
)
async def test_what_can_t_be_asked_raises_and_records_nothing(
    opened: Timeline, server: Server, prompt: str, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await ask(opened, prompt, **options)

    assert ([], []) == (server.requests, await recorded(opened))


async def test_leaving_the_loop_records_the_interruption(opened: Timeline, server: Server) -> None:
    server.replies[:] = [stream("Hello ", FOREVER)]

    async with aclosing(opened.ask("Why?")) as items:
        async for item in items:
            if isinstance(item, Delta):
                break

    await asyncio.wait_for(server.requests[0].hung_up.wait(), 10)
    await opened.store.append([])
    assert ["call.interrupted", "turn.interrupted"] == [event.type for event in (await recorded(opened))[-2:]]


async def test_closing_in_mid_stream_keeps_what_was_said(config: Config, server: Server) -> None:
    server.replies[:] = [stream("Hello ", "wor", FOREVER)]
    async with Timeline.open(config=config) as opened:
        items = opened.ask("Why?")
        async for item in items:
            if isinstance(item, Delta) and item.text == "wor":
                break
        await items.aclose()

    async with Timeline.open(config=config) as opened:
        session = await opened.session("last")
    assert ("Hello wor", "interrupted", "closed") == (
        session.turns[0].answer.text,
        session.turns[0].state,
        session.turns[0].reason,
    )


async def test_many_questions_at_once_are_kept_apart(opened: Timeline, server: Server) -> None:
    def echo(request):
        return answer("You asked: ", request.json()["messages"][-1]["content"])

    server.replies[:] = [echo]

    ends = await asyncio.gather(*(ask(opened, f"question {number}") for number in range(20)))

    assert [f"You asked: question {number}" for number in range(20)] == [items[-1].text for items in ends]
    rows = await opened.sessions()
    assert 20 == len(rows)
    for row in rows:
        (turn,) = (await opened.session(row.id)).turns
        assert f"You asked: {row.title}" == turn.answer.text
    assert (await opened.store.verify()).problem is None


async def test_turns_of_one_session_at_once_are_all_kept(opened: Timeline) -> None:
    await ask(opened, "first")

    await asyncio.gather(*(ask(opened, f"question {number}", session="last") for number in range(8)))

    session = await opened.session("last")
    assert (9, {"Hello world"}) == (len(session.turns), {turn.answer.text for turn in session.turns})
    versions = [event.version for event in await recorded(opened)]
    assert list(range(1, len(versions) + 1)) == versions


async def test_two_first_questions_at_once_start_the_tools_servers_once(
    config: Config, server: Server, tmp_path: Path
) -> None:
    script, starts = Path(mcp_server.__file__), tmp_path / "starts"
    command = ["sh", "-c", f"echo begun >> '{starts}'; exec '{sys.executable}' '{script}'"]
    written = json.loads(config.paths.config_file.read_text()) | {"tools": {"mcp": {"test": {"command": command}}}}
    config.paths.config_file.write_text(json.dumps(written))
    environ = {"TIMELINE_HOME": str(config.paths.config_file.parent), "HOME": str(tmp_path)}
    config = timeline.config.load(environ=environ, cwd=tmp_path)
    server.replies = [answer('{"intent": "", "tools": [], "complexity": "low"}')]

    async with Timeline.open(config=config) as opened:
        await asyncio.gather(ask(opened, direct=False), ask(opened, direct=False))

    assert "begun\n" == starts.read_text()


async def test_sessions_are_found_by_prefix_title_and_last(opened: Timeline) -> None:
    await ask(opened, "First question")
    await ask(opened, "Second question")
    second, first = await opened.sessions()

    assert [first.id, first.id, second.id, first.id] == [
        await opened.find(name) for name in (first.id, "first QUESTION", "last", first.id[:-2])
    ]
    with pytest.raises(AmbiguousName, match="give more of the id"):
        await opened.find(first.id[:4])
    with pytest.raises(NotFound):
        await opened.find("")


async def test_a_report_adds_up_what_was_used(opened: Timeline) -> None:
    await ask(opened, "one")
    await ask(opened, "two", session="last")
    await ask(opened, "three")

    (totals,) = await opened.report(None)
    rows = await opened.report("session")

    assert (3, 15, 6, 0) == (totals.calls, totals.input, totals.output, totals.failed)
    assert [2, 1] == [row.calls for row in rows]
    assert 1 == (await opened.report(None, session="three"))[0].calls
    assert 0 == (await opened.report(None, until=0))[0].calls


async def test_forgetting_takes_the_words_and_leaves_the_sums(opened: Timeline) -> None:
    await ask(opened, "secret question")
    before = await opened.report(None)

    forgotten = await opened.forget("last")

    session = await opened.session("last")
    assert (None, before) == (session.title, await opened.report(None))
    assert forgotten >= 3
    assert {} == await opened.bodies(session)
    assert (await opened.store.verify()).problem is None


async def test_one_may_only_look_at_what_is_opened_to_be_read(config: Config) -> None:
    async with Timeline.open(config=config) as opened:
        await ask(opened)

    async with Timeline.open(config=config, read_only=True) as looking:
        assert 1 == len(await looking.sessions())
        with pytest.raises(StoreReadOnly):
            await ask(looking)


async def test_who_builds_on_a_half_of_the_facade_is_given_what_they_built(config: Config) -> None:
    class Counting(Looking):
        async def count(self) -> int:
            return len(await self.sessions())

    async with Counting.open(config=config) as opened:
        assert 0 == await opened.count()


async def test_looking_where_nothing_is_makes_nothing(config: Config) -> None:
    with pytest.raises(NotFound):
        async with Timeline.open(config=config, read_only=True):
            pass

    assert not config.paths.store.exists()


# ------------------------------------------------------------------ who ends what


@asynccontextmanager
async def left_open(config: Config, owner: Callable[[Owner], Owner]) -> AsyncIterator[Timeline]:
    """Opened where a call is open whose owner is whoever `owner` says."""
    async with Timeline.open(config=config) as first:
        items = first.ask("Why?")
        async for item in items:
            if isinstance(item, Delta):
                break
        attempts = await first.store.query(_owners)
        told = owner(attempts[0])

        def change(conn: Any) -> list[Any]:
            for table in ("attempts", "turns"):
                conn.exec_driver_sql(
                    f"UPDATE {table} SET owner_host = ?, owner_pid = ?, owner_started = ? WHERE state = 'open'",
                    (told.host, told.pid, told.started),
                )
            return []

        await first.store.append_when(change)
        async with Timeline.open(config=config) as second:
            yield second
        await items.aclose()


def _owners(conn: Any) -> list[Owner]:
    rows = conn.exec_driver_sql("SELECT owner_host, owner_pid, owner_started FROM attempts WHERE state = 'open'")
    return [Owner(*row) for row in rows]


@pytest.mark.parametrize(
    ("owner", "ended"),
    [
        (lambda owner: owner, False),
        (lambda owner: Owner(owner.host, 2**22 + 1, owner.started), True),
        (lambda owner: Owner(owner.host, owner.pid, owner.started - 100), True),
        (lambda owner: Owner("elsewhere", 2**22 + 1, owner.started), False),
    ],
    ids=["alive", "dead", "reused pid", "another host"],
)
async def test_a_start_ends_only_what_the_dead_left_open(
    config: Config, server: Server, owner: Callable[[Owner], Owner], ended: bool
) -> None:
    server.replies[:] = [stream("Hello ", FOREVER)]

    async with left_open(config, owner) as second:
        types = [event.type for event in await recorded(second)]
        interrupted = [event.data for event in await recorded(second) if isinstance(event.data, CallInterrupted)]

    assert ended == (["call.interrupted", "turn.interrupted"] == types[-2:])
    assert (["abandoned"] if ended else []) == [data.reason for data in interrupted]


async def test_time_and_ids_come_from_the_clock(config: Config) -> None:
    class Stopped(Clock):
        def now(self) -> int:
            return 1_700_000_000_000_000

    async with Timeline.open(config=config, clock=Stopped()) as opened:
        await ask(opened)

        assert {1_700_000_000_000_000} == {event.recorded_at for event in await recorded(opened)}
        # The first 48 bits of a UUIDv7 are milliseconds.
        assert {"018bcfe5-6800"} == {event.event_id[:13] for event in await recorded(opened)}


async def test_the_answer_s_cost_and_source_are_in_its_end(opened: Timeline) -> None:
    await ask(opened)

    (end,) = [event.data for event in await recorded(opened) if isinstance(event.data, ResponseCompleted)]
    assert (5, 2, "provider") == (end.usage.input, end.usage.output, end.usage_source)

"""A turn from the user's words to the answer: which events, in which order, in which transaction; and what the next one is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pytest
from support.calls import ONCE, opened

from timeline.cognition.processor import CognitionProcessor
from timeline.cognition.prompts import File
from timeline.cognition.turn import Ask, TurnEnd, always, history
from timeline.errors import ServerError
from timeline.events import Clock, Event, RequestSent, SessionStarted, StepFailed, TurnFailed, TurnStarted
from timeline.llm.manager import LLMManager
from timeline.llm.router import Candidate
from timeline.projections.blocks import Session, fold
from timeline.providers.base import Delta, LLMProvider, Message
from timeline.store import EventStore, content_digest, this_process
from timeline.testing import ScriptedProvider

FOREVER = 3600.0


class Turns:
    """Works out turns of one session, each told of those before."""

    def __init__(self, store: EventStore) -> None:
        self.store = store
        self.clock = Clock()
        self.providers: dict[str, LLMProvider] = {}
        manager = LLMManager(store, self.clock, self.providers.__getitem__, settings=ONCE)
        self.processor = CognitionProcessor(store, manager, self.clock, self.providers.__getitem__)
        self.session_id = self.clock.uuid7()

    def turn(self, provider: LLMProvider, prompt: str = "Why?", **more: Any) -> Any:
        """A turn, not yet begun."""
        self.providers[provider.name] = provider
        ask = Ask(prompt, always(Candidate(provider.name, "model", "asked for")), self.session_id, **more)
        return self.processor.run(ask)

    async def first(self, provider: LLMProvider, prompt: str = "Why?", **more: Any) -> list[Any]:
        """A session's first turn to its end: all it yielded."""
        return await self.next(provider, prompt, first=SessionStarted("test", this_process(), prompt), **more)

    async def next(self, provider: LLMProvider, prompt: str, **more: Any) -> list[Any]:
        """A further turn to its end."""
        async with aclosing(self.turn(provider, prompt, **more)) as items:
            return [item async for item in items]

    async def events(self) -> list[Event]:
        return [event async for event in self.store.read()]

    async def types(self) -> list[str]:
        return [event.type for event in await self.events()]

    async def past(self) -> tuple[list[tuple[str, str]], list[Any]]:
        """The messages the next turn is told, and how the log refers to them."""
        session = fold(await self.events())
        refs = [turn.prompt for turn in session.turns]
        refs += [item.ref for turn in session.turns for item in turn.attachments]
        pairs = history(session, await self.store.contents(ref for ref in refs if ref))
        return [(message.role, message.text) for message, _ in pairs], [ref for _, ref in pairs]


@pytest.fixture
async def turns(tmp_path: Path) -> AsyncIterator[Turns]:
    async with opened(tmp_path / "timeline.db") as store:
        yield Turns(store)


WHOLE = [
    "session.started",
    "turn.started",
    "step.started",
    "request.sent",
    "chunk.received",
    "response.completed",
    "step.completed",
    "turn.completed",
]


async def test_a_turn_is_written_in_its_order_and_yielded_as_written(turns: Turns) -> None:
    items = await turns.first(ScriptedProvider("Because"))

    assert WHOLE == await turns.types()
    assert await turns.events() == [item for item in items if isinstance(item, Event)]
    assert isinstance(items[-1], TurnEnd)
    assert ("Because", None) == (items[-1].text, items[-1].error)


async def test_everything_of_a_turn_bears_its_id(turns: Turns) -> None:
    await turns.first(ScriptedProvider("Because"))

    session, *others = await turns.events()
    # A window's turn and step are its call's.
    rest = [event for event in others if event.type != "chunk.received"]
    assert session.turn_id is None
    assert 1 == len({event.turn_id for event in rest})
    assert 1 == len({event.step_id for event in rest if event.type.startswith(("step", "request", "response"))})
    assert 1 == len({event.call_id for event in others if event.call_id})


async def test_an_opening_is_recorded_with_its_request_or_not_at_all(turns: Turns) -> None:
    versions = []
    async with aclosing(turns.turn(ScriptedProvider("x"), first=SessionStarted("test", this_process()))) as items:
        async for item in items:
            if isinstance(item, Event) and not versions:
                # The first thing that is yielded: by now all of the opening is in the file.
                versions = await turns.types()

    assert WHOLE[:4] == versions[:4]


async def test_a_failed_turn_keeps_its_error_in_step_and_turn(turns: Turns) -> None:
    failure = ServerError("it broke: ask again", provider="scripted")

    items = await turns.first(ScriptedProvider(["Be", failure]))

    assert [*WHOLE[:5], "call.failed", "step.failed", "turn.failed"] == await turns.types()
    step, turn = [e.data for e in await turns.events() if isinstance(e.data, StepFailed | TurnFailed)]
    assert ("it broke: ask again", step.error) == (step.error.message, turn.error)
    assert ("Be", failure) == (items[-1].text, items[-1].error)


@pytest.mark.parametrize(("how", "reason"), [("close", "closed"), ("cancel", "sigint")])
async def test_a_stopped_turn_is_interrupted(turns: Turns, how: str, reason: str) -> None:
    shown = asyncio.Event()

    async def read() -> None:
        first = SessionStarted("test", this_process())
        async with aclosing(turns.turn(ScriptedProvider(["Be", FOREVER]), first=first)) as items:
            async for item in items:
                if isinstance(item, Delta):
                    shown.set()
                    if how == "close":
                        return

    task = asyncio.create_task(read())
    await shown.wait()
    if how == "cancel":
        task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    # Enqueued in order: once something later is committed, so are they.
    await turns.store.append([])

    last, turn = (await turns.events())[-2:]
    assert ("call.interrupted", "turn.interrupted") == (last.type, turn.type)
    assert (reason, reason) == (last.data.reason, turn.data.reason)


# ------------------------------------------------------------------ bodies


async def test_bodies_lie_in_contents_and_events_refer_to_them(turns: Turns) -> None:
    await turns.first(ScriptedProvider("Yes"), "question", system="Be brief", files=(File("a.txt", "file body"),))

    kept = await turns.store.contents(map(content_digest, ("question", "Be brief", "file body")))
    assert {"question", "Be brief", "file body"} == set(kept.values())
    (turn,) = [event.data for event in await turns.events() if isinstance(event.data, TurnStarted)]
    assert (content_digest("question"), content_digest("Be brief")) == (turn.prompt, turn.system)
    assert [("a.txt", 9, content_digest("file body"))] == [(a.name, a.size, a.ref) for a in turn.attachments]
    (sent,) = [event.data for event in await turns.events() if isinstance(event.data, RequestSent)]
    assert ["system", "user"] == [message.role for message in sent.messages]
    assert (content_digest("file body"),) == sent.messages[-1].attachments


async def test_an_empty_system_prompt_is_no_message(turns: Turns) -> None:
    provider = ScriptedProvider("Yes")

    await turns.first(provider, system="")

    assert provider.requests[0].system is None
    (sent,) = [event.data for event in await turns.events() if isinstance(event.data, RequestSent)]
    assert ["user"] == [message.role for message in sent.messages]


# ------------------------------------------------------------------ what the next turn is told


async def test_history_is_each_answered_turn_in_order(turns: Turns) -> None:
    await turns.first(ScriptedProvider("One"), "first")
    await turns.next(ScriptedProvider([Delta("thinking", "reasoning"), "Two"]), "second")

    told, refs = await turns.past()

    # What was thought is no part of what was said.
    assert [("user", "first"), ("assistant", "One"), ("user", "second"), ("assistant", "Two")] == told
    calls = [event.call_id for event in await turns.events() if event.type == "request.sent"]
    assert [None, calls[0], None, calls[1]] == [ref.call for ref in refs]
    assert [content_digest("first"), None, content_digest("second"), None] == [ref.ref for ref in refs]


async def test_history_keeps_half_an_answer_and_leaves_out_what_had_none(turns: Turns) -> None:
    failure = ServerError("it broke: ask again", provider="scripted")
    await turns.first(ScriptedProvider(["Half", failure]), "first")
    await turns.next(ScriptedProvider([failure]), "second")
    await turns.next(ScriptedProvider(""), "third")

    assert [("user", "first"), ("assistant", "Half")] == (await turns.past())[0]


async def test_history_leaves_out_what_was_private(turns: Turns) -> None:
    await turns.first(ScriptedProvider("One"), "first")
    await turns.next(ScriptedProvider("Two"), "secret", private=True)

    assert [("user", "first"), ("assistant", "One")] == (await turns.past())[0]


async def test_history_has_the_files_with_their_question(turns: Turns) -> None:
    provider = ScriptedProvider("One")
    await turns.first(provider, "first", files=(File("a.txt", "file body"), File("b.txt", "other body")))

    (question, _), refs = await turns.past()

    assert ("user", provider.requests[0].messages[-1].text) == question
    assert (content_digest("file body"), content_digest("other body")) == refs[0].attachments


def test_the_history_of_nothing_is_empty() -> None:
    assert () == history(Session("01"), {})


async def test_what_is_sent_is_the_past_and_the_question(turns: Turns) -> None:
    provider = ScriptedProvider("Two")
    await turns.first(ScriptedProvider("One"), "first")
    session = fold(await turns.events())
    past = history(session, await turns.store.contents([content_digest("first")]))

    await turns.next(provider, "second", past=past)

    assert (Message("user", "first"), Message("assistant", "One"), Message("user", "second")) == provider.requests[
        0
    ].messages

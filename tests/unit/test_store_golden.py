"""Files of released schemas open, verify, read and fold for ever.

When one of these fails, what was released can't be read any more: raise the version of the event,
projection or schema that changed, and give it an upcaster or a migration. The files themselves never change.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
from support.stores import all_bytes, every_event, look, opened, read_models

from timeline.events import Event, SessionRedacted, decode, encode
from timeline.projections.blocks import fold
from timeline.projections.usage import report
from timeline.store import content_digest

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(shutil.copy(GOLDEN / "store_0001.db", tmp_path))


async def events(path: Path, session: str) -> list[Event]:
    async with opened(path) as store:
        return [event async for event in store.read(session_id=session)]


async def test_store_of_schema_0001_verifies(path: Path) -> None:
    async with opened(path) as store:
        found = await store.verify()

    assert (None, 52, 4) == (found.problem, found.events, found.sessions)


async def test_store_of_schema_0001_holds_every_event_type_it_knew(path: Path) -> None:
    kept = await events(path, "every type")

    known = {event.type for event in kept}
    assert 26 == len(known)
    examples = [data for data in every_event() if data.type in known]
    for example, event in zip(examples, kept, strict=True):
        assert event.data is not None
        # Fields came later, too.
        fields = msgspec.json.decode(encode(event.data)).keys()
        knew = {name: value for name, value in msgspec.json.decode(encode(example)).items() if name in fields}
        assert decode(example.type, example.v, msgspec.json.encode(knew).decode()) == event.data


async def test_store_of_schema_0001_folds_into_what_was_said(path: Path) -> None:
    chat = fold(await events(path, "a chat"))

    assert ("Blue skies", 2) == (chat.title, len(chat.turns))
    assert ["completed", "completed"] == [turn.state for turn in chat.turns]
    assert ["Because it is."] * 2 == [turn.answer.text for turn in chat.turns if turn.answer]
    prompts = [turn.prompt for turn in chat.turns]
    assert [content_digest("Why is the sky blue?"), content_digest("And why is it red at night?")] == prompts
    async with opened(path) as store:
        bodies = await store.contents([prompt for prompt in prompts if prompt])
    assert {"Why is the sky blue?", "And why is it red at night?"} == set(bodies.values())


async def test_store_of_schema_0001_keeps_totals_of_what_was_forgotten(path: Path) -> None:
    kept = await events(path, "forgotten")

    assert [3] == [event.data.events for event in kept if isinstance(event.data, SessionRedacted)]
    assert 3 == sum(event.data is None for event in kept)
    assert ["completed"] == [turn.state for turn in fold(kept).turns]
    async with opened(path) as store:
        (row,) = await store.query(lambda conn: report(conn, None, session_id="forgotten"))
    assert (1, 5, 3) == (row.calls, row.input, row.output)
    assert b"What the user took back" not in all_bytes(path)


async def test_store_of_schema_0001_folds_anew_to_the_same_read_models(path: Path) -> None:
    async with opened(path):
        before = read_models(path)
    async with opened(path) as store:
        await store.rebuild()

    assert before == read_models(path)


def test_store_of_schema_0001_is_the_one_that_was_released() -> None:
    path = GOLDEN / "store_0001.db"

    assert path.stat().st_size < 200_000
    assert [("0001",)] == look(path, "SELECT version_num FROM alembic_version")

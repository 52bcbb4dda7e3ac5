"""Where a model runs is what its provider says, whose word may come late, slowly or not at all."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from support.calls import Recorder, recorder

from timeline.errors import ServerError
from timeline.events import CallFailed, CallInterrupted, RequestSent, ResponseCompleted
from timeline.providers.base import Delta
from timeline.providers.guarded import Guarded
from timeline.testing import ScriptedProvider


@pytest.fixture
async def calls(tmp_path: Path) -> AsyncIterator[Recorder]:
    async with recorder(tmp_path / "timeline.db") as made:
        yield made


class Fickle(ScriptedProvider):
    """Says that it runs here until it is asked to answer; from then on it fails to say, or says no."""

    def __init__(self, *answers: Any, later: bool | None = None) -> None:
        super().__init__(*answers)
        self._later = later

    def is_local(self, model: str) -> bool:
        if not self.requests:
            return True
        if self._later is None:
            raise KeyError
        return self._later


def guarded(provider: ScriptedProvider) -> Guarded:
    return Guarded(provider, plugin="fickle", name="scripted")


@pytest.mark.parametrize(
    ("answer", "end"), [("Hello.", ResponseCompleted), (["Hel", ServerError("down", provider="scripted")], CallFailed)]
)
async def test_an_attempt_ends_and_is_free_though_its_plugin_says_no_more_where_it_runs(
    calls: Recorder, answer: Any, end: type
) -> None:
    await calls.call(guarded(Fickle(answer)))

    found = await calls.end()
    assert (end, "free") == (type(found), found.cost.state)


async def test_an_interrupted_attempt_ends_though_its_plugin_says_no_more_where_it_runs(calls: Recorder) -> None:
    async with aclosing(calls.stream(guarded(Fickle(["Hel", 60.0])))) as items:
        async for item in items:
            if isinstance(item, Delta):
                break
    await calls.store.append([])

    found = await calls.end()
    assert (CallInterrupted, "free") == (type(found), found.cost.state)


async def test_what_turns_out_to_have_been_answered_elsewhere_is_not_free(calls: Recorder) -> None:
    await calls.call(guarded(Fickle("Hello.", later=False)))

    (sent,) = await calls.data(RequestSent)
    assert (True, "unpriced") == (sent.local, (await calls.end()).cost.state)


async def test_no_plugin_is_asked_where_it_runs_while_others_wait_to_write(calls: Recorder) -> None:
    held: list[bool] = []

    class Watching(ScriptedProvider):
        def is_local(self, model: str) -> bool:
            if self.requests:
                return True
            other = sqlite3.connect(calls.store.path, timeout=0)
            try:
                other.execute("BEGIN IMMEDIATE")
                held.append(False)
            except sqlite3.OperationalError:
                held.append(True)
            finally:
                other.close()
            return True

    await calls.call(guarded(Watching()))

    assert held
    assert not any(held)

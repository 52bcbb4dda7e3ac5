"""What is in the log, for whoever shows it again or tidies it: sessions, their bodies, sums, budgets, words; the half of the facade that asks nobody.

A command that asks nobody opens this half, and so imports neither providers nor what asks them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Self

from sqlalchemy import Connection

from timeline.config import Config, load
from timeline.errors import StoreDamaged, StoreError
from timeline.events import Clock, Event, EventData, NewEvent, SessionRenamed
from timeline.llm.pricing import PriceBook
from timeline.llm.reaper import reap
from timeline.projections import Projections
from timeline.projections.batches import Batches
from timeline.projections.blocks import Blocks, Session, SessionRow, find_session, fold, list_sessions, sources
from timeline.projections.budgets import BudgetState, read_budgets
from timeline.projections.cache import Cache
from timeline.projections.calls import Calls, where_recorded
from timeline.projections.health import HealthProjection
from timeline.projections.limits import Limits
from timeline.projections.search import Found, Search, available, search
from timeline.projections.usage import Grouping, ReportRow, UsageProjection, report
from timeline.store import EventStore

__all__ = ["Looking", "read_models"]

FOLLOW_SECONDS = 0.1
"""How often a followed session is looked at."""
REAP_SECONDS = 2.0
"""After so long without an event, whether those who were to write some are still alive."""


def read_models() -> Projections:
    """All that is folded from the log, in the order in which each sees an event."""
    searched = [Search()] if available() else []
    return Projections(
        [Calls(), UsageProjection(), Blocks(), Cache(), Limits(), HealthProjection(), Batches(), *searched]
    )


class Looking:
    """Reads what was recorded, gives it another title or forgets it, and ends what processes that died left open.

    Args:
        store: The log.
        config: The settings.
        clock: Time and ids.
        prices: What tokens cost.
    """

    def __init__(self, store: EventStore, config: Config, clock: Clock, prices: PriceBook) -> None:
        self.store = store
        self.config = config
        self._clock = clock
        self._prices = prices

    @classmethod
    @asynccontextmanager
    async def open(
        cls, *, config: Config | None = None, clock: Clock | None = None, read_only: bool = False
    ) -> AsyncIterator[Self]:
        """Open the store that the configuration names, and end what processes that died left open.

        Args:
            config: What `timeline.config.load` gave; by default that of the environment and working directory.
            clock: Time and ids.
            read_only: Only look; works in a folder that can't be written.

        Raises:
            ConfigError: The configuration is wrong.
            StoreError: The store can't be opened.
        """
        config = config or load()
        async with cls._opened(config, read_only=read_only) as store:
            self = cls(store, config, clock or Clock(), PriceBook(config.settings.prices, config.served))
            await self._end_abandoned()
            yield self

    @staticmethod
    def _opened(config: Config, *, read_only: bool) -> AbstractAsyncContextManager[EventStore]:
        """The store that the configuration names, with everything that is folded from it."""
        synchronous = config.settings.store.synchronous
        return EventStore.open(config.paths.store, read_models(), synchronous=synchronous, read_only=read_only)

    async def _end_abandoned(self) -> None:
        """End what processes that died left open; it stays open where the file is damaged."""
        if not self.store.read_only:
            # What isn't damaged can be looked at nevertheless, and `verify` has to be able to tell where it is.
            with contextlib.suppress(StoreDamaged):
                await reap(self.store, self._clock, self._prices)

    async def find(self, name: str) -> str:
        """The id of the session meant by an id, a unique prefix, a title or `last`.

        Raises:
            NotFound, AmbiguousName: None, or more than one, is meant.
        """
        return await self.store.query(lambda conn: find_session(conn, name))

    async def session(self, name: str) -> Session:
        """A session folded from its events alone.

        Raises:
            NotFound, AmbiguousName: None, or more than one, is meant.
        """
        session_id = await self.find(name)
        events = [event async for event in self.store.read(session_id=session_id)]
        return fold(events, await self.borrowed(events))

    async def borrowed(self, events: Iterable[Event]) -> dict[str, list[Event]]:
        """The events of calls of other sessions whose answers were read again in these; for `blocks.fold`."""
        wanted = sources(events)
        found = await self.store.query(lambda conn: where_recorded(conn, wanted)) if wanted else {}
        return {
            call: [
                event async for event in self.store.read(session_id=session, call_id=call, after=first - 1, until=last)
            ]
            for call, (session, first, last) in found.items()
        }

    async def bodies(self, session: Session) -> dict[str, str | bytes]:
        """All that a session's events refer to, by digest; forgotten and private bodies are missing.

        These are its prompts, system prompts and attachments, and the arguments and results of its tools.
        """
        digests = [turn.prompt for turn in session.turns] + [turn.system for turn in session.turns]
        digests += [item.ref for turn in session.turns for item in turn.attachments]
        tools = [tool for turn in session.turns for step in turn.steps for tool in step.tools]
        digests += [ref for tool in tools for ref in (tool.arguments_ref, tool.result_ref)]
        return await self.store.contents(digest for digest in digests if digest)

    async def since(self, event: Event) -> list[Event]:
        """What was recorded of a session after one of its events, all that this process had in line included.

        Args:
            event: The last one that is known.
        """
        # The writer takes one after the other: what was in line before this is written then.
        await self.store.append_when(lambda _conn: [])
        return [later async for later in self.store.read(session_id=event.session_id, after=event.position)]

    async def follow(self, session: str, *, after: int) -> AsyncGenerator[Event]:
        """A session's events as they are recorded, by whichever process; without an end.

        What a process that dies meanwhile leaves open is ended, where the store can be written.

        Args:
            session: Its id.
            after: Only those of a higher position.
        """
        quiet = 0.0
        while True:
            head = await self.store.head()
            if head > after:
                async for event in self.store.read(session_id=session, after=after, until=head):
                    yield event
                after, quiet = head, 0.0
            elif quiet >= REAP_SECONDS:
                await self._end_abandoned()
                quiet = 0.0
            else:
                await asyncio.sleep(FOLLOW_SECONDS)
                quiet += FOLLOW_SECONDS

    async def sessions(self, limit: int | None = None) -> list[SessionRow]:
        """Sessions, the one used last first."""
        return await self.store.query(lambda conn: list_sessions(conn, limit=limit))

    async def report(
        self,
        by: Grouping | None,
        *,
        since: int | None = None,
        until: int | None = None,
        session: str | None = None,
    ) -> list[ReportRow]:
        """Sums of calls, tokens and cost; see `timeline.projections.usage.report`."""
        session_id = await self.find(session) if session else None
        return await self.store.query(lambda conn: report(conn, by, since=since, until=until, session_id=session_id))

    async def search(
        self,
        words: str,
        *,
        since: int | None = None,
        until: int | None = None,
        model: str | None = None,
        session: str | None = None,
        limit: int | None = 20,
        marks: tuple[str, str] = ("**", "**"),
    ) -> list[Found]:
        """Ended turns in whose prompt or answer the words stand; see `timeline.projections.search.search`.

        Raises:
            UsageError: There is no word among them.
            NotFound, AmbiguousName: No session, or more than one, is meant.
            StoreError: This Python's SQLite can't search.
        """
        if not available():
            msg = "the SQLite of this Python has no full text search (FTS5): search with another; all else works"
            raise StoreError(msg)
        session_id = await self.find(session) if session else None
        filters = {"since": since, "until": until, "limit": limit}
        return await self.store.query(
            lambda conn: search(conn, words, model=model, session_id=session_id, marks=marks, **filters)
        )

    async def budgets(self) -> tuple[BudgetState, ...]:
        """Where every configured budget stands now; one of sessions in the session that was used last."""

        def read(conn: Connection) -> tuple[BudgetState, ...]:
            last = next(iter(list_sessions(conn, limit=1)), None)
            now, budgets = self._clock.now(), self.config.settings.budgets
            return read_budgets(conn, budgets, now=now, session_id=last.id if last else None)

        return await self.store.query(read)

    # -------------------------------------------------------------- care

    async def rename(self, name: str, title: str) -> None:
        """Give a session another title."""
        await self.store.append([self._event(await self.find(name), SessionRenamed(" ".join(title.split())))])

    async def forget(self, name: str) -> int:
        """Remove what was said in a session from every page of the file; what it used and cost stays.

        Returns:
            How many events lost their body.
        """
        session_id = await self.find(name)
        return await self.store.forget(session_id, lambda redacted: self._event(session_id, redacted))

    def _event(self, session_id: str, data: EventData) -> NewEvent:
        return NewEvent(session_id, data, self._clock.uuid7(), self._clock.now())

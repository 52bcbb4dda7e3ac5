"""Read models alone, folded from events at made-up times: no file, no writer, so that a test takes milliseconds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import StaticPool

from support.stores import NOON
from timeline.events import Event, EventData
from timeline.projections import Projection


class Folds:
    """Tables of the given projections, and the moment at which things happen.

    Args:
        projections: What one reads stands before it.
    """

    def __init__(self, projections: Sequence[Projection]) -> None:
        self.now = NOON
        self.events: list[Event] = []
        self._projections = projections
        self._positions = itertools.count(1)
        self.conn: Connection = create_engine("sqlite://", poolclass=StaticPool).connect()
        for projection in projections:
            for table in projection.tables:
                table.create(self.conn)

    def record(
        self, data: EventData, *, call: str | None = None, turn: str | None = None, step: str | None = None
    ) -> Event:
        """It happens now."""
        position = next(self._positions)
        event = Event(position, str(position), "a", position, data.type, 1, self.now, turn, step, call, data, "")
        self.events.append(event)
        for projection in self._projections:
            projection.apply(self.conn, event)
        return event

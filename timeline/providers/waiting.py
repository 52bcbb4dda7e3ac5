"""How long is waited for bytes, and how a wait is ended that costs next to nothing while bytes come."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from msgspec import Struct

__all__ = ["Timeouts", "Watch"]


class Timeouts(Struct, frozen=True):
    """How long to wait, in seconds; None waits for ever.

    Args:
        connect: For a connection, TLS included.
        first_byte: From the request to the first byte of the answer: queueing and reading the prompt.
        between_chunks: From one read of a stream to the next.
        total: For a whole answer that isn't streamed.
    """

    connect: float | None = 10.0
    first_byte: float | None = 300.0
    between_chunks: float | None = 120.0
    total: float | None = 600.0


class Watch:
    """Cancels a task that waits longer than allowed for bytes.

    A wait costs one clock read: the timer is set once per stream and looks again when it
    rings. `asyncio.timeout` would set and drop a timer at each read, and couldn't be held
    across a `yield`.

    Attributes:
        deadline: When the wait at hand has lasted too long, on the loop's clock; None while nobody waits.
    """

    __slots__ = ("_cancelling", "_limit", "_loop", "_missing", "_now", "_rung", "_task", "_timer", "deadline")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._limit = math.inf
        self._missing = ""
        self._cancelling = 0
        self._rung = False
        self.deadline: float | None = None

    def allow(self, limit: float | None, missing: str) -> None:
        """From now on, each wait may last `limit` seconds (None: any time); `missing` says what failed to come."""
        self.close()
        self._limit = math.inf if limit is None else limit
        self._missing = missing
        if limit is not None:
            self._timer = self._loop.call_later(limit, self._ring)

    def wait(self) -> None:
        """The current task begins to wait; to end the wait, set `deadline` to None."""
        self._task = asyncio.current_task(self._loop)
        self.deadline = self._now() + self._limit

    def close(self) -> None:
        """Drop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def fired(self) -> str | None:
        """What failed to come, if the cancellation at hand is this watch's alone."""
        if not self._rung or self._task is None:
            return None
        self._rung = False
        return self._missing if self._task.uncancel() <= self._cancelling else None

    def _ring(self) -> None:
        now, deadline = self._now(), self.deadline
        if deadline is None or deadline > now or self._task is None:
            self._timer = self._loop.call_at(deadline or now + self._limit, self._ring)
            return
        self._timer = None
        self._rung = True
        self._cancelling = self._task.cancelling()
        self._task.cancel()

"""How long is waited for bytes, and how a wait is ended that costs next to nothing while bytes come."""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec import Struct

from timeline.errors import ProviderTimeout

__all__ = ["Timeouts", "Watch", "late", "within"]

TICKS = 16


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


def late(name: str, what: str) -> ProviderTimeout:
    """Something failed to come from a provider in time.

    Args:
        name: The provider's.
        what: What it did instead; see `within`.
    """
    return ProviderTimeout(f"{name} {what}: try again or raise the timeout", provider=name)


def within(what: str, limit: float | None) -> str:
    """What wasn't done, and in which time: seconds."""
    return what if limit is None else f"{what} within {limit:g} s"


class Watch:
    """Cancels a task that waits longer than allowed for bytes.

    A wait costs two assignments and no look at a clock: a timer ticks `TICKS` times within the limit and counts how
    often it met the same wait, which so ends up to a sixteenth of the limit late. `asyncio.timeout` would set and
    drop a timer at each read, and couldn't be held across a `yield`.

    Attributes:
        waiting: The task that waits for bytes; None while nobody does.
        ticks: How often the timer met that wait; whoever sets `waiting` begins at 0.
    """

    __slots__ = ("_cancelling", "_every", "_loop", "_missing", "_rung", "_timer", "ticks", "waiting")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._every = 0.0
        self._missing = ""
        self._cancelling = 0
        self._rung: asyncio.Task[Any] | None = None
        self.waiting: asyncio.Task[Any] | None = None
        self.ticks = 0

    def allow(self, limit: float | None, missing: str) -> None:
        """From now on, each wait may last `limit` seconds (None: any time); `missing` says what failed to come."""
        self.close()
        self._missing = missing
        if limit is not None:
            self._every = limit / TICKS
            self._timer = self._loop.call_later(self._every, self._tick)

    def wait(self) -> None:
        """The current task begins to wait."""
        self.ticks = 0
        self.waiting = asyncio.current_task(self._loop)

    def close(self) -> None:
        """Drop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def fired(self) -> str | None:
        """What failed to come, if the cancellation at hand is this watch's alone."""
        task, self._rung = self._rung, None
        return self._missing if task is not None and task.uncancel() <= self._cancelling else None

    def _tick(self) -> None:
        self.ticks += 1
        # The first tick comes at any time after the wait began.
        if self.waiting is None or self.ticks <= TICKS:
            self._timer = self._loop.call_later(self._every, self._tick)
            return
        self._timer = None
        self._rung = self.waiting
        self._cancelling = self._rung.cancelling()
        self._rung.cancel()

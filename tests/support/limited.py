"""Providers that limit, and clients that share a log, all in made-up time: nothing sleeps, and every run is the same."""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from support import loopback
from support.answers import answer, refused
from support.folds import Folds
from support.loopback import Request
from support.stores import NOON, OWNER
from timeline import events as e
from timeline.llm.limiter import Free, Needed, decide
from timeline.projections.calls import Calls
from timeline.projections.limit_facts import Configured, read_limits
from timeline.projections.limits import Limits
from timeline.projections.usage import UsageProjection
from timeline.providers.limits import rate_limits

SECOND = 1_000_000


@dataclass
class Reply:
    """What the server says: whether it took the request, and its headers."""

    taken: bool
    headers: dict[str, str] = field(default_factory=dict)


def duration(micros: int) -> str:
    """As OpenAI writes it: `1.85s`, `120ms`."""
    return f"{micros // 1000}ms" if micros < SECOND else f"{micros / SECOND:.2f}s"


@dataclass
class Limiter:
    """Takes `limit` requests a window.

    Args:
        limit: How many.
        window: Of so many µs.
        kind: `fixed` windows on a grid, `first` (a window begins with its first request), `sliding`, or `bucket`.
        reset: Of a sliding window: until it is `full` again, or until the `next` one is free.
        told: Whether headers tell the limit.
        retry: Whether a refusal says how long to wait.
    """

    limit: int = 5
    window: int = 2 * SECOND
    kind: str = "fixed"
    reset: str = "full"
    told: bool = True
    retry: bool = True
    taken: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    opened: int = 0
    level: float = 0.0
    filled: int = 0

    def ask(self, now: int) -> Reply:
        """One request arrives."""
        used, left = self._used(now)
        taken = used < self.limit
        (self.taken if taken else self.refused).append(now)
        if taken and self.kind == "bucket":
            self.level += 1
        used, left = self._used(now)
        headers = {}
        if self.told:
            headers |= {
                "x-ratelimit-limit-requests": str(self.limit),
                "x-ratelimit-remaining-requests": str(int(self.limit - used)),
                "x-ratelimit-reset-requests": duration(left),
            }
        if not taken and self.retry:
            headers["retry-after"] = str(-(-self._free_in(now) // SECOND))
        return Reply(taken, headers)

    def _used(self, now: int) -> tuple[float, int]:
        """How many count now, and how long until none does (or one less, by `reset`)."""
        match self.kind:
            case "fixed":
                start = now // self.window * self.window
                return sum(at >= start for at in self.taken), start + self.window - now
            case "first":
                if now >= self.opened + self.window:
                    self.opened = now
                return sum(at >= self.opened for at in self.taken), self.opened + self.window - now
            case "sliding":
                recent = [at for at in self.taken if at > now - self.window]
                edge = (recent[-1] if self.reset == "full" else recent[0]) if recent else now
                return len(recent), edge + self.window - now if recent else 0
            case _:
                self.level = max(0.0, self.level - (now - self.filled) * self.limit / self.window)
                self.filled = now
                used = -(-self.level // 1)
                return used, int(self.level * self.window / self.limit)

    def _free_in(self, now: int) -> int:
        if self.kind == "sliding":
            recent = [at for at in self.taken if at > now - self.window]
            return recent[0] + self.window - now
        if self.kind == "bucket":
            return int((self.level - self.limit + 1) * self.window / self.limit)
        return self._used(now)[1]


class World(Folds):
    """Clients in made-up time: each asks as the call manager does, and writes what it would write."""

    def __init__(
        self,
        server: Limiter,
        *,
        seed: int = 0,
        configured: Configured | None = None,
        service: int = 60_000,
        commit: int = 20_000,
    ) -> None:
        super().__init__([Calls(), UsageProjection(), Limits()])
        self.server = server
        self.waits = 0
        self.sent = 0
        self.admitted: list[tuple[int, str]] = []
        self._configured = configured or Configured()
        self._service = service
        self._commit = commit
        self._random = random.Random(seed)
        self._order = itertools.count()
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._calls = itertools.count(1)

    def later(self, delay: int, do: Callable[[], None]) -> None:
        """Do it after so many µs."""
        heapq.heappush(self._agenda, (self.now + delay, next(self._order), do))

    def run(self, until: int | None = None) -> int:
        """Until nothing is left to do; returns the moment, µs from the beginning."""
        while self._agenda and (until is None or self._agenda[0][0] <= NOON + until):
            self.now, _, do = heapq.heappop(self._agenda)
            do()
        return self.now - NOON

    def client(self, calls: int, *, start: int = 0, pause: int = 0, tokens: int = 0) -> None:
        """A process that makes so many calls, one after the other."""

        def make(left: int) -> None:
            if left:
                call = f"call {next(self._calls)}"
                self._admit(call, 1, tokens, lambda: self.later(pause, lambda: make(left - 1)))

        self.later(start, lambda: make(calls))

    def _jitter(self, most: int) -> int:
        return self._random.randrange(most)

    def _admit(self, call: str, attempt: int, tokens: int, done: Callable[[], None]) -> None:
        facts = read_limits(self.conn, "openai", "gpt", None, self._configured, self.now, call_id=call)
        decision = decide(facts, Needed(tokens=tokens), self.now)
        if isinstance(decision, Free):
            self.admitted.append((self.now, call))
            sent = e.RequestSent(attempt, "openai", "gpt", "", (), OWNER, reserved_tokens=tokens)
            self.record(sent, call=call)
            self.sent += 1
            began = self.now + self._jitter(self._commit)
            arrives = began - self.now + 2_000 + self._jitter(40_000)
            self.later(arrives, lambda: self._arrive(call, attempt, tokens, began, done))
            return
        self.waits += 1
        waited = e.RateLimitWaited("openai", "gpt", decision.limit, decision.until_us - self.now, tokens=tokens)
        self.record(waited, call=call)
        self.later(
            decision.until_us - self.now + self._jitter(10_000), lambda: self._admit(call, attempt, tokens, done)
        )

    def _arrive(self, call: str, attempt: int, tokens: int, began: int, done: Callable[[], None]) -> None:
        reply = self.server.ask(self.now)
        took = 1_000 + self._jitter(10_000)
        self.later(took, lambda: self._answer(call, attempt, tokens, began, done, reply))

    def _answer(self, call: str, attempt: int, tokens: int, began: int, done: Callable[[], None], reply: Reply) -> None:
        limits, first = rate_limits(reply.headers, self.now), self.now - began
        if reply.taken:

            def end() -> None:
                usage = e.Usage(input=tokens)
                self.record(
                    e.ResponseCompleted(
                        attempt, "stop", usage, "provider", e.Cost("free"), self.now - began, first, rate_limits=limits
                    ),
                    call=call,
                )
                done()

            self.later(self._jitter(self._service), end)
            return
        wait = float(reply.headers["retry-after"]) if "retry-after" in reply.headers else None
        error = e.ErrorInfo("rate_limited", "busy", 429, None, True, wait)
        self.record(e.CallFailed(attempt, error, first, rate_limits=limits), call=call)
        delay = round((wait if wait is not None else 0.5 * 2 ** (attempt - 1) * self._random.random()) * SECOND)
        self.record(e.CallRetryScheduled(attempt, delay, "busy"), call=call)
        self.later(delay + self._jitter(10_000), lambda: self._admit(call, attempt + 1, tokens, done))


def served(server: Limiter) -> Callable[[Request], loopback.Reply]:
    """The same server for `support.loopback`, in real time."""

    def reply(_: Request) -> loopback.Reply:
        said = server.ask(time.time_ns() // 1000)
        made = answer("Because", " it is.") if said.taken else refused(429, "slow down", "rate_limit_exceeded")
        return replace(made, headers={**made.headers, **said.headers}, before=0.02)

    return reply

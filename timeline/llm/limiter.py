"""When one more request may be sent: pure, from the facts that the log tells.

Each limit answers the earliest moment at which it lets the request through, given what was sent
and who goes first; the request waits for the latest of them. Whoever waits has a
moment of its own in that plan, so a second wait is needed only when something new was learnt.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate

from msgspec import Struct

from timeline.projections.limit_facts import LimitFacts, Refused, Sent, Told, Waiter
from timeline.projections.limits import MINUTE, OWN_COUNT, REFUSAL, SECOND, Unit, unit_of

__all__ = ["Free", "Needed", "Wait", "decide"]

RESET_SLACK = 20_000
"""How much later than it said a limit may be full again, µs: clocks and roundings."""
SHORTEST_POLL = SECOND // 4
LONGEST_POLL = 2 * SECOND
"""How often it is looked again where nobody can say when a place becomes free, µs."""
STAGGER = 5_000
"""Those that look again for the same thing do so one after the other, µs."""


class Needed(Struct, frozen=True):
    """What one request takes.

    Args:
        requests: Always one, but for tests.
        tokens: Prompt and answer together, at most.
        input_tokens: Of these, the prompt.
    """

    requests: int = 1
    tokens: int = 0
    input_tokens: int = 0


class Free(Struct, frozen=True):
    """It may be sent now."""


class Wait(Struct, frozen=True):
    """It has to wait.

    Args:
        until_us: When to ask again, µs UTC; its place in the queue is computed with this moment.
        limit: Which limit it waits for.
    """

    until_us: int
    limit: str


_Earliest = Callable[[int], int]
_ROUNDS = 50


def decide(facts: LimitFacts, needed: Needed, now: int) -> Free | Wait:
    """Whether the request may be sent now, or when.

    A request that is larger than a whole limit counts as as large as the limit: it waits until nothing else is in
    the way, and goes.

    Args:
        facts: See `timeline.projections.limit_facts.read_limits`.
        needed: What the request takes.
        now: The present, µs UTC.
    """
    limits = list(_limits(facts, needed, now))
    at, because = now, ""
    for _ in range(_ROUNDS):
        before = at
        for name, earliest in limits:
            if (then := earliest(at)) > at:
                at, because = then, name
        if at == before:
            break
    return Wait(at, because) if at > now else Free()


def _limits(facts: LimitFacts, needed: Needed, now: int) -> Iterator[tuple[str, _Earliest]]:
    if facts.refused is not None:
        yield REFUSAL, _after_refusal(facts, facts.refused, now)
    for told in facts.told:
        if (unit := unit_of(told.name)) is not None:
            yield told.name, _within_told(told, unit, facts, needed, now)
    configured, sent, everyone = facts.configured, facts.sent_to_provider, facts.ahead
    minutely: tuple[tuple[str, int | None, Unit], ...]
    minutely = (("rpm", configured.rpm, "requests"), ("tpm", configured.tpm, "tokens"))
    for name, limit, unit in minutely:
        if limit is not None:
            yield name, _Window(limit, MINUTE, unit, sent=sent, ahead=everyone, needed=needed, now=now).earliest
    if configured.max_concurrent is not None:
        busy = facts.running + len(everyone) + needed.requests > configured.max_concurrent
        again = _look_again(facts, now, len(everyone))
        yield "max_concurrent", lambda at: max(at, again) if busy else at


def _of_model(facts: LimitFacts) -> list[Waiter]:
    return [waiter for waiter in facts.ahead if waiter.same_model]


def _look_again(facts: LimitFacts, now: int, place: int) -> int:
    """When to ask again where the moment can't be known: the longer it took so far, the later."""
    waited = 0 if facts.waiting_since is None else now - facts.waiting_since
    return now + min(max(waited // 4, SHORTEST_POLL), LONGEST_POLL) + place * STAGGER


# ------------------------------------------------------------------ a window that moves along


def _amount(of: Sent | Waiter | Needed, unit: Unit) -> int:
    match unit:
        case "requests":
            return 1 if isinstance(of, Waiter) else of.requests
        case "tokens":
            return of.tokens
        case "input":
            return of.input_tokens
        case "output":
            return max(of.tokens - of.input_tokens, 0)


class _Amounts:
    """Moments and how much falls on them; sums over spans of time."""

    def __init__(self, items: Sequence[tuple[int, int]]) -> None:
        ordered = sorted(items)
        self.moments = [moment for moment, _ in ordered]
        self._sums = [0, *accumulate(amount for _, amount in ordered)]

    def after(self, moment: int) -> int:
        return self._sums[-1] - self._sums[bisect_right(self.moments, moment)]

    def before(self, moment: int) -> int:
        return self._sums[bisect_left(self.moments, moment)]

    @property
    def total(self) -> int:
        return self._sums[-1]


class _Window:
    """At most `limit` within any `window_us`, counting what was sent and what goes first.

    Args:
        limit: Of `unit`.
        window_us: The window's length, µs.
        unit: What is counted.
        sent: What was sent.
        ahead: Who goes first, each at its moment.
        needed: What the request takes.
        now: The present, µs UTC.
        floor: What was sent up to this moment doesn't count, µs UTC.
    """

    def __init__(
        self,
        limit: int,
        window_us: int,
        unit: Unit,
        *,
        sent: Sequence[Sent],
        ahead: Sequence[Waiter],
        needed: Needed,
        now: int,
        floor: int = 0,
    ) -> None:
        self._limit = limit
        self._window = window_us
        self._need = min(_amount(needed, unit), limit)
        self._sent = _Amounts([(item.at, _amount(item, unit)) for item in sent if item.at > floor])
        self._ahead = _Amounts([(max(waiter.until, now), min(_amount(waiter, unit), limit)) for waiter in ahead])

    def earliest(self, at: int) -> int:
        """The first moment, not before `at`, at which the request fits."""
        if self._fits(at):
            return at
        moments = {moment + self._window for moment in (*self._sent.moments, *self._ahead.moments)}
        return next(moment for moment in sorted(moments) if moment > at and self._fits(moment))

    def _fits(self, at: int) -> bool:
        used = self._sent.after(at - self._window)
        # Whoever goes first but later than this moment would find this request in its window.
        used += self._ahead.after(at - self._window) - self._ahead.after(at + self._window - 1)
        return used + self._need <= self._limit or used == 0


# ------------------------------------------------------------------ what the provider told


def _within_told(told: Told, unit: Unit, facts: LimitFacts, needed: Needed, now: int) -> _Earliest:
    """Before the reset by what was left, after it by what was sent; or by its steady refill."""
    ahead = _of_model(facts)
    need = _amount(needed, unit) if told.limit is None else min(_amount(needed, unit), told.limit)
    since = _amount(told.since, unit)
    planned = _Amounts([(max(waiter.until, now), _amount(waiter, unit)) for waiter in ahead])
    full_at = told.reset_at + RESET_SLACK
    window: _Earliest = lambda at: at  # noqa: E731 - a limit of unknown size is none, once it was reset
    alone: _Earliest | None = None
    if told.limit is not None and told.limit > 0:
        length = min(told.window_us, OWN_COUNT)
        own = partial(_Window, told.limit, length, unit, sent=facts.sent, ahead=ahead, needed=needed, now=now)
        window = own(floor=told.reset_at if told.shape == "resets" else 0).earliest
        alone = own().earliest if told.ours else None

    def fixed(at: int) -> int:
        if at >= full_at:
            return window(at)
        left = told.remaining if told.remaining is not None else told.limit
        if left is None or left - since - planned.before(full_at) >= need:
            return at
        # Where only we use it, what was sent a window ago is free again, whatever the reset says.
        return min(window(full_at), alone(at)) if alone is not None else window(full_at)

    def gradual(at: int) -> int:
        later = window(max(at, full_at))
        limit, refill = told.limit or 0, told.refill_us or 0
        wanted = since + planned.total + need
        if wanted > limit:
            return later
        missing = max(wanted - (told.remaining or 0), 0)
        return min(max(at, told.told_at + -(-missing * refill // limit)), later)

    return gradual if told.shape == "gradual" else fixed


def _after_refusal(facts: LimitFacts, refused: Refused, now: int) -> _Earliest:
    """Nobody before the wait is over; then as many as it had taken, or first one, then twice as many with each success."""
    ahead = _of_model(facts)
    if not refused.careful:
        return lambda at: max(at, refused.until)
    if refused.limit is not None:
        length = min(refused.window_us, OWN_COUNT)
        window = _Window(refused.limit, length, "requests", sent=facts.sent, ahead=ahead, needed=Needed(), now=now)
        return lambda at: window.earliest(max(at, refused.until))
    if now < refused.until:
        # Nothing is under way yet: each has a moment of its own, in the order of the queue.
        opens = refused.until + len(ahead) * SHORTEST_POLL
        return lambda at: max(at, opens)
    full = refused.running + len(ahead) > refused.completed
    again = _look_again(facts, now, len(ahead))
    return lambda at: max(at, again) if full else at

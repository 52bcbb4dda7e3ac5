"""Whether a model that failed may be asked again: pure, from the facts that the log tells."""

from __future__ import annotations

from msgspec import Struct

from timeline.projections.health import COOLDOWN, Health, failing_words

__all__ = ["Closed", "Open", "Probe", "decide"]

PROBE_TIME = 60 * 1_000_000
"""How long a probe keeps all others waiting, µs; then another may try."""


class Closed(Struct, frozen=True):
    """Nothing is in the way."""


class Open(Struct, frozen=True):
    """It is not to be asked now.

    Args:
        until: When to look again, µs UTC.
        reason: Why, in words.
    """

    until: int
    reason: str


class Probe(Struct, frozen=True):
    """It may be asked by this one request, to see whether it works again."""


def decide(health: Health, now: int, *, cooldown_us: int = COOLDOWN) -> Closed | Open | Probe:
    """Whether a request may go to a model.

    Args:
        health: See `timeline.projections.health.read_health`.
        now: The present, µs UTC.
        cooldown_us: How long nobody asks once the circuit is open, µs.
    """
    if health.opened_at is None:
        return Closed()
    failed = f"{failing_words(health.in_a_row)}, the last one: {health.reason}"
    if now < (until := health.opened_at + cooldown_us):
        return Open(until, failed)
    if health.probe_at is not None and now < (until := health.probe_at + PROBE_TIME):
        return Open(until, f"{failed}; another request tries it just now")
    return Probe()

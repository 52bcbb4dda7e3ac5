"""Whether a request that failed is made again, when, and whether another model is asked instead. Pure: no clock, no network."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from timeline.config import Retry as RetryConfig
from timeline.errors import (
    DISPENSABLE,
    AuthenticationFailed,
    ContentRefused,
    ContextTooLong,
    InvalidRequest,
    PermissionDenied,
    ProviderError,
    QuotaExhausted,
    TimelineError,
    UsageError,
)

__all__ = ["Again", "GiveUp", "Next", "Step", "after_failure"]


class Again(Struct, frozen=True):
    """Ask the same model again, after a wait.

    Args:
        delay_seconds: How long to wait.
        reason: In words for the log.
    """

    delay_seconds: float
    reason: str


class Next(Struct, frozen=True):
    """Ask the next model at once."""

    reason: str


class GiveUp(Struct, frozen=True):
    """The failure stands."""

    reason: str


Step = Again | Next | GiveUp

_PERSON = (AuthenticationFailed, PermissionDenied, QuotaExhausted)
"""Only a person can mend these, whatever a header says."""
_DISPENSABLE_TRIES = 2


def after_failure(
    error: TimelineError,
    *,
    tries: int,
    left_seconds: float | None,
    policy: RetryConfig,
    chance: float,
    on_refusal: bool = False,
    contexts: tuple[int | None, Sequence[int | None]] = (None, ()),
    dispensable: bool = False,
) -> Step:
    """What follows from a failed attempt.

    Full jitter (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/) spreads those out that
    failed together; what a provider asked to wait is waited whole, with a little jitter on top.

    Args:
        error: Why the attempt failed.
        tries: Attempts made at this candidate, this one included.
        left_seconds: Until the call's deadline; None where it has none.
        policy: As configured.
        chance: Uniform in [0, 1).
        on_refusal: Whether another model is asked where one refused the content.
        contexts: The candidate's context in tokens, and those of the candidates left.
        dispensable: Whether the caller can do without the answer: then one that was no good is asked for once more at most.
    """
    if not isinstance(error, ProviderError):
        # A model that can't be loaded, a key that is missing, a plugin out of contract: another one may do.
        return GiveUp(error.kind) if isinstance(error, UsageError) else Next(error.kind)
    match error:
        case ContextTooLong():
            ours, others = contexts
            larger = any(other is None or ours is None or other > ours for other in others)
            return Next("the context is too short") if larger else GiveUp("no candidate has a larger context")
        case InvalidRequest():
            return GiveUp("the request itself is at fault")
        case ContentRefused():
            return Next("the content was refused") if on_refusal else GiveUp("the content was refused")
    if not error.retryable or isinstance(error, _PERSON):
        return Next(error.kind)
    enough = dispensable and isinstance(error, DISPENSABLE) and tries >= _DISPENSABLE_TRIES
    if enough or tries >= policy.max_attempts:
        return Next(f"{error.kind}, {tries} attempt{'s' if tries > 1 else ''}")
    ceiling = min(policy.max_delay, policy.base_delay * 2 ** min(tries - 1, 32))
    delay = chance * ceiling
    reason = error.kind
    # To be told to wait no time at all is no leave to ask without a pause.
    if error.retry_after:
        delay = error.retry_after + chance * min(policy.base_delay, 0.1 * error.retry_after)
        reason = f"{error.kind}, told to wait {error.retry_after:g}s"
    if left_seconds is not None and delay >= left_seconds:
        return Next(f"{reason}: longer than the {max(left_seconds, 0):.0f}s that are left")
    return Again(delay, reason)

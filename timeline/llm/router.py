"""Which models a call may go to, in which order, and why."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["Candidate"]


class Candidate(Struct, frozen=True):
    """A model that a call may go to.

    Args:
        provider: Its name as configured.
        model: The provider's name of the model.
        why: Why this model, in words for people and the log.
        context: Most tokens of prompt and answer together, where that is known.
        fallback: Whether it stands in for what was wanted, and the user is to be told.
    """

    provider: str
    model: str
    why: str
    context: int | None = None
    fallback: bool = False

    def __str__(self) -> str:
        return f"{self.provider}:{self.model}"

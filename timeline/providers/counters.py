"""How a counter is read out of a provider's usage object, whatever else may stand there."""

from __future__ import annotations

from typing import Any

__all__ = ["count"]

_MOST = 2**53
"""More tokens than anybody has counted: what is larger is no count."""


def count(counters: Any, name: str) -> int:
    """The counter of this name; 0 where there is none, or something that can't be one.

    Args:
        counters: A decoded JSON object, or what stands in its place.
        name: The counter's key.
    """
    value = counters.get(name) if isinstance(counters, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST:
        return 0
    return int(value)

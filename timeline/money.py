"""How US dollars are written for people: the one place, whether a price, a cost or a limit."""

from __future__ import annotations

from decimal import Decimal

__all__ = ["MOST_NANO_USD", "dollars", "rounded", "usd"]

NANO = 9
"""The power of ten of a nano-US-dollar."""
MOST_NANO_USD = 2**63 - 1
"""What the file's integers hold: a cost or a sum that is more is told as that much."""
TELLING = 2
"""Digits that say how large a small amount is."""


def dollars(amount: Decimal) -> str:
    """`$0.075`, `$20.00`, `$1,250.50`: all its digits, and cents in any case."""
    cents = amount.quantize(Decimal("0.01"))
    return f"${cents if cents == amount else amount.normalize():,f}"


def usd(nano: int, *, places: int | None = None) -> str:
    """An amount as `dollars` writes it, `rounded`."""
    return dollars(rounded(nano, places))


def rounded(nano: int, places: int | None = None) -> Decimal:
    """An amount in US dollars.

    Args:
        nano: Nano-US-dollars.
        places: Decimals that are enough; an amount that needs more of them to be told from nothing is
            rounded to two digits. None for all there are.
    """
    amount = Decimal(nano).scaleb(-NANO)
    if places is not None and nano:
        amount = round(amount, max(places, TELLING - 1 - amount.adjusted()))
    return amount

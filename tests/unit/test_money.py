"""One way to write US dollars."""

from __future__ import annotations

from decimal import Decimal

import pytest

from timeline.money import dollars, usd


@pytest.mark.parametrize(
    ("nano", "exact", "cents", "budget"),
    [
        (0, "$0.00", "$0.00", "$0.00"),
        (5, "$0.000000005", "$0.000000005", "$0.000000005"),
        (12_345, "$0.000012345", "$0.000012", "$0.000012"),
        (4_200_000, "$0.0042", "$0.0042", "$0.0042"),
        (61_500_000, "$0.0615", "$0.062", "$0.0615"),
        (300_000_000, "$0.30", "$0.30", "$0.30"),
        (598_412_345, "$0.598412345", "$0.60", "$0.5984"),
        (999_999_999, "$0.999999999", "$1.00", "$1.00"),
        (7_781_600_000, "$7.7816", "$7.78", "$7.7816"),
        (1_234_567_000_000, "$1,234.567", "$1,234.57", "$1,234.567"),
    ],
)
def test_an_amount_has_cents_and_as_many_digits_as_it_needs(nano: int, exact: str, cents: str, budget: str) -> None:
    assert [exact, cents, budget] == [usd(nano), usd(nano, places=2), usd(nano, places=4)]


@pytest.mark.parametrize(
    ("amount", "written"), [("2.5", "$2.50"), ("0.075", "$0.075"), ("1E+3", "$1,000.00"), ("0", "$0.00")]
)
def test_a_price_is_written_alike(amount: str, written: str) -> None:
    assert written == dollars(Decimal(amount))

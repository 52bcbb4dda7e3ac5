"""A fact is found however an answer writes it, and never where the answer says something else."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timeline.cognition.facts import stated


@pytest.mark.parametrize(
    ("fact", "answer"),
    [
        ("84", "12*7 is 84."),
        ("84", "The result is **84**!"),
        ("84", "12*7=84"),
        ("84", "\\(12 \\times 7 = 84\\)"),
        ("84", "84.0"),
        ("-84", "It is −84."),
        ("2469135.78", "That makes $2,469,135.78."),
        ("1267650600228229401496703205376", "2^100 = 1,267,650,600,228,229,401,496,703,205,376"),
        ("0.6", "0.60 kg"),
        ("1/3 ≈ 0.333333333333333", "It is 1/3."),
        ("1/3 ≈ 0.333333333333333", "about 0.333"),
        ("2/3 ≈ 0.666666666666667", "roughly 0.6667"),
        ("≈ 1.4142135623731", "√2 ≈ 1.414"),
        ("≈ 1.4142135623731", "1.4142135623731"),
        ("Sunday 2026-11-22", "Today is Sunday, November 22, 2026."),
        ("Sunday 2026-11-22", "It's sunday, the 22nd of November."),
        ("Sunday 2026-11-22", "Sunday 2026-11-22"),
        ("Sunday 2026-11-22", "**Sunday**, Nov. 22nd"),
        ("15:07", "It is 15:07 in Oslo."),
        ("15:07", "It is 3:07 PM."),
        ("00:45", "12:45 a.m."),
        ("Sunday 2026-11-22 15:07", "It is 3:07 pm on Sunday, 22 November 2026"),
        ("Thursday 2026-12-24, in 32 days", "December 24, 2026 is a Thursday, in 32 days."),
        ("32 days", "There are 32 days until then."),
        ("zwei: äöü", "The second line says: “Zwei:  äöü”"),
        ("price_list.txt", "It is `price_list.txt`."),
    ],
)
def test_a_fact_is_found(fact: str, answer: str) -> None:
    assert stated(fact, answer)


@pytest.mark.parametrize(
    ("fact", "answer"),
    [
        ("84", "The result is 48."),
        ("84", "184"),
        ("84", "84.5"),
        ("84", "8.84"),
        ("84", "840"),
        ("84", "-84"),
        ("-84", "84"),
        ("-84", "12 - 84"),
        ("84", "84,000"),
        ("84", ""),
        ("2469135.78", "about 2.47 million"),
        ("2469135.78", "2,469,135.87"),
        ("0.15", "0.2"),
        ("1/3 ≈ 0.333333333333333", "0.3"),
        ("1/3 ≈ 0.333333333333333", "0.334"),
        ("1/3 ≈ 0.333333333333333", "11/3"),
        ("≈ 1.4142135623731", "1.415"),
        ("≈ 7.88860905221012e-31", "0.000"),
        ("Sunday 2026-11-22", "Today is Saturday, November 22, 2026."),
        ("Sunday 2026-11-22", "Sunday, November 23, 2026"),
        ("Sunday 2026-11-22", "Sunday, November 22, 2025"),
        ("Sunday 2026-11-22", "Sunday, November 2"),
        ("15:07", "3:07 am"),
        ("03:07", "3:07 pm"),
        ("15:07", "15:07 pm is 3:08 pm"),
        ("32 days", "132 days"),
        ("32 days", "23 days"),
        ("Thursday 2026-12-24, in 32 days", "December 24 is a Thursday."),
        ("zwei: äöü", "zwei: äö"),
    ],
)
def test_what_is_said_otherwise_is_no_fact(fact: str, answer: str) -> None:
    assert not stated(fact, answer)


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_no_number_is_taken_for_another(fact: int, told: int) -> None:
    assert (fact == told) == stated(str(fact), f"The result is {told:,}.")


@given(st.text(max_size=80), st.text(max_size=200))
def test_anything_can_be_looked_for_in_anything(fact: str, answer: str) -> None:
    assert stated(fact, answer) in (True, False)


def test_a_long_answer_takes_no_time() -> None:
    began = time.thread_time()

    for piece in ("1,", "-", "1.", "1e", "(", "november ", "1:"):
        stated("Sunday 2026-11-22 15:07", piece * 60_000)
        stated("1/3 ≈ 0.333", piece * 60_000)

    assert time.thread_time() - began < 8


def test_a_number_with_more_decimals_than_anybody_needs_is_compared_and_no_error() -> None:
    assert not stated("1/3 ≈ 0.333333333333333", "It is 0." + "3" * 60)
    assert stated("1/3 ≈ 0.333333333333333", "It is 0.333, or 0." + "3" * 60)

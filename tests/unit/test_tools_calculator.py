"""The calculator: as exact as fractions, as people write it, and never made to work for long."""

from __future__ import annotations

import time
from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timeline.cognition.builtin.evaluator import evaluate
from timeline.errors import ToolError


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("12*7", "84"),
        ("12 × 7 = ?", "84"),
        ("12x7", "84"),
        ("7 ÷ 2", "3.5"),
        ("0.1 + 0.2", "0.3"),
        ("1/3", "1/3 ≈ 0.333333333333333"),
        ("-2/3", "-2/3 ≈ -0.666666666666667"),
        ("15% of 240", "36"),
        ("240 * 15%", "36"),
        ("200 + 10%", "220"),
        ("200 - 10%", "180"),
        ("10% + 5%", "0.15"),
        ("15% off 80", "68"),
        ("2.5%", "0.025"),
        ("10 % 3", "1"),
        ("-7 mod 3", "2"),
        ("7 // 2", "3"),
        ("-2^2", "-4"),
        ("2^-1", "0.5"),
        ("2**3**2", "512"),
        ("(3 + 4) * 2", "14"),
        ("2(3+4)", "14"),
        ("1,234,567.89 * 2", "2469135.78"),
        ("1 000 000 + 1", "1000001"),
        ("$1,200 + 5%", "1260"),
        ("max(1,200)", "200"),
        ("max((1,200), 5)", "1200"),
        ("min(3, 1/3, 0.5)", "1/3 ≈ 0.333333333333333"),
        ("5!", "120"),
        ("20!", "2432902008176640000"),
        ("sqrt(16)", "4"),
        ("√2", "≈ 1.4142135623731"),
        ("sqrt(2)^2", "≈ 2"),
        ("(4/9)^(1/2)", "2/3 ≈ 0.666666666666667"),
        ("cbrt(-8)", "-2"),
        ("root(32, 5)", "2"),
        ("log(1000)", "3"),
        ("log(8, 2)", "3"),
        ("ln(e)", "≈ 1"),
        ("exp(1)", "≈ 2.71828182845905"),
        ("sin(pi)", "≈ 0"),
        ("sin(30°)", "≈ 0.5"),
        ("tan(pi/4)", "≈ 1"),
        ("atan(1) * 4", "≈ 3.14159265358979"),
        ("round(2.5)", "3"),
        ("round(-2.345, 2)", "-2.35"),
        ("floor(-2.5)", "-3"),
        ("ceil(2.1)", "3"),
        ("abs(-3)", "3"),
        ("avg(1, 2)", "1.5"),
        ("gcd(12, 18)", "6"),
        ("lcm(4, 6)", "12"),
        ("choose(5, 2)", "10"),
        ("0^0", "1"),
        ("1.5e3", "1500"),
        ("3 squared", "9"),
        ("the square root of 81", "9"),
        ("5 plus 3 times 2", "11"),
        ("100 divided by 8", "12.5"),
        ("2 to the power of 10", "1024"),
        ("1.000001^1000000", "≈ 2.71828046931938"),
        ("2^100", "1267650600228229401496703205376"),
        ("1/2^100", "≈ 7.88860905221012e-31"),
    ],
)
def test_people_get_what_they_mean(expression: str, result: str) -> None:
    assert result == evaluate(expression).text


@pytest.mark.parametrize(
    ("expression", "what"),
    [
        ("1/0", "divides by zero"),
        ("5 mod 0", "divides by zero"),
        ("0^-1", "divides by zero"),
        ("sqrt(-1)", "no real square root"),
        ("(-8)^0.25", "no real power"),
        ("log(0)", "above zero has a logarithm"),
        ("asin(2)", "from -1 to 1"),
        ("tan(pi/2)", "no tangent"),
        ("sin(1e30)", "too large"),
        ("2.5!", "whole number from 0"),
        ("(-1)!", "whole number from 0"),
        ("1 +", "ends too early"),
        ("(1", "ends too early"),
        ("1)", "')' at character 2 makes no sense"),
        ("3 4", "'4' at character 3 makes no sense"),
        ("sqrt(1, 2)", "another number of values"),
        ("sqrt 4", "makes no sense"),
        ("__import__('os')", "is no arithmetic"),
        ("open", "is no function: there are abs"),
        ("١٢ * 7", "is no arithmetic"),
        ("", "nothing to calculate"),
        ("?", "nothing to calculate"),
        ("\ud800", "is no arithmetic"),
    ],
)
def test_what_has_no_result_is_refused_with_its_reason(expression: str, what: str) -> None:
    with pytest.raises(ToolError, match=what.replace("(", r"\(").replace(")", r"\)")):
        evaluate(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "9**9**9**9",
        "9^9^9",
        "2^" * 900 + "2",
        "(" * 500_000 + ")" * 500_000,
        "(" * 1_000_000,
        "(" * 900 + "1" + ")" * 900,
        "-" * 1_900 + "1",
        "√" * 1_900 + "2",
        "99999999999!",
        "3!!!!!",
        "9!" + "!" * 1_000,
        "1e999999999",
        "1e3999 * 1e3999",
        "10^(10^3000)",
        "(1/3)^(10^3000)/0",
        "exp(exp(exp(9)))",
        "1.0000001^9e15^9",
        "choose(9999999, 4999999)",
        "root(2, 1e3000)",
        "*".join(["1463!"] * 300),
    ],
    ids=lambda expression: expression[:20],
)
def test_endless_work_is_refused_at_once(expression: str) -> None:
    began = time.thread_time()

    with pytest.raises(ToolError):
        evaluate(expression)

    # Thousands of times more than it takes, and nothing beside what would be without the limits.
    assert time.thread_time() - began < 2


@pytest.mark.parametrize("part", ["1400!", "ln(1463!)", "root(1463!, 999)", "sin(9e19)", "1/3^999", "choose(9999,900)"])
def test_the_longest_expression_takes_no_time(part: str) -> None:
    began = time.thread_time()

    evaluate("+".join([part] * (1_990 // (len(part) + 1))))

    assert time.thread_time() - began < 3


# ------------------------------------------------------------------ exact, whatever is written

NUMBERS = st.one_of(
    st.integers(0, 10**9).map(lambda number: (str(number), Fraction(number))),
    st.decimals(0, 10**6, places=4).map(lambda number: (f"{number:f}", Fraction(number))),
)


def _combined(parts: st.SearchStrategy[tuple[str, Fraction]]) -> st.SearchStrategy[tuple[str, Fraction]]:
    def join(operator: str, left: tuple[str, Fraction], right: tuple[str, Fraction]) -> tuple[str, Fraction]:
        value = {
            "+": lambda a, b: a + b,
            "-": lambda a, b: a - b,
            "*": lambda a, b: a * b,
            "/": lambda a, b: a / b if b else Fraction(0),
            " mod ": lambda a, b: a % b if b else Fraction(0),
        }[operator](left[1], right[1])
        text = f"({left[0]}{operator}{right[0]})"
        return (text, value) if right[1] or operator in "+-*" else ("0", Fraction(0))

    return st.one_of(
        st.builds(join, st.sampled_from(["+", "-", "*", "/", " mod "]), parts, parts),
        parts.map(lambda part: (f"-{part[0]}", -part[1])),
        st.builds(lambda part, power: (f"({part[0]})^{power}", part[1] ** power), parts, st.integers(0, 4)),
    )


@given(st.recursive(NUMBERS, _combined, max_leaves=12))
def test_every_result_is_that_of_fractions(expression: tuple[str, Fraction]) -> None:
    text, value = expression

    worked = evaluate(text)

    assert value == worked.value
    if "≈" not in worked.text:
        assert value == Fraction(worked.text)
    elif "/" in worked.text:
        assert value == Fraction(worked.text.partition(" ")[0])
    assert abs(Fraction(worked.number) - value) <= abs(value) * Fraction(1, 10**14)


@given(st.text(st.sampled_from("0123456789+-*/^%().,! eπ√°sinlogmaxroundofxmd"), max_size=60))
def test_whatever_is_written_has_a_result_or_a_sentence(text: str) -> None:
    with suppress(ToolError):
        assert evaluate(text).text

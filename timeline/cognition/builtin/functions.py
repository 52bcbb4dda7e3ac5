"""The numbers of the calculator: exact fractions and 60-place decimals, their functions, their limits, and how they are written.

Angles are in radians. `log` is the decimal logarithm, as on a pocket calculator, and `ln` the natural one; halves are
rounded away from zero, as people do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow
from fractions import Fraction

from msgspec import Struct

__all__ = [
    "CONSTANTS",
    "CONTEXT",
    "FUNCTIONS",
    "MOST_DIGITS",
    "PI",
    "Function",
    "Number",
    "Refused",
    "factorial",
    "inexact",
    "power",
    "rendered",
    "small",
]

Number = Fraction | Decimal
"""A `Fraction` is exact; a `Decimal` was rounded somewhere."""

MOST_DIGITS = 4_000
"""Of a numerator or denominator: more than anybody reads, and fewer than Python refuses to write."""
MOST_BITS = int(MOST_DIGITS * math.log2(10))
PLACES = 60
CONTEXT = Context(prec=PLACES, Emax=MOST_DIGITS, Emin=-MOST_DIGITS, traps=[Overflow, InvalidOperation, DivisionByZero])
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
SHOWN_DIGITS = 15
LONGEST_DECIMAL = 50
"""Characters of an exact decimal that are written out; a longer one is shown as fraction and approximation."""
LONGEST_FRACTION = 40
LARGEST_ANGLE = Decimal(10) ** 20
"""Beyond it a turn more or less is lost in the places there are."""
NEAR = Decimal(10) ** -45
"""What is closer to a whole number than this is that number: the root of 2, squared, is 2."""


class Refused(Exception):
    """An expression that isn't worked out; the sentence says why."""


def small(value: Fraction) -> Fraction:
    """The value, if it isn't too large to go on with.

    Raises:
        Refused: It is.
    """
    if value.numerator.bit_length() > MOST_BITS or value.denominator.bit_length() > MOST_BITS:
        raise _too_large()
    return value


def inexact(value: Number) -> Decimal:
    """The value as a decimal."""
    return value if isinstance(value, Decimal) else Decimal(value.numerator) / Decimal(value.denominator)


def _too_large() -> Refused:
    return Refused(f"a number in the expression has more than {MOST_DIGITS:,} digits: calculate something smaller")


def _settled(value: Decimal) -> Decimal:
    """The value, or the whole number that it misses by a rounding alone."""
    whole = value.to_integral_value()
    near = abs(value - whole) <= NEAR * max(Decimal(1), abs(whole)) if abs(value) < LARGEST_ANGLE else False
    return whole if near else value


# ------------------------------------------------------------------ powers and roots


def power(base: Number, exponent: Number) -> Number:
    """Base to the exponent; refused before it is computed where it would be too large."""
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        exact = base if exponent.denominator == 1 else _root(base, exponent.denominator)
        if exact is not None and _fits(exact, exponent.numerator):
            return small(exact**exponent.numerator)
    if base < 0 and not _is_whole(exponent):
        msg = "a negative number has no real power of a fraction: check the expression"
        raise Refused(msg)
    if not base and exponent < 0:
        raise ZeroDivisionError
    if not base and not exponent:
        return Fraction(1)
    return _settled(inexact(base) ** inexact(exponent))


def _fits(base: Fraction, exponent: int) -> bool:
    """Whether a power can be written out; 1.000001^1000000 is large in digits alone, and is worked out inexactly."""
    bits = max(base.numerator.bit_length(), base.denominator.bit_length()) - 1
    return abs(base) in (0, 1) or max(bits, 1) * (abs(exponent) - 1) <= MOST_BITS


def _is_whole(value: Number) -> bool:
    return value.denominator == 1 if isinstance(value, Fraction) else value == value.to_integral_value()


def _root(value: Fraction, degree: int) -> Fraction | None:
    """The exact root, if there is one."""
    if value < 0:
        positive = _root(-value, degree) if degree % 2 else None
        return None if positive is None else -positive
    top, bottom = _whole_root(value.numerator, degree), _whole_root(value.denominator, degree)
    return None if top is None or bottom is None else Fraction(top, bottom)


def _whole_root(value: int, degree: int) -> int | None:
    if value in (0, 1):
        return value
    if degree > value.bit_length():
        return None
    if degree == 2:  # noqa: PLR2004 - the square root
        root = math.isqrt(value)
        return root if root * root == value else None
    low, high = 1, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        if middle**degree <= value:
            low = middle
        else:
            high = middle - 1
    return low if low**degree == value else None


def _sqrt(value: Number) -> Number:
    if value < 0:
        msg = "a negative number has no real square root: check the expression"
        raise Refused(msg)
    exact = _root(value, 2) if isinstance(value, Fraction) else None
    return _settled(inexact(value).sqrt()) if exact is None else exact


def _nth_root(value: Number, degree: Number) -> Number:
    if not isinstance(degree, Fraction) or degree.denominator != 1 or not 1 <= degree <= MOST_DIGITS:
        msg = f"the degree of a root is a whole number from 1 to {MOST_DIGITS:,}: check the expression"
        raise Refused(msg)
    if value < 0 and degree.numerator % 2:
        return _absolute(power(_absolute(value), 1 / degree)) * -1
    return power(value, 1 / degree)


def factorial(value: Number) -> Fraction:
    """The product of the whole numbers up to the value."""
    number = _natural(value, "a factorial")
    if math.lgamma(number + 1) > MOST_BITS * math.log(2):
        raise _too_large()
    return Fraction(math.factorial(number))


def _natural(value: Number, of: str) -> int:
    if not isinstance(value, Fraction) or value.denominator != 1 or value < 0:
        msg = f"{of} is that of a whole number from 0 on: check the expression"
        raise Refused(msg)
    if value > MOST_BITS:
        raise _too_large()
    return value.numerator


def _choose(whole: Number, part: Number) -> Fraction:
    n, k = _natural(whole, "a number of combinations"), _natural(part, "a number of combinations")
    if min(k, n - k) * math.log2(n + 1) > MOST_BITS:
        raise _too_large()
    return Fraction(math.comb(n, k))


# ------------------------------------------------------------------ rounding


def _whole(rounded: Callable[[Fraction], int]) -> Callable[[Number], Number]:
    def apply(value: Number) -> Number:
        if isinstance(value, Decimal):
            if value.adjusted() >= PLACES - 10:
                return value
            value = Fraction(_settled(value))
        return Fraction(rounded(value))

    return apply


def _round(value: Number, places: Number = Fraction(0)) -> Number:
    if not isinstance(places, Fraction) or places.denominator != 1 or abs(places) > 100:  # noqa: PLR2004
        msg = "a number is rounded to a whole number of places, 100 at most: check the expression"
        raise Refused(msg)
    if isinstance(value, Decimal):
        if value.adjusted() >= PLACES - 10:
            return value
        value = Fraction(value)
    scale = Fraction(10) ** places.numerator
    scaled = abs(value) * scale + Fraction(1, 2)
    return small((1 if value >= 0 else -1) * Fraction(math.floor(scaled)) / scale)


# ------------------------------------------------------------------ logarithms and angles


def _ln(value: Number) -> Number:
    return Fraction(0) if value == 1 else _positive(value).ln()


def _positive(value: Number) -> Decimal:
    if value <= 0:
        msg = "only a number above zero has a logarithm: check the expression"
        raise Refused(msg)
    return inexact(value)


def _log(value: Number, base: Number = Fraction(10)) -> Number:
    if base <= 0 or base == 1:
        msg = "the base of a logarithm is a number above zero, and not 1: check the expression"
        raise Refused(msg)
    found = _settled(_positive(value).ln() / _positive(base).ln())
    guess = Fraction(found.to_integral_value()) if abs(found) <= MOST_BITS else Fraction(0)
    exact = isinstance(value, Fraction) and isinstance(base, Fraction) and found == guess
    return guess if exact and power(base, guess) == value else found


def _exp(value: Number) -> Number:
    return inexact(value).exp() if value else Fraction(1)


def _angle(value: Number) -> Decimal:
    """The angle less its whole turns, between -π and π."""
    angle = inexact(value)
    if abs(angle) > LARGEST_ANGLE:
        msg = "the angle is too large to be told from others: give a smaller one"
        raise Refused(msg)
    turn = 2 * PI
    return angle - (angle / turn).to_integral_value() * turn


def _series(angle: Decimal, term: Decimal, n: int) -> Decimal:
    """Taylor's series of sine (from `term` = angle, `n` = 1) and cosine (from 1 and 0)."""
    total, square = Decimal(0), angle * angle
    while abs(term) > Decimal(10) ** -PLACES:
        total += term
        term = -term * square / ((n + 1) * (n + 2))
        n += 2
    return total


def _sin(value: Number) -> Number:
    angle = _angle(value)
    return _settled(_series(angle, angle, 1)) if value else Fraction(0)


def _cos(value: Number) -> Number:
    return _settled(_series(_angle(value), Decimal(1), 0)) if value else Fraction(1)


def _tan(value: Number) -> Number:
    below = inexact(_cos(value))
    if not below:
        msg = "a right angle has no tangent: check the expression"
        raise Refused(msg)
    return _settled(inexact(_sin(value)) / below) if value else Fraction(0)


def _inverse(function: Callable[[float], float], name: str) -> Callable[[Number], Number]:
    def apply(value: Number) -> Number:
        if name != "atan" and _absolute(value) > 1:
            msg = f"{name} takes a value from -1 to 1: check the expression"
            raise Refused(msg)
        # Beyond this an arctangent is a right angle in all the digits that are shown.
        bounded = max(-(Decimal(10) ** 300), min(Decimal(10) ** 300, inexact(value)))
        return Decimal(repr(function(float(bounded))))

    return apply


# ------------------------------------------------------------------ what there is


class Function(Struct, frozen=True):
    """A function by name.

    Args:
        call: Works it out.
        least, most: How many values it takes.
    """

    call: Callable[..., Number]
    least: int = 1
    most: int = 1


def _absolute(value: Number) -> Number:
    return value.copy_abs() if isinstance(value, Decimal) else abs(value)


def _total(*values: Number) -> Number:
    if any(isinstance(value, Decimal) for value in values):
        return sum(map(inexact, values), start=Decimal(0))
    total = Fraction(0)
    for value in values:
        total = small(total + Fraction(value))
    return total


def _mean(*values: Number) -> Number:
    total = _total(*values)
    return total / len(values) if isinstance(total, Decimal) else small(total / len(values))


def _divisors(function: Callable[[int, int], int]) -> Callable[..., Number]:
    def apply(*values: Number) -> Number:
        found = Fraction(_natural(values[0], "a divisor"))
        for value in values[1:]:
            found = small(Fraction(function(found.numerator, _natural(value, "a divisor"))))
        return found

    return apply


ANY = 1_000

CONSTANTS: dict[str, Decimal] = {
    "pi": PI,
    "tau": Decimal("6.28318530717958647692528676655900576839433879875021164194988918"),
    "e": Decimal("2.71828182845904523536028747135266249775724709369995957496696763"),
}
FUNCTIONS: dict[str, Function] = {
    "abs": Function(_absolute),
    "acos": Function(_inverse(math.acos, "acos")),
    "asin": Function(_inverse(math.asin, "asin")),
    "atan": Function(_inverse(math.atan, "atan")),
    "avg": Function(_mean, 1, ANY),
    "cbrt": Function(lambda value: _nth_root(value, Fraction(3))),
    "ceil": Function(_whole(math.ceil)),
    "choose": Function(_choose, 2, 2),
    "cos": Function(_cos),
    "exp": Function(_exp),
    "factorial": Function(factorial),
    "floor": Function(_whole(math.floor)),
    "gcd": Function(_divisors(math.gcd), 1, ANY),
    "lcm": Function(_divisors(math.lcm), 1, ANY),
    "ln": Function(_ln),
    "log": Function(_log, 1, 2),
    "log10": Function(_log),
    "log2": Function(lambda value: _log(value, Fraction(2))),
    "max": Function(lambda *values: max(values, key=Fraction), 1, ANY),
    "mean": Function(_mean, 1, ANY),
    "min": Function(lambda *values: min(values, key=Fraction), 1, ANY),
    "root": Function(_nth_root, 2, 2),
    "round": Function(_round, 1, 2),
    "sin": Function(_sin),
    "sqrt": Function(_sqrt),
    "sum": Function(_total, 1, ANY),
    "tan": Function(_tan),
}


# ------------------------------------------------------------------ in writing


def rendered(value: Number) -> tuple[str, str]:
    """A value for people, and the same as one number.

    An exact value stands as it is where it can: `84`, `-0.6`. Otherwise the approximation is marked: `1/3 ≈ 0.333333333333333`.
    """
    if isinstance(value, Fraction):
        exact = _finite(value)
        if exact is not None:
            return exact, exact
    about = _approximately(value)
    fraction = f"{value.numerator}/{value.denominator} " if isinstance(value, Fraction) and _is_short(value) else ""
    return f"{fraction}≈ {about}", about


def _is_short(value: Fraction) -> bool:
    return max(value.numerator.bit_length(), value.denominator.bit_length()) < LONGEST_FRACTION


def _finite(value: Fraction) -> str | None:
    """All digits of the value, if they end and are few."""
    if value.denominator == 1:
        return str(value.numerator)
    rest, places = value.denominator, 0
    for factor in (2, 5):
        count = 0
        while not rest % factor and count <= LONGEST_DECIMAL:
            rest, count = rest // factor, count + 1
        places = max(places, count)
    if rest != 1 or places > LONGEST_DECIMAL:
        return None
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    text = f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
    return text if len(text) <= LONGEST_DECIMAL else None


def _approximately(value: Number) -> str:
    rounded = inexact(value).normalize(Context(prec=SHOWN_DIGITS, Emax=2 * MOST_DIGITS, Emin=-2 * MOST_DIGITS))
    if not rounded:
        return "0"
    if -SHOWN_DIGITS // 2 <= rounded.adjusted() <= 2 * SHOWN_DIGITS:
        return f"{rounded:f}"
    return f"{rounded:e}"

"""Arithmetic as people write it, worked out exactly where that is possible, and with bounded work whatever is written.

Numbers are fractions as long as the operations allow it, and decimals of 60 places from there on. Nothing is evaluated
by Python: a text of at most 2,000 characters goes through a grammar of at most 60 levels, and no number may
grow beyond 4,000 digits; what would is refused before it is computed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from decimal import DivisionByZero, InvalidOperation, Overflow, localcontext
from fractions import Fraction

from msgspec import Struct

from timeline.cognition.builtin.functions import (
    CONSTANTS,
    CONTEXT,
    FUNCTIONS,
    MOST_DIGITS,
    PI,
    Number,
    Refused,
    factorial,
    inexact,
    power,
    rendered,
    small,
)
from timeline.errors import ToolError

__all__ = ["LONGEST", "Worked", "evaluate"]

LONGEST = 2_000
"""Characters of an expression."""
DEEPEST = 60
"""Levels of parentheses, signs and powers."""


class Worked(Struct, frozen=True):
    """An expression that was worked out.

    Args:
        expression: As it was read, without what means nothing.
        value: Exact where it is a `Fraction`.
        text: For people: `84`, `0.6`, `1/3 ≈ 0.333333333333333`, `≈ 1.4142135623731`.
        number: The same as one number, without fraction and mark: `0.333333333333333`.
    """

    expression: str
    value: Number
    text: str
    number: str


def evaluate(text: str) -> Worked:
    """Work an expression out; takes milliseconds at most.

    Args:
        text: For example `(3 + 4) * 2^10`, `15% of 240`, `200 + 10%`, `sqrt(2)`, `12 × 7`, `10 mod 3`, `1,000 / 7`.

    Raises:
        ToolError: It is no arithmetic, or too much of it; says where.
    """
    if len(text) > LONGEST:
        msg = f"the expression has {len(text):,} characters, and {LONGEST:,} are the most: calculate parts of it"
        raise ToolError(msg)
    try:
        with localcontext(CONTEXT):
            value = _Parser(list(_tokens(text))).whole()
            shown, number = rendered(value)
    except ZeroDivisionError:
        msg = "the expression divides by zero, which has no result"
        raise ToolError(msg) from None
    except (Overflow, InvalidOperation, DivisionByZero):
        msg = f"a number in the expression has more than {MOST_DIGITS:,} digits or no real value: calculate something smaller"
        raise ToolError(msg) from None
    except Refused as exc:
        raise ToolError(str(exc)) from None
    return Worked(" ".join(text.split()).removesuffix("=").rstrip(" ?"), value, shown, number)


# ------------------------------------------------------------------ words

_PLAIN = r"(?:[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?|\.[0-9]+)"
_GROUPED = r"[0-9]{1,3}(?P<mark>[,_' \u00a0\u2009\u202f])[0-9]{3}(?:(?P=mark)[0-9]{3})*(?![0-9])(?:\.[0-9]+)?"
_EXPONENT = r"(?:[eE][+-]?[0-9]+(?![\w.]))?"
_NUMBER = re.compile(f"(?:{_GROUPED}|{_PLAIN}){_EXPONENT}")
_PLAIN_NUMBER = re.compile(_PLAIN + _EXPONENT)
_TIMES = re.compile(r"[xX](?![a-zA-Z])")
_WORDS = re.compile(
    r"(?:multiplied by|divided by|(?:raised )?to the power of|per cent|(?:the )?(?:square|cube) root of)\b|[a-z]+[0-9]*|π|τ",
    re.IGNORECASE,
)
_SYMBOLS = re.compile(r"\*\*|//|[-+*/^%()!,;√°×·⋅∙÷−–∕²³]")
_SKIPPED = re.compile(r"[\s$€£¥]+")
_MEANING = {
    "plus": "+",
    "minus": "-",
    "times": "*",
    "multiplied by": "*",
    "divided by": "/",
    "over": "/",
    "modulo": "mod",
    "to the power of": "^",
    "squared": "²",
    "cubed": "³",
    "percent": "%",
    "per cent": "%",
    "square root of": "√",
    "cube root of": "∛",
    "×": "*",
    "·": "*",
    "⋅": "*",
    "∙": "*",
    "÷": "/",
    "∕": "/",
    "−": "-",
    "–": "-",
    "**": "^",
    ";": ",",
    "π": "pi",
    "τ": "tau",
}


class _Token(Struct, frozen=True):
    kind: str
    """`number`, `name` or the symbol itself."""
    text: str
    at: int


def _tokens(text: str) -> Iterator[_Token]:
    """The parts of an expression; a trailing `=` or `?` means nothing."""
    end = len(text.rstrip(" \t\r\n=?"))
    at, previous = 0, ""
    calls: list[bool] = []
    while at < end:
        if skipped := _SKIPPED.match(text, at, end):
            at = skipped.end()
            continue
        # Between the parentheses of a function a comma separates: max(1,200) has two arguments.
        pattern = _PLAIN_NUMBER if calls and calls[-1] else _NUMBER
        if found := pattern.match(text, at, end):
            token = _Token("number", found[0], at)
        elif previous in ("number", ")") and (found := _TIMES.match(text, at, end)):
            token = _Token("*", found[0], at)
        elif found := _WORDS.match(text, at, end):
            word = found[0].lower().removeprefix("raised ").removeprefix("the ")
            meaning = _MEANING.get(word, word)
            token = _Token(meaning if meaning in _OPERATORS else "name", meaning, at)
        elif found := _SYMBOLS.match(text, at, end):
            meaning = _MEANING.get(found[0], found[0])
            token = _Token(meaning if meaning in _OPERATORS else "name", meaning, at)
        else:
            raise _unreadable(text, at)
        if token.kind == "(":
            calls.append(previous == "name")
        elif token.kind == ")" and calls:
            calls.pop()
        previous, at = token.kind, found.end()
        yield token


_OPERATORS = frozenset("+-*/^%()!,√∛°²³") | {"mod", "of", "off", "//"}


def _unreadable(text: str, at: int) -> ToolError:
    return ToolError(
        f"{text[at : at + 20]!r} at character {at + 1} is no arithmetic: write numbers, + - * / ^ %, parentheses and functions"
    )


# ------------------------------------------------------------------ grammar


class _Parser:
    """Works the expression out while it reads it.

    A percentage is a value that knows to be one, since `200 + 10%` is not `200 + 10/100`.
    """

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0

    def whole(self) -> Number:
        if not self._tokens:
            msg = "there is nothing to calculate: give an expression such as 12*7"
            raise Refused(msg)
        value, _ = self._sum()
        if self._next < len(self._tokens):
            raise self._unexpected()
        return value

    def _peek(self, *kinds: str) -> bool:
        return self._next < len(self._tokens) and self._tokens[self._next].kind in kinds

    def _take(self) -> _Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def _unexpected(self) -> Refused:
        if self._next < len(self._tokens):
            token = self._tokens[self._next]
            return Refused(
                f"{token.text[:20]!r} at character {token.at + 1} makes no sense there: check the expression"
            )
        return Refused("the expression ends too early: complete it")

    def _sum(self) -> tuple[Number, bool]:
        self._enter()
        left, percent = self._product()
        while self._peek("+", "-"):
            sign = Fraction(1 if self._take().kind == "+" else -1)
            right, relative = self._product()
            if relative and not percent:
                right = _times(left, right)
            left = _plus(left, _times(sign, right))
            percent = percent and relative
        self._depth -= 1
        return left, percent

    def _product(self) -> tuple[Number, bool]:
        left, percent = self._signed()
        while True:
            if self._peek("*", "/", "//", "%", "mod", "of", "off"):
                operator = self._take().kind
            elif self._peek("number", "name", "(", "√", "∛"):
                # 2(3+4), 3 pi; two numbers side by side are none.
                if self._peek("number"):
                    raise self._unexpected()
                operator = "*"
            else:
                return left, percent
            right, _ = self._signed()
            left, percent = _OPERATIONS[operator](left, right), False

    def _signed(self) -> tuple[Number, bool]:
        if self._peek("+", "-"):
            self._enter()
            sign = 1 if self._take().kind == "+" else -1
            value, percent = self._signed()
            self._depth -= 1
            return _times(Fraction(sign), value), percent
        return self._power()

    def _power(self) -> tuple[Number, bool]:
        base, percent = self._postfixed()
        if not self._peek("^"):
            return base, percent
        self._enter()
        self._take()
        exponent, _ = self._signed()
        self._depth -= 1
        return power(base, exponent), False

    def _postfixed(self) -> tuple[Number, bool]:
        value, percent = self._atom(), False
        while True:
            if self._peek("!"):
                self._take()
                value = factorial(value)
            elif self._peek("²", "³"):
                value = power(value, Fraction(2 if self._take().kind == "²" else 3))
            elif self._peek("°"):
                self._take()
                value = _times(value, PI / 180)
            elif self._peek("%") and not self._is_modulo():
                self._take()
                value, percent = _divided(value, Fraction(100)), True
            else:
                return value, percent

    def _is_modulo(self) -> bool:
        """Whether a `%` stands between two values: `10 % 3`, but `15% of 240`, `200 + 10%`."""
        after = self._next + 1
        return after < len(self._tokens) and self._tokens[after].kind in ("number", "name", "(", "√", "∛")

    def _atom(self) -> Number:
        self._enter()
        value: Number
        if self._peek("number"):
            value = _number(self._take())
        elif self._peek("("):
            self._take()
            value, _ = self._sum()
            self._close()
        elif self._peek("√", "∛"):
            name = "sqrt" if self._take().kind == "√" else "cbrt"
            value = FUNCTIONS[name].call(self._postfixed()[0])
        elif self._peek("name"):
            value = self._named()
        else:
            raise self._unexpected()
        self._depth -= 1
        return value

    def _named(self) -> Number:
        token = self._take()
        if token.text in CONSTANTS:
            return CONSTANTS[token.text]
        function = FUNCTIONS.get(token.text)
        if function is None:
            known = ", ".join(sorted(FUNCTIONS))
            msg = f"{token.text[:20]!r} at character {token.at + 1} is no function: there are {known}"
            raise Refused(msg)
        if not self._peek("("):
            raise self._unexpected()
        self._take()
        arguments = [self._sum()[0]]
        while self._peek(","):
            self._take()
            arguments.append(self._sum()[0])
        self._close()
        if not function.least <= len(arguments) <= function.most:
            msg = f"{token.text} takes another number of values than {len(arguments)}: check the expression"
            raise Refused(msg)
        return function.call(*arguments)

    def _close(self) -> None:
        if not self._peek(")"):
            raise self._unexpected()
        self._take()

    def _enter(self) -> None:
        self._depth += 1
        # A level of parentheses passes through here twice.
        if self._depth > 2 * DEEPEST:
            msg = f"the expression is nested deeper than {DEEPEST} levels: calculate parts of it"
            raise Refused(msg)


def _number(token: _Token) -> Fraction:
    digits, _, exponent = re.sub(r"[,_' \u00a0\u2009\u202f]", "", token.text).lower().partition("e")
    if len(exponent) > len(str(MOST_DIGITS)) + 1 or (exponent and abs(int(exponent)) > MOST_DIGITS):
        msg = f"{token.text[:20]!r} has more than {MOST_DIGITS:,} digits: calculate something smaller"
        raise Refused(msg)
    return small(Fraction(digits.removesuffix(".")) * Fraction(10) ** int(exponent or 0))


def _plus(left: Number, right: Number) -> Number:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return small(left + right)
    return inexact(left) + inexact(right)


def _times(left: Number, right: Number) -> Number:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return small(left * right)
    return inexact(left) * inexact(right)


def _divided(left: Number, right: Number) -> Number:
    if not right:
        raise ZeroDivisionError
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return small(left / right)
    return inexact(left) / inexact(right)


def _floored(left: Number, right: Number) -> Number:
    return FUNCTIONS["floor"].call(_divided(left, right))


def _modulo(left: Number, right: Number) -> Number:
    return _plus(left, _times(Fraction(-1), _times(right, _floored(left, right))))


_OPERATIONS: dict[str, Callable[[Number, Number], Number]] = {
    "*": _times,
    "of": _times,
    "/": _divided,
    "//": _floored,
    "%": _modulo,
    "mod": _modulo,
    # 15% off 80
    "off": lambda part, whole: _times(whole, _plus(Fraction(1), _times(Fraction(-1), part))),
}

"""From words to an expression: `15% of 240` is `0.15*240`, `the sum of 3, 4 and 5` is `3+4+5`.

Knows how people write sums, in English and with signs. What is made is for the calculator to work out: nothing is
computed here.
"""

from __future__ import annotations

from decimal import Decimal

from msgspec import Struct

from timeline.cognition.numbers import ORDINALS, Token, plain_decimal, tokens

__all__ = ["Expression", "expressions"]


class Expression(Struct, frozen=True):
    """A sum that stands in a text.

    Args:
        text: Normalised: decimals, `+ - * / **`, parentheses, and functions such as `sqrt(144)`.
        start, end: Where it stands, in characters.
        plain: Words or signs that mean nothing but a sum (`times`, `*`, `% of`); `24/7`, `4x4` and `9-5` aren't.
    """

    text: str
    start: int
    end: int
    plain: bool


# ------------------------------------------------------------------ the grammar

_ADD, _MULTIPLY, _POWER, _ATOM = 1, 2, 3, 4
DEEPEST = 30
MOST_TOKENS = 400
"""Words, numbers and signs of a clause that are looked at: the longest sum that anybody types has fewer."""


class _Node(Struct, frozen=True, gc=False):
    """Part of an expression: its text, how tightly it binds, where it ends, how many operations are in it."""

    text: str
    binds: int
    after: int
    operations: int = 0
    plain: bool = False
    percent: bool = False

    def within(self, binds: int) -> str:
        return self.text if self.binds >= binds else f"({self.text})"


_INFIX: tuple[tuple[tuple[str, ...], str], ...] = (
    (("multiplied", "by"), "*"),
    (("times",), "*"),
    (("divided", "by"), "/"),
    (("over",), "over"),
    (("go", "into"), "into"),
    (("goes", "into"), "into"),
    (("modulo",), "mod"),
    (("mod",), "mod"),
    (("plus",), "+"),
    (("added", "to"), "+"),
    (("minus",), "-"),
    (("to", "the", "power", "of"), "**"),
    (("to", "the", "power"), "**"),
    (("raised", "to", "the", "power", "of"), "**"),
    (("raised", "to", "the"), "**"),
    (("raised", "to"), "**"),
    (("to", "the"), "**"),
    *(((sign,), sign) for sign in ("**", "*", "/", "x", "+", "-")),
)
_SIGNS = {_ADD: ("+", "-"), _MULTIPLY: ("*", "/", "x", "over", "mod", "into")}
_FUNCTIONS = {
    ("square", "root"): "sqrt",
    ("root",): "sqrt",
    ("sqrt",): "sqrt",
    ("√",): "sqrt",
    ("cube", "root"): "cbrt",
    ("cubic", "root"): "cbrt",
    ("factorial",): "factorial",
    ("absolute", "value"): "abs",
    ("abs",): "abs",
    ("natural", "log"): "ln",
    ("natural", "logarithm"): "ln",
    ("ln",): "ln",
    ("log",): "log10",
    ("logarithm",): "log10",
    ("log10",): "log10",
    ("log2",): "log2",
    ("square", "of"): "square",
    ("cube", "of"): "cube",
    ("sin",): "sin",
    ("sine",): "sin",
    ("cos",): "cos",
    ("cosine",): "cos",
    ("tan",): "tan",
    ("tangent",): "tan",
}
_FRACTIONS: dict[tuple[str, ...], str] = {
    ("double",): "2",
    ("twice",): "2",
    ("triple",): "3",
    ("half",): "1/2",
    ("half", "of"): "1/2",
    ("third", "of"): "1/3",
    ("quarter", "of"): "1/4",
    ("tenth", "of"): "1/10",
}
_LISTS: dict[tuple[str, ...], str] = {
    ("sum", "of"): "+",
    ("total", "of"): "+",
    ("sum",): "+",
    ("add", "up"): "+",
    ("add", "together"): "+",
    ("add",): "+",
    ("product", "of"): "*",
    ("multiply",): "*",
    ("difference", "between"): "-",
    ("difference", "of"): "-",
    ("quotient", "of"): "/",
    ("divide",): "/",
    ("average", "of"): "average",
    ("average",): "average",
    ("mean", "of"): "average",
    ("mean", "average", "of"): "average",
    ("gcd", "of"): "gcd",
    ("greatest", "common", "divisor", "of"): "gcd",
    ("highest", "common", "factor", "of"): "gcd",
    ("lcm", "of"): "lcm",
    ("least", "common", "multiple", "of"): "lcm",
    ("lowest", "common", "multiple", "of"): "lcm",
    ("maximum", "of"): "max",
    ("minimum", "of"): "min",
}
_CHANGES = {"increase": "+", "raise": "+", "decrease": "-", "reduce": "-", "lower": "-"}
_AMONG = ("among", "amongst", "between", "by", "into", "across", "with")
_PERCENT_OF_WHAT = ("tip", "tax", "vat", "discount", "reduction", "interest", "sales", "gratuity", "commission", "fee")
_ARTICLES = ("the", "a", "an", "of", "number", "numbers")


class _Parser:
    """Reads one expression from a place on; every method gives None where there is none."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._depth = 0
        self._known: dict[int, _Node | None] = {}

    def _is(self, at: int, words: tuple[str, ...]) -> bool:
        return len(self._tokens) >= at + len(words) and all(
            self._tokens[at + index].text == word and self._tokens[at + index].kind != "number"
            for index, word in enumerate(words)
        )

    def _skip(self, at: int, words: tuple[str, ...] = _ARTICLES) -> int:
        while at < len(self._tokens) and self._tokens[at].text in words:
            at += 1
        return at

    def _longest(self, at: int, table: dict[tuple[str, ...], str]) -> tuple[str, int] | None:
        found = [words for words in table if self._is(at, words)]
        if not found:
            return None
        words = max(found, key=len)
        return table[words], at + len(words)

    def expression(self, at: int) -> _Node | None:
        return self._chain(at, _ADD)

    def _chain(self, at: int, level: int) -> _Node | None:
        signs = _SIGNS.get(level, ())
        left = self._chain(at, level + 1) if level < _POWER else self._power(at)
        while left is not None and level < _POWER:
            found = self._infix(left.after)
            if found is None or found[0] not in signs:
                break
            sign, after = found
            right = self._chain(after, level + 1)
            if right is None:
                break
            left = self._joined(left, sign, right)
        return left

    def _infix(self, at: int) -> tuple[str, int] | None:
        found = [(words, sign) for words, sign in _INFIX if self._is(at, words)]
        if not found:
            return None
        words, sign = max(found, key=lambda item: len(item[0]))
        return sign, at + len(words)

    def _joined(self, left: _Node, sign: str, right: _Node) -> _Node:
        # `9-5`, `24/7` and `4x4` may be names; spaces around make a sum of them, but for `x`.
        place = self._tokens[left.after]
        spaced = place.start > self._tokens[left.after - 1].end
        meant = place.kind == "word" or spaced if sign in ("/", "-") else sign not in ("x", "over")
        plain = left.plain or right.plain or meant
        count = left.operations + right.operations + 1
        if sign == "into":
            return _Node(f"{right.within(_MULTIPLY)}/{left.within(_POWER)}", _MULTIPLY, right.after, count, plain)
        if sign == "mod":
            return _Node(f"{left.within(_POWER)} mod {right.within(_POWER)}", _MULTIPLY, right.after, count, plain)
        sign = {"x": "*", "over": "/"}.get(sign, sign)
        if right.percent and not left.percent and sign in "+-":
            # As on a pocket calculator: 80 + 10% is 88.
            text = f"{left.within(_POWER)}*(1{sign}{right.text})"
            return _Node(text, _MULTIPLY, right.after, count, plain)
        level = _ADD if sign in "+-" else _MULTIPLY
        text = f"{left.within(level)}{sign}{right.within(level + 1)}"
        return _Node(text, level, right.after, count, plain)

    def _power(self, at: int) -> _Node | None:
        node = self._prefixed(at)
        while node is not None:
            after, count = node.after, node.operations + 1
            if self._is(after, ("squared",)) or self._is(after, ("²",)):
                node = _Node(f"{node.within(_ATOM)}**2", _POWER, after + 1, count, plain=True)
            elif self._is(after, ("cubed",)) or self._is(after, ("³",)):
                node = _Node(f"{node.within(_ATOM)}**3", _POWER, after + 1, count, plain=True)
            elif self._is(after, ("factorial",)):
                node = _Node(f"factorial({node.text})", _ATOM, after + 1, count, plain=True)
            elif self._is(after, ("!",)) and self._tokens[after].start == self._tokens[after - 1].end:
                node = _Node(f"factorial({node.text})", _ATOM, after + 1, count, plain=node.plain)
            elif (found := self._infix(after)) and found[0] == "**":
                power = self._ordinal(found[1]) or self._prefixed(found[1])
                if power is None:
                    break
                node = _Node(f"{node.within(_ATOM)}**{power.within(_ATOM)}", _POWER, power.after, count, plain=True)
            else:
                break
        return node

    def _ordinal(self, at: int) -> _Node | None:
        """`10th power` after `2 to the`."""
        if at >= len(self._tokens):
            return None
        token = self._tokens[at]
        text = token.text if token.kind == "ordinal" else str(ORDINALS.get(token.text, ""))
        return _Node(text, _ATOM, self._skip(at + 1, ("power",))) if text else None

    def _prefixed(self, at: int) -> _Node | None:
        """A number with what stands before it. Read once at every place, and no deeper than anybody nests."""
        if at not in self._known:
            self._depth += 1
            self._known[at] = self._read_prefixed(at) if self._depth < DEEPEST else None
            self._depth -= 1
        return self._known[at]

    def _read_prefixed(self, at: int) -> _Node | None:
        if self._is(at, ("-",)):
            node = self._prefixed(at + 1)
            return _Node(f"-{node.within(_POWER)}", _POWER, node.after, node.operations, node.plain) if node else None
        start = self._skip(at, ("the", "a", "an"))
        for read in (self._function, self._fraction, self._list, self._order):
            if node := read(start):
                return node
        return self._primary(at)

    def _function(self, at: int) -> _Node | None:
        found = self._longest(at, _FUNCTIONS)
        if found is None:
            return None
        name, after = found
        inner = self._prefixed(self._skip(after))
        if inner is None:
            return None
        if name in ("square", "cube"):
            power = 2 if name == "square" else 3
            return _Node(f"{inner.within(_ATOM)}**{power}", _POWER, inner.after, inner.operations + 1, plain=True)
        if name in ("sin", "cos", "tan") and (self._is(inner.after, ("degrees",)) or self._is(inner.after, ("°",))):
            return _Node(f"{name}({inner.text}°)", _ATOM, inner.after + 1, inner.operations + 1, plain=True)
        return _Node(f"{name}({inner.text})", _ATOM, inner.after, inner.operations + 1, plain=True)

    def _fraction(self, at: int) -> _Node | None:
        found = self._longest(at, _FRACTIONS)
        if found is None and at + 2 < len(self._tokens) and self._tokens[at].kind == "number":
            # two thirds of, 3 quarters of
            part = self._tokens[at + 1].text.removesuffix("s")
            below = {"half": 2, "halve": 2, "quarter": 4, **ORDINALS}.get(part)
            if below and self._is(at + 2, ("of",)):
                found = f"{self._tokens[at].text}/{below}", at + 3
        if found is None:
            return None
        text, after = found
        inner = self._prefixed(self._skip(after))
        if inner is None:
            return None
        return _Node(f"{text}*{inner.within(_POWER)}", _MULTIPLY, inner.after, inner.operations + 1, plain=True)

    def _list(self, at: int) -> _Node | None:
        found = self._longest(at, _LISTS)
        if found is None:
            return None
        sign, after = found
        items = self._items(self._skip(after))
        if len(items) < 2:  # noqa: PLR2004 - one number is no sum
            return None
        count, end = sum(item.operations for item in items) + 1, items[-1].after
        if sign in ("gcd", "lcm", "max", "min"):
            return _Node(f"{sign}({', '.join(item.text for item in items)})", _ATOM, end, count, plain=True)
        if sign == "average":
            total = "+".join(item.within(_ADD) for item in items)
            return _Node(f"({total})/{len(items)}", _MULTIPLY, end, count, plain=True)
        level = _ADD if sign in "+-" else _MULTIPLY
        first, *rest = items
        text = sign.join([first.within(level), *(item.within(level + 1) for item in rest)])
        return _Node(text, level, end, count, plain=True)

    def _items(self, at: int) -> list[_Node]:
        """`3, 4 and 5`, `6 by 7`, `100 to 5`."""
        items: list[_Node] = []
        while node := self._power(self._skip(at)):
            items.append(node)
            at = node.after
            between = self._skip(at, (",", "and", "by", "to", "with", "&"))
            if between == at:
                break
            at = between
        return items

    def _order(self, at: int) -> _Node | None:
        """What is said in another order: `subtract 3 from 10`, `increase 80 by 10%`, `split 84 among 4`."""
        if at >= len(self._tokens):
            return None
        verb = self._tokens[at].text
        if verb in ("subtract", "take", "deduct") and (pair := self._two(at + 1, ("from",))):
            what, whole = pair
            return _Node(f"{whole.within(_ADD)}-{what.within(_MULTIPLY)}", _ADD, whole.after, 1, plain=True)
        if verb in _CHANGES and (pair := self._two(at + 1, ("by",))) and pair[1].percent:
            whole, part = pair
            return _Node(f"{whole.within(_POWER)}*(1{_CHANGES[verb]}{part.text})", _MULTIPLY, part.after, 1, plain=True)
        if verb in ("split", "share", "divide") and (pair := self._two(at + 1, _AMONG)):
            whole, parts = pair
            return _Node(f"{whole.within(_MULTIPLY)}/{parts.within(_POWER)}", _MULTIPLY, parts.after, 1, plain=True)
        if verb == "remainder":
            start = self._skip(at + 1, ("of", "when", "if", "from", "dividing", "you", "divide"))
            if pair := self._two(start, ("by",)):
                return _Node(
                    f"{pair[0].within(_POWER)} mod {pair[1].within(_POWER)}", _MULTIPLY, pair[1].after, 1, plain=True
                )
        if verb in ("percent", "percentage", "%"):
            return self._share(at + 1)
        return None

    def _share(self, at: int) -> _Node | None:
        """`what percent of 80 is 20`, `what percentage is 20 of 80`."""
        for start, between, turned in (("of", ("is", "are"), True), ("is", ("of", "out"), False)):
            if self._is(at, (start,)) and (pair := self._two(at + 1, between)):
                part, whole = reversed(pair) if turned else pair
                text = f"{part.within(_MULTIPLY)}/{whole.within(_POWER)}*100"
                return _Node(text, _MULTIPLY, max(part.after, whole.after), 1, plain=True)
        return None

    def _two(self, at: int, between: tuple[str, ...]) -> tuple[_Node, _Node] | None:
        """Two numbers with a certain word between them; up to three others may stand before it."""
        first = self._primary(self._skip(at, (*_ARTICLES, "bill", "total", "my", "this")))
        if first is None:
            return None
        middle = first.after
        while middle < len(self._tokens) and self._tokens[middle].text not in between:
            if self._tokens[middle].kind != "word" or middle > first.after + 2:
                return None
            middle += 1
        second = self._primary(self._skip(middle + 1, (*_ARTICLES, "between", "among", "my")))
        return (first, second) if second else None

    def _primary(self, at: int) -> _Node | None:
        if at >= len(self._tokens):
            return None
        if self._is(at, ("(",)):
            inner = self.expression(at + 1)
            if inner is None or not self._is(inner.after, (")",)):
                return None
            return _Node(inner.text, inner.binds, inner.after + 1, inner.operations, inner.plain)
        if self._tokens[at].kind != "number":
            return None
        number = self._tokens[at].text
        if not any(self._is(at + 1, (word,)) for word in ("%", "percent", "pct")) and not self._is(
            at + 1, ("per", "cent")
        ):
            return _Node(number, _ATOM, at + 1)
        return self._of(plain_decimal(Decimal(number) / 100), at + (3 if self._is(at + 1, ("per",)) else 2))

    def _of(self, part: str, at: int) -> _Node:
        """What stands behind a percentage: `of 240`, `off 50`, `tip on a bill of 56.50`."""
        alone = _Node(part, _ATOM, at, percent=True)
        middle = self._skip(at, _PERCENT_OF_WHAT)
        joint = self._tokens[middle].text if middle < len(self._tokens) else ""
        if joint not in ("of", "off", "on", "for") or (middle == at and joint in ("on", "for")):
            return alone
        words = {token.text for token in self._tokens[at : middle + 1]}
        start = self._skip(middle + 1, (*_ARTICLES, "my", "bill", "price", "meal", "total", "is", "original"))
        inner = self._prefixed(start)
        if inner is None:
            return alone
        factor = f"(1-{part})" if words & {"off", "discount", "reduction"} else part
        return _Node(f"{factor}*{inner.within(_POWER)}", _MULTIPLY, inner.after, inner.operations + 1, plain=True)


def expressions(text: str) -> tuple[Expression, ...]:
    """Every sum of a text, in its order; each holds at least one operation.

    Args:
        text: Anything.
    """
    found: list[Expression] = []
    read = tokens(text)[:MOST_TOKENS]
    parser = _Parser(read)
    at = 0
    while at < len(read):
        node = parser.expression(at) if _may_begin(read, at) else None
        if node is None or not node.operations:
            # A number that a word or sign is joined to from the left was no beginning.
            at += 1
            continue
        found.append(Expression(node.text, read[at].start, read[node.after - 1].end, node.plain))
        at = node.after
    return tuple(found)


def _may_begin(read: list[Token], at: int) -> bool:
    if read[at].kind == "sign":
        return read[at].text in ("(", "-", "√")
    return read[at].text not in _ARTICLES or read[at].text in ("the", "a", "an")

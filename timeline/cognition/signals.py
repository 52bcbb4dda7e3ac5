"""What a text says by itself about the tools it needs: cheap, explainable, and rather silent than wrong.

Knows the phrases by which people ask for a sum, the date, a file, a listing, an earlier conversation or a page, and
those that only look like it: the time complexity, a date palm, 24/7, a phrase to be translated. How sums are written
stands in `arithmetic`, what people say about days and hours in `moments`, about files in `filenames`, about what was
said before in `past`. A certain signal is one that leaves no doubt; any other only raises the odds of its tool.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from timeline.cognition.addresses import page_wanted, urls_in
from timeline.cognition.arithmetic import Expression, expressions
from timeline.cognition.filenames import PathInText, asks_for_listing, content_wanted, listing_wanted, paths_in
from timeline.cognition.moments import asks_for_date_or_time
from timeline.cognition.numbers import numbers_in
from timeline.cognition.past import asks_about_the_past, may_ask_about_the_past
from timeline.cognition.phrases import Phrases, about_programs, about_words, clauses

__all__ = [
    "BUILTIN",
    "PathInText",
    "Signal",
    "arithmetic",
    "asks_about_the_past",
    "asks_for_date_or_time",
    "asks_for_listing",
    "paths_in",
    "signals",
    "urls_in",
]


class Signal(Struct, frozen=True):
    """A cheap, explainable hint that a tool is meant.

    Args:
        tool: Its name.
        reason: Why, in words: `an arithmetic expression: 12*7`.
        arguments: Those the text itself gives, None where it gives none.
        certain: The text alone leaves no doubt.
    """

    tool: str
    reason: str
    arguments: dict[str, Any] | None = None
    certain: bool = False


# ------------------------------------------------------------------ sums

_RESULT_WORDS = (
    "what what's whats what're is are was how how's much many calc calculate compute evaluate solve work working out figure find tell"
    " me give gives please pls plz can could would you the result value answer sum of to hey hi hello ok okay so and also"
    " then do does get quick quickly math maths mathematics arithmetic question for i i'd i'm i'll need want know equal equals exactly"
    " exact help with my homework let's lets come comes make makes simplify check by using calculator use it will be 's"
    " when this that following expression like say just now total in as decimal decimals fraction percent percentage rounded"
    " round nearest whole place places number two thanks thank add up if hmm well er um uh right correct really again"
    " yo hiya dear btw umm ah oh sup hm hmmm anyway real fast for me u dollars dollar euros euro bucks cents pounds usd eur = ? ! , . : ; - ' \" ` ( ) % $ € £ …"
)
_AROUND = frozenset(_RESULT_WORDS.split())
"""Words that may stand around a sum that is asked for; any other makes it a name or a quotation: `24/7 support`."""

_ARTICLE = Phrases(r"\b(?:an?|the)\s*$")
_ARTICLE_OF_NUMBER = Phrases(r"\ban? (?=[$€£]?\d)")
_WISH = Phrases(
    r"^\W*(?:(?:hey|hi|hello|yo|hiya|there|btw|umm?|ok(?:ay)?|so|and|also|then|please|pls|now|well|quick(?:ly)?|question|math|maths)\W+)*"
    r"(?:what(?:'?s| is| are| does| do| would| will| was|\b)|how (?:much|many)|calc(?:ulate)?|compute|evaluate|solve|work out|"
    r"figure out|find|tell me|give me|(?:can|could|would) you|i (?:need|want)|i'd like|add|sum|multiply|divide|split|share|subtract|"
    r"increase|decrease|reduce|raise|lower|take|is|are|does|do|use|if|let'?s|do the|help me|determine|get)\b"
)
_REASONS = Phrases(
    r"\b(?:why|prove|proof|meme|famous|called|named|song|joke|story|history of|invented|mean by|teach|learn)\b"
)
_CALCULATE = Phrases(
    r"^\W*(?:(?:please|can you|could you|now|then|and|help me|i need to|i want to|let'?s|quickly|also)\W+)*"
    r"(?:calc|calculate|compute|work out|evaluate|solve|convert|simplify|add|sum|multiply|divide|subtract)\b"
)
_SPAN_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}
_CONVERSION = Phrases(
    r"\bhow many (?P<into>seconds|minutes|hours|days)\b(?: are)?(?: there)? (?:in|is|are|make) (?P<count>\d+(?:\.\d+)?) "
    r"(?P<of>seconds?|minutes?|hours?|days?|weeks?)\b"
)
_UNIT = (
    r"(?:kilos?|kilograms?|kgs?|pounds?|lbs?|grams?|ounces?|oz|stones?|tons?|tonnes?|miles?|km|kms|kilomet(?:er|re)s?|met(?:er|re)s?|"
    r"feet|foot|ft|inch(?:es)?|yards?|cm|centimet(?:er|re)s?|mm|millimet(?:er|re)s?|lit(?:er|re)s?|gallons?|pints?|cups?|tablespoons?|"
    r"teaspoons?|celsius|fahrenheit|kelvin|degrees?|mph|kph|km/h|acres?|hectares?|bytes|[kmgt]b|[kmg]i?bytes|seconds|minutes|hours|"
    r"days|weeks|dollars|euros|cents)"
)
_UNITS = Phrases(
    rf"\bhow (?:many|much|far|heavy|tall|long|hot|cold) {_UNIT}? ?(?:is|are|do|does|in|make|to|would)\b.*\d.*\b{_UNIT}\b|"
    rf"\d ?{_UNIT}\b.*\b(?:in|to|into|as) {_UNIT}\b|"
    rf"\d ?{_UNIT}\b.*\bhow (?:many|much) {_UNIT}\b|\bwhat(?:'s| is| would be)(?: that| it| this) (?:per|a|in|for|each|every|times|plus|minus|after)\b"
)
_AMOUNT = Phrases(
    r"\bhow (?:much|many|far|long|old|tall|fast)\b|\bwhat(?:'s| is| was| will be| would be)? ?(?:the |my |his |her |their |an? )?(?:\w+ ){0,2}"
    r"(?:total|cost|price|sum|average|area|perimeter|volume|circumference|speed|distance|interest|profit|change|discount|amount|result|bill|tip)\b"
)
_STORY = Phrases(
    r"\b(?:each|per|every|apiece|costs?|buys?|bought|have|has|had|gives?|gave|eats?|ate|left|remain\w*|loses?|lost|finds?|found|"
    r"altogether|in total|earns?|earned|paid|pays?|pay|spends?|spent|sold|sells?|travels?|drives?|drove|radius|diameter|width|wide|length|"
    r"sides?|mph|km/h|rate|split|share|saves?|saved|percent|%|more|fewer|less|goes up|off)\b"
)
_RECKONING = Phrases(
    r"\b(?:calc\w*|comput\w+|decimal|fraction|percent(?:age)?|root|log\w*|factorial|squared?|cubed?|power|sum|product|average|mean|total|"
    r"minus|plus|times|divided?|divisible|multipl\w+|area|perimeter|circumference|volume|radius|convert|half|double|triple|tip|discount|interest|"
    r"each|per|altogether|bigger|larger|greater|smaller|prime|remainder|modulo|equation|celsius|fahrenheit|miles|kilomet\w+|pounds|kilos?)\b|\d\s*[-+*/^=×÷]\s*[\d.(]|[%√]"
)


def arithmetic(text: str) -> str | None:
    """The first sum that is asked for, normalised for the calculator; None if none is.

    Args:
        text: The user's words.
    """
    found = [expression for expression, _ in _sums(text)]
    return found[0] if found else None


def _sums(text: str) -> list[tuple[str, bool]]:
    """The sums that are asked for, and whether that is beyond doubt; those beyond doubt first."""
    found: list[tuple[str, bool]] = []
    for clause in clauses(text):
        if span := _CONVERSION.search(clause):
            into, of = (_SPAN_SECONDS[span[name].lower().removesuffix("s")] for name in ("into", "of"))
            found.append((f"{span['count']}*{of // into}" if of >= into else f"{span['count']}*{of}/{into}", True))
            continue
        asked = ((expression, _asked_for(clause, expression)) for expression in expressions(clause))
        found += [(expression.text, certain) for expression, certain in asked if certain is not None]
    return sorted(found, key=lambda item: not item[1])


def _asked_for(clause: str, expression: Expression) -> bool | None:
    before, after = clause[: expression.start], clause[expression.end :]
    # "a 15% tip on 56" asks for it as "15% of 56" does; "a 4x4" doesn't.
    before = _ARTICLE.without(before) if expression.plain else before
    around = f"{before} {after}".lower().replace("’", "'")
    words = [
        *re.findall(r"[\w']+|[^\w\s]", before.lower()),
        *(set(re.findall(r"[\w']+|[^\w\s]", after.lower())) - {"a"}),
    ]
    if all(word.replace("’", "'") in _AROUND or word.isdigit() for word in words):
        return True
    asked = after.strip(" =") == "?"
    if not expression.plain or _REASONS.search(around) or about_words(around) or about_programs(around):
        return None
    return asked or bool(_WISH.search(clause))


def _calculator(text: str, _folder: Path | None) -> Signal | None:
    if sums := _sums(text):
        expression, certain = sums[0]
        return Signal("calculator", f"an arithmetic expression: {expression}", {"expression": expression}, certain)
    # "What's a 15 percent tip" asks for one, "what's a tip" what the word means.
    text = _ARTICLE_OF_NUMBER.without(text)
    possible: Signal | None = None
    for clause in clauses(text):
        if about_words(clause) or about_programs(clause) or _REASONS.search(clause):
            continue
        count = len(numbers_in(clause))
        if count and _CALCULATE.search(clause):
            return Signal("calculator", "something with numbers is to be calculated", certain=True)
        if count and _RECKONING.search(clause):
            possible = possible or Signal("calculator", "a number, and words of reckoning")
    if about_words(text) or about_programs(text):
        return possible
    count = len(numbers_in(text))
    if count and _UNITS.search(text):
        return Signal("calculator", "an amount in other units is asked for", certain=True)
    if count > 1 and _AMOUNT.search(text) and _STORY.search(text):
        return Signal("calculator", "numbers, and an amount that follows from them is asked for", certain=True)
    if count > 1 and possible is None and _AMOUNT.search(text):
        return Signal("calculator", "numbers, and an amount is asked for")
    return possible


# ------------------------------------------------------------------ the other tools


def _clock(text: str, _folder: Path | None) -> Signal | None:
    moment = asks_for_date_or_time(text)
    return Signal("clock", moment.words, certain=moment.certain) if moment else None


def _read_file(text: str, folder: Path | None) -> Signal | None:
    wish = content_wanted(text, folder)
    if wish is None:
        return None
    return Signal("read_file", wish.why, {"path": wish.path} if wish.path else None, wish.certain)


def _list_files(text: str, folder: Path | None) -> Signal | None:
    wish = listing_wanted(text, folder)
    if wish is None:
        return None
    arguments = {"path": wish.path} if wish.path else {} if wish.certain else None
    return Signal("list_files", wish.why, arguments, wish.certain)


def _search_timeline(text: str, _folder: Path | None) -> Signal | None:
    words, certain = asks_about_the_past(text), True
    if words is None:
        words, certain = may_ask_about_the_past(text), False
    if words is None:
        return None
    why = "an earlier conversation is asked about" if certain else "something earlier is spoken of"
    return Signal("search_timeline", why, {"query": words} if words else None, certain)


def _fetch_url(text: str, _folder: Path | None) -> Signal | None:
    page = page_wanted(text)
    return Signal("fetch_url", f"an address: {page.written}", {"url": page.url}, page.certain) if page else None


# ------------------------------------------------------------------ together


BUILTIN: Mapping[str, Callable[[str, Path | None], Signal | None]] = {
    "calculator": _calculator,
    "clock": _clock,
    "read_file": _read_file,
    "list_files": _list_files,
    "search_timeline": _search_timeline,
    "fetch_url": _fetch_url,
}
"""For each built-in tool: from the user's words and the folder to its signal."""


def signals(text: str, folder: Path | None = None) -> tuple[Signal, ...]:
    """What the text says about the built-in tools, in their order.

    Args:
        text: The user's words.
        folder: Where paths in it begin; None to judge paths by their looks.
    """
    return tuple(signal for read in BUILTIN.values() if (signal := read(text, folder)))

"""How a text is taken apart: its clauses, and whether one is about words rather than about what they say.

Knows that "what is 12*7, and what day is it?" asks two things, and that "translate 'what time is it' into French"
asks for no time.
"""

from __future__ import annotations

import re
from functools import cached_property

__all__ = ["Phrases", "about_programs", "about_words", "clauses"]

LONGEST_TEXT = 2000
"""Characters that are looked at: what is wanted is said at the beginning or at the end; between lies matter."""


class Phrases:
    """A regular expression without regard to case, compiled when it is first needed: all of them take 0.1 s."""

    def __init__(self, source: str) -> None:
        self._source = source

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self._source, re.IGNORECASE)

    def search(self, text: str) -> re.Match[str] | None:
        """As `re.Pattern.search`."""
        return self._compiled.search(text)

    def without(self, text: str) -> str:
        """The text with every such phrase taken out."""
        return self._compiled.sub("", text)


_BEGINS = (
    r"(?:also|please|can you|could you|would you|what|what's|whats|how|which|who|when|where|why|is|are|tell|read|list|show|"
    r"open|calculate|compute|explain|summari[sz]e|translate|write|fetch|find|search|give|did|do|does|have|let|add|multiply|"
    r"divide|subtract|check|look|remind|compare|convert|count|say|then|solve|print|display|visit|get|use|i)\b"
)
_BREAK = re.compile(
    rf"(?<=[.?!])[\"'”’)]*\s+(?=\S)|\s*[;\n]+\s*|,?\s+(?:and|then|but|plus|also|as well as)(?:\s+(?:and|then|also))*\s+(?={_BEGINS})"
    rf"|,\s+(?={_BEGINS})",
    re.IGNORECASE,
)


_MEANT = {
    "whats": "what's",
    "wats": "what's",
    "wat": "what",
    "wut": "what",
    "hows": "how's",
    "wheres": "where's",
    "todays": "today's",
    "tomorrows": "tomorrow's",
    "u": "you",
    "ur": "your",
    "rn": "right now",
    "plz": "please",
    "pls": "please",
    "cud": "could",
    "didnt": "didn't",
    "dont": "don't",
}
_SLOPPY = re.compile(rf"(?<![\w./'-])(?:{'|'.join(_MEANT)})(?![\w./'-])", re.IGNORECASE)
"""As people write in a hurry."""


def clauses(text: str) -> tuple[str, ...]:
    """The things a text says or asks, one by one.

    Args:
        text: The user's words; of a long one the beginning and the end.
    """
    if len(text) > LONGEST_TEXT:
        text = f"{text[: LONGEST_TEXT // 2]}\n{text[-LONGEST_TEXT // 2 :]}"
    text = _SLOPPY.sub(lambda found: _MEANT[found[0].lower()], text.replace("’", "'"))
    return tuple(clause for part in _BREAK.split(text) if (clause := part.strip()))


_ABOUT_WORDS = Phrases(
    r"\b(?:translat\w+|how (?:do|would|can) (?:you|i|we|one) (?:say|write|spell|pronounce)|spell\b|poems?|haikus?|limericks?|"
    r"stor(?:y|ies)|essays?|songs?|lyrics|jokes?|riddles?|rhymes?|puns?|novels?|idioms?|proverbs?|grammar|synonyms?|"
    r"etymology|rewrite|rephrase|paraphrase|slogans?|tweets?|blog posts?|screenplay|dialogue|letter to|email to)\b|"
    r"\b(?:write|compose|draft|invent|make up|code|implement|program|build|design)\b(?! (?:down|out)\b)|"
    r"\b(?:explain|describe|define)\b|\bwhat (?:does|do|is the meaning)\b.*\bmean(?:s|t|ing)?\b|\bmeaning of\b|"
    r"\bwhat(?:'s| is| are) (?:meant by|an? )|\bdifference between (?!\d)|"
    r"\bhow (?:do|can|should|would|does|did|could) (?:i|you|we|one|it|they|people|scientists|computers)\b|\bhow to\b|^\W*why\b|"
    r"\b(?:who|when) (?:invented|wrote|discovered|sang|sings|painted|composed|created)\b"
)

_ABOUT_PROGRAMS = Phrases(
    r"\b(?:python|javascript|typescript|java|c\+\+|c#|rust|golang|sql|postgres|mysql|regex|bash|powershell|excel|spreadsheet|"
    r"php|ruby|kotlin|swift|haskell|numpy|pandas|react|django|html|css)\b|\b(?:function|algorithm|script|snippet|method|"
    r"source code|command|api|library|loop)\b"
)


def about_words(clause: str) -> bool:
    """Whether a clause asks for a text, a translation, an explanation or a program: what it names is matter then.

    Args:
        clause: One of `clauses`.
    """
    return bool(_ABOUT_WORDS.search(clause))


def about_programs(clause: str) -> bool:
    """Whether a clause speaks of programming: `what does print(2*3) do in Python`.

    Args:
        clause: One of `clauses`.
    """
    return bool(_ABOUT_PROGRAMS.search(clause))

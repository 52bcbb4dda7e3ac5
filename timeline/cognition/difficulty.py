"""How hard a request is, and of which kind, by how it is worded: a cheap guess that a model may correct."""

from __future__ import annotations

from timeline.cognition.phrases import Phrases, about_programs, clauses
from timeline.config import Complexity

__all__ = ["complexity_of", "kind_of"]

_HIGH = Phrases(
    r"\b(?:prove|proof|derive|architect\w*|design (?:an?|and|the|me|my|our)\b|implement|refactor|debug|optimi[sz]e|in depth|in detail|detailed|"
    r"thorough\w*|comprehensive|step[- ]by[- ]step|trade-?offs?|pros and cons|strateg\w+|roadmap|business plan|research|critique|"
    r"evaluate the|plan (?:an?|the|my)|for bugs|security (?:review|audit)|compare .* and recommend|essay|thesis|from scratch)\b"
)
_MEDIUM = Phrases(
    r"\b(?:explain|describe|compare|contrast|difference|summari[sz]e|translate|write|compose|draft|rewrite|why|how (?:do|does|did|can|would|"
    r"should|is|are)|story|poem|email|code|function|program|script|regex|analy[sz]e|review|outline|teach|what happens|history of|"
    r"proofread|extract|rules of|meaning of|main points|summary)\b"
)


def complexity_of(text: str, tools: int = 0) -> Complexity:
    """A guess at how hard a request is.

    Args:
        text: The user's words.
        tools: How many tools it needs.
    """
    parts = clauses(text)
    hard, medium = bool(_HIGH.search(text)), bool(_MEDIUM.search(text))
    words = len(text.split())
    if hard and (medium or words > 6 or tools):  # noqa: PLR2004 - "prove it" alone is none
        return "high"
    if hard or medium or tools > 1 or len(parts) > 2 or words > 40:  # noqa: PLR2004 - two sentences aren't hard yet
        return "high" if words > 150 else "medium"  # noqa: PLR2004
    return "low"


_KINDS = (
    ("write code", Phrases(r"\b(?:write|implement|code|program|fix|debug|refactor)\b.*")),
    (
        "write",
        Phrases(
            r"\b(?:write|compose|draft|rewrite|rephrase|translate|poem|story|haiku|joke|song|essay|email|letter)\b"
        ),
    ),
    ("plan", Phrases(r"\b(?:plan|design|architecture|strategy|ideas|recommend|suggest)\b")),
    (
        "explain",
        Phrases(r"\b(?:explain|describe|why|how (?:do|does|did|can|is|are)|teach|difference|compare|meaning|mean)\b"),
    ),
    ("question", Phrases(r"\?|^\W*(?:what|who|when|where|which|how|is|are|do|does|did|can|list|name|tell me)\b")),
)


def kind_of(text: str) -> str:
    """What is wanted of a text that needs no tool: `write code`, `write`, `plan`, `explain`, `question` or `chat`.

    Args:
        text: The user's words.
    """
    for kind, known in _KINDS:
        if known.search(text) and (kind != "write code" or about_programs(text)):
            return kind
    return "chat"

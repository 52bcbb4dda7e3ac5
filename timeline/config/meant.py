"""What a user may have meant by a name that is no model: pure guesses, for the end of an error."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

__all__ = ["meant"]

FAMILIES = {
    "openai": re.compile(r"(gpt(?!-oss)|chatgpt|o\d)(-|$)"),
    "anthropic": re.compile(r"claude(-|$)"),
}
"""How the names of a vendor's own models begin."""
TAGGED = re.compile(r"[^:/]+:(latest|\d+(\.\d+)?[bm]\b.*)")
"""A model and the size of it, as Ollama's library writes it: `llama3.1:8b`."""
MOST = 3


def meant(text: str, listed: Mapping[str, Collection[str]], providers: Collection[str]) -> list[str]:
    """What a name may stand for, each as `provider:model`, the likeliest first.

    Args:
        text: What was written.
        listed: The enabled providers, with the models that are listed for each.
        providers: All names that may stand before the colon, but those of disabled providers.
    """
    return list(dict.fromkeys(_guesses(text.strip(), listed, providers)))[:MOST]


def _guesses(text: str, listed: Mapping[str, Collection[str]], providers: Collection[str]) -> Iterator[str]:
    import difflib

    first, slash, rest = text.partition("/")
    if slash and rest and first in providers:
        yield f"{first}:{rest}"
    by_name: dict[str, list[str]] = {}
    for provider, models in listed.items():
        for model in models:
            for name in (model, f"{provider}:{model}"):
                by_name.setdefault(name.lower(), []).append(f"{provider}:{model}")
    for close in difflib.get_close_matches(text.lower(), by_name, MOST):
        yield from by_name[close]
    for provider, family in FAMILIES.items():
        if provider in providers and family.match(text.lower()):
            yield f"{provider}:{text}"
    if TAGGED.fullmatch(text) and "ollama" in listed:
        yield f"ollama:{text}"

"""What tokens cost, and how many there are where a provider doesn't say."""

from __future__ import annotations

from timeline.events import Cost

__all__ = ["cost_of", "estimate_tokens"]

CHARACTERS_PER_TOKEN = 4
"""A rule of thumb for English text (https://platform.openai.com/tokenizer)."""


def estimate_tokens(*texts: str) -> int:
    """About how many tokens the texts are; anything that isn't empty is at least one."""
    return sum(-(-len(text) // CHARACTERS_PER_TOKEN) for text in texts)


def cost_of(*, local: bool) -> Cost:
    """The cost of an attempt: nothing on this machine, unknown elsewhere."""
    return Cost("free") if local else Cost("unpriced")

"""How counters are read out of a provider's usage object, whatever else may stand there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from timeline.config import MOST_TOKENS
from timeline.events import Usage

__all__ = ["chat_usage", "count", "is_count", "is_told"]


def count(counters: Any, name: str) -> int:
    """The counter of this name; 0 where there is none, or something that can't be one.

    Args:
        counters: A decoded JSON object, or what stands in its place.
        name: The counter's key.
    """
    value = counters.get(name) if isinstance(counters, dict) else None
    return int(value) if is_count(value) else 0


def is_count(value: Any) -> TypeGuard[int | float]:
    """Whether somebody can have counted so many."""
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value <= MOST_TOKENS


def is_told(counters: Mapping[str, Any], *names: str) -> bool:
    """Whether prompt or answer was counted: at least one of these stands there, and none as what can't be a count.

    What a server says of a strange number, or of none, is no zero: nobody knows.
    """
    found = [counters[name] for name in names if counters.get(name) is not None]
    return bool(found) and all(map(is_count, found))


_CHAT = ("prompt_tokens", "input_tokens", "completion_tokens", "output_tokens")


def chat_usage(raw: Mapping[str, Any], model: str | None = None) -> Usage | None:
    """OpenAI's counters made disjoint: `prompt_tokens` includes the cached ones.

    Args:
        raw: The counters as they came.
        model: Who answered, or was asked: Gemini counts its thoughts in the total alone.

    Returns:
        None where they tell nothing of prompt and answer, or what can't be.
    """
    if not is_told(raw, *_CHAT):
        return None
    prompt_details, output_details = raw.get("prompt_tokens_details"), raw.get("completion_tokens_details")
    prompt = count(raw, "prompt_tokens") or count(raw, "input_tokens")
    output = count(raw, "completion_tokens") or count(raw, "output_tokens")
    cache_read = (
        count(prompt_details, "cached_tokens") or count(raw, "prompt_cache_hit_tokens") or count(raw, "cached_tokens")
    )
    # OpenRouter's and OpenAI's name, DashScope's and LiteLLM's.
    names = ("cache_write_tokens", "cache_creation_input_tokens", "cache_creation_tokens")
    cache_write = next(filter(None, (count(prompt_details, name) for name in names)), 0)
    reasoning = count(output_details, "reasoning_tokens")
    beside = count(raw, "total_tokens") - prompt - output
    if model is not None and "gemini" in model and not reasoning:
        reasoning = max(beside, 0)  # Only its total includes what Gemini thought.
    if reasoning and beside == reasoning:
        output += reasoning  # xAI counts reasoning beside completion_tokens, as its total shows.
    reasoning = min(reasoning, output)  # Kimi's and OpenRouter's counts of an answer cut short differ by one.
    return Usage(
        input=max(prompt - cache_read - cache_write, 0),
        cache_read=cache_read,
        cache_write=cache_write,
        output=output,
        reasoning=reasoning,
    )

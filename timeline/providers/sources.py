"""Which pages an answer names as its sources, wherever a format puts them.

Pure. Sources: the API references of OpenAI and OpenRouter (`annotations`), Perplexity (`search_results`, `citations`),
xAI (`citations`), Groq (`executed_tools`) and Anthropic ("Citations").
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from timeline.events import Source
from timeline.providers.address import blotted

__all__ = ["Sources", "without_keys"]

_MOST = 200
_LONGEST = 2000


class Sources:
    """The sources of one answer, each once, in their order.

    Args:
        secrets: What none may repeat.
    """

    __slots__ = ("_found", "_listed", "_secrets")

    def __init__(self, secrets: tuple[str, ...] = ()) -> None:
        self._secrets = secrets
        self._found: dict[str, Source] = {}
        self._listed: Any = None

    def add(self, value: Any) -> None:
        """Take what a piece of the answer names: an object with a `url`, or a list of such, however deep in it."""
        if isinstance(value, list):
            for each in value:
                self.add(each)
        elif isinstance(value, dict):
            url, title = value.get("url"), value.get("title")
            if isinstance(url, str) and 0 < len(url) <= _LONGEST and len(self._found) < _MOST:
                self._found.setdefault(url, Source(url, title if isinstance(title, str) and title else None))
            for name in ("url_citation", "search_results", "results"):
                if name in value:
                    self.add(value[name])

    def list(self, value: Any) -> None:
        """Take what the whole answer names, again in each of its chunks: addresses, or objects with them."""
        self._listed = value or self._listed

    def all(self) -> tuple[Source, ...]:
        """What was named; numbers in the text count a list that stands beside it."""
        listed = self._listed if isinstance(self._listed, list) else []
        whole = Sources()
        for each in listed:
            whole.add({"url": each} if isinstance(each, str) else each)
        beside = {url: each for url, each in self._found.items() if url not in whole._found}
        return without_keys((whole._found | beside).values(), self._secrets)


def without_keys(sources: Iterable[Source], secrets: tuple[str, ...]) -> tuple[Source, ...]:
    """The sources, none of which repeats a secret: a page's address may carry the key that it was asked with."""
    return tuple(Source(blotted(each.url, secrets), blotted(each.title, secrets)) for each in sources)

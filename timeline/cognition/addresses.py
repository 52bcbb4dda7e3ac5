"""Addresses of web pages in a text, with and without their scheme, and whether the page is wanted or only spoken of."""

from __future__ import annotations

import re

from msgspec import Struct

from timeline.cognition.phrases import Phrases, clauses

__all__ = ["Page", "page_wanted", "urls_in", "urls_masked"]

_URL = re.compile(r"\bhttps?://[^\s<>\"'`)\]]+[^\s<>\"'`)\].,;:!?]", re.IGNORECASE)
_DOMAIN = re.compile(
    r"(?<![\w@./-])(?:www\.)?(?:[a-z0-9-]+\.)+(?:com|org|net|io|dev|edu|gov|co\.uk|de|fr|ai|app|info|eu|uk|me|wiki)(?:/[^\s<>\"'`)\]]*)?(?![\w@-])",
    re.IGNORECASE,
)
_FETCH = Phrases(
    r"\b(?:fetch|open|visit|browse|go to|download|load|get|read|summari[sz]e|summary|check|look (?:at|up)|grab|pull|retrieve|scrape|see|crawl|access|"
    r"what(?:'s| is) (?:on|at)|what does|tell me (?:about|what)|headlines?|contents?|show|latest|extract|according to|page|article|site)\b|\b(?:on|at|from)\s{3}"
)
_NOT_FETCH = Phrases(
    r"\bhow (?:do|can|to|would|should|does)\b|\b(?:regex|regular expression|valid|parse|parsing|parts of|example of|who (?:owns|founded|made|runs)|scheme|"
    r"python|curl|javascript|function|code|script|encode|shorten|domain|mean|founded|html link|hyperlink|write an?|create|invented|history of)\b"
)


def urls_in(text: str) -> tuple[str, ...]:
    """The addresses of web pages in a text: those with `http(s)://`, and names of hosts such as `example.com/a`.

    Args:
        text: The user's words.
    """
    whole = _URL.findall(text)
    rest = _URL.sub(" ", text)
    return (*whole, *(name.rstrip(".,;:!?") for name in _DOMAIN.findall(rest)))


def urls_masked(text: str) -> str:
    """The text with every address put out of sight, all else where it was."""
    hidden = _URL.sub(lambda found: " " * len(found.group()), text)
    return _DOMAIN.sub(lambda found: " " * len(found.group()), hidden)


class Page(Struct, frozen=True):
    """A page that is spoken of.

    Args:
        url: Its address; `https://` is put before one without a scheme.
        written: As the text has it.
        certain: Its content is wanted beyond doubt.
    """

    url: str
    written: str
    certain: bool


def page_wanted(text: str) -> Page | None:
    """The first page whose content a text wants or may want.

    Args:
        text: The user's words.
    """
    doubtful: Page | None = None
    for clause in clauses(text):
        around = urls_masked(clause)
        for url in urls_in(clause):
            whole = _URL.match(url) is not None
            asked = bool(_FETCH.search(around)) or not around.strip(" .,;:!?<>\"'()")
            kept_off = bool(_NOT_FETCH.search(around))
            page = Page(url if whole else f"https://{url}", url, asked and not kept_off)
            if page.certain:
                return page
            if doubtful is None and (whole or not kept_off):
                doubtful = page
    return doubtful

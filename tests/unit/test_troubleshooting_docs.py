"""The page about errors has all of them, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from timeline.errors import TimelineError

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"


def kinds(error: type[TimelineError] = TimelineError) -> Iterator[str]:
    yield error.kind
    for below in error.__subclasses__():
        if below.__module__ == "timeline.errors":
            yield from kinds(below)


def test_every_kind_of_error_is_on_the_page_and_says_what_to_do() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", PAGE.read_text(), re.MULTILINE)

    assert sorted(set(kinds())) == sorted(kind for kind, _, _ in rows)

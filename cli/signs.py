"""The signs that things are drawn with, and where only ASCII will do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["ASCII", "UNICODE", "Signs", "ascii_only", "signs", "to_ascii"]


class Signs(Struct, frozen=True):
    """One set of them; each is one cell wide but `up`, `down`, `arrow`, `dot` and `more`."""

    asked: str
    cognition: str
    branch: str
    last: str
    bar: str
    failed: str
    dot: str
    up: str
    down: str
    arrow: str
    more: str
    spinner: str


UNICODE = Signs("❯", "⚙", "├", "└", "│", "✗", " · ", "↑", "↓", "→", "…", "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
ASCII = Signs(">", "*", "|", "`", "|", "x", ", ", " in", " out", "->", "...", "|/-\\")

_wanted = False


def ascii_only(wanted: bool) -> None:  # noqa: FBT001  the value of an --ascii flag
    """From now on draw with ASCII alone."""
    global _wanted  # noqa: PLW0603  one process is one command
    _wanted = wanted


def signs(console: Console) -> Signs:
    """Those to draw with: ASCII where it was asked for, on a dumb terminal, and where the output takes no UTF-8."""
    utf8 = console.encoding.replace("-", "").startswith("utf")
    dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    return ASCII if _wanted or dumb or not utf8 else UNICODE


def to_ascii(text: str) -> str:
    """A drawing of rich's (rules, bullets, borders) in ASCII; letters stay what they are."""
    return text.translate(_DRAWN)


# Box Drawing and Block Elements (https://www.unicode.org/charts/PDF/U2500.pdf), and the bullet.
_DRAWN: dict[int, str] = dict.fromkeys(range(0x2500, 0x2580), "+") | dict.fromkeys(range(0x2580, 0x25A0), "|")
_DRAWN |= {ord(sign): "-" for sign in "─━┄┅┈┉═╌╍╴╶╸╺╼╾"} | {ord(sign): "|" for sign in "│┃┆┇┊┋║╎╏╵╷╹╻╽╿"}
_DRAWN[0x2022] = "*"

"""Whether a tool may change something: who is asked on a terminal, and how a line is read that may never come."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from . import output

if TYPE_CHECKING:
    from timeline.cognition.tools import Confirm, Tool

__all__ = ["agreed", "agreeing"]

LONGEST_LINE = 4096
"""Bytes, as a terminal gives them."""
_DIRECTING = {
    code: f"\\u{code:04x}" for code in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
"""What reorders the words around it (https://www.unicode.org/reports/tr9/): an answer may need it, what is agreed to may not."""


async def agreed(_tool: Tool, _given: Mapping[str, object]) -> bool:
    """To all of it, beforehand."""
    return True


def agreeing(aside: Callable[[], AbstractContextManager[None]]) -> Confirm | None:
    """Asks the user; None where there is no terminal.

    Args:
        aside: While it lasts, nothing else is drawn.
    """
    if not (sys.stdin.isatty() and output.stderr().is_terminal):
        return None

    async def confirm(tool: Tool, given: Mapping[str, object]) -> bool:
        from timeline.cognition.builtin.apart import apart

        arguments = json.dumps(given, ensure_ascii=False).translate(_DIRECTING)
        words = f"{tool.name} {arguments} changes something. Run it?"
        with aside():
            while True:
                sys.stderr.write(f"{output.harmless(words, output.stderr())} [y/N]: ")
                sys.stderr.flush()
                said = await apart(_line, sys.stdin.fileno())
                match said.strip().lower():
                    case "y" | "yes":
                        return True
                    case "n" | "no" | "":
                        return False

    return confirm


def _line(terminal: int) -> str:
    """What is typed next; nothing where the terminal is gone.

    Ctrl-C leaves its thread behind, still waiting. If that held Python's own buffer of the input, the interpreter could
    not end.
    """
    try:
        return os.read(terminal, LONGEST_LINE).decode(errors="replace")
    except OSError:
        return ""

"""The past as a tool: full text over the turns that were recorded."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from timeline.cognition.tools import Found, Tool, ToolResult, Workspace
from timeline.errors import TimelineError, ToolError

__all__ = ["SearchTimeline"]

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "query": {
            "type": "string",
            "minLength": 1,
            "maxLength": 500,
            "description": "Words to look for, such as: rust",
        },
        "limit": {"type": "integer", "minimum": 1, "maximum": 20, "description": "How many at most; by default 5"},
    },
    "required": ["query"],
    "additionalProperties": False,
}
USUAL = 5
LONGEST_PROMPT = 300
LONGEST_ANSWER = 600
LONGEST_FACT = 200


class SearchTimeline(Tool):
    """Finds what was asked and answered before."""

    name = "search_timeline"
    description = (
        "Searches earlier conversations with this user by words: what they asked, and what was answered, and when."
    )
    parameters = PARAMETERS
    deterministic = True

    async def run(self, arguments: dict[str, Any], workspace: Workspace) -> ToolResult:
        """Search."""
        if workspace.search is None:
            msg = "nothing that was recorded can be searched here: answer without it"
            raise ToolError(msg)
        query, limit = arguments["query"], arguments.get("limit") or USUAL
        try:
            found = await workspace.search(query, limit)
        except TimelineError as exc:
            raise ToolError(str(exc)) from exc
        if not found:
            return ToolResult(f"Nothing was found in earlier conversations about {query!r}.")
        return ToolResult("\n\n".join(map(_told, found)), fact=_short(found[0].prompt, LONGEST_FACT) or None)


def _told(found: Found) -> str:
    at = datetime.fromtimestamp(found.at / 1_000_000, UTC).astimezone()
    title = f', conversation "{_short(found.title, LONGEST_FACT)}"' if found.title else ""
    answer = f"\nThe answer was: {_short(found.answer, LONGEST_ANSWER)}" if found.answer else ""
    return f"On {at:%Y-%m-%d} at {at:%H:%M}{title}, the user asked: {_short(found.prompt, LONGEST_PROMPT)}{answer}"


def _short(text: str, most: int) -> str:
    """The text on one line, cut where it is long."""
    # What is far longer isn't gone through.
    line = " ".join(text[: 4 * most].split())
    return line if len(line) <= most and len(text) <= 4 * most else f"{line[: most - 1].rstrip()}…"

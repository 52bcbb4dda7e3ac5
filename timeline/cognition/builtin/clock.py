"""Date and time as a tool: now, here or in another time zone, and the day of the week and distance of another date."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, tzinfo
from typing import Any

from msgspec.structs import replace

from timeline.cognition.builtin.dates import DAYS, date_in, read_date
from timeline.cognition.signals import Signal
from timeline.cognition.tools import Tool, ToolResult, Workspace
from timeline.errors import ToolError

__all__ = ["Clock"]

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "date": {
            "type": "string",
            "maxLength": 40,
            "description": "Only to ask about another day: 2026-12-24, tomorrow, next Friday",
        },
        "zone": {
            "type": "string",
            "maxLength": 64,
            "description": "Only for another place: a time zone or its city, Europe/Paris, Tokyo, UTC",
        },
        "tell": {"enum": ["date", "time", "days"], "description": "What is asked for: with a date, how many days away"},
    },
    "additionalProperties": False,
}
_TIME = re.compile(r"\b(?:time|clock|hour|hours|minutes?|o'clock)\b", re.IGNORECASE)
_DAY = re.compile(r"\b(?:day|date|today|weekday|month|year)\b", re.IGNORECASE)
_DISTANCE = re.compile(
    r"\bhow (?:many|long|far|soon|much)\b|\b(?:days|weeks) (?:until|till|to|since|left|before|ago)\b", re.IGNORECASE
)
_PLACE = re.compile(r"\bin ((?:[A-Z][\w-]+|UTC|GMT)(?: [A-Z][\w-]+){0,2})")


class Clock(Tool):
    """Tells date, time, day of the week and time zone."""

    name = "clock"
    description = (
        "Tells today's date, the time, the day of the week and the time zone. With a date, tells which day of the week"
        " that is and how many days away."
    )
    parameters = PARAMETERS
    deterministic = True

    def signal(self, text: str, workspace: Workspace) -> Signal | None:
        """The text asks for a date, a time or a day; perhaps for another than today's."""
        found = super().signal(text, workspace)
        if found is None:
            return None
        timely = bool(_TIME.search(text))
        arguments: dict[str, Any] = {} if timely and _DAY.search(text) else {"tell": "time" if timely else "date"}
        day = date_in(text, _now(workspace, None).date())
        if day is not None:
            arguments = {"date": day, "tell": "days" if _DISTANCE.search(text) else "date"}
        elif timely:
            for match in _PLACE.finditer(text):
                if _known(match[1]):
                    arguments["zone"] = match[1]
        return replace(found, arguments=arguments)

    async def run(self, arguments: dict[str, Any], workspace: Workspace) -> ToolResult:
        """Look at the clock."""
        place = (arguments.get("zone") or "").strip()
        now = _now(workspace, _zone(place))
        today = f"{DAYS[now.weekday()]} {now.date().isoformat()}"
        if asked := arguments.get("date"):
            day = _date(asked, now.date())
            if day != now.date():
                return _another(day, now.date(), today, arguments.get("tell"))
        offset = now.strftime("%z")
        where = f"{place}, " if place else ""
        text = f"{today}, {now:%H:%M:%S} (time zone: {where}{now.tzname()}, UTC{offset[:3]}:{offset[3:5]})"
        fact = {"date": today, "time": f"{now:%H:%M}"}.get(arguments.get("tell", ""), f"{today} {now:%H:%M}")
        return ToolResult(text, fact=fact)


def _now(workspace: Workspace, zone: tzinfo | None) -> datetime:
    return datetime.fromtimestamp(workspace.now() / 1_000_000, UTC).astimezone(zone)


def _another(day: date, today_date: date, today: str, tell: str | None) -> ToolResult:
    days = (day - today_date).days
    named = f"{DAYS[day.weekday()]} {day.isoformat()}"
    count = f"{abs(days)} day{'' if abs(days) == 1 else 's'}"
    distance, verb = (f"in {count}", "is") if days > 0 else (f"{count} ago", "was")
    fact = {"days": count, "date": named}.get(tell or "", f"{named}, {distance}")
    return ToolResult(f"{named} {verb} {distance} (today is {today}).", fact=fact)


def _date(text: str, today: date) -> date:
    try:
        day = read_date(text, today)
    except ValueError as exc:
        msg = f"{text!r} is no date ({exc}): check it"
        raise ToolError(msg) from None
    if day is None:
        msg = f"{text!r} can't be read as a date: write it as 2026-12-24"
        raise ToolError(msg)
    return day


def _zone(name: str) -> tzinfo | None:
    """A time zone by its name or city; None for that of this machine."""
    if name.lower() in ("", "local", "here"):
        return None
    if name.upper() in ("UTC", "GMT", "Z"):
        return UTC
    from zoneinfo import ZoneInfo

    for zone in _known(name):
        return ZoneInfo(zone)
    msg = f"there is no time zone {name!r}: give one such as Europe/Paris or UTC"
    raise ToolError(msg)


def _known(name: str) -> list[str]:
    """The zones of that name or city. Only names of this list reach `ZoneInfo`, which opens files by them."""
    from zoneinfo import available_timezones

    wanted = name.strip().replace(" ", "_").lower()
    known = sorted(available_timezones())
    exact = [zone for zone in known if zone.lower() == wanted]
    return exact or [zone for zone in known if zone.lower().endswith(f"/{wanted}")]

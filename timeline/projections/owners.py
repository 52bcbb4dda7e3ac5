"""How the owner of what is under way stands in a read model: three columns, all NULL where there is none or it has ended."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Float, Integer, Text

from timeline.events import Owner

__all__ = ["NOBODY", "owned_by", "owner_columns", "owner_of"]


def owner_columns() -> tuple[Column[Any], ...]:
    """The columns, for a table."""
    return Column("owner_host", Text), Column("owner_pid", Integer), Column("owner_started", Float)


def owned_by(owner: Owner | None) -> dict[str, str | int | float | None]:
    """Their values."""
    if owner is None:
        return NOBODY
    return {"owner_host": owner.host, "owner_pid": owner.pid, "owner_started": owner.started}


def owner_of(row: Any) -> Owner:
    """The owner in a row whose `owner_host` is not NULL."""
    return Owner(row.owner_host, row.owner_pid, row.owner_started)


NOBODY: dict[str, str | int | float | None] = {"owner_host": None, "owner_pid": None, "owner_started": None}

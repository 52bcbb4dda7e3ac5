"""Opening the store for a command that asks nobody; one that only looks works in a folder that can't be written, too."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

    from timeline.config import Config
    from timeline.looking import Looking

__all__ = ["listed", "looking", "writable", "writing"]

T = TypeVar("T")


def looking(loaded: Config | None = None) -> AbstractAsyncContextManager[Looking]:
    """What was recorded under a configuration, by default the one in force; read-only where nothing can be written.

    Raises:
        NotFound: There is no store yet.
    """
    from timeline import config
    from timeline.looking import Looking

    loaded = loaded or config.load()
    return Looking.open(config=loaded, read_only=not writable(loaded))


async def listed(read: Callable[[Looking], Awaitable[T]], nothing: T) -> T:
    """What a list reads from the store; `nothing` where there is no store yet, since nothing was ever asked."""
    from timeline import config

    loaded = config.load()
    if not loaded.paths.store.exists():
        return nothing
    async with looking(loaded) as timeline:
        return await read(timeline)


def writing() -> AbstractAsyncContextManager[Looking]:
    """The same for a command that changes what was recorded; why nothing can be written is SQLite's to say.

    Raises:
        NotFound: There is no store yet.
    """
    from timeline import config
    from timeline.looking import Looking

    loaded = config.load()
    _existing(loaded)
    return Looking.open(config=loaded)


def writable(loaded: Config) -> bool:
    """Whether the configuration's store can be written.

    Raises:
        NotFound: There is none yet.
    """
    from timeline.store.sqlite import has_room

    path = _existing(loaded)
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK) and has_room(path)


def _existing(loaded: Config) -> Path:
    from timeline.errors import NotFound

    path = loaded.paths.store
    if not path.exists():
        msg = f"there is no store at {path} yet: 'timeline ask' makes it"
        raise NotFound(msg)
    return path

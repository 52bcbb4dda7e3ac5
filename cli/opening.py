"""Opening the store for a command that only looks: it works in a folder that can't be written, too."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from timeline.config import Config
    from timeline.runtime import Timeline

__all__ = ["looking"]


@asynccontextmanager
async def looking(loaded: Config | None = None) -> AsyncIterator[Timeline]:
    """The timeline of a configuration, by default the one in force; read-only where nothing can be written.

    Raises:
        NotFound: There is no store yet.
    """
    from timeline import config
    from timeline.errors import NotFound
    from timeline.runtime import Timeline
    from timeline.store.sqlite import has_room

    loaded = loaded or config.load()
    path = loaded.paths.store
    if not path.exists():
        msg = f"there is no store at {path} yet: 'timeline ask' makes it"
        raise NotFound(msg)
    writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK) and has_room(path)
    async with Timeline.open(config=loaded, read_only=not writable) as timeline:
        yield timeline

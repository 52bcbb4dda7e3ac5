"""The providers that one process has in use: each made once, warmed ahead of its first request, all closed together.

Imports nothing slow, so that a model can be loading while the rest of the program is still being imported.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from timeline.errors import TimelineError
from timeline.providers.plugins import make_provider

if TYPE_CHECKING:
    from types import TracebackType

    from timeline.config import Config
    from timeline.providers.base import LLMProvider
    from timeline.providers.plugins import Progress

__all__ = ["Providers"]


class Providers:
    """Opened by `async with`.

    Args:
        config: What `timeline.config.load` gave.
        progress: Told while a model is fetched.
    """

    def __init__(self, config: Config, progress: Progress | None = None) -> None:
        self.config = config
        self._progress = progress
        self._made: dict[str, LLMProvider] = {}
        self._warming: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back connections and memory, also while the caller is being cancelled."""
        await asyncio.shield(self._close())

    def get(self, name: str) -> LLMProvider:
        """The provider of that name.

        Raises:
            NotFound, ConfigError, MissingKey, PluginError: It can't be made from the configuration.
        """
        if name not in self._made:
            self._made[name] = make_provider(self.config, name, self._progress)
        return self._made[name]

    def warm(self, model: str | None = None) -> None:
        """Begin to load the model that will be asked, if it runs on this machine.

        Nothing is opened to anywhere else before a request is recorded. What goes wrong is left for the
        request to meet.

        Args:
            model: As the user named it; None for the default one.
        """
        with suppress(TimelineError):
            route, _ = self.config.choose(model)
            kind, _ = self.config.served(route.provider)
            if kind != "embedded":
                return
            task = asyncio.create_task(self.get(route.provider).warm_up(route.model), name="timeline-warm-up")
            self._warming.add(task)

    async def _close(self) -> None:
        for task in self._warming:
            task.cancel()
        await asyncio.gather(*self._warming, return_exceptions=True)
        for provider in self._made.values():
            await provider.aclose()

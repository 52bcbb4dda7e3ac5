"""The providers that one process has in use: each made once, warmed ahead of its first request, all closed together.

Imports nothing slow, so that a model can be loading while the rest of the program is still being imported.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from timeline.errors import TimelineError
from timeline.providers.plugins import make_provider
from timeline.providers.reach import network, runs_here

if TYPE_CHECKING:
    from types import TracebackType

    from timeline.config import Config, ModelRef, Task
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

    def warm(self, model: str | None = None, *, going_on: bool = False, direct: bool = False) -> None:
        """Begin to load the models that will be asked, if they run on this machine and that much is certain already.

        Nothing is opened to anywhere else before a request is recorded. What goes wrong is left for the
        request to meet.

        Args:
            model: As the user named it; None for the default one.
            going_on: Whether a session goes on, so that its own model, which the log knows, comes first.
            direct: Whether one call answers, without the steps before it.
        """
        tasks: tuple[Task, ...] = ("default",) if direct else ("query_routing", "response_formatting")
        if model is None and going_on:
            return
        with suppress(TimelineError):
            for route in dict.fromkeys(self._foreseen(model, task) for task in tasks):
                if route is not None and self.config.served(route.provider)[0] == "embedded":
                    warming = self.get(route.provider).warm_up(route.model)
                    self._warming.add(asyncio.create_task(warming, name="timeline-warm-up"))

    def _foreseen(self, model: str | None, task: Task) -> ModelRef | None:
        """The first candidate for a task, as far as it follows from the settings alone."""
        from timeline.config import ModelRef

        config = self.config
        if model is None and task == "response_formatting" and config.settings.routing_strategy.complexity:
            return None
        chain = config.route_for(task)[0] if model is None else (config.parse_choice(model),)
        for choice in (*chain, *config.stand_ins(named=model is not None)):
            if not isinstance(choice, ModelRef):
                return None
            # Looked for last: mostly nothing depends on it.
            if runs_here(config, choice) or not (config.settings.offline or network() != "routed"):
                return choice
        return None

    async def _close(self) -> None:
        for task in self._warming:
            task.cancel()
        await asyncio.gather(*self._warming, return_exceptions=True)
        for provider in self._made.values():
            await provider.aclose()

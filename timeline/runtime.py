"""The facade, and the only place where store, projections, providers and the call manager are put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec
from msgspec import Struct

import timeline
from timeline.cognition.processor import CognitionProcessor
from timeline.cognition.prompts import File, user_message
from timeline.cognition.schema import check_schema
from timeline.cognition.steps import route_request
from timeline.cognition.toolbox import open_tools
from timeline.cognition.tools import Confirm, Tools
from timeline.cognition.turn import Ask, TurnEnd, history
from timeline.config import BudgetConfig, Complexity, Config, Task, allowed_dirs, load
from timeline.errors import UsageError
from timeline.events import (
    Clock,
    Event,
    MessageRef,
    SessionStarted,
)
from timeline.llm.facts import Explained, Router, last_answer, request_of
from timeline.llm.manager import LLMManager, Superseded
from timeline.llm.pricing import PriceBook
from timeline.llm.ranking import Request
from timeline.llm.router import Asked, Candidate, LastAnswer
from timeline.looking import Looking
from timeline.projections.batches import last_conversation
from timeline.projections.search import Found, available
from timeline.providers.base import Delta, Message, ModelInfo
from timeline.providers.pool import Providers
from timeline.store import EventStore, this_process

if TYPE_CHECKING:
    from timeline.cognition.batch import BatchResult, BatchStatus
    from timeline.cognition.prompt_file import Prompt
    from timeline.cognition.provider_batch import ProviderBatches

__all__ = ["Timeline"]

TITLE_CHARACTERS = 60


class _Talk(Struct, frozen=True):
    """A session as the next turn finds it."""

    session_id: str | None = None
    system: str | None = None
    past: tuple[tuple[Message, MessageRef], ...] = ()
    last: LastAnswer | None = None


class Timeline(Looking):
    """Asks models, keeps what happens, and shows it again.

    Example:
        ::

            async with Timeline.open() as timeline:
                async for item in timeline.ask("Why is the sky blue?"):
                    if isinstance(item, Delta) and item.kind == "text":
                        print(item.text, end="")
    """

    def __init__(
        self, store: EventStore, clock: Clock, providers: Providers, stack: AsyncExitStack, confirm: Confirm | None
    ) -> None:
        config = providers.config
        super().__init__(store, config, clock, PriceBook(config.settings.prices, config.served))
        self._stack = stack
        self._confirm = confirm
        self._tools: Tools | None = None
        self._opening = asyncio.Lock()
        self._providers = providers
        manager = LLMManager(store, clock, providers.get, self._prices, config.settings)
        self.cognition = CognitionProcessor(
            store,
            manager,
            clock,
            providers.get,
            self._open_tools,
            search=self._search,
            max_rounds=config.settings.tools.max_rounds,
            prepare=self._prepare,
        )
        self._router = Router(config, clock, self._prices, providers.get, query=store.query)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        config: Config | None = None,
        clock: Clock | None = None,
        providers: Providers | None = None,
        read_only: bool = False,
        confirm: Confirm | None = None,
    ) -> AsyncIterator[Self]:
        """Open the store that the configuration names, and end what processes that died left open.

        Args:
            config: What `timeline.config.load` gave; by default that of the environment and working directory.
            clock: Time and ids.
            providers: Those already open, with their configuration; the caller closes them.
            read_only: Only look; works in a folder that can't be written.
            confirm: Asked before a tool that changes something; None refuses them all.

        Raises:
            ConfigError: The configuration is wrong.
            StoreError: The store can't be opened.
        """
        async with AsyncExitStack() as stack:
            if providers is None:
                providers = await stack.enter_async_context(Providers(config or load()))
            config = providers.config
            # Closed before the providers: what is recorded must not wait for a model to be unloaded.
            store = await stack.enter_async_context(cls._opened(config, read_only=read_only))
            self = cls(store, clock or Clock(), providers, stack, confirm)
            await self._end_abandoned()
            yield self

    # -------------------------------------------------------------- asking

    def ask(
        self,
        prompt: str,
        *,
        model: str | None = None,
        session: str | None = None,
        system: str | None = None,
        files: Sequence[File] = (),
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        stream: bool = True,
        private: bool = False,
        direct: bool | None = None,
        schema: dict[str, Any] | None = None,
        allow_dirs: Sequence[Path] = (),
        timeout: float | None = None,
        cache: bool | None = None,
        budgets: Sequence[BudgetConfig] = (),
        title: str | None = None,
        item: str | None = None,
    ) -> AsyncGenerator[Delta | Event | Superseded | TurnEnd]:
        """Ask, in a new session or an existing one.

        Args:
            prompt: The user's words.
            model: `provider:model`, or `auto:cheapest` and the like; by default the session's, else what is configured.
            session: Id, unique prefix, title or `last` of the session to go on with; `last` is no batch's.
            system: System prompt; by default the session's.
            files: Files that are part of the question; see `timeline.cognition.prompts.attach`.
            temperature: Sampling temperature; None leaves it to the provider.
            max_tokens: Most tokens to answer with.
            seed: For repeatable sampling, where the provider has it.
            stream: Ask for a streamed answer.
            private: Record totals, not bodies.
            direct: One call, without cognition; None for what is configured.
            schema: JSON Schema that the answer has to follow; asked for directly.
            allow_dirs: Folders that tools may read, beside the working directory and the configured ones.
            timeout: Seconds that a call may take until its first words; None for what is configured.
            cache: Whether the recorded answer of an equal request will do; None for what is configured.
            budgets: Further budgets for this question; see `timeline.config.max_cost`.
            title: What a new session is called after; by default the prompt.
            item: Which line of the batch that is `session`; then nothing of the session goes along.

        Yields:
            Deltas as they arrive, events as they are committed, a `Superseded` where the deltas so far no longer
            count, and last a `TurnEnd`, which carries the error if the turn failed.

        Raises:
            UsageError, NotFound, AmbiguousName, ConfigError, MissingKey: Nothing was asked or recorded.
            StoreError: It can't be recorded.
        """

        async def prepared() -> Ask:
            if schema is not None:
                check_schema(schema)
            if direct is None and self.config.settings.mode == "pipeline" and schema is None:
                mode: Literal["pipeline", "direct"] = "pipeline"
            else:
                mode = "pipeline" if direct is False else "direct"
            ask = await self._prepare(
                prompt,
                session,
                mode=mode,
                model=model,
                system=system,
                files=files,
                private=private,
                title=title,
                item=item,
            )
            return msgspec.structs.replace(
                ask,
                temperature=temperature,
                max_tokens=max_tokens,
                seed=seed,
                stream=stream,
                schema=schema,
                allowed=(*ask.allowed, *allow_dirs),
                timeout=timeout,
                cache=cache,
                budgets=tuple(budgets),
            )

        return self.cognition.run(prepared())

    async def _prepare(
        self,
        prompt: str,
        session: str | None,
        *,
        mode: Literal["pipeline", "direct"] | None = None,
        model: str | None = None,
        system: str | None = None,
        files: Sequence[File] = (),
        private: bool = False,
        title: str | None = None,
        item: str | None = None,
    ) -> Ask:
        """What is asked for, checked, with what was said before."""
        mode = mode or self.config.settings.mode
        if not prompt.strip() and not files:
            msg = "there is nothing to ask: give a prompt as an argument or on standard input"
            raise UsageError(msg)
        _check_text(prompt, system or "", title or "", *(file.body for file in files if isinstance(file.body, str)))
        # The lines of a batch have nothing to do with each other.
        talk = await self._talk(session, system) if item is None else _Talk(session, system)
        request = request_of([*(past for past, _ in talk.past), user_message(prompt, files)], talk.system, None)
        models = () if model is None else (self.config.parse_choice(model),)
        writes: Task = "response_formatting" if mode == "pipeline" else "default"
        asked = Asked(models, writes, request=request)
        routed = await self._router.route(asked, talk.last)
        if not routed.others:
            # A key that can't be had is the user's to know, and no reason to ask a model that only stands in.
            self._providers.get(routed.candidates[0].provider)
        first = None
        if talk.session_id is None:
            named = None if private else _title(title or prompt)
            first = SessionStarted(client_version=timeline.__version__, owner=this_process(), title=named)

        async def choose(task: Task, complexity: Complexity | None, request: Request) -> Sequence[Candidate]:
            now = Asked(models, task, complexity, request)
            # A plain question is asked at once, with nothing more known about it.
            return (routed if now == asked else await self._router.route(now, talk.last)).candidates

        return Ask(
            prompt=prompt,
            choose=choose,
            session_id=talk.session_id or self._clock.uuid7(),
            first=first,
            system=talk.system,
            files=tuple(files),
            past=talk.past,
            private=private,
            item=item,
            mode=mode,
            folder=Path(),
            allowed=allowed_dirs(self.config),
        )

    async def batch(
        self,
        prompts: Sequence[Prompt],
        *,
        name: str,
        title: str | None = None,
        concurrency: int = 4,
        fresh: bool = False,
        fail_fast: bool = False,
        provider_batch: bool = False,
        poll_seconds: float = 60.0,
        timeout: float | None = None,
        cache: bool | None = None,
        budgets: Sequence[BudgetConfig] = (),
    ) -> AsyncGenerator[BatchStatus | BatchResult]:
        """Ask many prompts, some at a time, in a session of their own; those that are answered already are not asked again.

        Args:
            prompts: What to ask, for example a `timeline.cognition.prompt_file.PromptFile`. The same prompt twice is
                asked twice.
            name: What the batch is known by: with the same name it goes on where it was stopped.
            title: Of a new session; by default the name.
            concurrency: How many are asked at a time.
            fresh: Ask all of them, in a new session.
            fail_fast: Ask no more after the first that fails.
            provider_batch: Hand them in to the providers' batch APIs, which answer within a day at half the price.
            poll_seconds: How long to wait at most between two looks at what is with a provider.
            timeout: As of `ask`, for each of them.
            cache: As of `ask`.
            budgets: Further budgets; those of a session are for all of the batch.

        Yields:
            A `BatchStatus` before anything is asked and whenever a prompt has ended, and a `BatchResult` for each, in the
            order of the prompts.

        Raises:
            UsageError: Another process asks this batch, or nothing can be asked as it is configured.
            StoreError: It can't be recorded.
        """
        from timeline.cognition.batch import run_batch

        def ask(prompt: Prompt, session_id: str, item: str) -> AsyncGenerator[Delta | Event | Superseded | TurnEnd]:
            return self.ask(
                prompt.prompt,
                model=prompt.model,
                session=session_id,
                system=prompt.system,
                temperature=prompt.temperature,
                max_tokens=prompt.max_tokens,
                seed=prompt.seed,
                item=item,
                direct=True,
                timeout=timeout,
                cache=cache,
                budgets=budgets,
            )

        def at_providers(session_id: str) -> ProviderBatches:
            from timeline.cognition.provider_batch import ProviderBatches

            return ProviderBatches(
                self.store,
                self._clock,
                prices=self._prices,
                config=self.config,
                get=self._providers.get,
                session_id=session_id,
                poll_seconds=poll_seconds,
                budgets=budgets,
            )

        run = run_batch(
            self.store,
            self._clock,
            ask,
            self.borrowed,
            prompts,
            at_providers=at_providers,
            name=name,
            title=title or name,
            concurrency=concurrency,
            fresh=fresh,
            fail_fast=fail_fast,
            provider_batch=provider_batch,
        )
        async with aclosing(run) as items:
            async for item in items:
                yield item

    async def _search(self, words: str, limit: int) -> Sequence[Found]:
        """Past turns for a tool."""
        return await self.search(words, limit=limit) if available() else ()

    async def _open_tools(self) -> Tools:
        """The tools that are on; their servers are started at the first question that may need them."""
        async with self._opening:
            if self._tools is None:
                toolbox = await self._stack.enter_async_context(open_tools(self.config, confirm=self._confirm))
                self._tools = toolbox.tools
            return self._tools

    async def explain(
        self,
        prompt: str,
        *,
        model: str | None = None,
        session: str | None = None,
        system: str | None = None,
        files: Sequence[File] = (),
        max_tokens: int | None = None,
        task: Task = "default",
        complexity: Complexity | None = None,
    ) -> Explained:
        """Whom a question would go to, and why; asks nobody and records nothing. All else as of `ask`.

        `task` is the step that the call would be made for, `default` a direct question, and `complexity`
        that of the prompt, for `response_formatting`.

        Raises:
            UsageError, NotFound, AmbiguousName, ConfigError: The question or the settings are wrong.
        """
        talk = await self._talk(session, system)
        messages = [*(message for message, _ in talk.past), user_message(prompt, files)]
        request = request_of(messages, talk.system, max_tokens)
        if task == "query_routing":
            request = route_request(prompt, messages[:-1])
        models = () if model is None else (self.config.parse_choice(model),)
        return await self._router.explain(Asked(models, task, complexity, request), talk.last)

    async def _talk(self, session: str | None, system: str | None) -> _Talk:
        """What came before a turn."""
        if session is None:
            return _Talk(system=system)
        last = await self.store.query(last_conversation) if session == "last" else None
        session_id = last or await self.find(session)
        before = await self.session(session_id)
        bodies = await self.bodies(before)
        if system is None:
            systems = [turn.system for turn in before.turns if turn.system and not turn.item]
            system = str(bodies[systems[-1]]) if systems and systems[-1] in bodies else None
        return _Talk(session_id, system, history(before, bodies), last_answer(before))

    async def models(self, provider: str) -> list[ModelInfo]:
        """The models that a provider offers now.

        Raises:
            ProviderError: It could not be asked.
        """
        return await self._providers.get(provider).get_available_models()


def _check_text(*texts: str) -> None:
    """Refuse half a character: no JSON and no file can hold it."""
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError as exc:
        msg = f"the text holds half of a character (U+{ord(exc.object[exc.start]):04X}): decode its source as UTF-16 or UTF-8"
        raise UsageError(msg) from exc


def _title(words: str) -> str:
    line = " ".join(words.split())
    return line if len(line) <= TITLE_CHARACTERS else line[: TITLE_CHARACTERS - 1].rstrip() + "…"

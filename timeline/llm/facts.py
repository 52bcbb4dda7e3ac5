"""Where the router's facts come from: settings, price table, network and log, each looked into only where it matters."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Literal

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, select

from timeline.config import KINDS, Auto, Choice, Complexity, Config, ModelRef, ProviderConfig, Settings
from timeline.errors import TimelineError, UsageError
from timeline.events import Clock, Usage
from timeline.llm import breaker, limiter
from timeline.llm.pricing import PriceBook, estimate_tokens
from timeline.llm.ranking import ModelFacts, Request, answer_tokens
from timeline.llm.router import FALLBACK, Asked, Facts, LastAnswer, Rejected, Routed, route
from timeline.projections.blocks import Session
from timeline.projections.calls import attempts
from timeline.projections.health import ModelStats, read_health, read_stats
from timeline.projections.limit_facts import Configured, read_limits
from timeline.providers.base import Capabilities, ImagePart, LLMProvider, Message
from timeline.providers.reach import Network, network, on_own_link, runs_here
from timeline.store import is_alive

__all__ = ["Explained", "Past", "Router", "last_answer", "read_past", "refusal", "request_of"]

SHORT = 1000
"""Tokens, as estimated, that fit the context of every model that is served: nothing has to be looked up for them."""
EMBEDDED_CONTEXT = 8192
"""Tokens of context of an embedded model at most, unless the settings say more."""

Offline = Literal["configured", "no network"]


class Past(Struct, frozen=True):
    """What the log says of a model; the fields are those of `ModelFacts`."""

    stats: ModelStats | None = None
    open_until: int | None = None
    limited_until: int | None = None


class Explained(Struct, frozen=True):
    """A decision and what it was made from."""

    asked: Asked
    facts: Facts
    routed: Routed


def request_of(messages: Sequence[Message], system: str | None, max_tokens: int | None) -> Request:
    """What a model must take to be sent these messages."""
    parts = [part for message in messages if not isinstance(message.content, str) for part in message.content]
    return Request(
        input_tokens=estimate_tokens(
            system or "", *(text for message in messages for text in (message.text, message.opaque_text))
        ),
        max_tokens=max_tokens,
        images=any(isinstance(part, ImagePart) for part in parts),
    )


def last_answer(session: Session) -> LastAnswer | None:
    """Whom a session asked last, and why; None where nobody has answered yet.

    Of a call that went on to another candidate it is the first that counts: when it is there again, it is asked again.
    """
    for turn in reversed(session.turns):
        answer = turn.answer
        if turn.state != "completed" or answer is None or turn.item:
            continue
        tried = [item for step in turn.steps for item in step.attempts if item.call_id == answer.call_id]
        wanted = next((item for item in tried if not item.why.startswith(FALLBACK)), None)
        if wanted is not None and wanted.provider:
            return LastAnswer(ModelRef(wanted.provider, wanted.model), wanted.why)
    return None


def read_past(
    conn: Connection, refs: Iterable[ModelRef], settings: Settings, request: Request, now: int
) -> dict[ModelRef, Past]:
    """What the log says of models.

    Args:
        conn: Any connection.
        refs: Which models.
        settings: With the limits that are configured.
        request: What is to be asked: some limits count tokens.
        now: µs UTC.
    """
    stats = read_stats(conn)
    found = {}
    for ref in refs:
        written = settings.llm_providers.get(ref.provider, ProviderConfig())
        configured = Configured(written.rpm, written.tpm, written.max_concurrent)
        of_model = (attempts.c.provider == ref.provider, attempts.c.model == ref.model)
        key = conn.execute(
            select(attempts.c.key).where(*of_model).order_by(attempts.c.first_position.desc()).limit(1)
        ).scalar()
        facts = read_limits(conn, ref.provider, ref.model, key, configured, now, alive=is_alive)
        tokens = request.input_tokens + answer_tokens(request, stats.get((ref.provider, ref.model)))
        limited = limiter.decide(facts, limiter.Needed(tokens=tokens, input_tokens=request.input_tokens), now)
        circuit = breaker.decide(read_health(conn, ref.provider, ref.model, now, alive=is_alive), now)
        found[ref] = Past(
            stats=stats.get((ref.provider, ref.model)),
            open_until=circuit.until if isinstance(circuit, breaker.Open) else None,
            limited_until=limited.until_us if isinstance(limited, limiter.Wait) else None,
        )
    return found


class Router:
    """Decides whom a call may go to, by the settings and what is known now.

    Args:
        config: The settings.
        clock: Time.
        prices: What models cost.
        get: The provider of a name; asked only for plugins, of which the settings don't say enough.
        look: Whether there is a network.
        query: Reads from the log's read models, as `EventStore.query`; None where there is no log.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        prices: PriceBook,
        get: Callable[[str], LLMProvider],
        look: Callable[[], Network] = network,
        query: Callable[[Callable[[Connection], dict[ModelRef, Past]]], Awaitable[dict[ModelRef, Past]]] | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._prices = prices
        self._get = get
        self._look = look
        self._query = query

    async def route(self, asked: Asked, last: LastAnswer | None = None) -> Routed:
        """Whom a call may go to; at least one.

        Args:
            asked: What it needs.
            last: Of the session that goes on.

        Raises:
            ConfigError: A route names no model, or the settings of the only models that were wanted are wrong.
            NotFound, MissingKey, UsageError: None of those that were wanted can be asked.
        """
        facts = await self._facts(asked, last)
        routed = route(asked, facts, self._clock.now())
        if not routed.candidates:
            raise refusal(routed, facts)
        return routed

    async def explain(self, asked: Asked, last: LastAnswer | None = None) -> Explained:
        """The same, with all that is known of everybody; also where nobody can be asked.

        Raises:
            ConfigError: A route names no model.
        """
        facts = await self._facts(asked, last, everything=True)
        return Explained(asked, facts, route(asked, facts, self._clock.now()))

    async def _facts(self, asked: Asked, last: LastAnswer | None, *, everything: bool = False) -> Facts:
        """What there is to know for a decision; `everything`: also what it doesn't depend on."""
        config = self._config
        chosen, name = ((), asked.task) if asked.models else config.route_for(asked.task)
        tiers: dict[Complexity, tuple[Choice, ...]] = {}
        if asked.complexity and not asked.models:
            tiers[asked.complexity] = config.tier(asked.complexity)
        fallback = config.stand_ins(named=bool(asked.models))
        choices = [*asked.models, *chosen, *(choice for tier in tiers.values() for choice in tier), *fallback]
        automatic = any(isinstance(choice, Auto) for choice in choices)
        offered = config.offered if automatic else ()
        refs = [choice for choice in choices if isinstance(choice, ModelRef)]
        refs = list(dict.fromkeys([*refs, *offered, *([last.model] if last else [])]))
        prices = automatic or everything or asked.request.input_tokens > SHORT
        past: dict[ModelRef, Past] = {}
        if self._query and (automatic or everything):
            now, settings = self._clock.now(), config.settings
            past = await self._query(lambda conn: read_past(conn, refs, settings, asked.request, now))
        offline, reach = self._reach(refs)
        return Facts(
            route=chosen,
            route_name=name,
            tiers=tiers,
            fallback=fallback,
            offered=offered,
            models={ref: await self._known(ref, asked, reach, past.get(ref, Past()), prices=prices) for ref in refs},
            last=last,
            offline=offline,
        )

    # -------------------------------------------------------------- one model

    async def _known(self, ref: ModelRef, asked: Asked, reach: Network, past: Past, *, prices: bool) -> ModelFacts:
        request, config, now = asked.request, self._config, self._clock.now()
        try:
            facts = ModelFacts(
                here=self._here(ref, reach),
                problem=config.problem(ref.provider),
                capabilities=self._capabilities(ref) if request.tools or request.schema or request.images else None,
                context=self._context(ref),
                stats=past.stats,
                open_until=past.open_until,
                limited_until=past.limited_until,
            )
            free = prices and self._free(ref)
        except TimelineError as exc:
            return ModelFacts(problem=exc)
        if not prices:
            return facts
        await self._prices.ready(ref.provider, ref.model, local=free)
        price = self._prices.listed(ref.provider, ref.model, local=free, at=now)
        usage = Usage(input=request.input_tokens, output=answer_tokens(request, past.stats))
        estimate = self._prices.cost(ref.provider, (ref.model,), usage, local=free, at=now)
        return msgspec.structs.replace(facts, price=price, estimate=estimate, context=facts.context or price.context)

    def _here(self, ref: ModelRef, reach: Network) -> bool:
        here = runs_here(self._config, ref)
        if here is None:
            here = self._get(ref.provider).is_local(ref.model)
        return here or (reach == "link" and on_own_link(self._config, ref))

    def _free(self, ref: ModelRef) -> bool:
        """Whether it costs nothing, as the provider itself would say: see `LLMProvider.is_local`."""
        kind, _ = self._config.served(ref.provider)
        written = self._config.settings.llm_providers.get(ref.provider)
        said = written.local if written else None
        if kind not in KINDS:
            return self._get(ref.provider).is_local(ref.model)
        return bool(runs_here(self._config, ref)) and (kind in ("embedded", "ollama") or bool(said))

    def _capabilities(self, ref: ModelRef) -> Capabilities:
        """What its provider can do. A single model of it may be able to do less, and then says so itself."""
        from timeline.providers.plugins import capabilities

        kind, _ = self._config.served(ref.provider)
        if kind == "embedded":
            from timeline.providers.models import KNOWN_MODELS

            # llama.cpp hands tools to the model's template; those of the built-in ones have no place for them.
            return Capabilities(tools=ref.model not in KNOWN_MODELS, schema=True)
        return capabilities(kind) if kind in KINDS else self._get(ref.provider).capabilities

    def _context(self, ref: ModelRef) -> int | None:
        written = self._config.settings.llm_providers.get(ref.provider)
        if written is not None and written.context:
            return written.context
        return EMBEDDED_CONTEXT if self._config.served(ref.provider)[0] == "embedded" else None

    # -------------------------------------------------------------- the network

    def _reach(self, refs: Iterable[ModelRef]) -> tuple[Offline | None, Network]:
        """Why only models on this machine may be asked, and what can be reached."""
        if self._config.settings.offline:
            return "configured", "none"
        if all(map(self._surely_here, refs)):
            return None, "routed"
        reach = self._look()
        return (None if reach == "routed" else "no network"), reach

    def _surely_here(self, ref: ModelRef) -> bool:
        try:
            return bool(runs_here(self._config, ref))
        except TimelineError:
            return False


def refusal(routed: Routed, facts: Facts) -> TimelineError:
    """Why nobody can be asked: what is wrong with the first that was wanted."""
    first = next(iter(routed.rejected), None)
    if first is None:
        return UsageError("there is no model to choose from: list some under llm_providers, or name one with -m")
    problem = facts.of(ModelRef(first.provider, first.model)).problem
    if first.ground == "unusable" and problem is not None:
        return problem
    return UsageError(f"{first}: {_remedy(first)}")


def _remedy(rejected: Rejected) -> str:
    if rejected.ground == "elsewhere":
        return "ask one that is with -m, or leave --offline and the setting offline away"
    return "ask a model that does, with -m"

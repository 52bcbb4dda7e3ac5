"""Which models a call may go to, in which order, and why: the whole decision, from facts alone.

An explicit choice comes before the session's model, that before the route, and after all of them the
fallback. `auto:…` stands for every model that the user listed, in the order of a score. Reads no clock, file or store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from timeline.config import Auto, Choice, Complexity, ModelRef, Task
from timeline.llm.ranking import ModelFacts, Ranked, Request, rank

__all__ = [
    "ASKED_FOR",
    "FALLBACK",
    "SESSION",
    "Asked",
    "Candidate",
    "Facts",
    "LastAnswer",
    "Rejected",
    "Routed",
    "route",
]

ASKED_FOR = "asked for"
SESSION = "the session's model"
FALLBACK = "fallback"
COMPLEXITY = "complexity"

Ground = Literal["elsewhere", "unusable", "incapable", "context"]


class Candidate(Struct, frozen=True):
    """A model that a call may go to.

    Args:
        provider: Its name as configured.
        model: The provider's name of the model.
        why: Why this model, in words for people and the log.
        context: Most tokens of prompt and answer together, where that is known.
        fallback: Whether it stands in for what was wanted, and the user is to be told.
        instead: On the first candidate: who was wanted before it and won't be asked.
    """

    provider: str
    model: str
    why: str
    context: int | None = None
    fallback: bool = False
    instead: Rejected | None = None

    def __str__(self) -> str:
        return f"{self.provider}:{self.model}"


class Rejected(Struct, frozen=True):
    """A model that was wanted and won't be asked.

    Args:
        provider, model: Which.
        why: A sentence's end: `embedded:smollm2 …`.
        ground: It isn't on this machine, its settings are wrong, it can't do what is asked, or the prompt is too long.
    """

    provider: str
    model: str
    why: str
    ground: Ground

    @property
    def name(self) -> str:
        """`provider:model`."""
        return f"{self.provider}:{self.model}"

    def __str__(self) -> str:
        return f"{self.name} {self.why}"


class Routed(Struct, frozen=True):
    """The decision.

    Args:
        candidates: Whom to ask, in order; empty where nobody may be asked.
        rejected: Who was wanted and won't be asked, in the order in which they were wanted.
    """

    candidates: tuple[Candidate, ...]
    rejected: tuple[Rejected, ...] = ()

    @property
    def others(self) -> bool:
        """Whether more than one candidate is what was wanted, and doesn't only stand in."""
        return sum(not each.fallback for each in self.candidates) > 1


class LastAnswer(Struct, frozen=True):
    """Who gave a session's last answer, and why that one had been asked."""

    model: ModelRef
    why: str


class Asked(Struct, frozen=True):
    """What a call needs.

    Args:
        models: What the user asked for by name, in order.
        task: The step it is made for; `default` for a direct question.
        complexity: Of the prompt, as the route step found it; only for `response_formatting`.
        request: Its size, and what a model must be able to do.
    """

    models: tuple[Choice, ...] = ()
    task: Task = "default"
    complexity: Complexity | None = None
    request: Request = Request()


class Facts(Struct, frozen=True):
    """What there is to know.

    Args:
        route: What is configured for the task, in order of preference.
        route_name: Which route that is.
        tiers: What is configured for prompts of each complexity.
        fallback: Where to go when all else fails.
        offered: What `auto:…` chooses among, in the order of the user's list.
        models: Of every model above, what is known.
        last: Of the session that goes on.
        offline: Why only models on this machine may be asked: because the user said so, or there is no network.
    """

    route: tuple[Choice, ...] = ()
    route_name: Task = "default"
    tiers: Mapping[Complexity, tuple[Choice, ...]] = {}
    fallback: tuple[Choice, ...] = ()
    offered: tuple[ModelRef, ...] = ()
    models: Mapping[ModelRef, ModelFacts] = {}
    last: LastAnswer | None = None
    offline: Literal["configured", "no network"] | None = None

    def of(self, ref: ModelRef) -> ModelFacts:
        """What is known of a model."""
        return self.models.get(ref, ModelFacts())


class _Wanted(Struct, frozen=True):
    """A model and why it is wanted."""

    ref: ModelRef
    why: str
    fallback: bool = False


def route(asked: Asked, facts: Facts, now: int) -> Routed:
    """Decide whom a call may go to.

    Args:
        asked: What the call needs.
        facts: What there is to know.
        now: µs UTC.
    """
    chain = _unique(
        [*_expand(_precedence(asked, facts), asked, facts, now), *_expand(_fallback(facts), asked, facts, now)]
    )
    rejected = [
        Rejected(wanted.ref.provider, wanted.ref.model, *objection)
        for wanted in chain
        if (objection := _objection(wanted, asked, facts))
    ]
    refused = {ModelRef(each.provider, each.model): each for each in rejected}
    if not any(wanted.ref not in refused for wanted in chain if not wanted.fallback):
        grounds = {refused[wanted.ref].ground for wanted in chain if not wanted.fallback}
        if "context" in grounds:
            # Our estimate is rough: rather than nobody, those are asked that have the most room.
            chain = sorted(chain, key=lambda wanted: (wanted.fallback, -(facts.of(wanted.ref).context or 0)))
            refused = {ref: each for ref, each in refused.items() if each.ground != "context"}
        elif "elsewhere" not in grounds:
            # A mistake is told: an answer of the fallback would only hide it.
            chain = [wanted for wanted in chain if not wanted.fallback]
    if facts.offline == "no network" and all(wanted.ref in refused for wanted in chain):
        # That there is none is a guess. With nobody else to ask, the network itself may say so.
        return route(asked, msgspec.structs.replace(facts, offline=None), now)
    return Routed(
        tuple(_candidates(chain, refused, facts)),
        tuple(each for each in rejected if ModelRef(each.provider, each.model) in refused),
    )


# ------------------------------------------------------------------ what is wanted


def _precedence(asked: Asked, facts: Facts) -> list[tuple[Choice, str]]:
    """What was said about this call, before any fallback: explicit > session > complexity > route."""
    if asked.models:
        return [(choice, ASKED_FOR) for choice in asked.models]
    tier = asked.complexity and asked.task == "response_formatting" and facts.tiers.get(asked.complexity)
    if tier:
        wanted = _numbered(tier, f"{COMPLEXITY} {asked.complexity}")
    else:
        wanted = _numbered(facts.route, f"{facts.route_name} route")
    last = facts.last
    if last is None:
        return wanted
    if last.why.startswith((ASKED_FOR, SESSION)):
        return [(last.model, SESSION)]
    writes = asked.task in ("default", "response_formatting")
    if tier or not writes or "auto:" in last.why or last.why.startswith((COMPLEXITY, FALLBACK)):
        # It was the best choice of that moment, or stood in for another: this is another moment.
        return wanted
    others = wanted if any(choice == last.model for choice, _ in wanted) else []
    return [(last.model, SESSION), *others]


def _fallback(facts: Facts) -> list[tuple[Choice, str]]:
    return [(choice, FALLBACK) for choice in facts.fallback]


def _numbered(choices: Sequence[Choice], why: str) -> list[tuple[Choice, str]]:
    return [
        (choice, f"{why}, choice {number} of {len(choices)}" if number > 1 else why)
        for number, choice in enumerate(choices, 1)
    ]


def _expand(wanted: Iterable[tuple[Choice, str]], asked: Asked, facts: Facts, now: int) -> list[_Wanted]:
    """Each `auto:…` replaced by the models it stands for, those first that could be asked now."""
    found: list[_Wanted] = []
    for choice, why in wanted:
        fallback = why == FALLBACK
        if isinstance(choice, Auto):
            able = [ref for ref in facts.offered if not _objection(_Wanted(ref, why), asked, facts)]
            ranked = rank(choice.strategy, able, facts.of, asked.request, now)
            unable = [Ranked(ref, "asked for want of another") for ref in facts.offered if ref not in able]
            found += [_Wanted(each.ref, f"{why}, {choice}: {each.why}", fallback) for each in [*ranked, *unable]]
        else:
            found.append(_Wanted(choice, why, fallback))
    return found


def _unique(chain: Iterable[_Wanted]) -> list[_Wanted]:
    """Nobody twice: the first reason counts."""
    found: dict[ModelRef, _Wanted] = {}
    for wanted in chain:
        found.setdefault(wanted.ref, wanted)
    return list(found.values())


# ------------------------------------------------------------------ what may be


def _objection(wanted: _Wanted, asked: Asked, facts: Facts) -> tuple[str, Ground] | None:
    """Why a model can't be asked; what is unknown is no objection."""
    known, request = facts.of(wanted.ref), asked.request
    if facts.offline and not known.here:
        why = "and only such may be asked (offline)" if facts.offline == "configured" else "and there is no network"
        return f"is not on this machine, {why}", "elsewhere"
    if known.problem is not None:
        return f"can't be used: {known.problem}", "unusable"
    if known.capabilities is not None:
        for need, what in (("tools", "calls no tools"), ("schema", "follows no schema"), ("images", "takes no images")):
            if getattr(request, need) and not getattr(known.capabilities, need):
                return what, "incapable"
    answer = request.max_tokens or 0
    if known.context is not None and known.context < request.input_tokens + answer:
        size = f"about {request.input_tokens:,}" + (f" and {answer:,} of the answer" if answer else "")
        return f"has a context of {known.context:,} tokens, which is too small for {size}", "context"
    return None


def _candidates(chain: Iterable[_Wanted], refused: Mapping[ModelRef, Rejected], facts: Facts) -> Iterable[Candidate]:
    before: Rejected | None = None
    first = True
    for wanted in chain:
        if wanted.ref in refused:
            before = before or refused[wanted.ref]
            continue
        instead = before if first else None
        first = False
        why = f"{wanted.why}, as {instead}" if instead else wanted.why
        context = facts.of(wanted.ref).context
        yield Candidate(wanted.ref.provider, wanted.ref.model, why, context, wanted.fallback, instead)

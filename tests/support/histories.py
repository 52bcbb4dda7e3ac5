"""Random but possible histories: sessions that interleave, calls that fail, are retried, stopped, cut off, forgotten."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from support.stores import NOON, OWNER, Scribe
from timeline import events as e
from timeline.events import EventData, NewEvent
from timeline.store import content_digest

# ------------------------------------------------------------------ what happens, as a tree

counts = st.integers(0, 5000)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
usages = st.builds(e.Usage, counts, counts, counts, counts, counts, counts)
errors = st.builds(
    lambda kind, text, after: e.ErrorInfo(kind, text, retry_after=after),
    st.sampled_from(["server", "rate_limited", "network"]),
    texts,
    st.sampled_from([None, 0.001, 2.0]),
)
limits = st.lists(
    st.builds(
        e.RateLimit,
        st.sampled_from(["requests", "tokens"]),
        st.sampled_from([None, 5]),
        st.none() | st.integers(0, 5),
        st.none() | st.integers(NOON, NOON + 3_000_000),
    ),
    max_size=2,
).map(tuple)
costs = st.sampled_from([e.Cost("priced", 10**9 + 7), e.Cost("priced", 0), e.Cost("free"), e.Cost("unpriced")])
sources = st.sampled_from(["provider", "estimated", "none"])
reasons = st.sampled_from(["sigint", "closed", "abandoned"])
kinds = st.sampled_from(["route", "tool", "format", "answer"])
models = st.sampled_from([("openai", "gpt"), ("openai", "mini"), ("groq", "llama"), ("embedded", "smollm2")])

completions = st.builds(
    lambda usage, source, cost, first, told: (
        "completed",
        e.ResponseCompleted(0, "stop", usage, source, cost, 9, first, rate_limits=told),
    ),
    usages,
    sources,
    costs,
    st.none() | counts,
    limits,
)
failures = st.builds(
    lambda error, usage, source, cost, told: ("failed", e.CallFailed(0, error, 8, False, usage, source, cost, told)),
    errors,
    st.none() | usages,
    sources,
    st.none() | costs,
    limits,
)
interruptions = st.builds(
    lambda reason, usage, cost: ("interrupted", e.CallInterrupted(0, reason, usage, "estimated", cost, 6)),
    reasons,
    usages,
    st.none() | costs,
)
chunks = st.tuples(st.sampled_from(["text", "reasoning", "tool_call"]), st.lists(texts, max_size=3))
attempts = st.tuples(models, st.lists(chunks, max_size=2), failures)
last_attempts = st.tuples(models, st.lists(chunks, max_size=2), completions | failures | interruptions | st.none())
calls = st.tuples(st.lists(attempts, max_size=2), last_attempts)
step_ends = st.one_of(
    st.builds(lambda reason: e.StepCompleted(4, None, reason), st.none() | texts),
    st.builds(lambda error: e.StepFailed(error, 3), errors),
    st.none(),
)
tools = st.tuples(st.sampled_from(["calculator", "clock"]), texts, st.none() | texts | errors)
steps = st.tuples(kinds, st.lists(calls, min_size=1, max_size=2), st.booleans(), st.lists(tools, max_size=2), step_ends)
turn_ends = st.one_of(
    st.just("completed"),
    st.builds(lambda error: e.TurnFailed(error, 1), errors),
    st.builds(e.TurnInterrupted, reasons),
    st.none(),
)
turns = st.tuples(st.just("turn"), texts, st.booleans(), st.lists(steps, min_size=1, max_size=2), turn_ends)
others = st.one_of(
    st.tuples(st.just("rename"), texts),
    st.tuples(st.just("wait"), counts),
    st.tuples(st.just("forget")),
    st.tuples(st.just("batch"), st.booleans()),
)
sessions = st.tuples(st.none() | texts, st.lists(turns | turns | others, min_size=1, max_size=3))
histories = st.tuples(st.lists(sessions, min_size=1, max_size=3), st.randoms(use_true_random=False))

History = tuple[list[Any], random.Random]


# ------------------------------------------------------------------ and as batches


@dataclass(frozen=True)
class Batch:
    """What is appended at once; or, of `forget`, the session to forget."""

    events: list[NewEvent]
    contents: list[str] = field(default_factory=list)
    forget: str | None = None


@dataclass(frozen=True)
class _Fact:
    data: EventData | None
    ids: dict[str, str] = field(default_factory=dict)
    body: str | None = None


def play(history: History, scribe: Scribe) -> list[Batch]:
    """The batches of a history: each session's facts in their order, the sessions mixed at random."""
    trees, rng = history
    waiting = {f"session {number}": list(_session(tree, scribe)) for number, tree in enumerate(trees)}
    batches = []
    while waiting:
        id_ = rng.choice(sorted(waiting))
        facts = waiting[id_]
        taken = [facts.pop(0)]
        if taken[0].data is None:
            batches.append(Batch([], forget=id_))
        else:
            while facts and facts[0].data is not None and rng.random() < 0.7:
                taken.append(facts.pop(0))
            events = [scribe.event(id_, fact.data, **fact.ids) for fact in taken if fact.data is not None]
            batches.append(Batch(events, [fact.body for fact in taken if fact.body is not None]))
        if not facts:
            del waiting[id_]
    return batches


def _session(tree: tuple[str | None, list[Any]], scribe: Scribe) -> Iterator[_Fact]:
    title, items = tree
    yield _Fact(e.SessionStarted("1", OWNER, title))
    for item in items:
        match item:
            case ("rename", name):
                yield _Fact(e.SessionRenamed(name))
            case ("wait", waited):
                yield _Fact(e.RateLimitWaited("openai", "gpt", "requests", waited))
            case ("batch", True):
                yield _Fact(e.BatchStarted("batch", OWNER, 2))
            case ("batch", False):
                yield _Fact(e.BatchEnded(1, 1))
            case ("forget",):
                yield _Fact(None)
            case ("turn", prompt, private, steps_, end):
                yield from _turn(prompt, private, steps_, end, scribe)


def _turn(prompt: str, private: bool, steps_: list[Any], end: Any, scribe: Scribe) -> Iterator[_Fact]:
    ids = {"turn_id": scribe.clock.short_id()}
    if private:
        yield _Fact(e.TurnStarted("direct", OWNER, private=True), ids)
    else:
        # Half of the prompts are a batch's.
        item = content_digest(prompt) if len(prompt) % 2 else None
        yield _Fact(e.TurnStarted("direct", OWNER, content_digest(prompt), item=item), ids, prompt)
    call = "none"
    for index, (kind, calls_, skipped, tools_, step_end) in enumerate(steps_):
        of_step = ids | {"step_id": scribe.clock.short_id()}
        if skipped:
            yield _Fact(e.StepSkipped(kind, "not needed", index), of_step)
            continue
        yield _Fact(e.StepStarted(kind, index), of_step)
        for call_ in calls_:
            call = scribe.clock.short_id()
            facts = list(_call(call_, of_step | {"call_id": call}))
            yield from facts
            if isinstance(facts[-1].data, e.RequestSent | e.ChunkReceived):
                return  # The process died here.
        for number, (name, arguments, end_) in enumerate(tools_):
            yield _Fact(e.ToolCalled(name, f"run {number}", content_digest(arguments)), of_step, arguments)
            if isinstance(end_, str):
                yield _Fact(e.ToolReturned(name, f"run {number}", 3, content_digest(end_)), of_step, end_)
            elif end_ is not None:
                yield _Fact(e.ToolFailed(name, f"run {number}", 3, end_), of_step)
        if step_end is None:
            return
        yield _Fact(step_end, of_step)
    if end is not None:
        yield _Fact(e.TurnCompleted(call, 2) if end == "completed" else end, ids)


def _call(call: tuple[list[Any], Any], ids: dict[str, str]) -> Iterator[_Fact]:
    failed, last = call
    for number, ((provider, model), chunks_, end) in enumerate([*failed, last], 1):
        if number > 1:
            yield _Fact(e.CallRetryScheduled(number - 1, 5, "busy"), ids)
            yield _Fact(e.RateLimitWaited(provider, model, "requests", 3000, None, 9, 4, OWNER), ids)
        message = (e.MessageRef("user"),)
        local = provider == "embedded"
        yield _Fact(e.RequestSent(number, provider, model, "asked for", message, OWNER, local=local), ids)
        for kind, texts_ in chunks_:
            yield _Fact(e.ChunkReceived(0, tuple(texts_), (7,) * len(texts_), kind, number), ids)
        if end is not None:
            fields = {name: getattr(end[1], name) for name in end[1].__struct_fields__}
            yield _Fact(type(end[1])(**fields | {"attempt": number}), ids)

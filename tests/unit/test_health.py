"""When a model that fails is left alone, who tries it again, and what its past calls tell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.folds import Folds
from support.stores import OWNER, Scribe, opened

from timeline import events as e
from timeline.llm.breaker import PROBE_TIME, Closed, Open, Probe, decide
from timeline.projections.blocks import Blocks
from timeline.projections.calls import Calls
from timeline.projections.health import (
    COOLDOWN,
    FAILURES,
    Health,
    HealthProjection,
    ModelStats,
    read_health,
    read_stats,
)

SECOND = 1_000_000


@pytest.fixture
def service() -> Service:
    return Service([Calls(), Blocks(), HealthProjection()])


class Service(Folds):
    """What a model answers, as the log tells it, at made-up times."""

    def send(self, *, owner: e.Owner = OWNER, local: bool = False, of: e.StepKind = "format") -> str:
        """A request goes out, of a step of that kind."""
        call = f"call {len(self.events)}"
        step = f"step of {call}"
        self.record(e.StepStarted(of), turn="turn", step=step)
        self.record(e.RequestSent(1, "openai", "gpt", "", (), owner, local=local), call=call, turn="turn", step=step)
        return call

    def end(self, call: str, outcome: str = "ok", output: int = 10) -> None:
        """It ends: `ok`, with an answer of so many tokens, or with an error of that kind."""
        data: e.EventData = e.CallFailed(1, e.ErrorInfo(outcome, "it failed"), SECOND)
        if outcome == "ok":
            usage = e.Usage(output=output)
            data = e.ResponseCompleted(1, "stop", usage, "provider", e.Cost("free"), SECOND, SECOND // 2)
        self.record(data, call=call)

    def calls(self, *outcomes: str, every: int = SECOND, of: e.StepKind = "format") -> None:
        """One call after the other."""
        for outcome in outcomes:
            call = self.send(of=of)
            self.now += every
            self.end(call, outcome)

    def circuit(self, *, alive: bool = True) -> Closed | Open | Probe:
        return decide(read_health(self.conn, "openai", "gpt", self.now, alive=lambda _: alive), self.now)

    def stats(self) -> Mapping[tuple[str, str], ModelStats]:
        return read_stats(self.conn)


def test_five_failures_in_a_row_open_the_circuit(service: Service) -> None:
    service.calls("server", "network", "timeout", "broken_stream")
    assert Closed() == service.circuit()

    service.calls("overloaded")

    assert Open(service.now + COOLDOWN, "5 failures in a row, the last one: overloaded") == service.circuit()


def test_a_success_between_them_keeps_it_closed(service: Service) -> None:
    service.calls(*["server"] * 4, "ok", *["server"] * 4)

    assert Closed() == service.circuit()


@pytest.mark.parametrize("kind", ["rate_limited", "authentication", "invalid_request", "quota_exhausted", "model"])
def test_what_is_not_the_services_fault_never_opens_it(service: Service, kind: str) -> None:
    service.calls(*[kind] * 12)

    assert Closed() == service.circuit()
    assert {} == service.stats()


@pytest.mark.parametrize("kind", ["broken_stream", "bad_response"])
def test_a_route_without_which_the_question_is_asked_never_opens_it(service: Service, kind: str) -> None:
    service.calls(*[kind] * 12, of="route")
    assert Closed() == service.circuit()

    # Nor do they count with others.
    service.calls(*[kind] * 4, of="format")
    assert Closed() == service.circuit()

    service.calls(kind, of="format")
    assert isinstance(service.circuit(), Open)


def test_a_route_that_finds_no_service_opens_it(service: Service) -> None:
    service.calls(*["server"] * 5, of="route")

    assert isinstance(service.circuit(), Open)


def test_a_probe_by_a_route_that_breaks_off_leaves_the_next_one_to_the_question(service: Service) -> None:
    service.calls(*["broken_stream"] * 5)
    service.now += COOLDOWN

    service.calls("broken_stream", of="route")

    assert Probe() == service.circuit()


def test_a_server_on_this_machine_that_is_not_there_never_opens_it(service: Service) -> None:
    for _ in range(6):
        service.end(service.send(local=True), "network")

    assert Closed() == service.circuit()


def test_more_than_half_of_ten_within_a_minute_open_it(service: Service) -> None:
    service.calls(*["server", "ok"] * 4, "server", "ok")
    assert Closed() == service.circuit()

    service.calls("server")

    assert Open(service.now + COOLDOWN, "too many failures within a minute, the last one: server") == service.circuit()


def test_failures_further_apart_than_a_minute_do_not(service: Service) -> None:
    service.calls(*["server", "server", "ok"] * 8, every=10 * SECOND)

    assert Closed() == service.circuit()


def test_after_thirty_seconds_exactly_one_tries_it(service: Service) -> None:
    service.calls(*["server"] * 5)
    service.now += COOLDOWN
    assert Probe() == service.circuit()

    service.send()

    assert Open(
        service.now + PROBE_TIME, "5 failures in a row, the last one: server; another request tries it just now"
    ) == (service.circuit())


def test_a_success_of_the_probe_closes_it_and_what_was_before_counts_no_more(service: Service) -> None:
    service.calls(*["server"] * 12)
    service.now += COOLDOWN
    service.calls("ok")
    assert Closed() == service.circuit()

    service.calls(*["server"] * 4)

    assert Closed() == service.circuit()


def test_a_failure_of_the_probe_keeps_it_open_for_as_long_again(service: Service) -> None:
    service.calls(*["server"] * 5)
    service.now += COOLDOWN
    service.calls("timeout")

    assert Open(service.now + COOLDOWN, "6 failures in a row, the last one: timeout") == service.circuit()


@pytest.mark.parametrize("outcome", ["ok", "server"])
def test_what_was_sent_before_it_opened_neither_closes_it_nor_keeps_it_open(service: Service, outcome: str) -> None:
    early = service.send()
    service.calls(*["server"] * 5)
    opened_at = service.now
    service.now += SECOND
    service.end(early, outcome)

    found = service.circuit()

    assert isinstance(found, Open)
    assert opened_at + COOLDOWN == found.until


def test_a_probe_whose_process_died_or_that_hangs_makes_way(service: Service) -> None:
    service.calls(*["server"] * 5)
    service.now += COOLDOWN
    service.send()

    assert Probe() == service.circuit(alive=False)
    service.now += PROBE_TIME
    assert Probe() == service.circuit()


def test_a_clock_that_was_set_back_does_not_keep_it_open(service: Service) -> None:
    service.calls(*["server"] * 5)
    service.now -= 3600 * SECOND

    assert Probe() == service.circuit()


def test_only_the_first_end_of_an_attempt_counts(service: Service) -> None:
    for _ in range(3):
        call = service.send()
        service.end(call, "server")
        service.end(call, "server")

    assert Closed() == service.circuit()
    assert 3 == (service.stats())["openai", "gpt"].calls


async def test_another_process_sees_it_open_at_once(tmp_path: Path) -> None:
    scribe, path = Scribe(), tmp_path / "timeline.db"
    async with opened(path) as one, opened(path) as other:
        for number in range(5):
            sent = e.RequestSent(1, "openai", "gpt", "", (), OWNER)
            failed = e.CallFailed(1, e.ErrorInfo("server", "it failed"), SECOND)
            await one.append([scribe.event("a", data, call_id=f"call {number}") for data in (sent, failed)])

        found = await other.query(lambda conn: read_health(conn, "openai", "gpt", scribe.clock.now()))

    assert (5, "server") == (found.in_a_row, found.reason)
    assert isinstance(decide(found, scribe.clock.now()), Open)


# ------------------------------------------------------------------ the decision alone


@given(
    st.builds(
        Health,
        st.integers(0, 99),
        st.none() | st.integers(0, 10**9),
        st.sampled_from(sorted(FAILURES)),
        st.none() | st.integers(0, 10**9),
    ),
    st.integers(0, 10**9),
)
def test_whoever_is_kept_waiting_is_let_through_later(health: Health, now: int) -> None:
    decision = decide(health, now)

    if isinstance(decision, Open):
        assert now < decision.until <= now + COOLDOWN + PROBE_TIME + 10**9
        later = decide(health, max(decision.until, 2 * 10**9))
        assert Probe() == later


# ------------------------------------------------------------------ what past calls tell


async def test_stats_are_averages_of_what_was_seen(tmp_path: Path) -> None:
    scribe = Scribe()
    usage = e.Usage(input=5, output=100)
    async with opened(tmp_path / "timeline.db", synchronous="normal") as store:
        await store.append([scribe.session("a")])
        await store.append(scribe.turn("a", usage=usage, cost=e.Cost("priced", 1000)))
        await store.append(scribe.turn("a", usage=usage, cost=e.Cost("priced", 2001)))
        await store.append(scribe.turn("a", usage=usage, cost=e.Cost("unpriced", 5000)))

        stats = await store.query(read_stats)

    assert {("openai", "gpt"): ModelStats(3, 0.0, 0.3, 58.823, 100, 1500)} == stats


def test_the_error_rate_follows_the_last_calls(service: Service) -> None:
    service.calls(*["ok"] * 3, *["server"] * 20)
    high = (service.stats())["openai", "gpt"].error_rate

    service.calls(*["ok"] * 20)

    low = (service.stats())["openai", "gpt"].error_rate
    assert high > 0.9
    assert low < 0.1


def test_how_long_an_answer_is_comes_from_answers_alone(service: Service) -> None:
    of: list[e.StepKind] = ["route", "tool", "format", "route", "tool", "answer"]
    for kind in of:
        service.end(service.send(of=kind), output=400 if kind in ("format", "answer") else 20)

    stats = service.stats()["openai", "gpt"]
    assert (6, 400) == (stats.calls, stats.output_tokens)

"""What the log tells of limits and of who waits for them."""

from __future__ import annotations

import pytest
from support.folds import Folds
from support.stores import OWNER

from timeline import events as e
from timeline.projections.calls import Calls
from timeline.projections.limit_facts import Configured, LimitFacts, Sent, Told, Waiter, known_limits, read_limits
from timeline.projections.limits import Limits
from timeline.projections.usage import UsageProjection

SECOND = 1_000_000
MINUTE = 60 * SECOND
UNLIMITED = Configured()
OTHER = e.Owner("machine", 4712, 1.5)


class Log(Folds):
    """Calls of one model at made-up times."""

    def send(self, call: str, *, key: str | None = None, model: str = "gpt", tokens: int = 0, number: int = 1) -> None:
        sent = e.RequestSent(number, "openai", model, "", (), OWNER, reserved_tokens=tokens, key=key)
        self.record(sent, call=call)

    def end(self, call: str, *limits: e.RateLimit, took: int = SECOND, usage: e.Usage | None = None) -> None:
        done = e.ResponseCompleted(
            1, "stop", usage or e.Usage(), "provider", e.Cost("free"), took, took, rate_limits=limits
        )
        self.record(done, call=call)

    def refuse(self, call: str, *limits: e.RateLimit, after: float | None = None, kind: str = "rate_limited") -> None:
        error = e.ErrorInfo(kind, "busy", 429, None, True, after)
        self.record(e.CallFailed(1, error, SECOND, rate_limits=limits), call=call)

    def ask(self, call: str, *limits: e.RateLimit, took: int = SECOND) -> None:
        """A whole call."""
        self.send(call)
        self.now += took
        self.end(call, *limits, took=took)

    def wait(
        self, call: str, seconds: int, *, tokens: int = 0, owner: e.Owner | None = None, model: str = "gpt"
    ) -> int:
        waited = e.RateLimitWaited("openai", model, "requests", seconds * SECOND, tokens=tokens, owner=owner)
        return (
            self.record(waited, call=call, turn="turn of " + call, step="step of " + call).recorded_at
            + seconds * SECOND
        )

    def facts(
        self, call: str | None = None, *, key: str | None = None, configured: Configured = UNLIMITED
    ) -> LimitFacts:
        return read_limits(
            self.conn, "openai", "gpt", key, configured, self.now, call_id=call, alive=lambda owner: owner != OTHER
        )

    def told(self, name: str = "requests") -> Told:
        return next(limit for limit in self.facts().told if limit.name == name)

    def requests(self, left: int, seconds: float, limit: int = 10) -> e.RateLimit:
        return e.RateLimit("requests", limit, left, self.now + round(seconds * SECOND))


@pytest.fixture
def log() -> Log:
    return Log([Calls(), UsageProjection(), Limits()])


# ------------------------------------------------------------------ reports


def test_the_newest_report_counts_with_what_was_sent_since(log: Log) -> None:
    log.send("a")
    log.now += SECOND
    log.end("a", log.requests(7, 60))
    log.now += 5 * SECOND
    log.send("b", tokens=100)

    told = log.told()

    assert (10, 7, log.now + 55 * SECOND) == (told.limit, told.remaining, told.reset_at)
    assert (1, 100) == (told.since.requests, told.since.tokens)


def test_what_was_on_its_way_when_the_report_was_made_may_not_be_in_it(log: Log) -> None:
    log.send("a")
    log.now += SECOND // 10
    log.send("b")
    log.now += SECOND
    log.end("b", log.requests(7, 60))

    assert 1 == log.told().since.requests


def test_what_has_begun_to_answer_before_is_in_the_report(log: Log) -> None:
    log.send("a")
    log.now += SECOND // 10
    log.record(e.ChunkReceived(0, ("Be",), (9,)), call="a")
    log.ask("b", log.requests(7, 60))

    assert 0 == log.told().since.requests


def test_what_had_ended_before_is_in_the_report(log: Log) -> None:
    log.ask("a", took=SECOND // 10)
    log.ask("b", log.requests(7, 60))

    assert 0 == log.told().since.requests


def test_a_report_of_an_older_request_that_comes_late_changes_nothing(log: Log) -> None:
    log.send("old")
    log.now += 5 * SECOND
    log.ask("new", log.requests(3, 60))
    log.end("old", log.requests(9, 60), took=5 * SECOND)

    assert 3 == log.told().remaining


def test_a_report_from_before_the_clock_was_set_back_gives_way(log: Log) -> None:
    log.ask("future", log.requests(3, 60))
    log.now -= 3600 * SECOND
    assert () == log.facts().told

    log.ask("now", log.requests(9, 60))

    assert 9 == log.told().remaining


def test_keys_models_and_names_have_limits_of_their_own(log: Log) -> None:
    log.send("a", key="0f1e")
    log.end("a", log.requests(3, 60), e.RateLimit("tokens", 100, 50))
    log.send("b", model="mini")
    log.end("b", log.requests(4, 60))

    known = {(limit.model, limit.key, limit.name, limit.remaining) for limit in known_limits(log.conn)}

    assert {("gpt", "0f1e", "requests", 3), ("gpt", "0f1e", "tokens", 50), ("mini", None, "requests", 4)} == known
    assert ["requests", "tokens"] == [limit.name for limit in log.facts(key="0f1e").told]
    assert () == log.facts().told


def test_a_limit_without_its_reset_is_forgotten_after_a_minute(log: Log) -> None:
    log.ask("a", e.RateLimit("requests", 10, 0))

    assert log.now + MINUTE == log.told().reset_at


def test_the_window_is_the_longest_span_from_a_report_to_its_reset(log: Log) -> None:
    for left, seconds in ((9, 20), (8, 46), (7, 5)):
        log.ask(f"call {left}", log.requests(left, seconds))

    assert 45 * SECOND == log.told().window_us


def test_a_window_that_was_nearly_seen_to_its_end_is_a_round_one(log: Log) -> None:
    log.ask("a", log.requests(9, 53))

    assert MINUTE == log.told().window_us


def test_a_limit_that_refills_steadily_is_recognised(log: Log) -> None:
    for used in (10, 20, 40, 80):
        assert "gradual" != log.told().shape if used > 10 else True
        log.ask(f"call {used}", e.RateLimit("requests", 100, 100 - used, log.now + SECOND + used * SECOND * 6 // 10))

    assert "gradual" == log.told().shape
    assert MINUTE == log.told().refill_us


def test_a_window_that_ends_at_once_is_no_steady_refill(log: Log) -> None:
    end = log.now + MINUTE
    for used in (1, 2, 4, 8, 16):
        log.ask(f"call {used}", e.RateLimit("requests", 100, 100 - used, end))

    assert "rolling" == log.told().shape


def test_a_limit_that_forgets_at_its_reset_is_recognised(log: Log) -> None:
    end = log.now + 10 * SECOND
    log.ask("early", e.RateLimit("requests", 5, 4, end))
    log.now = end - 2 * SECOND
    for left in (3, 2):
        log.ask(f"late {left}", e.RateLimit("requests", 5, left, end), took=SECOND // 2)
    log.now = end + SECOND
    assert "rolling" == log.told().shape

    log.ask("next", e.RateLimit("requests", 5, 4, end + 10 * SECOND))

    assert "resets" == log.told().shape


# ------------------------------------------------------------------ refusals


def test_a_refusal_holds_back_for_as_long_as_it_says(log: Log) -> None:
    log.send("a")
    log.refuse("a", after=7.5)

    refused = log.facts().refused

    assert refused is not None
    assert log.now + 7_500_000 == refused.until


def test_a_refusal_that_says_nothing_holds_back_for_a_moment(log: Log) -> None:
    log.send("a")
    log.refuse("a")

    refused = log.facts().refused

    assert refused is not None
    assert log.now + SECOND == refused.until


def test_a_refusal_that_tells_its_limit_holds_back_until_the_reset_alone(log: Log) -> None:
    log.send("a")
    log.refuse("a", log.requests(0, 3))

    assert log.facts().refused is None
    assert log.now + 3 * SECOND == log.told().reset_at


def test_a_refusal_without_headers_tells_by_what_was_taken_how_much_may_go(log: Log) -> None:
    for number in range(6):
        log.send(f"call {number}")
    for number in range(4):
        log.end(f"call {number}")
    for number in (4, 5):
        log.refuse(f"call {number}", after=2)

    refused = log.facts().refused

    assert refused is not None
    assert (4, 2 * SECOND) == (refused.limit, refused.window_us)


def test_a_refusal_of_what_the_last_one_allowed_makes_the_window_longer(log: Log) -> None:
    for number in range(4):
        log.send(f"call {number}")
        (log.end if number < 3 else log.refuse)(f"call {number}", **({} if number < 3 else {"after": 1}))  # type: ignore[arg-type]
    log.now += 2 * SECOND
    for number in range(4, 7):
        log.send(f"call {number}")
    log.refuse("call 6", after=1)

    refused = log.facts().refused

    assert refused is not None
    assert (2, 3 * SECOND // 2) == (refused.limit, refused.window_us)


def test_where_our_own_requests_explain_the_report_counting_them_is_enough(log: Log) -> None:
    for number in range(3):
        log.now += MINUTE
        log.ask(f"call {number}", log.requests(9, 60))
    assert log.told().ours

    log.ask("others came", log.requests(3, 60))

    assert not log.told().ours


def test_after_a_refusal_its_success_is_counted(log: Log) -> None:
    log.send("a")
    log.refuse("a", after=2)
    log.now += 2 * SECOND
    log.ask("b")
    log.send("c")

    refused = log.facts().refused

    assert refused is not None
    assert (1, 1, True) == (refused.running, refused.completed, refused.careful)


@pytest.mark.parametrize(("kind", "after", "holds"), [("overloaded", 3, True), ("overloaded", None, False), ("server", 3, True), ("quota_exhausted", 3, False), ("network", None, False)])  # fmt: skip
def test_which_failures_hold_others_back(log: Log, kind: str, after: float | None, holds: bool) -> None:
    log.send("a")
    log.refuse("a", after=after, kind=kind)

    assert holds == (log.facts().refused is not None)


def test_a_refusal_is_forgotten_after_a_minute(log: Log) -> None:
    log.send("a")
    log.refuse("a", after=2)
    log.now += MINUTE

    assert log.facts().refused is None


# ------------------------------------------------------------------ the queue


def test_waiters_go_in_the_order_in_which_they_came(log: Log) -> None:
    first, second = log.wait("a", 3, tokens=10), log.wait("b", 1, tokens=20, model="mini")

    assert (Waiter(first, 10), Waiter(second, 20, same_model=False)) == log.facts().ahead
    assert (Waiter(first, 10),) == log.facts("b").ahead
    assert () == log.facts("a").ahead


def test_who_waits_again_keeps_its_place(log: Log) -> None:
    began = log.now
    log.wait("a", 3)
    log.wait("b", 1)
    log.now += SECOND
    log.wait("a", 9)

    assert () == log.facts("a").ahead
    assert began == log.facts("a").waiting_since
    assert 1 == len(log.facts("b").ahead)


def test_who_waits_for_another_model_leaves_its_place(log: Log) -> None:
    log.wait("a", 3)
    log.wait("b", 1)
    log.wait("a", 3, model="mini")

    assert () == log.facts("b").ahead


@pytest.mark.parametrize(
    ("data", "of"),
    [
        (e.RequestSent(1, "openai", "gpt", "", (), OWNER), "call"),
        (e.CallRerouted("openai:gpt", "groq:llama", "rate limit"), "call"),
        (e.CallCacheHit("other"), "call"),
        (e.CallInterrupted(1, "sigint", e.Usage()), "call"),
        (e.StepFailed(e.ErrorInfo("rate_limited", "busy")), "step"),
        (e.TurnInterrupted("sigint"), "turn"),
        (e.TurnFailed(e.ErrorInfo("rate_limited", "busy"), 1), "turn"),
    ],
)
def test_a_place_ends_with_what_it_was_for(log: Log, data: e.EventData, of: str) -> None:
    log.wait("a", 3)
    log.wait("b", 3)
    ids = {"call": "a", "turn": "turn of a", "step": "step of a"}

    log.record(data, **{of: ids[of]})

    assert 1 == len(log.facts().ahead)


def test_the_place_of_a_process_that_died_lapses_at_once_and_any_other_soon(log: Log) -> None:
    log.wait("dead", 9, owner=OTHER)
    log.wait("alive", 1, owner=OWNER)
    assert 1 == len(log.facts().ahead)

    log.now += 4 * SECOND

    assert () == log.facts().ahead


def test_lapsed_places_do_not_pile_up(log: Log) -> None:
    for number in range(50):
        log.wait(f"call {number}", 1)
        log.now += 10 * SECOND

    assert 8 > len(log.conn.exec_driver_sql("SELECT * FROM waits").all())


def test_a_call_that_will_be_made_again_has_a_place(log: Log) -> None:
    log.send("a", tokens=30)
    log.refuse("a", after=2)
    log.record(e.CallRetryScheduled(1, 2 * SECOND, "busy"), call="a")

    assert (Waiter(log.now + 2 * SECOND, 30),) == log.facts().ahead

    log.send("a", number=2)
    assert () == log.facts().ahead


# ------------------------------------------------------------------ configured limits


def test_what_was_sent_to_any_model_of_the_provider_counts_for_its_minute(log: Log) -> None:
    log.send("old")
    log.now += 2 * MINUTE
    log.send("a", model="mini", tokens=500)
    log.end("a", usage=e.Usage(input=20, output=3))
    log.now += SECOND
    log.send("b", tokens=70)
    log.send("other key", key="0f1e")

    sent = log.facts(configured=Configured(rpm=9)).sent_to_provider

    assert [(1, 23), (1, 70)] == [(item.requests, item.tokens) for item in sent]
    assert () == log.facts().sent_to_provider


def test_many_requests_are_told_as_few(log: Log) -> None:
    for number in range(600):
        log.send(f"call {number}")
        log.now += SECOND // 10

    sent = log.facts(configured=Configured(rpm=1000)).sent_to_provider

    assert 600 == sum(item.requests for item in sent)
    assert len(sent) < 250
    assert isinstance(sent[0], Sent)


def test_only_what_living_processes_run_counts_as_running(log: Log) -> None:
    log.send("a")
    log.send("b")
    log.record(e.RequestSent(1, "openai", "mini", "", (), OTHER), call="c")
    log.end("b")

    assert 1 == log.facts(configured=Configured(max_concurrent=2)).running

"""When one more request may be sent: with made-up facts, and with made-up clients at made-up servers; no clock."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.limited import Limiter, World
from support.stores import NOON

from timeline.llm.limiter import Free, Needed, Wait, decide
from timeline.projections.limit_facts import Configured, LimitFacts, Refused, Sent, Told, Waiter

SECOND = 1_000_000
MINUTE = 60 * SECOND
NOW = NOON


def told(name: str = "requests", **more: object) -> Told:
    fields: dict[str, object] = {
        "limit": 5,
        "remaining": 0,
        "reset_at": NOW + 2 * SECOND,
        "told_at": NOW,
        "window_us": 2 * SECOND,
    }
    return Told(name, **fields | more)  # type: ignore[arg-type]


def waits(facts: LimitFacts, needed: Needed | None = None) -> tuple[float, str] | None:
    """Seconds to wait and for what; None if it may go."""
    decision = decide(facts, needed or Needed(), NOW)
    return ((decision.until_us - NOW) / SECOND, decision.limit) if isinstance(decision, Wait) else None


# ------------------------------------------------------------------ what the provider told


def test_nothing_known_holds_nothing_back() -> None:
    assert Free() == decide(LimitFacts(), Needed(), NOW)


def test_what_is_left_may_be_used_before_the_reset() -> None:
    assert waits(LimitFacts(told=(told(remaining=1),))) is None
    assert (2.02, "requests") == waits(LimitFacts(told=(told(remaining=0),)))


def test_what_was_sent_since_the_report_is_no_more_left() -> None:
    assert (2.02, "requests") == waits(LimitFacts(told=(told(remaining=2, since=Sent(NOW, 2)),)))


def test_who_waited_before_goes_first() -> None:
    one = LimitFacts(told=(told(remaining=2),), ahead=(Waiter(NOW),))
    two = LimitFacts(told=(told(remaining=2),), ahead=(Waiter(NOW), Waiter(NOW)))

    assert waits(one) is None
    assert (2.02, "requests") == waits(two)


def test_who_waits_for_another_model_is_not_in_the_way() -> None:
    ahead = (Waiter(NOW, same_model=False),) * 9

    assert waits(LimitFacts(told=(told(remaining=1),), ahead=ahead)) is None


def test_after_the_reset_the_limit_is_full_again_but_for_what_was_sent_since() -> None:
    past = told(reset_at=NOW - SECOND, shape="resets")
    before, after = Sent(NOW - 3 * SECOND // 2, 5), Sent(NOW - SECOND // 2, 5)

    assert waits(LimitFacts(told=(past,), sent=(before,))) is None
    assert (1.5, "requests") == waits(LimitFacts(told=(past,), sent=(before, after)))


def test_where_no_reset_was_seen_yet_what_was_sent_counts_until_its_window_has_passed() -> None:
    past = told(reset_at=NOW - SECOND)

    assert (0.5, "requests") == waits(LimitFacts(told=(past,), sent=(Sent(NOW - 3 * SECOND // 2, 5),)))


def test_waiters_after_a_reset_are_spread_over_its_windows() -> None:
    ahead = (Waiter(NOW + 2_020_000),) * 5

    assert (4.02, "requests") == waits(LimitFacts(told=(told(),), ahead=ahead))


def test_where_only_we_use_it_what_was_sent_a_window_ago_is_free_again_before_the_reset() -> None:
    sent = (Sent(NOW - 3 * SECOND // 2, 1), Sent(NOW, 4))

    assert (0.5, "requests") == waits(LimitFacts(told=(told(ours=True),), sent=sent))
    assert (2.02, "requests") == waits(LimitFacts(told=(told(),), sent=sent[:1]))


def test_of_a_limit_that_refills_steadily_only_the_missing_part_is_waited_for() -> None:
    bucket = told("tokens", limit=6000, remaining=100, reset_at=NOW + MINUTE, window_us=MINUTE, refill_us=MINUTE, shape="gradual")  # fmt: skip

    assert (4.0, "tokens") == waits(LimitFacts(told=(bucket,)), Needed(tokens=500))


@pytest.mark.parametrize(
    ("name", "needed", "free"),
    [
        ("tokens", Needed(tokens=101), False),
        ("tokens", Needed(tokens=100), True),
        ("input-tokens", Needed(tokens=500, input_tokens=100), True),
        ("input-tokens", Needed(tokens=500, input_tokens=101), False),
        ("output-tokens", Needed(tokens=201, input_tokens=101), True),
        ("output-tokens", Needed(tokens=202, input_tokens=101), False),
        ("images", Needed(tokens=10**9), True),
    ],
)
def test_each_limit_counts_what_its_name_says(name: str, needed: Needed, free: bool) -> None:
    assert free == (waits(LimitFacts(told=(told(name, limit=1000, remaining=100),)), needed) is None)


def test_a_request_larger_than_the_whole_limit_goes_once_nothing_else_is_in_the_way() -> None:
    full = told("tokens", limit=100, remaining=100)
    used = told("tokens", limit=100, remaining=99)

    assert waits(LimitFacts(told=(full,)), Needed(tokens=5000)) is None
    assert (2.02, "tokens") == waits(LimitFacts(told=(used,)), Needed(tokens=5000))


def test_of_several_limits_the_last_one_to_be_free_counts() -> None:
    facts = LimitFacts(
        told=(told(), told("tokens", reset_at=NOW + 9 * SECOND)), configured=Configured(rpm=1), sent_to_provider=(Sent(NOW - MINUTE + SECOND),)
    )  # fmt: skip

    assert (9.02, "tokens") == waits(facts, Needed(tokens=1))


# ------------------------------------------------------------------ refusals


def test_after_a_refusal_nobody_goes_before_its_wait_is_over() -> None:
    hold = Refused(NOW + 3 * SECOND, None, 3 * SECOND, careful=False)

    assert (3.0, "retry-after") == waits(LimitFacts(refused=hold))


def test_where_only_a_refusal_is_known_they_go_one_by_one_at_first() -> None:
    hold = Refused(NOW + 3 * SECOND, None, 3 * SECOND)
    moments = [waits(LimitFacts(refused=hold, ahead=(Waiter(NOW + 3 * SECOND),) * place)) for place in range(3)]

    assert [(3.0, "retry-after"), (3.25, "retry-after"), (3.5, "retry-after")] == moments


def test_each_success_after_a_refusal_lets_more_go() -> None:
    def after(running: int, completed: int) -> LimitFacts:
        return LimitFacts(refused=Refused(NOW - SECOND, None, 3 * SECOND, running, completed))

    assert waits(after(0, 0)) is None
    assert waits(after(1, 0)) is not None
    assert waits(after(1, 1)) is None
    assert waits(after(2, 1)) is not None


def test_after_a_refusal_no_more_go_in_a_window_than_it_had_taken() -> None:
    past = Refused(NOW - SECOND, 2, 2 * SECOND)

    assert waits(LimitFacts(refused=past, sent=(Sent(NOW - SECOND),))) is None
    assert (1.0, "retry-after") == waits(LimitFacts(refused=past, sent=(Sent(NOW - SECOND, 2),)))


# ------------------------------------------------------------------ configured limits


def test_no_more_run_at_a_time_than_configured() -> None:
    configured = Configured(max_concurrent=2)

    assert waits(LimitFacts(running=1, configured=configured)) is None
    assert (0.25, "max_concurrent") == waits(LimitFacts(running=2, configured=configured))
    assert (0.255, "max_concurrent") == waits(LimitFacts(running=1, configured=configured, ahead=(Waiter(NOW),)))


def test_who_waits_for_a_place_for_long_asks_less_often() -> None:
    facts = LimitFacts(running=1, configured=Configured(max_concurrent=1), waiting_since=NOW - 4 * SECOND)

    assert (1.0, "max_concurrent") == waits(facts)


class Queue:
    """Requests that arrive at the given moments, each decided as it arrives and whenever its wait is over."""

    def __init__(self, arrivals: Sequence[tuple[int, int]], configured: Configured) -> None:
        self.sent: list[tuple[int, int, int]] = []  # moment, tokens, who
        self.decisions = [0] * len(arrivals)
        self._configured = configured
        self._waiting: dict[int, int] = {}
        agenda = [(NOON + moment, number, tokens) for number, (moment, tokens) in enumerate(arrivals)]
        heapq.heapify(agenda)
        self._tokens = [tokens for _, tokens in arrivals]
        while agenda:
            now, number, tokens = heapq.heappop(agenda)
            self.decisions[number] += 1
            decision = decide(self._facts(number), Needed(tokens=tokens), now)
            if isinstance(decision, Free):
                self._waiting.pop(number, None)
                self.sent.append((now, tokens, number))
            else:
                assert decision.until_us > now
                self._waiting[number] = decision.until_us
                heapq.heappush(agenda, (decision.until_us, number, tokens))

    def _facts(self, number: int) -> LimitFacts:
        joined = list(self._waiting)
        before = joined[: joined.index(number)] if number in self._waiting else joined
        return LimitFacts(
            sent_to_provider=tuple(Sent(at, 1, tokens) for at, tokens, _ in self.sent),
            configured=self._configured,
            ahead=tuple(Waiter(self._waiting[other], self._tokens[other]) for other in before),
        )


moments = st.integers(0, 200 * SECOND)


@settings(max_examples=60)
@given(st.lists(moments, min_size=1, max_size=40), st.integers(1, 6))
def test_no_window_ever_sees_more_requests_than_allowed_and_all_go_in_their_order(
    arrivals: list[int], rpm: int
) -> None:
    queue = Queue([(moment, 0) for moment in sorted(arrivals)], Configured(rpm=rpm))

    assert list(range(len(arrivals))) == [number for _, _, number in queue.sent]
    for first, last in zip(queue.sent, queue.sent[rpm:], strict=False):
        assert last[0] - first[0] >= MINUTE
    assert max(queue.decisions) <= 2


@settings(max_examples=60)
@given(st.lists(st.tuples(moments, st.integers(1, 300)), min_size=1, max_size=30), st.integers(50, 400))
def test_no_window_ever_sees_more_tokens_than_allowed_but_for_one_that_is_larger_than_all(
    arrivals: list[tuple[int, int]], tpm: int
) -> None:
    queue = Queue(sorted(arrivals), Configured(tpm=tpm))

    assert len(arrivals) == len(queue.sent)
    for at, _, _ in queue.sent:
        window = [tokens for moment, tokens, _ in queue.sent if at - MINUTE < moment <= at]
        assert sum(window) <= tpm or len(window) == 1
    assert max(queue.decisions) <= 2


# ------------------------------------------------------------------ clients and servers


LIMITERS = {
    "fixed windows": Limiter(kind="fixed"),
    "windows that begin with a request": Limiter(kind="first"),
    "a sliding window, reset when full": Limiter(kind="sliding"),
    "a sliding window, reset when the next is free": Limiter(kind="sliding", reset="next"),
    "a bucket": Limiter(kind="bucket"),
    "fixed windows, untold": Limiter(kind="fixed", told=False),
    "a sliding window, untold": Limiter(kind="sliding", told=False),
}


@pytest.mark.parametrize(("name", "service"), list(zip(LIMITERS, itertools.cycle([60_000, 600_000]), strict=False)))
def test_eight_clients_are_refused_in_the_first_window_alone_and_lose_little_time(name: str, service: int) -> None:
    made = LIMITERS[name]
    server = Limiter(made.limit, made.window, made.kind, made.reset, made.told)
    world = World(server, seed=7, service=service, commit=20_000 if service > 100_000 else 300_000)
    for number in range(8):
        world.client(5, start=number * 1000)

    took = world.run()

    assert 40 == len(server.taken)
    assert [] == [at - NOON for at in server.refused if at > NOON + server.window]
    assert took <= 1.5 * (40 // server.limit - 1) * server.window

"""What follows from a failure: pure rules, told from made-up failures alone."""

from __future__ import annotations

from typing import Any

import pytest

from timeline import errors
from timeline.config import Retry
from timeline.errors import (
    AuthenticationFailed,
    BadResponse,
    BrokenStream,
    ConfigError,
    ContentRefused,
    ContextTooLong,
    InvalidRequest,
    MissingKey,
    ModelNotFound,
    ModelUnavailable,
    NetworkError,
    Overloaded,
    PermissionDenied,
    PluginError,
    ProviderError,
    ProviderTimeout,
    QuotaExhausted,
    RateLimited,
    ServerError,
    TimelineError,
)
from timeline.llm.retry import Again, GiveUp, Next, Step, after_failure

POLICY = Retry(max_attempts=4, base_delay=0.5, max_delay=30)


def after(error: TimelineError, *, tries: int = 1, chance: float = 0.5, policy: Retry = POLICY, **more: Any) -> Step:
    return after_failure(error, tries=tries, left_seconds=more.pop("left", 120), policy=policy, chance=chance, **more)


def delay(error: TimelineError, **more: Any) -> float:
    step = after(error, **more)
    assert isinstance(step, Again), step
    return step.delay_seconds


RULES: dict[type[ProviderError], type[Step]] = {
    AuthenticationFailed: Next,
    PermissionDenied: Next,
    ModelNotFound: Next,
    QuotaExhausted: Next,
    InvalidRequest: GiveUp,
    ContextTooLong: GiveUp,
    ContentRefused: GiveUp,
    RateLimited: Again,
    Overloaded: Again,
    ServerError: Again,
    NetworkError: Again,
    ProviderTimeout: Again,
    BrokenStream: Again,
    BadResponse: Again,
    ProviderError: Next,
}


def test_there_is_a_rule_for_every_way_in_which_a_provider_fails() -> None:
    known = [getattr(errors, name) for name in errors.__all__]

    kinds = {kind for kind in known if isinstance(kind, type) and issubclass(kind, ProviderError)}
    assert kinds | {ProviderError} == set(RULES)


@pytest.mark.parametrize("kind", RULES, ids=lambda kind: kind.kind)
def test_what_a_wait_may_mend_is_tried_again_and_what_it_can_t_is_not(kind: type[ProviderError]) -> None:
    assert RULES[kind] is type(after(kind("it failed")))


@pytest.mark.parametrize(
    "kind", [AuthenticationFailed, PermissionDenied, QuotaExhausted, InvalidRequest, ContentRefused]
)
def test_no_header_makes_a_bad_key_an_empty_purse_or_a_bad_request_be_tried_again(kind: type[ProviderError]) -> None:
    assert not isinstance(after(kind("no", retryable=True, retry_after=1)), Again)


def test_a_header_decides_where_the_error_alone_leaves_it_open() -> None:
    assert Next("server") == after(ServerError("no", retryable=False))
    assert isinstance(after(ModelNotFound("not yet", retryable=True)), Again)


@pytest.mark.parametrize(
    "error",
    [MissingKey("no key"), ModelUnavailable("no file"), PluginError("out of contract")],
    ids=lambda error: error.kind,
)
def test_a_candidate_that_can_t_be_asked_at_all_leaves_it_to_the_next(error: TimelineError) -> None:
    assert Next(error.kind) == after(error)


def test_what_the_user_got_wrong_is_not_for_another_model() -> None:
    assert GiveUp("config") == after(ConfigError("wrong"))


# ------------------------------------------------------------------ how long


def test_waits_are_anything_up_to_a_ceiling_that_doubles_to_its_own() -> None:
    policy = Retry(max_attempts=100, base_delay=0.5, max_delay=3)
    ceilings = [0.5, 1, 2, 3, 3, 3]

    assert ceilings == [delay(ServerError("no"), tries=n, chance=1, policy=policy) for n in range(1, 7)]
    assert [0] * 6 == [delay(ServerError("no"), tries=n, chance=0, policy=policy) for n in range(1, 7)]
    # A number that no float can hold comes of no count.
    assert 3 == delay(ServerError("no"), tries=99, chance=1, policy=policy)


@pytest.mark.parametrize("asked", [0.02, 1.5, 40, 100])
def test_what_the_provider_asked_to_wait_is_waited_whole_and_little_more(asked: float) -> None:
    error = RateLimited("slow down", retry_after=asked)

    assert asked == delay(error, chance=0)
    assert asked < delay(error, chance=1) <= asked + min(POLICY.base_delay, asked / 10)
    assert f"rate_limited, told to wait {asked:g}s" == after(error).reason


def test_to_be_told_to_wait_no_time_is_no_leave_to_ask_without_a_pause() -> None:
    error = RateLimited("slow down", retry_after=0)

    assert 0.5 == delay(error, chance=1)
    assert 1 == delay(error, tries=2, chance=1)


def test_a_wait_beyond_the_deadline_is_for_the_next_candidate_at_once() -> None:
    told = after(RateLimited("slow down", retry_after=60), left=59.5)

    assert Next("rate_limited, told to wait 60s: longer than the 60s that are left") == told
    assert isinstance(after(RateLimited("slow down", retry_after=60), left=61), Again)
    assert isinstance(after(ServerError("no"), left=0.1), Next)
    assert isinstance(after(ServerError("no"), left=0), Next)


def test_without_a_deadline_any_wait_is_waited() -> None:
    assert 9000 == delay(RateLimited("slow down", retry_after=9000), chance=0, left=None)


@pytest.mark.parametrize("error", [BrokenStream("it broke off"), BadResponse("no JSON")])
def test_who_can_do_without_an_answer_is_asked_once_more_at_most(error: TimelineError) -> None:
    assert isinstance(after(error, tries=1, dispensable=True), Again)
    assert isinstance(after(error, tries=2, dispensable=True), Next)
    assert isinstance(after(error, tries=1, dispensable=True, policy=Retry(max_attempts=1)), Next)
    assert isinstance(after(error, tries=3), Again)


def test_nobody_can_do_without_a_service_that_is_there() -> None:
    assert isinstance(after(ServerError("down"), tries=3, dispensable=True), Again)


def test_attempts_at_one_candidate_are_counted() -> None:
    assert isinstance(after(ServerError("no"), tries=3), Again)
    assert Next("server, 4 attempts") == after(ServerError("no"), tries=4)
    assert Next("server, 1 attempt") == after(ServerError("no"), policy=Retry(max_attempts=1))


# ------------------------------------------------------------------ where else


@pytest.mark.parametrize(
    ("contexts", "step"),
    [
        ((8000, [4000, 32_000]), Next),
        ((8000, [4000, 8000]), GiveUp),
        ((8000, [None]), Next),
        ((None, [4000]), Next),
        ((8000, []), GiveUp),
    ],
)
def test_a_prompt_that_is_too_long_goes_only_where_there_may_be_more_room(contexts: Any, step: type[Step]) -> None:
    assert step is type(after(ContextTooLong("too long"), contexts=contexts))


def test_content_that_was_refused_goes_elsewhere_only_where_that_is_wanted() -> None:
    assert GiveUp("the content was refused") == after(ContentRefused("no"))
    assert Next("the content was refused") == after(ContentRefused("no"), on_refusal=True)

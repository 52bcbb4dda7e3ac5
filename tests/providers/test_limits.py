"""Waits and limits in every notation that headers use."""

from __future__ import annotations

import pytest

from timeline.events import RateLimit
from timeline.providers.limits import instant, rate_limits, request_id, retry_after, seconds

NOW = 1_700_000_000_000_000  # Tue, 14 Nov 2023 22:13:20 GMT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12ms", 0.012),
        ("1.2s", 1.2),
        ("6m0s", 360.0),
        ("1h2m3s", 3723.0),
        ("2m59.56s", 179.56),
        ("1d", 86400.0),
        ("500us", 0.0005),
        ("500µs", 0.0005),
        ("0s", 0.0),
        ("7", 7.0),
        (" 0.5 ", 0.5),
        ("-3", 0.0),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("1s later", None),
    ],
)
def test_durations(text, expected):
    assert pytest.approx(expected) == seconds(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6m0s", NOW + 360_000_000),
        ("30", NOW + 30_000_000),
        ("2023-11-14T22:14:20Z", NOW + 60_000_000),
        ("2023-11-14T23:14:20.5+01:00", NOW + 60_500_000),
        ("Tue, 14 Nov 2023 22:14:20 GMT", NOW + 60_000_000),
        ("1700000060", NOW + 60_000_000),
        ("1700000060000", NOW + 60_000_000),
        ("whenever", None),
    ],
)
def test_moments(text, expected):
    assert expected == instant(text, NOW)


@pytest.mark.parametrize(
    ("headers", "message", "expected"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, "", 1.5),
        ({"retry-after-ms": "?", "retry-after": "9"}, "", 9.0),
        ({"retry-after": "7"}, "", 7.0),
        ({"retry-after": "0.25"}, "", 0.25),
        ({"retry-after": "-1"}, "", 0.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:14:20 GMT"}, "", 60.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:12:20 GMT"}, "", 0.0),
        ({"retry-after": "later"}, "", None),
        ({"retry-after": "later"}, "Please try again in 2s.", 2.0),
        ({"retry-after": "3"}, "Please try again in 2s.", 3.0),
        ({}, "Rate limit reached … Please try again in 5.289s. Visit …", 5.289),
        ({}, "Please try again in 120ms.", 0.12),
        ({}, "Please try again in 7m12.5s.", 432.5),
        ({}, "Please retry after 20 seconds.", 20.0),
        ({}, "Try again in 1 minute 30 seconds", 90.0),
        ({}, "retry in 250 milliseconds", 0.25),
        ({}, "Limit 30000, Used 29000. Try again later.", None),
        ({}, "", None),
    ],
)
def test_retry_after_in_every_form(headers, message, expected):
    assert pytest.approx(expected) == retry_after(headers, message, NOW)


def test_openai_limits_are_durations():
    headers = {
        "x-ratelimit-limit-requests": "30000",
        "x-ratelimit-remaining-requests": "29999",
        "x-ratelimit-reset-requests": "2ms",
        "x-ratelimit-limit-tokens": "150000000",
        "x-ratelimit-remaining-tokens": "149999990",
        "x-ratelimit-reset-tokens": "6m0s",
        "x-ratelimit-limit-tokens_usage_based": "250000",
    }

    assert (
        RateLimit("requests", 30000, 29999, NOW + 2000),
        RateLimit("tokens", 150000000, 149999990, NOW + 360_000_000),
        RateLimit("tokens_usage_based", 250000),
    ) == rate_limits(headers, NOW)


def test_anthropic_limits_are_times():
    headers = {
        "anthropic-ratelimit-input-tokens-limit": "2000000",
        "anthropic-ratelimit-input-tokens-remaining": "1999000",
        "anthropic-ratelimit-input-tokens-reset": "2023-11-14T22:14:20Z",
        "retry-after": "31",
    }

    assert (RateLimit("input-tokens", 2000000, 1999000, NOW + 60_000_000),) == rate_limits(headers, NOW)


def test_limits_without_a_name_and_in_milliseconds_since_the_epoch():
    headers = {"x-ratelimit-limit": "20", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "1700000060000"}

    assert (RateLimit("requests", 20, 0, NOW + 60_000_000),) == rate_limits(headers, NOW)


def test_limits_may_come_without_the_x():
    headers = {"ratelimit-limit": "100", "ratelimit-remaining": "3", "ratelimit-reset": "60"}

    assert (RateLimit("requests", 100, 3, NOW + 60_000_000),) == rate_limits(headers, NOW)


def test_limits_that_cannot_be_read_are_left_out():
    headers = {"x-ratelimit-limit-requests": "X-RATELIMIT-XXX", "x-ratelimit-reset-tokens": "?", "x-ratelimit-foo": "1"}
    unknown = {"x-ratelimit-limit-requests": "-1", "x-ratelimit-remaining-requests": "-1"}

    assert () == rate_limits(headers, NOW) == rate_limits(unknown, NOW)


@pytest.mark.parametrize("name", ["x-request-id", "request-id"])
def test_request_ids(name):
    assert "req_1" == request_id({name: "req_1"})
    assert None is request_id({})


@pytest.mark.parametrize(
    "date", ["Thu, 01 Jan 99999999999999999999 00:00:00 GMT", "0001-01-01T00:00:00+23:00", "9999-12-31T23:59:59-23:00"]
)
def test_a_date_that_no_calendar_has_is_no_date(date: str) -> None:
    assert retry_after({"retry-after": date}, "", NOW) in (None, 0.0) or "9999" in date
    assert rate_limits({"x-ratelimit-reset-requests": date, "x-ratelimit-limit-requests": "5"}, NOW)[0].limit == 5

"""`timeline limits`: what a person sees of limits, waits and circuits."""

from __future__ import annotations

from dataclasses import replace

from support.answers import answer, refused
from support.command import Backend, Home


def test_what_an_answer_told_is_shown(home: Home, backend: Backend) -> None:
    told = {
        "x-ratelimit-limit-requests": "500",
        "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-reset-requests": "10m0s",
    }
    reply = answer("Yes")
    backend.says(replace(reply, headers={**reply.headers, **told}))
    home.run("ask", "Why?")

    shown = home.run("limits")
    (limit,) = home.run("limits", "--json").json()["limits"]

    assert shown.out.startswith("t:m  requests  499 of 500 left  full in ")
    assert ("t", "m", "requests", 500, 499) == tuple(
        limit[name] for name in ("provider", "model", "name", "limit", "remaining")
    )
    assert 600 == limit["window_seconds"]


def test_a_refusal_and_a_model_that_is_left_alone_are_shown(home: Home, backend: Backend) -> None:
    backend.says(refused(429, **{"retry-after": "0"}), *[refused(500)] * 5)
    home.configure(local=False)
    for _ in range(6):
        home.run("ask", "Why?")

    shown = home.run("limits")

    refusal, circuit = shown.out.splitlines()
    assert ["t:m", "retry-after", "refused", "over"] == refusal.split()
    assert "open: 5 failures in a row (server)  is tried in " in circuit
    assert ["server"] == [row["reason"] for row in home.run("limits", "--json").json()["circuits"]]


def test_where_nothing_is_known_it_says_so(home: Home, backend: Backend) -> None:
    backend.says(answer("Yes"))
    home.run("ask", "Why?")

    shown = home.run("limits")

    assert ("", 0) == (shown.out, shown.code)
    assert "no provider has told its limits yet" in shown.err

"""Budgets on the command line: who is refused, with which exit code, what is shown; and never too much by any number of processes."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from typing import Any

import pytest
from support import answers
from support.answers import FOREVER, answer, stream
from support.command import Backend, Home
from support.terminal import Terminal

CENT_PER_TOKEN = {"input_per_million": 1e4, "output_per_million": 1e4}
HELLO = 6
"""Tokens that `hello` is estimated as: two for its letters, four for being a message."""


def configure(home: Home, *budgets: dict[str, Any], price: dict[str, float] | None = None, **more: Any) -> None:
    entry = {"kind": "openai", "base_url": home.url, "local": False}
    settings = {
        "llm_providers": {"t": entry},
        "routing_strategy": {"default": "t:m", "fallback": None},
        "mode": "direct",
        "retry": {"max_attempts": 1},
        "prices": {} if price is None else {"t:m": price},
        "budgets": budgets,
        **more,
    }
    (home.path / "config.yaml").write_text(json.dumps(settings))


def exceeded(home: Home) -> list[dict[str, Any]]:
    return [row["data"] for row in home.events("budget.exceeded")]


# ------------------------------------------------------------------ refused, and let pass


def test_a_question_that_may_cost_too_much_is_not_asked_and_exits_with_3(home: Home, backend: Backend) -> None:
    configure(home, {"name": "monthly", "limit_usd": 0.15}, price=CENT_PER_TOKEN)
    backend.says(answer("Hi", tokens=(6, 4)))

    assert 0 == home.run("ask", "hello", "--max-tokens", "4").code
    refused = home.run("ask", "hello", "--max-tokens", "4")

    assert (3, "") == (refused.code, refused.out)
    assert 1 == len(backend.requests)
    assert re.fullmatch(
        r'Error: not sent, because it may cost \$0\.10: the budget "monthly" \(\d{4}-\d\d\) of \$0\.15 has \$0\.10 spent;'
        r" wait until \d{4}-\d\d-01 00:00, in \d+ (hour|day)s?, ask for less with --max-tokens, or raise its limit_usd\n",
        refused.err,
    )
    (event,) = exceeded(home)
    assert (10**8, 0, 10**8, 15 * 10**7) == (event["spent"], event["reserved"], event["requested"], event["limit"])
    assert 1 == home.types().count("request.sent")


@pytest.mark.parametrize("argv", [("budget", "--json"), ("report",), ("ask", "hello", "--max-tokens", "4")])
def test_what_a_killed_process_reserved_is_free_for_whatever_command_comes_next(
    home: Home, backend: Backend, argv: tuple[str, ...]
) -> None:
    configure(home, {"name": "all", "limit_usd": 0.19, "window": "total"}, price=CENT_PER_TOKEN)
    backend.says(stream("Hi", FOREVER), answer("Hi", tokens=(6, 3)))
    process = home.start("ask", "hello", "--max-tokens", "4")
    process.read_until("Hi")
    process.send(signal.SIGKILL)
    process.wait()

    assert 0 == home.run(*argv).code
    (end,) = home.events("call.interrupted")
    assert "abandoned" == end["data"]["reason"]
    spent = end["data"]["cost"]["nano_usd"] / 1e9 + (0.09 if argv[0] == "ask" else 0)
    (state,) = home.run("budget", "--json").json()["budgets"]
    assert (0, pytest.approx(spent)) == (state["reserved"], state["spent"])


def test_a_warning_tells_what_may_be_passed_from_what_is(home: Home, backend: Backend) -> None:
    configure(home, {"name": "all", "limit_usd": 0.08, "window": "total", "action": "warn"}, price=CENT_PER_TOKEN)
    backend.says(answer("Hi", tokens=(6, 3)))
    first, second = (home.run("ask", "hello", "--max-tokens", "4").err for _ in range(2))

    assert "budget all of $0.08 may be passed: $0.00 used, up to $0.10 more (total)" in first.splitlines()
    assert "budget all of $0.08 passed: $0.09 used, up to $0.10 more (total)" in second.splitlines()


def test_what_open_requests_may_cost_passes_no_budget_by_itself(home: Home, backend: Backend) -> None:
    configure(home, {"name": "all", "limit_usd": 0.08, "window": "total", "action": "warn"}, price=CENT_PER_TOKEN)
    backend.says(stream("Hi", FOREVER), answer("Hi", tokens=(6, 3)))
    home.start("ask", "hello", "--max-tokens", "4").read_until("Hi")

    warned = home.run("ask", "hello", "--max-tokens", "4").err

    says = "budget all of $0.08 may be passed: $0.00 used, $0.10 reserved, up to $0.10 more (total)"
    assert says in warned.splitlines()


def test_a_refusal_is_json_where_that_was_asked_for(home: Home, backend: Backend) -> None:
    configure(home, {"name": "none", "limit_usd": 0}, price=CENT_PER_TOKEN)
    backend.says(answer("Hi"))

    refused = home.run("ask", "hello", "--json")

    assert (3, 3, "budget_exceeded") == (
        refused.code,
        refused.json()["error"]["exit_code"],
        refused.json()["error"]["kind"],
    )


def test_max_cost_refuses_what_may_cost_more_and_passes_what_can_not(home: Home, backend: Backend) -> None:
    configure(home, price=CENT_PER_TOKEN)
    backend.says(answer("Hi", tokens=(6, 4)))

    over = home.run("ask", "hello", "--max-tokens", "4", "--max-cost", "0.0999")
    within = home.run("ask", "hello", "--max-tokens", "4", "--max-cost", "$0.10")

    assert (3, 0) == (over.code, within.code)
    assert "--max-cost of $0.0999 has $0.00 spent; ask for less with --max-tokens, or raise --max-cost" in over.err
    assert [4] == [request.json()["max_tokens"] for request in backend.requests]


def test_under_a_budget_an_answer_that_nobody_limits_is_limited(home: Home, backend: Backend) -> None:
    configure(home, price=CENT_PER_TOKEN)
    backend.says(answer("Hi"))

    home.run("ask", "hello", "--max-cost", "100")
    home.run("ask", "hello")

    assert [4096, None] == [request.json().get("max_tokens") for request in backend.requests]
    with_budget, without = home.events("request.sent")
    assert (HELLO + 4096) * 10**7 == with_budget["data"]["reserved_nano_usd"]
    assert "reserved_nano_usd" not in without["data"]


def test_max_cost_that_is_no_amount_is_a_usage_error(home: Home) -> None:
    result = home.run("ask", "hello", "--max-cost", "cheap")

    assert (2, "Error: --max-cost 'cheap' is no amount of US dollars: write it like 0.05\n") == (
        result.code,
        result.err,
    )
    assert not home.store.exists()


@pytest.mark.parametrize(
    ("entry", "said"), [({}, True), ({"local": False}, False), ({"base_url": "http://192.0.2.1"}, False)]
)
def test_of_a_server_on_this_machine_a_refusal_says_how_to_call_it_free(
    home: Home, entry: dict[str, Any], said: bool
) -> None:
    configure(
        home,
        {"name": "monthly", "limit_usd": 5},
        llm_providers={"t": {"kind": "openai", "base_url": home.url, **entry}},
    )

    refused = home.run("ask", "hello")

    assert 3 == refused.code
    assert said is ("say 'local: true' under 't' in the configuration if it computes its answers" in refused.err)


def test_a_model_of_unknown_price_is_not_asked_under_a_budget_in_dollars(home: Home, backend: Backend) -> None:
    configure(home)
    backend.says(answer("Hi"))

    refused = home.run("ask", "hello", "--max-cost", "1000")

    assert (3, []) == (refused.code, backend.requests)
    assert "nobody knows what it would cost" in refused.err
    assert "give the model a price under 'prices' in the configuration, or leave --max-cost out" in refused.err


def test_a_model_on_this_machine_is_free_and_passes_every_budget(home: Home, backend: Backend) -> None:
    budgets = [{"name": "usd", "limit_usd": 0}, {"name": "tokens", "limit_tokens": 0}]
    entry = {"kind": "openai", "base_url": home.url, "local": True}
    configure(home, *budgets, llm_providers={"t": entry})
    backend.says(answer("Hi"))

    assert 0 == home.run("ask", "hello", "--max-cost", "0").code


def test_a_budget_that_warns_lets_pass_and_says_so(home: Home, backend: Backend) -> None:
    configure(home, {"name": "careful", "limit_tokens": 3, "action": "warn"})
    backend.says(answer("Hi", tokens=(6, 4)))

    result = home.run("ask", "hello")

    assert (0, "Hi\n") == (result.code, result.out)
    # Ten tokens of three, as `timeline budget` says.
    assert "budget careful: 333 % of 3 tokens" in result.err
    assert "333%" in home.run("budget").out
    assert ["warn"] == [event["action"] for event in exceeded(home)]
    assert [100] == [row["data"]["threshold_percent"] for row in home.events("budget.alerted")]


def test_a_budget_that_falls_back_asks_the_next_model(home: Home, backend: Backend) -> None:
    routing = {"default": ["t:m", "t:cheap"], "fallback": None}
    budget = {"name": "dear", "limit_usd": 0, "model": "t:m", "action": "fallback"}
    configure(home, budget, price=CENT_PER_TOKEN, routing_strategy=routing)
    backend.says(answer("Hi"))

    result = home.run("ask", "hello")

    assert (0, ["cheap"]) == (result.code, [request.json()["model"] for request in backend.requests])
    assert [("dear", "fallback")] == [(event["budget"], event["action"]) for event in exceeded(home)]


def test_a_threshold_is_told_once_at_the_end_of_the_call_that_passed_it(home: Home, backend: Backend) -> None:
    configure(home, {"name": "monthly", "limit_usd": 0.40}, price=CENT_PER_TOKEN)
    backend.says(answer("Hi", tokens=(6, 4)))

    told = [home.run("ask", "hello", "--max-tokens", "4").err.count("budget monthly") for _ in range(4)]

    assert [0, 1, 0, 1] == told
    assert [50, 100] == [row["data"]["threshold_percent"] for row in home.events("budget.alerted")]


# ------------------------------------------------------------------ timeline budget


def shown(home: Home, *argv: str) -> list[str]:
    result = home.run("budget", *argv)
    assert (0, "") == (result.code, result.err)
    return result.out.splitlines()


def test_without_a_budget_it_says_how_to_set_one(home: Home) -> None:
    result = home.run("budget")
    lines = result.err.splitlines()

    assert (0, "") == (result.code, result.out)
    assert f"there is no budget; to set one, put this into {home.path / 'config.yaml'}:" == lines[0]
    assert {"schema_version": 1, "budgets": []} == home.run("budget", "--json").json()
    home.configure()
    with (home.path / "config.yaml").open("w") as file:
        file.write("\n".join(lines[1:]))
    assert "monthly" in shown(home)[0]


def test_each_budget_has_a_bar_of_what_is_spent_reserved_and_left(home: Home, backend: Backend) -> None:
    budgets = [
        {"name": "monthly", "limit_usd": 0.40},
        {"name": "tokens", "limit_tokens": 1000, "window": "total", "provider": "t", "action": "warn"},
        {"name": "careful", "limit_usd": 1, "window": "turn"},
    ]
    configure(home, *budgets, price=CENT_PER_TOKEN)
    assert "  $0.00 spent, $0.40 left of $0.40" == shown(home)[2]
    backend.says(answer("Hi", tokens=(6, 4)), answers.stream("Hi", FOREVER))
    home.run("ask", "hello", "--max-tokens", "4")
    process = home.start("ask", "hello", "--max-tokens", "4")
    process.read_until("Hi")

    month, bar, told, _, tokens, *rest = shown(home)

    assert re.fullmatch(r"monthly · block · \d{4}-\d\d · until \d{4}-\d\d-01 00:00", month)
    assert f"  {'█' * 14}{'▒' * 14}{'░' * 25}  50%" == bar
    assert "  $0.10 spent, $0.10 reserved, $0.20 left of $0.40" == told
    assert "tokens · t · warn · in total" == tokens
    assert "  10 spent, 10 reserved, 980 left of 1,000 tokens" == rest[1]
    assert ["careful · block · each question", "  up to $1.00"] == rest[3:]
    assert f"  {'#' * 14}{'+' * 14}{'.' * 25}  50%" == shown(home, "--ascii")[1]
    assert max(map(len, shown(home))) <= 60
    assert "".join(shown(home, "--ascii")).isascii()

    value = home.run("budget", "--json").json()["budgets"]
    assert {
        "spent": 0.1,
        "reserved": 0.1,
        "left": 0.2,
        "limit": 0.4,
        "unit": "usd",
        "window": "month",
    }.items() <= value[0].items()
    assert {
        "spent": 10,
        "reserved": 10,
        "left": 980,
        "unit": "tokens",
        "provider": "t",
        "ends_at": None,
    }.items() <= value[1].items()


def test_a_long_name_takes_nothing_from_when_the_budget_begins_anew(home: Home) -> None:
    configure(home, {"name": "everything that the team asks in a month", "limit_usd": 1, "action": "fallback"})

    head = shown(home)[0]

    begun = "everything that the team asks in a month · fallback"
    assert re.fullmatch(rf"{begun} · \d{{4}}-\d\d · until \d{{4}}-\d\d-01 00:00", head)
    with Terminal(home, "budget", columns=40, rows=10) as terminal:
        assert 0 == terminal.wait()
        assert head.split() == " ".join(terminal.lines[:3]).split()


def test_what_has_no_price_is_said_to_be_missing_from_what_is_spent(home: Home, backend: Backend) -> None:
    configure(home, {"name": "monthly", "limit_usd": 1, "action": "warn"})
    backend.says(answer("Hi"))
    home.run("ask", "hello")

    assert "  and 1 attempts of unknown price" == shown(home)[3]


# ------------------------------------------------------------------ many processes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "max_tokens"),
    [
        pytest.param(40, 94, id="reservation-is-the-cost"),
        pytest.param(12, 494, id="reservation-is-five-times-the-cost"),
    ],
)
def test_forty_processes_under_a_budget_for_ten_calls(
    home: Home, backend: Backend, count: int, max_tokens: int
) -> None:
    """Each call costs a dollar: 6 tokens of prompt and 94 of answer at a cent."""
    configure(home, {"name": "ten", "limit_usd": 10, "window": "total"}, price=CENT_PER_TOKEN)
    fitting = 10 * 100 // (HELLO + max_tokens)
    decided = threading.Event()

    # Whoever is admitted runs until all have asked to be.
    end = (answers.delta(finish="stop"), answers.usage(HELLO, 94), answers.event("[DONE]"))
    backend.says(answers.stream("Hi", decided, *end))
    # Makes the store, in which to look how far they are.
    home.run("budget")
    processes = [home.start("ask", "hello", "--quiet", "--max-tokens", str(max_tokens)) for _ in range(count)]
    try:
        while len(home.events("request.sent", "budget.exceeded")) < count:
            time.sleep(0.1)
    finally:
        decided.set()
    codes = [process.wait(100) for process in processes]

    assert [0] * fitting + [3] * (count - fitting) == sorted(codes)
    assert fitting == len(backend.requests) == len(home.events("request.sent"))
    assert count - fitting == len(exceeded(home))
    assert all("$10.00" in process.errors() for process in processes if process.wait() == 3)
    (budget,) = home.run("budget", "--json").json()["budgets"]
    assert (float(fitting), 0.0) == (budget["spent"], budget["reserved"])
    # What was reserved and not spent is there again.
    assert (3 if fitting == 10 else 0) == home.run("ask", "hello", "--max-tokens", str(max_tokens)).code

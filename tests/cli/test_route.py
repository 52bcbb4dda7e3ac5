"""`timeline route` and `ask --dry-run` explain; `ask` goes where they say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
from support.answers import answer
from support.command import Backend, Home
from support.loopback import Reply
from support.terminal import Terminal

PRICES = {
    "t:dear": {"input_per_million": 5, "output_per_million": 25},
    "t:cheap": {"input_per_million": 0.15, "output_per_million": 0.6},
}
FAR = {"kind": "openai", "base_url": "https://llm.example.com/v1", "models": ["x"], "api_key": "sk-0123456789"}


def configure(home: Home, *, fallback: Any = None, **more: Any) -> None:
    entry = {"kind": "openai", "base_url": home.url, "models": ["dear", "cheap"], "api_key": "sk-0123456789"}
    routing = {"default": "auto:cheapest", "fallback": fallback, **more.pop("routing_strategy", {})}
    providers = {"t": entry, **more.pop("llm_providers", {})}
    settings = {"llm_providers": providers, "routing_strategy": routing, "prices": PRICES, "mode": "direct", **more}
    (home.path / "config.yaml").write_text(json.dumps(settings | {"retry": {"max_attempts": 1}}))


def why(home: Home) -> list[tuple[str, str]]:
    return [(row["data"]["model"], row["data"]["why"]) for row in home.events("request.sent")]


# ------------------------------------------------------------------ explaining


def test_a_model_that_may_not_be_asked_offline_is_refused_before_anything_is_fetched(home: Home) -> None:
    home.configure({"routing_strategy": {}})
    result = home.run("ask", "hi", "--offline", "-m", "openai:gpt-4o", env={"OPENAI_API_KEY": "sk-0123456789"})

    assert 2 == result.code
    assert result.err.startswith("Error: openai:gpt-4o is not on this machine, and only such may be asked (offline)")
    assert not (home.path / "models").exists()


def test_the_embedded_model_is_not_fetched_offline(home: Home) -> None:
    home.configure({"routing_strategy": {}})
    result = home.run("ask", "hi", "--offline", "-m", "embedded:smollm2")

    assert (1, "") == (result.code, result.out)
    assert (
        "Error: the embedded model smollm2 isn't on this machine, and nothing is fetched offline:"
        " run 'timeline models pull smollm2' first"
    ) in result.err.splitlines()
    assert not (home.path / "models").exists()


def test_route_says_whom_and_why_and_asks_and_records_nothing(home: Home, backend: Backend) -> None:
    configure(home, fallback="embedded:smollm2")
    done = home.run("route", "Why is the sky blue?")

    assert (0, "") == (done.code, done.err)
    assert [
        "   model             input  output  context  why",
        "1  t:cheap           $0.15   $0.60        ?  default route, auto:cheapest: $0.15 in and $0.60 out per million tokens, the cheapest of 2",
        "2  t:dear            $5.00  $25.00        ?  default route, auto:cheapest: $5.00 in and $25.00 out per million tokens, number 2 of 2",
        "3  embedded:smollm2   free    free    8,192  fallback",
    ] == done.out.splitlines()
    assert [] == backend.requests
    assert not home.store.exists()


def test_dry_run_adds_about_what_each_would_cost_and_ask_has_it_too(home: Home, backend: Backend) -> None:
    configure(home)
    arguments = ("x" * 4000, "--max-tokens", "100", "--dry-run")
    done, asked = home.run("route", *arguments), home.run("ask", *arguments)

    assert done.out == asked.out
    # 1,000 tokens at $0.15 and 100 at $0.60 a million; 1,000 at $5 and 100 at $25.
    assert ["$0.00021", "$0.0075"] == [line.split()[5] for line in done.out.splitlines()[1:3]]
    assert "about 1,000 tokens in and 100 out; a model may write more or less" == done.out.splitlines()[-1]
    assert [] == backend.requests


def test_on_a_narrow_terminal_what_matters_least_is_left_out_and_named(home: Home) -> None:
    configure(home, fallback="embedded:smollm2")

    with Terminal(home, "route", "hi", columns=60, rows=20) as terminal:
        assert 0 == terminal.wait()

    assert [
        "   model             input  output  why",
        "1  t:cheap           $0.15   $0.60  default route,",
        "                                    auto:cheapest: $0.15 in",
        "                                    and $0.60 out per",
        "                                    million tokens, the",
        "                                    cheapest of 2",
        "2  t:dear            $5.00  $25.00  default route,",
    ] == terminal.lines[:7]
    assert "left out for the width: context; a wider terminal or --json" in terminal.text
    assert "context" in home.run("route", "hi", env={"COLUMNS": "60"}).out


def test_route_as_json(home: Home) -> None:
    configure(home, llm_providers={"far": FAR})
    value = home.run("route", "hi", "--offline", "--dry-run", "--json").json()

    assert ["default", 1, "configured", None] == [
        value[key] for key in ("task", "input_tokens", "offline", "session_model")
    ]
    first = value["candidates"][0]
    assert ["t", "cheap", False, True, None] == [
        first[key] for key in ("provider", "model", "fallback", "here", "waits")
    ]
    assert ["priced", 0.15, "config"] == [first["price"][key] for key in ("state", "input_per_million", "table")]
    assert {"output_tokens": 500, "state": "priced", "usd": 0.00030015} == first["estimate"]
    assert ["far", "x", "elsewhere", False] == [
        value["rejected"][0][key] for key in ("provider", "model", "ground", "here")
    ]


def test_complexity_and_steps_can_be_looked_at(home: Home) -> None:
    configure(home, routing_strategy={"complexity": {"high": "t:dear"}, "tool_calling": "t:cheap"})
    high = home.run("route", "hi", "--complexity", "high", "--json").json()
    tools = home.run("route", "hi", "--step", "tool_calling", "--json").json()

    assert ("dear", "complexity high") == (high["candidates"][0]["model"], high["candidates"][0]["why"])
    assert ("cheap", "tool_calling route") == (tools["candidates"][0]["model"], tools["candidates"][0]["why"])


def test_the_steps_before_the_answer_have_a_line_each(home: Home) -> None:
    configure(home, routing_strategy={"query_routing": "t:cheap", "default": "t:dear"}, mode="pipeline")
    done = home.run("route", "hi")
    value = home.run("route", "hi", "--json").json()

    assert [
        "1  t:dear  $5.00  $25.00        ?  default route",
        "query_routing: t:cheap, query_routing route",
        "tool_calling: t:dear, default route",
    ] == done.out.splitlines()[1:]
    assert "response_formatting" == value["task"]
    assert [("query_routing", "cheap"), ("tool_calling", "dear")] == [
        (step["task"], step["candidates"][0]["model"]) for step in value["steps"]
    ]
    assert 2 == len(home.run("route", "hi", "--direct").out.splitlines())


def test_the_quote_of_a_question_in_steps_has_the_call_that_routes_in_it(home: Home, backend: Backend) -> None:
    configure(home, routing_strategy={"query_routing": "t:cheap", "default": "t:dear"}, mode="pipeline")
    arguments = ("ask", "x" * 4000, "--max-tokens", "100", "--dry-run")
    done, value = home.run(*arguments), home.run(*arguments, "--json").json()

    # 1,500 tokens at $0.15 and 50 at $0.60 a million; 1,000 at $5 and 100 at $25.
    assert [
        "query_routing: t:cheap, query_routing route; about $0.00026 for 1,500 tokens in",
        "tool_calling: t:dear, default route; only if a tool is needed, and then on top",
        "together about $0.0078: the route's call, and the answer's",
    ] == done.out.splitlines()[-3:]
    assert {"state": "priced", "usd": 0.007755} == value["estimate"]
    assert 0.000255 == value["steps"][0]["candidates"][0]["estimate"]["usd"]
    assert {"state": "priced", "usd": 0.0075} == home.run(*arguments, "--json", "--direct").json()["estimate"]
    assert [] == backend.requests


def test_what_costs_nothing_or_nobody_knows_what_is_quoted_in_words(home: Home) -> None:
    configure(home, mode="pipeline")
    free, unknown = (
        home.run("ask", "hi", "--dry-run", "-m", name).out.splitlines() for name in ("embedded:smollm2", "t:unheard-of")
    )

    assert re.search(r"; free for \d+ tokens in$", free[-3])
    assert "together free: the route's call, and the answer's" == free[-1]
    assert "together of unknown price: the route's call, and the answer's" == unknown[-1]


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_where_nobody_can_be_asked_the_exit_code_is_that_of_the_question(home: Home, flags: list[str]) -> None:
    configure(home)
    route, ask = (home.run(command, "-m", "openai:gpt-4o", "hi", *flags) for command in ("route", "ask"))

    assert (4, 4) == (route.code, ask.code)
    assert "openai needs an API key" in (route.out if flags else route.err)


def test_a_mistyped_strategy_is_named(home: Home) -> None:
    done = home.run("ask", "-m", "auto:chepest", "hi")

    assert (2, 'Error: there is no strategy "auto:chepest": did you mean auto:cheapest?\n') == (done.code, done.err)


# ------------------------------------------------------------------ asking


def test_ask_goes_where_route_says_and_the_log_says_why(home: Home, backend: Backend) -> None:
    configure(home)
    backend.says(answer("Hi"))

    assert 0 == home.run("ask", "hi").code
    assert "cheap" == backend.requests[0].json()["model"]
    (sent,) = why(home)
    assert ("cheap", True) == (sent[0], sent[1].startswith("default route, auto:cheapest: $0.15 in"))


def test_a_session_keeps_the_model_it_was_asked_with(home: Home, backend: Backend) -> None:
    configure(home)
    backend.says(answer("Hi"))
    home.run("ask", "-m", "t:dear", "hi")
    home.run("ask", "-c", "and now?")
    known = home.run("route", "-c", "and then?", "--json").json()
    home.run("ask", "-c", "-m", "t:cheap", "and then?")
    home.run("ask", "-c", "and at last?")

    assert [
        ("dear", "asked for"),
        ("dear", "the session's model"),
        ("cheap", "asked for"),
        ("cheap", "the session's model"),
    ] == why(home)
    assert ("t:dear", "dear") == (known["session_model"], known["candidates"][0]["model"])


def test_the_next_of_a_list_answers_when_the_first_fails(home: Home, backend: Backend) -> None:
    configure(home, routing_strategy={"default": ["t:dear", "t:cheap"]})
    backend.says(Reply.json({"error": {"message": "no"}}, status=500), answer("Hi"))
    done = home.run("ask", "--json", "hi").json()

    assert ("Hi", True) == (done["answer"], done["fallback"])
    assert [("dear", "default route"), ("cheap", "default route, choice 2 of 2")] == why(home)


def test_what_is_known_of_a_model_is_shown(home: Home, backend: Backend) -> None:
    configure(home)
    backend.says(answer("Hi"))
    home.run("ask", "hi")
    done = home.run("route", "hi")
    stats = home.run("route", "hi", "--json").json()["candidates"][0]["stats"]

    assert re.search(r"^t:cheap: so far \d+\.\d s to the first token and \d+ tokens a second$", done.out, re.MULTILINE)
    assert (1, 0) == (stats["calls"], stats["error_rate"])


# ------------------------------------------------------------------ offline


def test_offline_asks_whoever_is_here_and_says_for_whom(home: Home, backend: Backend) -> None:
    configure(home, fallback="t:cheap", llm_providers={"far": FAR})
    backend.says(answer("Hi"))
    done = home.run("ask", "--offline", "-m", "far:x", "hi")

    assert (0, "Hi\n") == (done.code, done.out)
    as_json = home.run("ask", "--offline", "-m", "far:x", "--json", "hi").json()
    wanted = home.run("ask", "-m", "t:dear", "--json", "hi").json()

    assert [("cheap", True), ("dear", False)] == [(value["model"], value["fallback"]) for value in (as_json, wanted)]
    sent = why(home)[0]
    assert as_json["why"] == sent[1]
    assert ("cheap", "fallback, as far:x is not on this machine, and only such may be asked (offline)") == sent
    rerouted = home.events("call.rerouted")[0]
    assert ("far:x", "t:cheap") == (rerouted["data"]["source"], rerouted["data"]["target"])
    assert "far:x → t:cheap: it is not on this machine, and only such may be asked (offline)\n" in done.err


def test_offline_with_nobody_here_records_nothing(home: Home) -> None:
    configure(home, llm_providers={"far": FAR}, offline=True)
    done = home.run("ask", "-m", "far:x", "hi")

    assert 2 == done.code
    assert "far:x is not on this machine" in done.err
    assert [] == home.events()


def test_without_a_network_only_models_on_this_machine_are_asked(home: Home) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rn", "true"], check=False).returncode:
        pytest.skip("no namespace of one's own here")
    configure(home, fallback="t:cheap", llm_providers={"far": FAR})
    command = ["unshare", "-rn", sys.executable, "-m", "timeline_cli", "route", "-m", "far:x", "--json", "hi"]
    done = subprocess.run(
        command, env=home.env, cwd=home.work, capture_output=True, check=True, stdin=subprocess.DEVNULL
    )
    value = json.loads(done.stdout)

    assert "no network" == value["offline"]
    assert ["fallback, as far:x is not on this machine, and there is no network"] == [
        each["why"] for each in value["candidates"]
    ]

"""`timeline providers`: who can be asked, and what a check finds out without paying."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from support.command import Backend, Home
from support.loopback import Reply, Request, free_port
from support.terminal import Terminal

from timeline import config
from timeline.events import Usage
from timeline.llm.pricing import PriceBook

KEY = "sk-proj-0123456789abcdefWXYZ"
MODELS = Reply.json({"data": [{"id": name} for name in ("gpt-4o", "gpt-4o-mini", "o3", "o4-mini")]})


def configure(home: Home, *, prices: dict[str, Any] | None = None, offline: bool = False, **providers: Any) -> None:
    settings = {"llm_providers": providers, "prices": prices or {}, "offline": offline}
    (home.path / "config.yaml").write_text(json.dumps(settings))


# ------------------------------------------------------------------ list


def test_list_shows_every_provider_with_its_key_and_source(home: Home) -> None:
    configure(
        home,
        openai={"models": ["gpt-4o"]},
        groq={"enabled": False},
        mine={"kind": "openai", "base_url": f"http://me:{KEY}@127.0.0.1:1/v1?token={KEY}", "key_cmd": "pass show mine"},
    )
    done = home.run("providers", "list", env={"OPENAI_API_KEY": KEY})
    rows = {line.split()[0]: line.split()[1:] for line in done.out.splitlines()}

    assert 0 == done.code
    assert ["kind", "address", "key", "enabled", "set", "in"] == rows["provider"]
    file = f"{home.path}/config.yaml"
    assert ["embedded", "in", "this", "process", "–", "yes", "default"] == rows["embedded"]
    assert ["ollama", "http://localhost:11434", "–", "yes", "default"] == rows["ollama"]
    assert ["openai", "https://api.openai.com/v1", "environment", "yes", file] == rows["openai"]
    assert ["groq", "https://api.groq.com/openai/v1", "missing", "no", file] == rows["groq"]
    assert ["anthropic", "https://api.anthropic.com", "missing", "with", "-m", "–"] == rows["anthropic"]
    assert ["openai", "http://***@127.0.0.1:1/v1?***", "key_cmd", "yes", file] == rows["mine"]
    assert KEY not in done.out + done.err


def test_on_a_narrow_terminal_what_matters_least_is_left_out_and_named(home: Home) -> None:
    with Terminal(home, "providers", "list", columns=60, rows=30) as terminal:
        assert 0 == terminal.wait()
        header, *lines = terminal.lines

    assert ["provider", "address", "key", "enabled"] == header.split()
    assert any(line.startswith("openai") and "https://api.openai.com/v1" in line for line in lines)
    assert "left out for the width: set in, kind;" in terminal.text


def test_list_as_json_says_the_same(home: Home) -> None:
    configure(home, openai={"api_key": "${NOT_SET}"}, broken={"kind": "openai", "base_url": "${NOWHERE}"})
    done = home.run("providers", "list", "--json")
    rows = {row["name"]: row for row in done.json()["providers"]}

    assert {"state": "missing", "origin": None} == rows["openai"]["key"]
    assert {"state": "not_needed", "origin": None} == rows["ollama"]["key"]
    assert [True, True, None] == [rows["openai"]["enabled"], rows["openai"]["configured"], rows["openai"]["problem"]]
    assert [False, False, None] == [rows["groq"][key] for key in ("enabled", "configured", "source")]
    assert "base_url: the environment variable NOWHERE is not set" in rows["broken"]["problem"]
    assert rows["broken"]["base_url"] is None


# ------------------------------------------------------------------ check


def test_check_says_key_models_time_and_price_without_a_paid_call(home: Home, backend: Backend) -> None:
    configure(home, openai={"base_url": home.url, "models": ["gpt-4o"]})
    backend.says(MODELS)
    done = home.run("providers", "check", "openai", env={"OPENAI_API_KEY": KEY})

    assert 0 == done.code
    # $2.50 and $10.00 a million: https://openai.com/api/pricing
    assert re.fullmatch(
        r"openai  ok · key from environment · 4 models \(gpt-4o, gpt-4o-mini, o3, …\) · \d+ ms"
        r" · one token in and out of gpt-4o: \$0\.0000125\n",
        done.out,
    )
    assert [("GET", "/v1/models")] == [(request.method, request.path) for request in backend.requests]
    assert f"Bearer {KEY}" == backend.requests[0].headers["authorization"]
    assert not home.store.exists()


def test_check_as_json_has_the_numbers(home: Home, backend: Backend) -> None:
    price = {"input_per_million": 0.1, "output_per_million": 0.4}
    configure(home, prices={"t:gpt-4o": price}, t={"kind": "openai", "base_url": home.url})
    backend.says(MODELS)
    (row,) = home.run("providers", "check", "t", "--json").json()["providers"]

    assert [True, None, ["gpt-4o", "gpt-4o-mini", "o3", "o4-mini"]] == [row[key] for key in ("ok", "key", "models")]
    assert row["seconds"] > 0
    one = row["one_token"]
    assert ["gpt-4o", "priced", 5e-7, "config"] == [one[key] for key in ("model", "state", "usd", "table")]
    assert "error" not in row


def test_check_tells_free_from_unknown(home: Home, backend: Backend) -> None:
    configure(
        home,
        here={"kind": "openai", "base_url": home.url, "local": True},
        there={"kind": "openai", "base_url": home.url},
    )
    backend.says(MODELS)
    lines = home.run("providers", "check", "here", "there").out.splitlines()

    assert ["here", "there"] == [line.split()[0] for line in lines]
    assert ["free", "?"] == [line.rpartition(": ")[2] for line in lines]


def test_check_asks_all_at_once(home: Home, backend: Backend) -> None:
    arrived: list[float] = []

    def late(request: Request) -> Reply:
        arrived.append(time.monotonic())
        return Reply(MODELS.body, headers=MODELS.headers, framing="length", before=1.5)

    configure(home, **{name: {"kind": "openai", "base_url": home.url} for name in ("a", "b", "c")})
    backend.says(late)
    done = home.run("providers", "check", "a", "b", "c")

    assert 0 == done.code
    assert 3 == len(arrived)
    # One after the other there would be one and a half seconds between two of them.
    assert max(arrived) - min(arrived) < 1.5


@pytest.mark.parametrize(
    ("reply", "code", "sentence"),
    [
        (
            Reply.json({"error": {"message": f"Incorrect API key: {KEY}", "code": "invalid_api_key"}}, 401),
            4,
            "refused the key (401)",
        ),
        (
            Reply.json({"error": {"message": "slow down"}}, 429, {"retry-after": "7"}),
            5,
            "is rate limiting (429): try again in 7 s",
        ),
        (Reply.json({"error": {"message": "no"}}, 500), 1, "failed (500)"),
        (Reply([b"<html>"], headers={"content-type": "text/html"}), 1, "answered with a web page: check that base_url"),
        (
            Reply(MODELS.body, headers=MODELS.headers, framing="length", before=60),
            1,
            "didn't list its models within 0.5 s",
        ),
    ],
)
def test_check_that_fails_is_one_sentence_and_its_exit_code(
    home: Home, backend: Backend, reply: Reply, code: int, sentence: str
) -> None:
    configure(home, openai={"base_url": home.url, "api_key": KEY})
    backend.says(reply)
    done = home.run("providers", "check", "openai", "--timeout", "0.5")

    assert code == done.code
    assert done.out.startswith(f"openai  failed: openai {sentence}")
    assert 1 == len(done.out.splitlines())
    assert KEY not in done.out + done.err


def test_check_ends_with_the_worst_of_all_and_still_shows_the_others(home: Home, backend: Backend) -> None:
    configure(
        home,
        good={"kind": "openai", "base_url": home.url},
        down={"kind": "openai", "base_url": f"http://127.0.0.1:{free_port()}/v1"},
        keyless={"kind": "openai"},
    )
    backend.says(MODELS)
    done = home.run("providers", "check", "good", "down", "keyless", "nobody")
    as_json = home.run("providers", "check", "good", "keyless", "--json")

    assert 6 == done.code
    outcomes = {line.split()[0]: line for line in done.out.splitlines()}
    assert "ok" in outcomes["good"]
    assert "(connection refused): start the server or check base_url" in outcomes["down"]
    assert "run 'timeline keys set keyless'" in outcomes["keyless"]
    assert 'there is no provider "nobody"' in outcomes["nobody"]
    assert 4 == as_json.code
    assert [None, "missing_key"] == [row.get("error", {}).get("kind") for row in as_json.json()["providers"]]


def test_check_of_all_forgives_what_nobody_configured(home: Home, backend: Backend) -> None:
    """Ollama is enabled unless someone says otherwise; who never installed it has done nothing wrong."""
    configure(home, t={"kind": "openai", "base_url": home.url}, embedded={"enabled": False})
    settings = json.loads((home.path / "config.yaml").read_text())
    backend.says(MODELS)
    done = home.run("providers", "check", env={"NO_PROXY": "*"})
    settings["llm_providers"]["ollama"] = {"base_url": f"http://127.0.0.1:{free_port()}"}
    (home.path / "config.yaml").write_text(json.dumps(settings))
    configured = home.run("providers", "check")

    assert ["ollama", "t"] == sorted(line.split()[0] for line in done.out.splitlines())
    assert [0, 1] == [done.code, configured.code]


def test_check_of_one_that_is_elsewhere_asks_nobody_when_offline(home: Home, backend: Backend) -> None:
    configure(home, offline=True, t={"kind": "openai", "base_url": home.url}, openai={"api_key": KEY})
    backend.says(MODELS)
    done = home.run("providers", "check", "t", "openai")

    lines = done.out.splitlines()
    assert lines[0].startswith("t       ok")
    assert "openai  failed: openai was not asked, because of offline: true" == lines[1]


@pytest.mark.parametrize(
    ("route", "code", "line"),
    [
        ("nosuch:model", 2, r'route failed: .*: routing_strategy\.default: there is no provider "nosuch"'),
        ("openai:gpt-4o", 4, r"openai  *failed: openai needs an API key"),
        (["auto:cheapest", "t:m"], 0, r"t  *ok"),
    ],
)
def test_check_of_all_follows_the_routes(home: Home, backend: Backend, route: object, code: int, line: str) -> None:
    home.configure({"routing_strategy": {"default": route}}, models=[])
    backend.says(MODELS)
    done = home.run("providers", "check", env={"NO_PROXY": "*"})

    assert code == done.code
    assert re.search(f"^{line}", done.out, flags=re.MULTILINE), done.out
    # Whose fault it is not is not blamed.
    assert re.search(r"^embedded  *ok", done.out, flags=re.MULTILINE), done.out


def test_check_names_routes_that_lead_nowhere_as_json_and_only_where_all_are_checked(
    home: Home, backend: Backend
) -> None:
    home.configure({"routing_strategy": {"default": "nosuch:model", "complexity": {"low": "none"}}})
    backend.says(MODELS)
    done, one = home.run("providers", "check", "--json"), home.run("providers", "check", "t", "--json")

    assert [("config", 2), ("config", 2)] == [
        (each["kind"], each["exit_code"]) for each in done.json()["route_problems"]
    ]
    assert [0, []] == [one.code, one.json()["route_problems"]]


# ------------------------------------------------------------------ the guide

GUIDE = (Path(__file__).parents[2] / "docs" / "providers.md").read_text()
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", GUIDE, flags=re.MULTILINE | re.DOTALL)
ENTRIES = re.findall(r"^\|.*`(\w+: \{kind: .*\})` \|$", GUIDE, flags=re.MULTILINE)


@pytest.mark.parametrize("text", [*BLOCKS, *(f"llm_providers:\n  {entry}\n" for entry in ENTRIES)])
def test_every_example_of_the_guide_is_a_configuration_that_works(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    environ = {
        "TIMELINE_HOME": str(tmp_path),
        "HOME": str(tmp_path),
        "AZURE_OPENAI_API_KEY": KEY,
        "OPENAI_API_KEY": KEY,
    }
    loaded = config.load(environ=environ, cwd=tmp_path)

    assert 10 <= len(ENTRIES)
    assert not [loaded.problem(name) for name in loaded.providers if loaded.problem(name)]


@pytest.mark.parametrize("name", ["openrouter", "together", "deepseek", "mistral", "xai", "gemini"])
def test_every_service_of_the_guide_has_prices(tmp_path: Path, name: str) -> None:
    entry = next(entry for entry in ENTRIES if entry.startswith(f"{name}:"))
    (tmp_path / "config.yaml").write_text(f"llm_providers:\n  {entry}\n")
    loaded = config.load(environ={"TIMELINE_HOME": str(tmp_path), "HOME": str(tmp_path)}, cwd=tmp_path)
    model = {
        "openrouter": "anthropic/claude-sonnet-4.5",
        "together": "meta-llama/Llama-3.3-70B-Instruct-Turbo",
        "deepseek": "deepseek-chat",
        "mistral": "mistral-large-latest",
        "xai": "grok-4",
        "gemini": "gemini-2.5-pro",
    }[name]
    prices = PriceBook(loaded.settings.prices, loaded.served)

    assert "priced" == prices.cost(name, (model,), Usage(1, output=1), local=False, at=time.time_ns() // 1000).state

"""`timeline models`: side by side with their prices, and loaded ahead."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.command import Backend, Home
from support.loopback import Reply, Request, free_port
from support.terminal import Terminal

OLLAMA = {
    "/api/tags": {
        "models": [
            {"model": "llama3.1:latest", "digest": "46e0c10c039e"},
            {"model": "gpt-oss:120b-cloud", "remote_host": "https://ollama.com", "digest": "bc4c4ce4f2ae"},
        ]
    },
    "/api/show": {"model_info": {"llama.context_length": 131072}, "capabilities": ["completion", "tools"]},
    "/api/chat": {
        "model": "llama3.1",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "load",
    },
}


def ollama(request: Request) -> Reply:
    return Reply.json(OLLAMA[request.path]) if request.path in OLLAMA else Reply(status=200, framing="length")


def configure(home: Home, *, prices: dict[str, Any] | None = None, **providers: Any) -> None:
    silent = {name: {"enabled": False} for name in ("embedded", "ollama")}
    settings = {"llm_providers": {**silent, **providers}, "prices": prices or {}}
    (home.path / "config.yaml").write_text(json.dumps(settings))


# ------------------------------------------------------------------ list


def test_list_shows_models_of_all_providers_side_by_side(home: Home, backend: Backend) -> None:
    configure(
        home,
        prices={"mine:llama3.1:latest": {"input_per_million": 0.075, "output_per_million": 3}},
        ollama={"base_url": home.url},
        mine={"kind": "ollama", "base_url": home.url, "local": False},
        down={"kind": "openai", "base_url": f"http://127.0.0.1:{free_port()}/v1"},
    )
    backend.says(ollama)
    done = home.run("models", "list")

    assert 0 == done.code
    assert [
        "model                      context   input  output  can           runs",
        "ollama:gpt-oss:120b-cloud  131,072       ?       ?  tools schema  elsewhere",
        "ollama:llama3.1:latest     131,072    free    free  tools schema  here",
        "mine:gpt-oss:120b-cloud    131,072       ?       ?  tools schema  elsewhere",
        "mine:llama3.1:latest       131,072  $0.075   $3.00  tools schema  elsewhere",
    ] == done.out.splitlines()
    assert done.err.startswith("down can't be reached at ")


def test_list_takes_prices_and_contexts_from_the_table_where_the_provider_tells_none(
    home: Home, backend: Backend
) -> None:
    configure(home, openai={"base_url": home.url, "api_key": "sk-0123456789"})
    backend.says(Reply.json({"data": [{"id": "o3"}, {"id": "gpt-4o"}, {"id": "my-finetune"}]}))
    lines = home.run("models", "list", "openai").out.splitlines()
    models = {model["id"]: model for model in home.run("models", "list", "openai", "--json").json()["models"]}

    # $2.50 and $10.00, $2.00 and $8.00 a million: https://openai.com/api/pricing
    assert ["openai:gpt-4o", "128,000", "$2.50", "$10.00", "?", "here"] == lines[1].split()
    assert ["openai:my-finetune", "?", "?", "?", "?", "here"] == lines[2].split()
    assert ["openai:o3", "200,000", "$2.00", "$8.00", "?", "here"] == lines[3].split()
    price = models["gpt-4o"]["price"]
    assert [2.5, 10, 1.25] == [price[f"{name}_per_million"] for name in ("input", "output", "cache_read")]
    assert ["priced", "genai-prices", "openai/gpt-4o"] == [price[key] for key in ("state", "table", "entry")]
    assert ["genai-prices", None] == [models[name]["context_source"] for name in ("gpt-4o", "my-finetune")]
    assert "unpriced" == models["my-finetune"]["price"]["state"]


def test_on_a_narrow_terminal_what_matters_least_is_left_out_of_the_list_and_named(
    home: Home, backend: Backend
) -> None:
    configure(home, ollama={"base_url": home.url})
    backend.says(ollama)

    with Terminal(home, "models", "list", columns=60, rows=20) as terminal:
        assert 0 == terminal.wait()
        lines = terminal.lines

    assert [
        "model                      context  input  output  runs",
        "ollama:gpt-oss:120b-cloud  131,072      ?       ?  elsewhere",
    ] == lines[:2]
    assert "left out for the width: can; a wider terminal or --json shows all" == " ".join(lines[3:5]).rstrip()


def test_list_as_json_says_what_each_can_do(home: Home, backend: Backend) -> None:
    configure(home, ollama={"base_url": home.url})
    backend.says(ollama)
    found = {model["id"]: model for model in home.run("models", "list", "--json").json()["models"]}

    here = found["llama3.1:latest"]
    assert {"streaming": True, "tools": True, "schema": True, "images": False, "reasoning": False} == here[
        "capabilities"
    ]
    assert [131072, "provider", True, "46e0c10c039e"] == [
        here[key] for key in ("context", "context_source", "local", "digest")
    ]
    assert ["free", "unpriced"] == [found[name]["price"]["state"] for name in ("llama3.1:latest", "gpt-oss:120b-cloud")]


def test_a_server_on_this_machine_is_here_and_free_only_where_that_was_said(home: Home, backend: Backend) -> None:
    said = {"yes": True, "no": False, "unsaid": None}
    configure(home, **{name: {"kind": "openai", "base_url": home.url, "local": local} for name, local in said.items()})
    backend.says(Reply.json({"data": [{"id": "m"}]}))
    done = home.run("models", "list")
    listed = {line.split()[0]: line.split()[2:] for line in done.out.splitlines()}
    as_json = {model["provider"]: model for model in home.run("models", "list", "--json").json()["models"]}
    routed = {name: home.run("route", "-m", f"{name}:m", "--json", "Why?").json()["candidates"][0] for name in said}

    assert ["free", "free", "?", "here"] == listed["yes:m"]
    assert ["?", "?", "?", "elsewhere"] == listed["no:m"]
    assert ["?", "?", "?", "here"] == listed["unsaid:m"]
    # Whom questions go to is judged by the same.
    for name in said:
        assert as_json[name]["here"] == routed[name]["here"]
        assert as_json[name]["price"]["state"] == routed[name]["price"]["state"]
    assert [
        "?: unsaid is on this machine; if it computes its answers itself, 'local: true' in its entry says that they are free"
    ] == done.err.splitlines()


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_list_of_providers_that_all_fail_has_their_exit_code(home: Home, flags: list[str]) -> None:
    done = home.run("models", "list", "openai", *flags)

    assert 4 == done.code
    assert "run 'timeline keys set openai'" in (done.out if flags else done.err)


# ------------------------------------------------------------------ warm


def test_warm_loads_a_model_into_ollama_and_says_how_long_that_took(home: Home, backend: Backend) -> None:
    configure(home, ollama={"base_url": home.url})
    backend.says(ollama)
    done = home.run("models", "warm", "ollama:llama3.1")
    asked = [request.json() for request in backend.requests if request.path == "/api/chat"]
    as_json = home.run("models", "warm", "ollama:llama3.1", "--json").json()

    assert 0 == done.code
    assert re.match(r"ollama:llama3\.1 loaded in \d+\.\d\d s\. Ollama keeps it loaded for a while", done.out)
    assert [("llama3.1", [])] == [(request["model"], request["messages"]) for request in asked]
    assert ["ollama:llama3.1", True] == [as_json[key] for key in ("model", "stays_loaded")]
    assert not home.store.exists()


def test_warm_asks_nothing_of_a_model_in_the_cloud(home: Home, backend: Backend) -> None:
    configure(home, ollama={"base_url": home.url})
    backend.says(ollama)
    done = home.run("models", "warm", "ollama:gpt-oss:120b-cloud")

    assert 0 == done.code
    assert done.out.startswith("ollama:gpt-oss:120b-cloud reached in ")
    assert "/api/chat" not in {request.path for request in backend.requests}


def test_warm_of_what_is_not_there_says_how_to_get_it(home: Home, backend: Backend) -> None:
    configure(home, ollama={"base_url": home.url})
    backend.says(ollama)
    done = home.run("models", "warm", "ollama:phi-3")

    assert (6, "") == (done.code, done.out)
    assert "Error: ollama has no phi-3: fetch it with 'ollama pull phi-3'\n" == done.err


def test_warm_tells_what_goes_wrong(home: Home, backend: Backend) -> None:
    def full(request: Request) -> Reply:
        return Reply.json({"error": "out of memory"}, 500) if request.path == "/api/chat" else ollama(request)

    configure(home, ollama={"base_url": home.url})
    backend.says(full)
    done = home.run("models", "warm", "ollama:llama3.1")

    assert 1 == done.code
    assert "ollama failed (500)" in done.err


def test_warm_of_a_paid_model_only_opens_the_way_and_says_so(home: Home, backend: Backend) -> None:
    home.configure()
    backend.says(Reply.json({"data": [{"id": "m"}]}))
    done = home.run("models", "warm")

    assert 0 == done.code
    assert re.match(r"t:m reached in \d+\.\d\d s\. A connection lasts as long as the command that opened it", done.out)
    assert {"GET"} == {request.method for request in backend.requests}


@pytest.mark.model
def test_warm_of_the_embedded_model_says_that_it_does_not_stay(home: Home, models_dir: Path) -> None:
    (home.path / "models").symlink_to(models_dir)
    done = home.run("models", "warm", "embedded:smollm2")

    assert 0 == done.code
    assert done.out.startswith("embedded:smollm2 loaded in ")
    assert "each loads it anew" in done.out


def test_what_the_name_of_an_ollama_model_stood_for_is_recorded_with_its_answer(home: Home, backend: Backend) -> None:
    configure(home, ollama={"base_url": home.url})
    backend.says(ollama)

    done = home.run("ask", "-m", "ollama:llama3.1", "hi")

    assert 0 == done.code
    assert "46e0c10c039e" == home.end()["data"]["model_digest"]

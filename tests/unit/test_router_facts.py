"""What the router is told: by settings, prices and the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.stores import NOON, OWNER, Scribe, opened

from timeline import events as e
from timeline.config import Auto, Config, ModelRef, load
from timeline.errors import ConfigError, MissingKey, UsageError
from timeline.llm.facts import Router, last_answer, read_past
from timeline.llm.pricing import PriceBook
from timeline.llm.ranking import Request
from timeline.llm.router import Asked, LastAnswer
from timeline.projections.blocks import fold
from timeline.providers.reach import Network

KEYS = {"OPENAI_API_KEY": "sk-0123456789", "GROQ_API_KEY": "gsk-0123456789"}
LISTED = """
llm_providers:
  groq: {models: [b, d]}
  openai: {models: [a]}
"""


def configured(folder: Path, user: str = "", project: str = "", **environ: str) -> Config:
    home, work = folder / "home", folder / "work"
    for each in (home, work / ".git"):
        each.mkdir(parents=True, exist_ok=True)
    (home / "config.yaml").write_text(user)
    (work / ".timeline.yaml").write_text(project)
    return load(environ={"TIMELINE_HOME": str(home), "HOME": str(folder)} | KEYS | environ, cwd=work)


def router(config: Config, network: Network = "routed") -> Router:
    def nobody(name: str) -> Any:
        raise AssertionError(name)

    return Router(config, Scribe().clock, PriceBook(config.settings.prices, config.served), nobody, lambda: network)


async def chain(config: Config, *models: Any, network: Network = "routed", **asked: Any) -> list[str]:
    routed = await router(config, network).route(Asked(models, **asked))
    return [str(candidate) for candidate in routed.candidates]


# ------------------------------------------------------------------ who is on the list


def test_auto_chooses_among_what_the_user_lists_in_the_order_of_the_file(tmp_path: Path) -> None:
    assert ["groq:b", "groq:d", "openai:a"] == [str(ref) for ref in configured(tmp_path, LISTED).offered]


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", ["embedded:smollm2"]),
        ("llm_providers: {openai: {}}", ["embedded:smollm2"]),
        ("llm_providers: {openai: {models: [a], enabled: false}, groq: {models: [b]}}", ["groq:b"]),
        ("llm_providers: {embedded: {models: {mine: /m.gguf}}}", ["embedded:mine"]),
        ("llm_providers: {embedded: {models: [smollm2]}, openai: {models: [a]}}", ["embedded:smollm2", "openai:a"]),
    ],
)
def test_a_built_in_model_is_on_the_list_only_if_written_there_or_nothing_else_is(
    tmp_path: Path, user: str, expected: list[str]
) -> None:
    assert expected == [str(ref) for ref in configured(tmp_path, user).offered]


# ------------------------------------------------------------------ routes as they are written


def test_a_route_may_mix_models_and_strategies(tmp_path: Path) -> None:
    config = configured(
        tmp_path, LISTED + "routing_strategy: {default: ['auto:best', 'openai:a'], tool_calling: auto:fastest}"
    )

    assert (Auto("best"), ModelRef("openai", "a")) == config.candidates("default")
    assert (Auto("fastest"),) == config.candidates("tool_calling")
    assert ((Auto("best"), ModelRef("openai", "a")), "default") == config.route_for("query_routing")
    assert (Auto("cheapest"),) == configured(tmp_path, TIMELINE_MODEL="auto:cheapest").default_route()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            "{default: 'auto:chepest'}",
            r'routing_strategy.default: there is no strategy "auto:chepest": did you mean auto:cheapest\?',
        ),
        ("{complexity: {low: auto}}", r'routing_strategy.complexity.low: there is no strategy "auto": '),
        ("{complexity: {hihg: 'openai:a'}}", r'unknown key "hihg": did you mean high\?'),
    ],
)
def test_a_typing_error_in_a_route_is_told_with_its_place(tmp_path: Path, written: str, said: str) -> None:
    def used() -> None:
        config = configured(tmp_path, f"routing_strategy: {written}")
        config.route_for("default")
        config.tier("low")

    with pytest.raises(ConfigError, match=said):
        used()


def test_a_strategy_is_no_provider_and_no_single_model(tmp_path: Path) -> None:
    config = configured(tmp_path)

    with pytest.raises(UsageError, match="chooses among models and is none itself"):
        config.parse_model("auto:cheapest")
    with pytest.raises(ConfigError, match=r"llm_providers\.auto: expected another name"):
        configured(tmp_path, "llm_providers: {auto: {kind: openai, base_url: 'http://x/v1'}}")


def test_a_project_may_not_choose_by_complexity_what_the_user_never_listed(tmp_path: Path) -> None:
    foreign = configured(tmp_path, LISTED, "routing_strategy: {complexity: {high: 'anthropic:dear'}}")
    with pytest.raises(
        ConfigError, match=r"complexity\.high: the project asks for anthropic:dear, which you never listed"
    ):
        foreign.tier("high")

    assert (Auto("best"),) == configured(tmp_path, LISTED, "routing_strategy: {default: 'auto:best'}").default_route()


async def test_a_route_that_is_wrong_does_not_stop_a_question_that_names_its_model(tmp_path: Path) -> None:
    config = configured(tmp_path, "routing_strategy: {default: 'nope:x'}")

    assert ["openai:a"] == await chain(config, ModelRef("openai", "a"))
    with pytest.raises(ConfigError, match="nope"):
        await chain(config)


async def test_what_is_built_in_stands_in_for_routes_and_not_for_a_model_that_was_named(tmp_path: Path) -> None:
    routes = "routing_strategy: {default: 'openai:a'}"
    asked = ModelRef("openai", "a")

    assert ["openai:a", "embedded:smollm2"] == await chain(configured(tmp_path, routes))
    assert ["openai:a"] == await chain(configured(tmp_path, routes), asked)
    assert ["groq:b"] == await chain(configured(tmp_path, TIMELINE_MODEL="groq:b"))
    wanted = configured(tmp_path, "routing_strategy: {fallback: 'embedded:smollm2'}", TIMELINE_MODEL="groq:b")
    assert [["openai:a", "embedded:smollm2"], ["groq:b", "embedded:smollm2"]] == [
        await chain(wanted, asked),
        await chain(wanted),
    ]


# ------------------------------------------------------------------ prices, keys, contexts


PRICES = """
prices:
  "openai:a": {input_per_million: 1, output_per_million: 10}
  "groq:b": {input_per_million: 2, output_per_million: 4}
"""


async def test_cheapest_weighs_prompt_and_answer_as_they_are(tmp_path: Path) -> None:
    config = configured(tmp_path, LISTED + PRICES)
    long, short = Request(input_tokens=50_000, max_tokens=10), Request(input_tokens=10)

    assert "openai:a" == (await chain(config, Auto("cheapest"), request=long))[0]
    assert "groq:b" == (await chain(config, Auto("cheapest"), request=short))[0]


async def test_a_missing_key_is_an_error_where_nobody_else_was_wanted(tmp_path: Path) -> None:
    config = configured(tmp_path, LISTED, OPENAI_API_KEY="")

    with pytest.raises(MissingKey, match=r"^openai needs an API key"):
        await chain(config, ModelRef("openai", "a"))
    assert "groq:b" == (await chain(config, ModelRef("openai", "a"), ModelRef("groq", "b")))[0]


async def test_a_command_that_prints_a_key_is_not_run_to_decide(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    config = configured(tmp_path, f"llm_providers: {{openai: {{key_cmd: 'touch {trace}', models: [a]}}}}")

    assert "openai:a" == (await chain(config, Auto("best")))[0]
    assert not trace.exists()


async def test_the_context_is_that_of_the_settings_the_engine_or_the_table(tmp_path: Path) -> None:
    config = configured(tmp_path, "llm_providers: {groq: {context: 999}}")
    models = (ModelRef("groq", "b"), ModelRef("openai", "gpt-4o"))
    explained = await router(config).explain(Asked(models))

    assert [999, 128_000] == [candidate.context for candidate in explained.routed.candidates]


# ------------------------------------------------------------------ offline


async def test_offline_by_settings_and_without_a_network(tmp_path: Path) -> None:
    local = "llm_providers: {near: {kind: openai, base_url: 'http://127.0.0.1:8080/v1', models: [m]}}\n"
    question = (ModelRef("openai", "a"), ModelRef("near", "m"))

    assert ["near:m"] == await chain(configured(tmp_path, local + "offline: true"), *question)
    assert ["near:m"] == await chain(configured(tmp_path, local), *question, network="none")
    assert "openai:a" == (await chain(configured(tmp_path, local), *question))[0]


async def test_offline_with_nobody_here_says_what_to_do(tmp_path: Path) -> None:
    config = configured(tmp_path, "offline: true\nrouting_strategy: {fallback: null}")

    with pytest.raises(
        UsageError, match=r"^openai:a is not on this machine, .*: ask one that is with -m, or leave --offline"
    ):
        await chain(config, ModelRef("openai", "a"))


async def test_a_server_in_the_own_network_is_asked_while_there_is_one(tmp_path: Path) -> None:
    config = configured(tmp_path, "llm_providers: {room: {kind: openai, base_url: 'http://192.168.1.7/v1'}}")
    question = ModelRef("room", "m")

    assert "room:m" == (await chain(config, question, network="link"))[0]
    # Nobody on this machine was asked for: it goes out all the same, and says itself what is wrong.
    assert ["room:m"] == await chain(config, question, network="none")


# ------------------------------------------------------------------ the log


def answered(scribe: Scribe, *asked: tuple[str, str], call: str = "call") -> list[e.NewEvent]:
    """A turn that was answered by the last of these models, each with why it was asked."""
    ids = {"turn_id": scribe.clock.short_id(), "step_id": scribe.clock.short_id()}
    facts: list[e.EventData] = [e.TurnStarted("direct", OWNER), e.StepStarted("answer")]
    for number, (model, why) in enumerate(asked, 1):
        facts.append(e.RequestSent(number, "openai", model, why, (), OWNER))
        failed = e.CallFailed(number, e.ErrorInfo("server", "x"), 1)
        done = e.ResponseCompleted(number, "stop", e.Usage(), "provider", e.Cost("free"), 1)
        facts.append(done if number == len(asked) else failed)
    return [scribe.event("s", fact, call_id=call, **ids) for fact in [*facts, e.TurnCompleted(call, 1)]]


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([], None),
        ([[("a", "asked for")], [("b", "default route")]], ("b", "default route")),
        ([[("a", "asked for"), ("b", "fallback")]], ("a", "asked for")),
        ([[("a", "asked for")], [("b", "fallback")]], ("a", "asked for")),
    ],
)
async def test_the_sessions_model_is_the_one_that_was_wanted_last(
    tmp_path: Path, turns: list[list[tuple[str, str]]], expected: tuple[str, str] | None
) -> None:
    scribe = Scribe()
    async with opened(tmp_path / "t.db") as store:
        await store.append([scribe.session("s")])
        for number, turn in enumerate(turns):
            await store.append(answered(scribe, *turn, call=f"call{number}"))
        session = fold([event async for event in store.read()])

    assert (expected and LastAnswer(ModelRef("openai", expected[0]), expected[1])) == last_answer(session)


async def test_the_log_says_who_fails_who_is_limited_and_who_is_fast(tmp_path: Path) -> None:
    scribe = Scribe()
    config = configured(tmp_path, "llm_providers: {openai: {rpm: 1}}")
    refs = [ModelRef("openai", "gpt"), ModelRef("groq", "b"), ModelRef("groq", "never")]
    async with opened(tmp_path / "t.db") as store:
        await store.append([scribe.session("s"), *scribe.turn("s")])
        for number in range(5):
            call = f"call{number}"
            sent = e.RequestSent(1, "groq", "b", "asked for", (), OWNER)
            failed = e.CallFailed(1, e.ErrorInfo("server", "x"), 1)
            await store.append([scribe.event("s", fact, call_id=call) for fact in (sent, failed)])
        now = scribe.clock.now()
        past = await store.query(lambda conn: read_past(conn, refs, config.settings, Request(), now))

    well, failing, unknown = (past[ref] for ref in refs)
    assert (None, True) == (well.open_until, (well.limited_until or 0) > NOON)
    assert well.stats is not None
    assert 0.3 == well.stats.time_to_first_token
    assert (failing.open_until or 0) > now
    assert (None, None, None) == (unknown.stats, unknown.open_until, unknown.limited_until)

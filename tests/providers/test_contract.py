"""What may come out of a plugin: the rules ahead of its use, and the guard while it answers."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, nullcontext, suppress
from typing import Any

import pytest

from timeline.errors import (
    BudgetExceeded,
    ConfigError,
    MissingKey,
    ModelUnavailable,
    PluginError,
    ProviderError,
    RateLimited,
    StoreError,
)
from timeline.events import RateLimit, Source, Usage
from timeline.providers import (
    Delta,
    Finish,
    LLMProvider,
    LLMRequest,
    LLMResponse,
    ModelInfo,
    ToolCall,
    UsageReport,
)
from timeline.providers.base import Besides
from timeline.providers.contract import RULES, STATIC_RULES, check_class
from timeline.providers.guarded import Guarded

REQUEST = LLMRequest("m", [{"role": "user", "content": "hi"}])
USED = UsageReport(Usage(input=1, output=1), {})
DONE = Finish("stop")
KEY = "sk-0123456789"


class Plugin(LLMProvider):
    """Yields what it was given; functions are called, and awaited where that is meant."""

    name = "bad"

    def __init__(self, *steps: Any, response: Any = None, models: Any = ()) -> None:
        self.steps = steps
        self.response = response
        self.models = models
        self.closed = False

    async def stream_request(self, request: LLMRequest) -> AsyncIterator[Any]:
        try:
            for step in self.steps:
                if isinstance(step, BaseException):
                    raise step
                if callable(step):
                    await step()
                else:
                    yield step
        finally:
            self.closed = True

    async def make_request(self, request: LLMRequest) -> LLMResponse:
        if isinstance(self.response, BaseException):
            raise self.response
        return self.response

    async def get_available_models(self) -> list[ModelInfo]:
        return self.models


def guarded(plugin: Any, *secrets: str, **known: Any) -> Guarded:
    return Guarded(plugin, plugin="bad", name="mine", secrets=secrets, **known)


async def stream(provider: LLMProvider) -> list[Any]:
    async with aclosing(provider.stream_request(REQUEST)) as items:
        return [item async for item in items]


def response(**changes: Any) -> LLMResponse:
    fields = {
        "content": "Hello",
        "reasoning": "",
        "tool_calls": (),
        "finish_reason": "stop",
        "usage": Usage(input=1, output=1),
        "model": "m",
        "provider": "bad",
        "request_id": None,
        "duration_seconds": 1.0,
    }
    return LLMResponse(**(fields | changes))


async def forever() -> None:
    await asyncio.sleep(3600)


# ------------------------------------------------------------------ streams


async def test_items_within_the_rules_pass_unchanged() -> None:
    items = [
        Delta("Grüße ", "reasoning"),
        Delta(""),
        Delta("Hello"),
        Delta("{", "tool_call", 0, "c", "weather"),
        Delta("}", "tool_call", 0),
        UsageReport(Usage(input=2), {"a": 1}),
        USED,
        Finish("tool_calls", rate_limits=(RateLimit("requests"),)),
    ]
    plugin = Plugin(*items)

    assert items == await stream(guarded(plugin))
    assert plugin.closed


@pytest.mark.parametrize(
    ("steps", "rule", "what"),
    [
        ([USED, DONE, Delta("more")], "finish", "Delta came after its Finish"),
        ([USED, DONE, DONE], "finish", "Finish came after its Finish"),
        ([USED, DONE, USED], "finish", "UsageReport came after its Finish"),
        ([Delta("Hello"), USED], "finish", "its stream ended without a Finish"),
        ([], "finish", "its stream ended without a Finish"),
        (["Hello", USED, DONE], "items", "it yielded str"),
        ([None], "items", "it yielded NoneType"),
        ([Delta(5)], "items", "Expected `str`, got `int`"),
        ([Delta("\ud800")], "items", "surrogates not allowed"),
        ([Delta("Hello", "thought")], "items", "Invalid enum value 'thought'"),
        ([UsageReport([1], {})], "items", "Expected `object`, got `array`"),
        ([UsageReport(Usage(), {"at": object()})], "items", "UsageReport: Encoding objects of type object"),
        ([UsageReport(Usage(input="5"), {})], "items", "Expected `int`, got `str`"),
        ([USED, Finish("end_turn")], "items", "Invalid enum value 'end_turn'"),
        ([UsageReport(Usage(input=-1), {}), DONE], "usage", "input is -1"),
        ([UsageReport(Usage(cache_read=2**70), {}), DONE], "usage", "cache_read is 1180591620717411303424"),
        ([UsageReport(Usage(output=1_000_000_001), {}), DONE], "usage", "output is 1000000001"),
        ([UsageReport(Usage(output=1, reasoning=2), {}), DONE], "usage", "reasoning is 2, but output 1"),
        ([UsageReport(Usage(), {}, besides=(Besides(Usage(-1)),)), DONE], "usage", "input is -1"),
        ([Delta("Hello"), DONE], "usage", "none was reported"),
        ([Delta("{}", "tool_call", 0, "c"), USED, DONE], "tool_calls", "the first delta of a call has no name"),
        ([Delta("{}", "tool_call", -1, "c", "f"), USED, DONE], "tool_calls", "index is -1"),
        ([Delta("{}", "tool_call", 0, "c", "f"), USED, DONE], "tool_calls", "but the finish reason is stop"),
    ],
)
async def test_stream_that_breaks_a_rule_is_refused_with_plugin_and_rule(
    steps: list[Any], rule: str, what: str
) -> None:
    plugin = Plugin(*steps)

    with pytest.raises(PluginError) as refused:
        await stream(guarded(plugin))

    assert f'the plugin bad broke the rule "{rule}" (' in str(refused.value)
    assert what in str(refused.value)
    assert plugin.closed


async def test_what_came_before_a_broken_rule_stands() -> None:
    items = guarded(Plugin(Delta("Hello"), USED, DONE, Delta("more"))).stream_request(REQUEST)

    assert [Delta("Hello"), USED, DONE] == [await anext(items) for _ in range(3)]
    with pytest.raises(PluginError):
        await anext(items)


async def test_plain_dicts_and_lists_are_taken_for_what_they_mean() -> None:
    finish = Finish("stop", rate_limits=[{"name": "requests", "limit": 5}])
    plugin = Plugin(UsageReport({"input": 1}, {}), finish, response=response(usage={"input": 1}, tool_calls=[]))

    reported, finished = await stream(guarded(plugin))

    assert Usage(input=1) == reported.usage
    assert (RateLimit("requests", 5),) == finished.rate_limits
    assert Usage(input=1) == (await guarded(plugin).make_request(REQUEST)).usage


async def test_service_without_token_counts_says_so_and_may_finish_without() -> None:
    class Silent(Plugin):
        reports_usage = False

    silent = Silent(Delta("Hello"), DONE, response=response(usage=Usage(), usage_reported=False))

    assert [Delta("Hello"), DONE] == await stream(guarded(silent))
    assert not (await guarded(silent).make_request(REQUEST)).usage_reported


@pytest.mark.parametrize("given", ["coroutine", "generator", "nothing"])
async def test_what_is_no_stream_is_refused_and_not_awaited(given: str) -> None:
    async def coroutine() -> None:
        return None

    class Odd(Plugin):
        def stream_request(self, request):
            return {"coroutine": coroutine, "generator": lambda: iter(()), "nothing": lambda: None}[given]()

    with pytest.raises(PluginError, match=r'"async" \(stream_request gave \w+, no async iterator\)'):
        await stream(guarded(Odd()))
    gc.collect()


async def test_stream_of_another_object_may_be_returned() -> None:
    class Items:
        def __init__(self) -> None:
            self.left = [Delta("Hello"), USED, DONE]

        def __aiter__(self):
            return self

        async def __anext__(self):
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop(0)

    class Delegating(Plugin):
        def stream_request(self, request):
            return Items()

    assert [Delta("Hello"), USED, DONE] == await stream(guarded(Delegating()))


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "error",
    [
        RateLimited(f"slow down: key {KEY}", retry_after=3.0, status=429, rate_limits=(RateLimit("requests", 5),)),
        ModelUnavailable(f"no weights for {KEY}"),
        MissingKey("set a key"),
        ConfigError("base_url is wrong"),
    ],
)
async def test_errors_of_the_tree_come_through_without_keys(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        await stream(guarded(Plugin(error), KEY))

    assert error is raised.value
    assert KEY not in str(raised.value)
    assert KEY not in repr(raised.value)


@pytest.mark.parametrize("ask", [stream, lambda provider: provider.make_request(REQUEST)])
@pytest.mark.parametrize(
    "error", [KeyError(KEY), RuntimeError(KEY), SystemExit(3), StoreError("disk"), BudgetExceeded("no"), TimeoutError()]
)
async def test_any_other_exception_is_named_with_its_place_and_not_quoted(
    error: BaseException, ask: Callable[[LLMProvider], Any]
) -> None:
    with pytest.raises(PluginError) as refused:
        await ask(guarded(Plugin(error, response=error)))

    assert f'broke the rule "errors" ({type(error).__name__} came out of it at test_contract.py:' in str(refused.value)
    assert KEY not in str(refused.value)
    assert refused.value.__suppress_context__


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"retry_after": "7"}, "Expected `float | null`, got `str`"),
        ({"status": "429"}, "Expected `int | null`, got `str`"),
        ({"rate_limits": ({"name": "requests", "limit": "5"},)}, "Expected `int | null`, got `str`"),
        ({"code": object()}, "Encoding objects of type object is unsupported"),
    ],
)
async def test_error_whose_fields_the_log_could_not_hold_is_refused(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(
        PluginError, match=r'"errors" \(RateLimited at test_contract.py:\d+ has a field of a wrong type'
    ):
        await stream(guarded(Plugin(RateLimited("slow down", **changes))))


async def test_error_made_without_its_base_class_is_refused() -> None:
    class Forgetful(ProviderError):
        def __init__(self) -> None:
            pass

    with pytest.raises(PluginError, match=r"Forgetful .* has no attribute 'status'"):
        await stream(guarded(Plugin(Forgetful())))


async def test_error_that_spells_a_key_in_its_own_way_is_refused() -> None:
    class Wordy(ProviderError):
        def __str__(self) -> str:
            return f"key {KEY} was refused"

    for error in (Wordy("no"), ProviderError("no", code=KEY)):
        with pytest.raises(PluginError, match=r"repeats a key") as refused:
            await stream(guarded(Plugin(error), KEY))
        assert KEY not in str(refused.value)


async def test_no_key_comes_through_with_an_answer() -> None:
    sources = (Source(f"https://a/?key={KEY}", f"{KEY} found"), Source("https://b"))
    found = (Source("https://a/?key=[key]", "[key] found"), Source("https://b"))
    used = UsageReport(Usage(), {"by": [KEY], KEY: {"n": 1}}, f"tier {KEY}")
    done = Finish("content_filter", f"no {KEY}", "m", KEY, explanation=f"refused {KEY}", sources=sources)
    whole = response(explanation=f"for {KEY}", sources=sources, raw_usage={"by": KEY}, request_id=KEY)
    provider = guarded(Plugin(Delta("No"), used, done, response=whole), KEY)

    assert [
        Delta("No"),
        UsageReport(Usage(), {"by": ["[key]"], "[key]": {"n": 1}}, "tier [key]"),
        Finish("content_filter", "no [key]", "m", "[key]", explanation="refused [key]", sources=found),
    ] == await stream(provider)
    assert response(
        explanation="for [key]", sources=found, raw_usage={"by": "[key]"}, request_id="[key]", provider="mine"
    ) == await provider.make_request(REQUEST)


# ------------------------------------------------------------------ cancellation


async def started(provider: LLMProvider) -> asyncio.Task[list[Any]]:
    task = asyncio.create_task(stream(provider))
    await asyncio.sleep(0.01)
    return task


async def test_cancelled_stream_is_closed_and_stays_cancelled() -> None:
    plugin = Plugin(Delta("Hello"), forever)
    task = await started(guarded(plugin))

    task.cancel("closed")

    with pytest.raises(asyncio.CancelledError, match="closed"):
        await task
    assert plugin.closed


async def test_plugin_that_swallows_cancellation_is_stopped_at_its_next_item() -> None:
    async def stubborn() -> None:
        with suppress(asyncio.CancelledError):
            await forever()

    plugin = Plugin(Delta("Hello"), stubborn, Delta("more"), forever)
    task = await started(guarded(plugin))

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert plugin.closed


@pytest.mark.parametrize("last", [[], [USED, DONE]])
async def test_plugin_that_ends_when_cancelled_has_not_answered(last: list[Any]) -> None:
    async def stubborn() -> None:
        with suppress(asyncio.CancelledError):
            await forever()

    task = await started(guarded(Plugin(stubborn, *last)))

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_whole_answer_after_a_swallowed_cancellation_is_none() -> None:
    class Stubborn(Plugin):
        async def make_request(self, request):
            try:
                await forever()
            except asyncio.CancelledError:
                return response()

    task = asyncio.create_task(guarded(Stubborn()).make_request(REQUEST))
    await asyncio.sleep(0.01)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancellation_that_nobody_asked_for_is_the_plugins_own() -> None:
    with pytest.raises(PluginError, match=r'"cancellation" \(CancelledError came out of it, though nobody cancelled\)'):
        await stream(guarded(Plugin(asyncio.CancelledError())))


async def test_closing_half_way_reaches_the_plugin_and_its_complaints_reach_nobody() -> None:
    class Rude(Plugin):
        async def stream_request(self, request):
            try:
                yield Delta("Hello")
                await forever()
            finally:
                self.closed = True
                yield Delta("one more thing")

        async def aclose(self):
            raise RuntimeError(KEY)

    plugin = Rude()
    provider = guarded(plugin)
    items = provider.stream_request(REQUEST)

    assert Delta("Hello") == await anext(items)
    await items.aclose()
    await provider.aclose()
    assert plugin.closed


async def test_timeout_of_the_caller_comes_through() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await stream(guarded(Plugin(forever)))


# ------------------------------------------------------------------ whole answers and lists


async def test_whole_answer_and_models_bear_the_configured_name() -> None:
    provider = guarded(Plugin(response=response(), models=[ModelInfo("m", "bad", context=5)]))

    assert response(provider="mine") == await provider.make_request(REQUEST)
    assert [ModelInfo("m", "mine", context=5)] == await provider.get_available_models()
    assert "mine" == provider.name


@pytest.mark.parametrize(
    ("answer", "rule", "what"),
    [
        ("Hello", "response", "it returned str"),
        (None, "response", "it returned NoneType"),
        (response(content=None), "response", "Expected `str`, got `null`"),
        (response(finish_reason="end"), "response", "Invalid enum value"),
        (response(duration_seconds="1"), "response", "Expected `float`, got `str`"),
        (response(usage=Usage(output=-5)), "usage", "output is -5"),
        (response(usage_reported=False), "usage", "none was reported"),
        (response(tool_calls=(ToolCall("c", "f", {}),)), "tool_calls", "the finish reason is stop"),
    ],
)
async def test_whole_answer_that_breaks_a_rule_is_refused(answer: Any, rule: str, what: str) -> None:
    with pytest.raises(PluginError, match=rf'"{rule}" \(.*{what}'):
        await guarded(Plugin(response=answer)).make_request(REQUEST)


@pytest.mark.parametrize(
    ("models", "what"),
    [
        (None, "it returned NoneType"),
        (["m"], "its list holds str"),
        ([ModelInfo(5, "bad")], "Expected `str`, got `int`"),
    ],
)
async def test_list_of_models_that_breaks_the_rule_is_refused(models: Any, what: str) -> None:
    with pytest.raises(PluginError, match=rf'"models" \(.*{what}'):
        await guarded(Plugin(models=models)).get_available_models()


# ------------------------------------------------------------------ before it is used


def test_our_base_class_alone_keeps_the_rules() -> None:
    assert [] == check_class(Plugin)


def problems(found: object) -> list[tuple[str, str]]:
    return [(problem.rule, problem.what) for problem in check_class(found)]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("make_request = None", ("methods", "make_request is missing")),
        ("del_ = 1", None),
        ("async def make_request(self): ...", ("methods", "make_request can't be called with (self, request)")),
        (
            "async def get_available_models(self, a): ...",
            ("methods", "get_available_models can't be called with (self)"),
        ),
        ("async def warm_up(self): ...", ("methods", "warm_up can't be called with (self, model)")),
        ("make_request = 5", ("methods", "make_request is no method")),
        ("def make_request(self, request): ...", ("async", "make_request is not async def")),
        ("async def make_request(self, request): yield 1", ("async", "make_request yields: it has to return")),
        ("def get_available_models(self): yield 1", ("async", "get_available_models yields: it has to return")),
        (
            "async def stream_request(self, request): return []",
            ("async", "stream_request is async def without yield: it has to be an async generator"),
        ),
        ("def stream_request(self, request): yield 1", ("async", "stream_request is a generator: write async def")),
        ("def stream_request(self, request): return other()", None),
        ("name = 5", ("attributes", "name is int, no str")),
        ("name = 'a:b'", ("attributes", "name holds a colon")),
        ("name = ''", ("attributes", "name is empty")),
        ("name = property(lambda self: 5)", None),
        ("capabilities = {'tools': True}", ("attributes", "capabilities is dict, no Capabilities")),
        ("local = 'yes'", ("attributes", "local is str, no bool")),
        ("local = True", None),
        ("reports_usage = 0", ("attributes", "reports_usage is int, no bool")),
        ("cuts_prompts = 'no'", ("attributes", "cuts_prompts is str, no bool")),
        ("def model_digest(self): ...", ("methods", "model_digest can't be called with (self, model)")),
        ("async def model_digest(self, model): ...", ("async", "model_digest is not a plain def")),
        ("def model_digest(self, model): ...", None),
        ("def is_local(self): ...", ("methods", "is_local can't be called with (self, model)")),
        ("async def is_small(self, model): ...", ("async", "is_small is not a plain def")),
        ("key_mark = 7", ("attributes", "key_mark is int, no str")),
        ("def __init__(self, key, /): ...", ("class", "its argument key can't be given by keyword")),
    ],
)
def test_class_is_checked_without_being_run(body: str, expected: tuple[str, str] | None) -> None:
    namespace: dict[str, Any] = {"Plugin": Plugin}
    exec(f"class Bad(Plugin):\n    {body}", namespace)

    assert ([expected] if expected else []) == problems(namespace["Bad"])


def test_class_that_implements_nothing_is_told_all_that_is_missing() -> None:
    class Empty(LLMProvider):
        pass

    missing = [("methods", f"{name} is missing") for name in ("make_request", "stream_request", "get_available_models")]
    assert missing == problems(Empty)
    assert missing == problems(object)
    assert [("class", "it names no class, but something of type function")] == problems(problems)


def test_class_need_not_be_derived_from_ours() -> None:
    class Foreign:
        name = "foreign"
        stream_request = Plugin.stream_request
        make_request = Plugin.make_request
        get_available_models = Plugin.get_available_models

    provider = guarded(Foreign())

    assert [] == problems(Foreign)
    assert not provider.local
    assert provider.reports_usage
    assert (False, None) == (provider.cuts_prompts, provider.model_digest("m"))
    assert (False, False, None) == (provider.is_local("m"), provider.is_small("m"), provider.key_mark)


class Mixed(Plugin):
    """One that runs its models here, but for one that it passes on."""

    local = True

    def is_local(self, model: str) -> bool:
        return model != "far"

    def is_small(self, model: str) -> bool:
        return model == "tiny"


def test_a_plugin_says_of_each_model_where_it_runs_and_how_small_it_is() -> None:
    provider = guarded(Mixed())

    assert [True, False] == [provider.is_local(model) for model in ("tiny", "far")]
    assert [True, False] == [provider.is_small(model) for model in ("tiny", "far")]


def test_what_a_plugin_says_of_all_its_models_holds_for_each() -> None:
    class Here(Plugin):
        local = True

    assert guarded(Here()).is_local("m")
    assert not guarded(Plugin()).is_local("m")


async def test_models_are_listed_as_free_where_asking_them_is() -> None:
    provider = guarded(Mixed(models=[ModelInfo("tiny", "x"), ModelInfo("far", "x", local=True)]))

    assert [("tiny", True), ("far", False)] == [
        (model.id, model.local) for model in await provider.get_available_models()
    ]


def test_what_is_known_to_run_elsewhere_is_not_local_whatever_the_plugin_says() -> None:
    provider = guarded(Mixed(), elsewhere=True)

    assert (False, False) == (provider.local, provider.is_local("tiny"))


@pytest.mark.parametrize("method", ["is_local", "is_small"])
@pytest.mark.parametrize(
    ("says", "wrong"), [(lambda _: "yes", r'"attributes" \(.* gave str'), (lambda _: {}["x"], r'"errors" \(KeyError')]
)
def test_where_a_model_runs_is_true_or_false(method: str, says: Any, wrong: str) -> None:
    provider = guarded(type("Vague", (Plugin,), {method: lambda _self, model: says(model)})())

    with pytest.raises(PluginError, match=wrong):
        getattr(provider, method)("m")


def test_keys_are_told_apart_and_nothing_is_told_of_them() -> None:
    class Keyed(Plugin):
        key_mark = "sk-account-of-mine"

    marks = [
        guarded(plugin, **known).key_mark
        for plugin, known in ((Plugin(), {"api_key": "sk-1"}), (Plugin(), {"api_key": "sk-2"}), (Keyed(), {}))
    ]

    assert 3 == len(set(marks))
    assert all(mark and len(mark) == 4 for mark in marks)


@pytest.mark.parametrize(
    ("digest", "broken"),
    [
        (lambda _: None, None),
        (lambda model: f"digest of {model}", None),
        (lambda _: 7, r'"attributes" \(model_digest gave int'),
        (lambda _: "\udcff", r'"attributes" \(model_digest gave str'),
        (lambda _: {}["x"], r'"errors" \(KeyError'),
    ],
)
def test_what_a_plugin_says_of_cut_prompts_and_of_its_models_is_passed_on(digest: Any, broken: str | None) -> None:
    class Cutting(Plugin):
        cuts_prompts = True

        def model_digest(self, model):
            return digest(model)

    provider = guarded(Cutting())

    assert provider.cuts_prompts
    with pytest.raises(PluginError, match=broken) if broken else nullcontext():
        found = provider.model_digest("m")
        assert digest("m") == found


@pytest.mark.parametrize(("name", "what"), [(None, "name is NoneType, no str"), ("a:b", "name holds a colon")])
def test_attributes_are_looked_at_again_once_it_is_made(name: Any, what: str) -> None:
    class Named(Plugin):
        @property
        def name(self):
            return name

    with pytest.raises(PluginError, match=what):
        guarded(Named())


def test_static_rules_are_among_the_rules() -> None:
    assert set(STATIC_RULES) < set(RULES)


@pytest.mark.parametrize("local", [True, False])
def test_guard_says_what_the_plugin_says_of_being_local(*, local: bool) -> None:
    class Somewhere(Plugin):
        @property
        def local(self):
            return local

    assert local is guarded(Somewhere()).local

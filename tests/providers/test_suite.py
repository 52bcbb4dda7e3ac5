"""The suite that plugin authors run notices each broken promise, and says which check it broke."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import suppress
from typing import Any

import pytest

from timeline.errors import NetworkError, PluginError, RateLimited
from timeline.providers import Delta, Finish, LLMProvider, LLMRequest, ModelInfo, UsageReport, collect
from timeline.providers.guarded import Guarded
from timeline.testing import Outcome, ProviderContract, ScriptedProvider, outcomes

REQUEST = LLMRequest("m", [{"role": "user", "content": "hi there"}])
LONG = ["One", 3600.0]


class Suite(ProviderContract):
    patience = 0.3

    def __init__(self, provider: type[LLMProvider], *answers: Any) -> None:
        self.made = provider
        self.answers = answers

    def provider(self) -> LLMProvider:
        return self.made(*self.answers, lambda request: LONG if request == self.long_request() else "Hello.")


def failures(provider: type[LLMProvider], *answers: Any) -> dict[str, str]:
    found = outcomes(Suite(provider, *answers))
    return {outcome.check: outcome.message or "" for outcome in found if outcome.state == "failed"}


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    found = list(outcomes(Suite(ScriptedProvider)))

    assert Outcome("make_request returns a whole answer with its usage.", "passed") in found
    assert {"passed": 10, "skipped": 2} == {
        state: sum(outcome.state == state for outcome in found) for state in ("passed", "skipped")
    }


class Swallows(ScriptedProvider):
    """Goes on for ever, whatever is asked."""

    async def stream_request(self, request):
        async for item in super().stream_request(request):
            yield item
            while item == Delta("One"):
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(3600)


class GoesOn(ScriptedProvider):
    """Ends its answer as if nobody had cancelled."""

    async def stream_request(self, request):
        with suppress(asyncio.CancelledError):
            async for item in super().stream_request(request):
                yield item

    async def make_request(self, request):
        with suppress(asyncio.CancelledError):
            return await super().make_request(request)


class IgnoresClosing(ScriptedProvider):
    async def stream_request(self, request):
        try:
            async for item in super().stream_request(request):
                yield item
        finally:
            if request.max_tokens == 2000:
                yield Delta("and")


class Lists(ScriptedProvider):
    async def get_available_models(self):
        return [ModelInfo("m", "x"), ModelInfo("m", "x")]


class Crashes(ScriptedProvider):
    async def make_request(self, request):
        raise KeyError(request.model)

    async def aclose(self):
        raise OSError


class Empty(ScriptedProvider):
    async def make_request(self, request):
        return await collect(ScriptedProvider([]).stream_request(request))


class WrongShape(ScriptedProvider):
    def make_request(self, request):
        return super().make_request(request)


@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        (
            Swallows,
            {
                "A stream whose task is cancelled": "a cancelled answer goes on after 0.3 s",
                "make_request ends at once when its task": "a cancelled answer goes on after 0.3 s",
            },
        ),
        (
            GoesOn,
            {
                "A stream whose task is cancelled": "a cancelled answer goes on to its end",
                "make_request ends at once when its task": "a cancelled answer goes on to its end",
            },
        ),
        (IgnoresClosing, {"A stream that is closed half-way": "RuntimeError came out of it"}),
        (Lists, {"get_available_models lists models": "a model is listed twice"}),
        (
            Crashes,
            {
                "make_request returns a whole answer": "KeyError came out of it at test_suite.py:",
                "A model that isn't there": "KeyError came out of it",
                "It can be warmed up, and closed": "OSError came out of it at test_suite.py:",
                "make_request ends at once when its task is cancelled": "KeyError came out of it",
            },
        ),
        (Empty, {"make_request returns a whole answer": "the answer is empty"}),
        (WrongShape, {"Its class has the methods": '"async" (make_request is not async def)'}),
    ],
)
def test_broken_promise_fails_its_check_and_no_other(provider: type[LLMProvider], expected: dict[str, str]) -> None:
    found = failures(provider)

    assert len(expected) == len(found), found
    for check, message in expected.items():
        (said,) = [text for sentence, text in found.items() if sentence.startswith(check)]
        assert message in said


def test_unreachable_service_that_answers_is_noticed() -> None:
    suite = Suite(ScriptedProvider)
    suite.unreachable = lambda: ScriptedProvider("I am there")

    with pytest.raises(AssertionError, match="it answered, though its service isn't there"):
        suite.test_missing_service_is_an_error_of_the_tree()
    suite.unreachable = lambda: ScriptedProvider([NetworkError("nobody: try again")])
    suite.test_missing_service_is_an_error_of_the_tree()


def test_author_sees_the_plugins_own_exception() -> None:
    with pytest.raises(PluginError) as raised:
        Suite(Crashes).test_whole_answer_comes_without_streaming()

    assert isinstance(raised.value.__context__, KeyError)
    assert not raised.value.__suppress_context__


def test_suite_that_names_no_provider_says_what_to_define() -> None:
    class TestNothing(ProviderContract):
        pass

    with pytest.raises(NotImplementedError, match=r"TestNothing has to define provider\(\)"):
        TestNothing().test_models_are_listed()


def test_library_needs_no_test_runner() -> None:
    code = "import sys, timeline.testing; sys.exit(any(name.split('.')[0] in ('pytest', '_pytest', 'unittest') for name in sys.modules))"

    assert 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode


# ------------------------------------------------------------------ the scripted provider


async def test_script_is_said_in_order_and_the_last_answer_again() -> None:
    provider = ScriptedProvider("Hello.", ["Hel", 0.001, Delta("mm", "reasoning"), "lo"], [RateLimited("slow down")])

    first = await provider.make_request(REQUEST)
    second = await provider.make_request(REQUEST)

    assert ("Hello.", "stop", 2, 1) == (first.content, first.finish_reason, first.tokens_input, first.tokens_output)
    assert ("Hello", "mm") == (second.content, second.reasoning)
    for _ in range(2):
        with pytest.raises(RateLimited):
            await provider.make_request(REQUEST)
    assert [REQUEST] * 4 == provider.requests


async def test_script_may_break_the_rules() -> None:
    script = [Finish("stop"), UsageReport({}, {})]

    assert script == [item async for item in ScriptedProvider(script).stream_request(REQUEST)]
    with pytest.raises(PluginError, match="none was reported"):
        await collect(Guarded(ScriptedProvider(script), plugin="p", name="p").stream_request(REQUEST))

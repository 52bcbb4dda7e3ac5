"""What a model is asked when a text is routed, and what is made of its answer, also of one that makes no sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from timeline.cognition.builtin.calculator import Calculator
from timeline.cognition.builtin.clock import Clock
from timeline.cognition.builtin.files import ListFiles, ReadFile
from timeline.cognition.builtin.past import SearchTimeline
from timeline.cognition.difficulty import complexity_of, kind_of
from timeline.cognition.routing import (
    CALIBRATION,
    NONE,
    WORDS,
    Asking,
    Decision,
    Malformed,
    by_signals,
    decide,
    repair,
    request,
    supported,
)
from timeline.cognition.signals import Signal
from timeline.cognition.tools import Tools, Workspace
from timeline.providers import EmbeddedProvider
from timeline.providers.base import LLMResponse, Message, Tool, Usage
from timeline.providers.chat_format import is_strict

TOOLS = Tools((Calculator(), Clock(), ReadFile(), ListFiles(), SearchTimeline()))
SUM = Signal("calculator", "an arithmetic expression: 12*7", {"expression": "12*7"}, certain=True)
DAY = Signal("clock", "it asks what day or time it is", certain=True)
MAYBE = Signal("list_files", "files or folders are spoken of")


def asking(text: str = "What is 12*7?", *signals: Signal, **more: Any) -> Asking:
    return Asking(text, TOOLS.schemas(), signals, **{"model": "smollm2", **more})


def small(text: str = "What is 12*7?", *signals: Signal, **more: Any) -> Asking:
    return asking(text, *signals, **{"small": True, **more})


def read(answer: str, asked: Asking) -> Decision | Malformed:
    return decide(asked, LLMResponse(answer, "", (), "stop", Usage(), "smollm2", "scripted", None, 0.0))


def odds(asked: Asking) -> dict[str, float]:
    return dict(request(asked).extra["logit_bias"])


def words(asked: Asking) -> list[str]:
    return [word.strip(' "') for word in request(asked).extra["grammar"].removeprefix("root ::= ").split("|")]


def answered(**fields: Any) -> str:
    return json.dumps({"intent": "to reckon", "tools": ["calculator"], "complexity": "low", **fields})


# ------------------------------------------------------------------ a model that can describe


def test_a_bigger_model_is_told_the_tools_and_the_signals_and_held_to_a_schema() -> None:
    asked = request(asking("What is 12*7?", SUM, MAYBE))

    assert "- calculator: Calculates exactly" in (asked.system or "")
    assert "calculator is needed: an arithmetic expression: 12*7" in (asked.system or "")
    assert "list_files may be needed: files or folders are spoken of" in (asked.system or "")
    assert is_strict(asked.response_schema)
    assert list(TOOLS.names) == asked.response_schema["properties"]["tools"]["items"]["enum"]
    assert (0.0, {}) == (asked.temperature, asked.extra)


def test_the_request_is_marked_as_matter_and_shortened_in_its_middle() -> None:
    asked = request(asking("begin " + "x" * 50_000 + " end", past=(Message("user", "Hello"),)))

    assert "Hello" == asked.messages[0].text
    assert asked.messages[-1].text.startswith("<request>\nbegin ")
    assert asked.messages[-1].text.endswith(" end\n</request>")
    assert len(asked.messages[-1].text) < 8100


def test_without_tools_no_schema_allows_any() -> None:
    asked = request(Asking("Hello", (), ()))

    assert {"type": "string"} == asked.response_schema["properties"]["tools"]["items"]
    assert "(there are none)" in (asked.system or "")


def test_a_described_decision_is_read() -> None:
    decision = read(answered(tools=["calculator", "clock", "calculator"], complexity="medium"), asking("x", SUM))

    assert isinstance(decision, Decision)
    assert ("to reckon", ("calculator", "clock"), "medium") == (decision.intent, decision.tools, decision.complexity)
    assert ("model", False) == (decision.source, decision.degraded)
    assert "12*7" in decision.reason


@pytest.mark.parametrize(
    "answer",
    [
        "```json\n" + answered() + "\n```",
        "Here it is: " + answered() + " Good luck!",
        answered(tools="calculator"),
        answered(tools=None, tool="calculator"),
        answered(complexity="LOW"),
        answered(tools=["calculator", "abacus"]),
    ],
)
def test_what_a_careless_model_puts_around_its_decision_is_forgiven(answer: str) -> None:
    decision = read(answer, asking())

    assert isinstance(decision, Decision)
    assert (("calculator",), "low") == (decision.tools, decision.complexity)


@pytest.mark.parametrize("tools", [[], None, ["none"], "none", ""])
def test_no_tool_can_be_said_in_several_ways(tools: Any) -> None:
    decision = read(answered(tools=tools), asking())

    assert isinstance(decision, Decision)
    assert () == decision.tools


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "no JSON object"),
        ("calculator", "no JSON object"),
        ('{"tools": ["calculator"', "no JSON object"),
        ('{"tools": ["calculator"], }', "not the JSON that was asked for"),
        (answered(tools=7), "not the JSON that was asked for"),
        (answered(tools=["abacus"]), "'abacus' is no tool; there are: calculator, clock"),
        (answered(complexity="extreme"), "complexity is not one of low, medium, high"),
        ('{"tools": []}', "not the JSON that was asked for"),
    ],
)
def test_an_answer_that_makes_no_sense_says_why(answer: str, reason: str) -> None:
    problem = read(answer, asking())

    assert isinstance(problem, Malformed)
    assert reason in problem.reason


def test_the_repair_shows_the_model_its_mistake() -> None:
    asked = asking("What is 12*7?", SUM)
    problem = read("calculator!", asked)
    assert isinstance(problem, Malformed)
    again = repair(asked, problem)

    assert request(asked).messages == again.messages[:-2]
    assert [("assistant", "calculator!"), ("user", True)] == [
        (again.messages[-2].role, again.messages[-2].text),
        (again.messages[-1].role, problem.reason in again.messages[-1].text),
    ]


def test_the_signals_decide_when_no_model_does_and_without_any_the_answer_is_direct() -> None:
    several = by_signals(
        asking("What is 12*7, and what day is it?", SUM, DAY, MAYBE), Malformed("the answer was empty")
    )
    nothing = by_signals(asking("Hello", MAYBE), Malformed("the answer was empty"))

    assert (("calculator", "clock"), "signals", True) == (several.tools, several.source, several.degraded)
    assert several.reason.startswith(
        "no route could be read: the answer was empty; calculator: an arithmetic expression: 12*7; clock:"
    )
    assert ((), "none", True) == (nothing.tools, nothing.source, nothing.degraded)


def test_of_a_small_model_that_stands_in_only_what_the_text_speaks_for_counts() -> None:
    said = read(answered(tools=["list_files", "clock"]), asking("What is 12*7?", SUM))
    assert isinstance(said, Decision)

    certain = supported(asking("What is 12*7?", SUM, MAYBE), said)
    possible = supported(asking("Hm?", MAYBE), said)

    assert (("calculator",), True, "low") == (certain.tools, certain.degraded, certain.complexity)
    assert ("list_files",) == possible.tools
    assert "a very small model stood in" in (possible.reason or "")


def test_a_signal_for_a_tool_that_is_off_counts_for_nothing() -> None:
    page = Signal("fetch_url", "an address", {"url": "https://example.com"}, certain=True)

    assert () == by_signals(asking("https://example.com", page), Malformed("no model")).tools
    assert "web" not in words(small("https://example.com", page))


# ------------------------------------------------------------------ a model that chooses a word


def test_a_certain_signal_leaves_a_small_model_only_its_own_word() -> None:
    assert ["math"] == words(small("What is 12*7?", SUM, MAYBE))
    assert ["math", "time"] == words(small("What is 12*7, and what day is it?", SUM, DAY))
    assert 1 == len(request(small("What is 12*7?", SUM)).messages)


def test_signals_are_prior_odds_on_top_of_what_calibration_takes_out() -> None:
    without, with_signal = odds(small("Hm?")), odds(small("Hm?", MAYBE))

    assert {*WORDS.values(), NONE} - {"web"} == without.keys()
    assert with_signal["folder"] > without["folder"] + 3
    assert with_signal["math"] == without["math"]
    assert pytest.approx(-CALIBRATION["smollm2"][NONE]) == without[NONE]
    assert len(request(small("Hm?")).messages) > 20


def test_a_model_of_unknown_leaning_may_choose_no_tool_that_nothing_speaks_for() -> None:
    asked = small("Which files?", MAYBE, model="other")

    assert ["folder", NONE] == words(asked)
    assert [NONE] == words(small("Hm?", model="other"))


def test_a_small_model_behind_another_server_is_held_to_the_words_by_a_schema() -> None:
    asked = small("Which files?", MAYBE, biased=False)
    wanted = request(asked)

    assert ({"type": "string", "enum": ["folder", NONE]}, {}) == (wanted.response_schema, wanted.extra)
    assert '"math"' == wanted.messages[1].text
    assert ("list_files",) == read('"folder"', asked).tools


def test_the_word_is_the_decision_and_the_reason_says_what_was_considered() -> None:
    chosen, declined = read("folder", small("Which?", MAYBE)), read(NONE, small("Which?", MAYBE))

    assert (("list_files",), "list files", "model", False) == (
        chosen.tools,
        chosen.intent,
        chosen.source,
        chosen.degraded,
    )
    assert "the model chose folder; list_files was possible: files or folders are spoken of" == chosen.reason
    assert ((), "question") == (declined.tools, declined.intent)


def test_whatever_word_a_small_model_says_all_certain_tools_are_used() -> None:
    decision = read("time", small("What is 12*7, and what day is it?", SUM, DAY))

    assert (("calculator", "clock"), "medium") == (decision.tools, decision.complexity)


@pytest.mark.parametrize("answer", ["", "math", "I think folder"])
def test_a_word_that_was_not_offered_is_malformed(answer: str) -> None:
    assert isinstance(read(answer, small("Which?", MAYBE, model="other")), Malformed)


def test_a_tool_of_a_plugin_goes_by_its_own_name() -> None:
    plugin = Tool("dice", "Rolls dice.", {"type": "object"})
    asked = Asking("roll", (plugin,), (Signal("dice", "it says roll"),), model="smollm2", small=True)

    assert ["dice", NONE] == words(asked)
    assert ("dice",) == read("dice", asked).tools


# ------------------------------------------------------------------ how hard, and what for


@pytest.mark.parametrize(
    ("text", "complexity"),
    [
        ("hello", "low"),
        ("What is 12*7?", "low"),
        ("What is the capital of France?", "low"),
        ("Explain how transformers work", "medium"),
        ("Write a haiku about spring", "medium"),
        ("Prove that the square root of 2 is irrational", "high"),
        ("Design and explain a database schema for a library system", "high"),
    ],
)
def test_how_hard_a_request_is_follows_from_how_it_is_worded(text: str, complexity: str) -> None:
    assert complexity == complexity_of(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("hello", "chat"),
        ("Who wrote Faust?", "question"),
        ("Write a haiku about spring", "write"),
        ("Write a Python function that sorts", "write code"),
        ("Why is the sky blue?", "explain"),
    ],
)
def test_what_a_text_without_tools_is_for(text: str, kind: str) -> None:
    assert kind == kind_of(text)


# ------------------------------------------------------------------ the real model


@pytest.mark.model
async def test_the_local_model_routes_texts_to_their_tools(loaded_model: EmbeddedProvider, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("one\ntwo\n")
    expected: dict[str, tuple[str, ...]] = {
        "What is 12*7?": ("calculator",),
        "what day is it today?": ("clock",),
        "read notes.txt and tell me the second line": ("read_file",),
        "what did I ask you about rust?": ("search_timeline",),
        "which files are here?": ("list_files",),
        "What is 15% of 240, and what day is it?": ("calculator", "clock"),
        "Tell me a joke": (),
        "Who wrote Hamlet?": (),
        "Write a haiku about spring": (),
        "explain 24/7 support": (),
        # Here the text leaves a doubt, and the model decides.
        "which month comes after the current one?": ("clock",),
        "can you remember things?": (),
    }
    found = {}
    for text in expected:
        asked = small(text, *TOOLS.signals(text, Workspace(tmp_path)))
        answer = await loaded_model.make_request(replace(request(asked), model="smollm2"))
        decision = decide(asked, answer)
        found[text] = decision.tools if isinstance(decision, Decision) else decision
        assert 0 < answer.tokens_output < 9

    assert expected == found

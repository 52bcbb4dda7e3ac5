"""What is drawn of turns with cognition, as the fold tells it: tools, waits, answers read again, what was taken back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from support.cognition import Story, percent_and_day
from support.stores import Scribe, opened

from timeline import events as e
from timeline.cognition.turn import history
from timeline.config import load
from timeline.projections.blocks import Folding, Session, Step, fold, sources
from timeline.projections.drawn import Turn
from timeline.runtime import Timeline

ERROR = e.ErrorInfo("server", "it broke")


def turn_of(story: Story) -> Turn:
    return fold(story.events).turns[-1]


def step_of(story: Story) -> Step:
    return turn_of(story).steps[-1]


def test_tools_stand_in_their_step_with_all_that_is_known_of_them() -> None:
    story = percent_and_day()

    route, tool, format_ = turn_of(story).steps
    assert [("calculator", "completed", 1000), ("clock", "completed", 1000)] == [
        (use.name, use.state, use.duration_us) for use in tool.tools
    ]
    assert ['{"expression": "0.15*240"}', "36"] == [
        story.contents[ref or ""] for ref in (tool.tools[0].arguments_ref, tool.tools[0].result_ref)
    ]
    assert ([], []) == (route.tools, format_.tools)
    assert route.started_at < tool.started_at < format_.started_at
    assert {"intent": "question", "tools": ["calculator", "clock"], "complexity": "low"} == route.decision


def test_a_failed_tool_keeps_its_error_and_one_without_an_end_is_open() -> None:
    story = Story().ask("Why?")
    story.step("tool").tool("fetch_url", {"url": "http://x/"}, error="it is refused").tool("clock", {})

    assert [("failed", "it is refused"), ("open", None)] == [
        (use.state, use.error and use.error.message) for use in step_of(story).tools
    ]


def test_parallel_calls_of_one_tool_are_told_apart_by_their_ids() -> None:
    story = Story().ask("Why?").step("tool")
    for id_ in ("a", "b"):
        story.add(e.ToolCalled("calculator", id_))
    story.add(e.ToolReturned("calculator", "b", 2, "of b")).add(e.ToolReturned("calculator", "a", 3, "of a"))

    assert [("a", "of a", 3), ("b", "of b", 2)] == [
        (use.tool_call_id, use.result_ref, use.duration_us) for use in step_of(story).tools
    ]


def test_an_id_that_a_model_gives_twice_belongs_to_two_runs() -> None:
    story = Story().ask("Why?").step("tool")
    story.tool("clock", {}, "first", id_="same").tool("clock", {}, "second", id_="same")

    results = [story.contents[use.result_ref or ""] for use in step_of(story).tools]
    assert ["first", "second"] == results


def test_forgotten_tools_are_still_counted_and_ended() -> None:
    story = Story().ask("Why?")
    story.step("tool").tool("clock", {}, "noon").tool("fetch_url", {}, error="no")
    gone = [
        msgspec.structs.replace(event, data=None) if event.type.startswith("tool.") else event for event in story.events
    ]

    assert [("", "completed"), ("", "failed")] == [(use.name, use.state) for use in fold(gone).turns[0].steps[0].tools]


def test_what_happened_beside_the_attempts_is_noted_in_its_step() -> None:
    notes = [
        e.RateLimitWaited("openai", "gpt", "requests", 3_200_000),
        e.CallRetryScheduled(1, 800_000, "busy"),
        e.CallRerouted("openai:gpt", "embedded:smollm2", "busy"),
        e.BudgetAlerted("monthly", "2026-11", 8, 1, 10, 80),
        e.BudgetExceeded("monthly", "2026-11", 9, 2, 10),
    ]
    story = Story().ask("Why?").step("format").send(("openai", "gpt"))
    for note in notes:
        story.add(note)

    assert notes == step_of(story).notes


def test_text_that_a_later_attempt_replaced_is_superseded() -> None:
    story = Story().ask("Why?").step("format")
    story.send(("openai", "gpt")).says("Beca").add(e.CallFailed(1, ERROR, 5, partial=True))
    story.send(attempt=2, again=True).says("Because", attempt=2).ends((1, 1), 0.1, attempt=2)
    turn = turn_of(story.answered(1))

    assert [(True, "Beca"), (False, "Because")] == [(item.superseded, item.text) for item in turn.steps[0].attempts]
    assert turn.answer is turn.steps[0].attempts[1]


def test_an_attempt_that_failed_before_any_text_has_nothing_to_take_back() -> None:
    story = Story().ask("Why?").step("format").send().add(e.CallFailed(1, ERROR, 5))
    story.send(attempt=2, again=True)

    assert [False, False] == [item.superseded for item in step_of(story).attempts]


def test_what_a_step_before_the_answer_said_is_no_answer() -> None:
    story = Story().ask("Why?").step("route").send().says('{"tools": []}')

    assert turn_of(story).answer is None


def test_a_turn_has_cognition_by_its_steps_where_its_mode_was_forgotten() -> None:
    events = percent_and_day().events
    gone = [msgspec.structs.replace(event, data=None) if event.type == "turn.started" else event for event in events]

    direct = Story().ask("Why?", mode="direct").step("answer")
    assert [True, True, False] == [
        turn.has_cognition for turn in (fold(events).turns[0], fold(gone).turns[0], turn_of(direct))
    ]


def test_folding_event_by_event_says_at_each_what_a_fold_of_them_says() -> None:
    events = percent_and_day().events
    folding = Folding()
    for count, event in enumerate(events, 1):
        folding.add(event)

        assert fold(events[:count]) == folding.session


# ------------------------------------------------------------------ answers read again


def hit(source: str, **more: object) -> e.CallCacheHit:
    return e.CallCacheHit(source, 1_000, **more)  # type: ignore[arg-type]


def test_an_answer_read_again_is_that_of_its_source() -> None:
    story = Story().ask("Why?").step("answer").call("Because", " it is.", tokens=(9, 8))
    source = story._ids["call_id"]
    story.done(1).answered(1).ask("Why?").step("answer")
    story._ids["call_id"] = "again"
    story.add(hit(source)).done(0.001).answered(0.001)

    first, second = fold(story.events).turns
    assert first.answer is not None
    assert second.answer is not None
    assert ("Because it is.", "completed", "stop", source, source, 1_000) == (
        second.answer.text,
        second.answer.state,
        second.answer.finish_reason,
        second.answer.source_call,
        second.answer.recorded_in,
        second.answer.saved_nano_usd,
    )
    assert (None, None) == (second.answer.usage, second.answer.cost)
    assert first.answer.fragments == second.answer.fragments
    assert set() == sources(story.events)


def test_an_answer_of_another_session_comes_with_what_is_borrowed() -> None:
    other = Story("other").ask("Why?").step("answer").call("Because.")
    story = Story().ask("Why?").step("answer").add(hit("call00000001"), call_id="again").answered(1)
    here = [event for event in story.events if event.type != "request.sent"]

    assert {"call00000001"} == sources(here)
    turn = fold(here, {"call00000001": other.events}).turns[0]
    assert turn.answer is not None
    assert ("Because.", "embedded", "smollm2") == (turn.answer.text, turn.answer.provider, turn.answer.model)


def test_an_answer_whose_source_was_forgotten_still_says_who_gave_it() -> None:
    found = hit("gone", provider="openai", model="gpt", finish_reason="stop")
    story = Story().ask("Why?").step("answer").add(found, call_id="again").answered(1)

    answer = turn_of(story).answer
    assert answer is not None
    assert ("", "openai", "gpt", "stop") == (answer.text, answer.provider, answer.model, answer.finish_reason)


async def test_the_library_reads_what_a_session_borrows_and_the_bodies_of_its_tools(tmp_path: Path) -> None:
    home = tmp_path / "home"
    config = load(environ={"TIMELINE_HOME": str(home), "HOME": str(tmp_path)}, cwd=tmp_path)
    scribe = Scribe()
    other = Story("other", scribe).ask("Why?").step("answer").call("Because.")
    story = Story("mine", scribe).ask("Why?").step("tool").tool("clock", {"zone": "UTC"}, "noon").done(0.1)
    story.step("format").add(hit("call00000001"), call_id="again").done(0.1).answered(1)
    async with opened(config.paths.store) as store:
        for told in (other, story):
            await store.append(told.new, contents=told.bodies)

    async with Timeline.open(config=config) as timeline:
        session = await timeline.session("mine")
        bodies = await timeline.bodies(session)
        text = await asyncio.to_thread(_past, session, bodies)

    (turn,) = session.turns
    use = turn.steps[0].tools[0]
    assert turn.answer is not None
    assert "Because." == turn.answer.text
    assert ('{"zone": "UTC"}', "noon") == (bodies[use.arguments_ref or ""], bodies[use.result_ref or ""])
    assert [("Why?", None), ("Because.", "call00000001")] == text


def _past(session: Session, bodies: dict[str, str | bytes]) -> list[tuple[str, str | None]]:
    """The next turn's messages, and the call that holds the text of each."""
    return [(message.text, ref.call) for message, ref in history(session, bodies)]


@pytest.mark.parametrize("data", [e.ToolReturned("clock", "x", 1), e.ToolFailed("clock", "x", 1, ERROR)])
def test_the_end_of_a_tool_that_never_began_is_folded_into_nothing(data: e.EventData) -> None:
    assert [] == step_of(Story().ask("Why?").step("tool").add(data)).tools


def test_tools_and_notes_of_no_step_are_folded_into_nothing() -> None:
    story = Story().ask("Why?")
    story.add(e.ToolCalled("clock", "x")).add(e.CallRerouted("a", "b", "c")).add(e.StepStarted("format"), step_id="s")

    (step,) = turn_of(story).steps
    assert ([], []) == (step.tools, step.notes)

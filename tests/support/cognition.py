"""Made-up turns with cognition: what was asked, routed, run and answered, as events and the bodies they refer to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from support.stores import NOON, OWNER, Scribe, TickingClock
from timeline import events as e
from timeline.events import Event, EventData, NewEvent
from timeline.store import content_digest

__all__ = ["Story", "percent_and_day"]

FREE = e.Cost("free")
SMOLLM = ("embedded", "smollm2")


class Story:
    """A session whose turns are told step by step; time passes as it is told.

    Args:
        session: Its id.
        scribe: Makes the events.
    """

    def __init__(self, session: str = "0193b3f0-0000-7000-8000-000000000000", scribe: Scribe | None = None) -> None:
        self.session = session
        self.clock = TickingClock(7)
        self._scribe = scribe or Scribe(self.clock)
        self.new: list[NewEvent] = []
        self.contents: dict[str, str] = {}
        self._ids: dict[str, str] = {}
        self._step_at = self._turn_at = NOON
        self._calls = 0

    # -------------------------------------------------------------- telling

    def add(self, data: EventData, **ids: str) -> Story:
        """Any fact of the present turn and step."""
        self.new.append(self._scribe.event(self.session, data, **(self._ids | ids)))
        return self

    def wait(self, seconds: float) -> Story:
        """Time passes."""
        self.clock._now += int(seconds * 1_000_000)
        return self

    def keep(self, body: str) -> str:
        """A body in `contents`; its digest."""
        self.contents[content_digest(body)] = body
        return content_digest(body)

    def ask(self, prompt: str, mode: Any = "pipeline", **more: Any) -> Story:
        """The user asks."""
        if not self.new:
            self._ids = {}
            self.add(e.SessionStarted("0.1.0", OWNER, prompt[:60]))
        self._ids = {"turn_id": self.clock.short_id()}
        self._turn_at = self.clock._now
        return self.add(e.TurnStarted(mode, OWNER, self.keep(prompt), **more))

    def step(self, kind: Any) -> Story:
        """A step begins."""
        index = sum(isinstance(new.data, e.StepStarted | e.StepSkipped) for new in self.new)
        self._ids = {"turn_id": self._ids["turn_id"], "step_id": self.clock.short_id()}
        self._step_at = self.clock._now
        return self.add(e.StepStarted(kind, index))

    def skip(self, kind: Any, reason: str) -> Story:
        """A step isn't needed."""
        self._ids = {"turn_id": self._ids["turn_id"], "step_id": self.clock.short_id()}
        return self.add(e.StepSkipped(kind, reason))

    def send(self, model: tuple[str, str] = SMOLLM, *, attempt: int = 1, again: bool = False) -> Story:
        """A request goes out, of a new call unless `again`."""
        if not again:
            self._calls += 1
            self._ids["call_id"] = f"call{self._calls:08d}"
        return self.add(e.RequestSent(attempt, *model, "asked for", (), OWNER, local=model[0] == "embedded"))

    def says(self, *texts: str, kind: Any = "text", attempt: int = 1, gap: float = 0.02) -> Story:
        """Deltas come, in one window."""
        self.wait(gap * len(texts))
        gaps = (int(gap * 1_000_000),) * len(texts)
        return self.add(e.ChunkReceived(0, texts, gaps, kind, attempt))

    def ends(
        self,
        tokens: tuple[int, int],
        seconds: float,
        *,
        cost: e.Cost = FREE,
        source: Any = "provider",
        attempt: int = 1,
    ) -> Story:
        """The attempt ends well."""
        usage = e.Usage(input=tokens[0], output=tokens[1])
        return self.add(e.ResponseCompleted(attempt, "stop", usage, source, cost, int(seconds * 1_000_000), 100_000))

    def call(
        self,
        *texts: str,
        tokens: tuple[int, int] = (100, 10),
        seconds: float = 0.3,
        model: tuple[str, str] = SMOLLM,
        **more: Any,
    ) -> Story:
        """A whole call."""
        return self.send(model).says(*texts).wait(seconds - 0.02 * len(texts)).ends(tokens, seconds, **more)

    def tool(
        self,
        name: str,
        arguments: Any,
        result: str | None = None,
        *,
        error: str | None = None,
        seconds: float = 0.001,
        id_: str | None = None,
    ) -> Story:
        """A tool runs; without result and error it doesn't end."""
        id_ = id_ or f"{name}-{len(self.new)}"
        self.add(e.ToolCalled(name, id_, self.keep(json.dumps(arguments))))
        self.wait(seconds)
        if result is not None:
            self.add(e.ToolReturned(name, id_, int(seconds * 1_000_000), self.keep(result)))
        elif error is not None:
            self.add(e.ToolFailed(name, id_, int(seconds * 1_000_000), e.ErrorInfo("tool", error)))
        return self

    def done(self, seconds: float, **more: Any) -> Story:
        """The step ends well."""
        return self.add(e.StepCompleted(int(seconds * 1_000_000), **more))

    def routed(self, *tools: str, complexity: str = "low", seconds: float = 0.3, **more: Any) -> Story:
        """The route step ends with its decision."""
        decision = {"intent": "question", "tools": list(tools), "complexity": complexity}
        return self.done(seconds, decision=decision, **more)

    def answered(self, seconds: float) -> Story:
        """The turn ends with the answer of the last call."""
        return self.add(e.TurnCompleted(self._ids.get("call_id", ""), int(seconds * 1_000_000)))

    # -------------------------------------------------------------- what was told

    @property
    def events(self) -> list[Event]:
        """As they would come out of a store."""
        return [
            Event(
                position,
                new.event_id,
                new.session_id,
                position,
                new.data.type,
                new.data.v,
                new.recorded_at,
                new.turn_id,
                new.step_id,
                new.call_id,
                new.data,
                "",
            )
            for position, new in enumerate(self.new, 1)
        ]

    @property
    def bodies(self) -> Sequence[str]:
        """For the store's `contents`."""
        return list(self.contents.values())


def percent_and_day(answer: Sequence[str] = ("15 % of 240 is 36, ", "and today is Sunday.")) -> Story:
    """The example that everybody knows: two tools, three steps."""
    story = Story()
    story.ask("What is 15% of 240, and what day is it?")
    story.step("route").call('{"tools": ["calculator", "clock"]}', tokens=(188, 14)).routed("calculator", "clock")
    story.step("tool")
    story.tool("calculator", {"expression": "0.15*240"}, "36").tool("clock", {}, "Sunday 2026-11-22")
    story.done(0.004)
    story.step("format").call(*answer, tokens=(224, 47), seconds=0.9).done(0.95)
    return story.wait(0.1).answered(1.9)

"""The pure fold of one session's events into what is drawn of it; `blocks.fold` is its public name.

It knows how a step's life is put together from events of many kinds: attempts, tools, waits, and answers that
another call had given before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat
from typing import Literal, cast

from msgspec import Struct, field

from timeline import events as e
from timeline.events import Attachment, Cost, DeltaKind, ErrorInfo, Event, MessageRef, Usage

__all__ = [
    "ANSWERING",
    "UNDER",
    "Attempt",
    "Folding",
    "Fragment",
    "Note",
    "Session",
    "State",
    "Step",
    "ToolUse",
    "Turn",
    "fold",
    "sources",
]

State = Literal["open", "completed", "failed", "interrupted", "skipped", "damaged"]
"""`damaged`: how a turn ended that events can't tell any more; said by who read them, never by a fold."""

Note = e.CallRetryScheduled | e.CallRerouted | e.RateLimitWaited | e.BudgetAlerted | e.BudgetExceeded
"""What happened to a step's calls beside their attempts."""

ANSWERING = ("format", "answer")
"""Kinds of steps whose text is shown to the user."""


UNDER = "\n\n→ "
"""Between an answer and the facts that are put under it."""


class Fragment(Struct, frozen=True):
    """One delta as it arrived: its text, and µs since the one before it."""

    kind: DeltaKind
    text: str
    gap_us: int


class Attempt(Struct):
    """One try of a call; or, with a `source_call`, the answer that this one had given before, read again.

    Args:
        call_id: Of which call.
        number: From 1; 0 of what was read again.
        provider, model, why: Who was asked, and why.
        messages: What was sent.
        state: How it ended.
        fragments: What came.
        started_at: µs UTC.
        superseded: Text of it was shown, and taken back for that of a later attempt.
        source_call: Whose answer was read again.
        saved_nano_usd: What that had cost.
        cut_from: About how many tokens its prompt had, where far fewer were read.
        explanation: The provider's sentence on why it ended so.
        sources: The pages that it names as its sources.
    """

    call_id: str
    number: int
    provider: str
    model: str
    why: str
    messages: tuple[MessageRef, ...]
    state: State = "open"
    fragments: list[Fragment] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Usage | None = None
    usage_source: str = "none"
    cost: Cost | None = None
    time_to_first_token_us: int | None = None
    duration_us: int | None = None
    error: ErrorInfo | None = None
    reason: str | None = None
    started_at: int = 0
    superseded: bool = False
    source_call: str | None = None
    saved_nano_usd: int | None = None
    cut_from: int | None = None
    explanation: str | None = None
    sources: tuple[e.Source, ...] = ()

    @property
    def text(self) -> str:
        """What it answered, as far as it came."""
        return "".join(part.text for part in self.fragments if part.kind == "text")

    @property
    def recorded_in(self) -> str:
        """The call whose events hold its text."""
        return self.source_call or self.call_id


class ToolUse(Struct):
    """One run of a tool; arguments and result are digests in `contents`, None where they aren't recorded."""

    name: str
    tool_call_id: str
    arguments_ref: str | None = None
    result_ref: str | None = None
    state: State = "open"
    duration_us: int | None = None
    error: ErrorInfo | None = None
    started_at: int = 0


class Step(Struct):
    """One sub-block of cognition; `started_at` in µs UTC."""

    step_id: str
    kind: str
    index: int = 0
    state: State = "open"
    attempts: list[Attempt] = field(default_factory=list)
    decision: dict[str, object] | None = None
    reason: str | None = None
    degraded: bool = False
    duration_us: int | None = None
    error: ErrorInfo | None = None
    started_at: int = 0
    tools: list[ToolUse] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


class Turn(Struct):
    """One exchange: what the user asked, how it was worked out, and how it ended."""

    turn_id: str
    started_at: int
    prompt: str | None = None
    system: str | None = None
    attachments: tuple[Attachment, ...] = ()
    private: bool = False
    mode: str = "direct"
    state: State = "open"
    steps: list[Step] = field(default_factory=list)
    answer_call: str | None = None
    duration_us: int | None = None
    error: ErrorInfo | None = None
    reason: str | None = None
    item: str | None = None

    @property
    def answer(self) -> Attempt | None:
        """The attempt whose text is the answer; of an unfinished turn the last one that was shown."""
        if self.answer_call is not None:
            chosen = [item for step in self.steps for item in step.attempts if item.call_id == self.answer_call]
            if chosen:
                return chosen[-1]
        shown = [item for step in self.steps if step.kind in ANSWERING for item in step.attempts]
        return shown[-1] if shown else None

    @property
    def appended(self) -> str:
        """Facts that the answer lacked, and that were put under it."""
        told = [step.decision.get("appended") for step in self.steps if step.decision]
        return str(told[-1]) if told and told[-1] else ""

    @property
    def answer_text(self) -> str:
        """What the user was told: the answer's text, and the facts under it."""
        answer = self.answer
        text = answer.text if answer is not None else ""
        return f"{text}{UNDER}{self.appended}" if self.appended else text

    @property
    def has_cognition(self) -> bool:
        """Whether there is more to it than one call; the steps tell it where the mode was forgotten."""
        return self.mode == "pipeline" or any(step.kind != "answer" for step in self.steps)


class Session(Struct):
    """A whole timeline."""

    session_id: str
    title: str | None = None
    started_at: int = 0
    turns: list[Turn] = field(default_factory=list)


def fold(events: Iterable[Event], borrowed: Mapping[str, Sequence[Event]] | None = None) -> Session:
    """Fold one session's events, in their order, into what is drawn.

    Args:
        events: From the session's first on; forgotten ones (`data` None) leave gaps, not errors.
        borrowed: The events of calls of other sessions whose answers were read again, by call; see `sources`.
    """
    folding = Folding(borrowed)
    for event in events:
        folding.add(event)
    return folding.session


def sources(events: Iterable[Event]) -> set[str]:
    """The calls whose answers were read again and that aren't among these events."""
    wanted, here = set(), set()
    for event in events:
        if isinstance(event.data, e.CallCacheHit):
            wanted.add(event.data.source_call)
        elif event.type == "request.sent" and event.call_id is not None:
            here.add(event.call_id)
    return wanted - here


class Folding:
    """`fold`, event by event: `session` is what they say so far.

    What belongs to nothing known is folded into nothing.

    Args:
        borrowed: As for `fold`.
    """

    def __init__(self, borrowed: Mapping[str, Sequence[Event]] | None = None) -> None:
        self.session = Session("")
        self._borrowed = borrowed or {}
        self._turns: dict[str | None, Turn] = {}
        self._steps: dict[str | None, Step] = {}
        self._calls: dict[str | None, dict[int, Attempt]] = {}

    def add(self, event: Event) -> None:
        """Fold the next event."""
        self.session.session_id = event.session_id
        match event.type.partition(".")[0]:
            case "session":
                self._add_to_session(event)
            case "turn":
                self._add_to_turn(event)
            case "step":
                self._add_to_step(event)
            case "tool":
                _add_tool(self._steps.get(event.step_id) or Step("", ""), event)
            case _:
                self._add_to_call(event)

    # Below, by type where a forgotten body (None) still says all that is needed.

    def _add_to_session(self, event: Event) -> None:
        session = self.session
        match event.type, event.data:
            case "session.started", data:
                session.started_at = event.recorded_at
                session.title = data.title if isinstance(data, e.SessionStarted) else None
            case _, e.SessionRenamed(title):
                session.title = title
            case _, e.SessionRedacted(_, failures):
                session.title = None
                for failed in failures:
                    _explain(self._attempt(failed.call_id, failed.attempt), failed)

    def _add_to_turn(self, event: Event) -> None:
        data = event.data
        if event.type != "turn.started":
            _end_turn(self._turns.get(event.turn_id) or Turn("", 0), event.type, data)
            return
        turn = self._turns[event.turn_id] = Turn(event.turn_id or "", event.recorded_at)
        self.session.turns.append(turn)
        if isinstance(data, e.TurnStarted):
            turn.prompt, turn.system, turn.attachments = data.prompt, data.system, data.attachments
            turn.private, turn.mode, turn.item = data.private, data.mode, data.item

    def _add_to_step(self, event: Event) -> None:
        data = event.data
        if not isinstance(data, e.StepStarted | e.StepSkipped):
            _end_step(self._steps.get(event.step_id) or Step("", ""), event.type, data)
            return
        step = Step(event.step_id or "", data.kind, data.index, started_at=event.recorded_at)
        self._steps[event.step_id] = step
        if isinstance(data, e.StepSkipped):
            step.state, step.reason = "skipped", data.reason
        if event.turn_id in self._turns:
            self._turns[event.turn_id].steps.append(step)

    def _add_to_call(self, event: Event) -> None:
        match event.data:
            case e.RequestSent() | e.CallCacheHit():
                self._add_attempt(event, event.data)
            case e.ChunkReceived() as data:
                attempt, gaps = self._attempt(event.call_id, data.attempt), chain(data.gaps_us, repeat(0))
                if data.first == 0 and data.gaps_us:
                    # Its end says it too, where it came to a good one.
                    attempt.time_to_first_token_us = data.gaps_us[0]
                attempt.fragments.extend(
                    Fragment(data.kind, text, gap) for text, gap in zip(data.texts, gaps, strict=False)
                )
            case e.ResponseAnnotated() as data:
                attempt = self._attempt(event.call_id, data.attempt)
                attempt.explanation, attempt.sources = data.explanation, data.sources
            case e.ResponseCompleted() | e.CallFailed() | e.CallInterrupted() as data:
                _end_attempt(self._attempt(event.call_id, data.attempt), data)
            case (
                e.CallRetryScheduled()
                | e.CallRerouted()
                | e.RateLimitWaited()
                | e.BudgetAlerted()
                | e.BudgetExceeded() as data
            ) if event.step_id in self._steps:
                self._steps[event.step_id].notes.append(data)
            case None if event.type == "call.failed":
                # Which attempt it was is gone with the body; it is the call's open one.
                for attempt in self._calls.get(event.call_id, {}).values():
                    if attempt.state == "open":
                        attempt.state = "failed"

    def _add_attempt(self, event: Event, data: e.RequestSent | e.CallCacheHit) -> None:
        before = self._calls.setdefault(event.call_id, {})
        for earlier in before.values():
            earlier.superseded = earlier.state != "completed" and bool(earlier.text)
        if isinstance(data, e.CallCacheHit):
            attempt = self._read_again(event, data)
        else:
            attempt = Attempt(event.call_id or "", data.attempt, data.provider, data.model, data.why, data.messages)
        attempt.started_at = event.recorded_at
        before[attempt.number] = attempt
        if event.step_id in self._steps:
            self._steps[event.step_id].attempts.append(attempt)

    def _read_again(self, event: Event, data: e.CallCacheHit) -> Attempt:
        calls = self._calls
        if data.source_call not in calls:
            apart = Folding()
            for other in self._borrowed.get(data.source_call, ()):
                apart.add(other)
            calls = apart._calls
        known = calls.get(data.source_call, {})
        source = known.get(data.source_attempt) or known.get(0) or Attempt("", 0, "", "", "", ())
        return Attempt(
            event.call_id or "",
            0,
            data.provider or source.provider,
            data.model or source.model,
            data.why or source.why,
            source.messages,
            "completed",
            source.fragments,
            data.finish_reason or source.finish_reason,
            source_call=data.source_call,
            saved_nano_usd=data.saved_nano_usd,
            explanation=source.explanation,
            sources=source.sources,
        )

    def _attempt(self, call_id: str | None, number: int) -> Attempt:
        known = self._calls.get(call_id, {}).get(number)
        return known or Attempt("", number, "", "", "", ())


def _end_attempt(attempt: Attempt, data: e.ResponseCompleted | e.CallFailed | e.CallInterrupted) -> None:
    if attempt.state != "open":
        return
    attempt.duration_us, attempt.usage_source, attempt.cost = data.duration_us, data.usage_source, data.cost
    attempt.usage = data.usage
    match data:
        case e.ResponseCompleted():
            attempt.state, attempt.finish_reason = "completed", data.finish_reason
            attempt.time_to_first_token_us, attempt.cut_from = data.time_to_first_token_us, data.cut_from
        case e.CallFailed():
            attempt.state, attempt.error = "failed", data.error
        case e.CallInterrupted():
            attempt.state, attempt.reason = "interrupted", data.reason


def _explain(attempt: Attempt, failed: e.FailedAttempt) -> None:
    attempt.duration_us, attempt.usage_source, attempt.cost = failed.duration_us, failed.usage_source, failed.cost
    attempt.usage = failed.usage
    attempt.error = ErrorInfo(failed.kind, "what the provider said was forgotten")


def _add_tool(step: Step, event: Event) -> None:
    match event.data:
        case e.ToolCalled() as data:
            use = ToolUse(data.name, data.tool_call_id, data.arguments, started_at=event.recorded_at)
            step.tools.append(use)
        case None if event.type == "tool.called":
            step.tools.append(ToolUse("", "", started_at=event.recorded_at))
        case _:
            _end_tool(step, event)


def _end_tool(step: Step, event: Event) -> None:
    """End the open run that is meant; of a forgotten end the first one, the others follow."""
    data = cast("e.ToolReturned | e.ToolFailed | None", event.data)
    meant = data.tool_call_id if data is not None else ""
    use = next((use for use in step.tools if use.state == "open" and meant in ("", use.tool_call_id)), None)
    if use is None:
        return
    use.state = "completed" if event.type == "tool.returned" else "failed"
    match data:
        case e.ToolReturned():
            use.duration_us, use.result_ref = data.duration_us, data.result
        case e.ToolFailed():
            use.duration_us, use.error = data.duration_us, data.error


def _end_step(step: Step, type_: str, data: e.EventData | None) -> None:
    if step.state != "open":
        return
    step.state = "failed" if type_ == "step.failed" else "completed"
    match data:
        case e.StepFailed():
            step.error, step.duration_us = data.error, data.duration_us
        case e.StepCompleted():
            step.decision, step.reason, step.degraded = data.decision, data.reason, data.degraded
            step.duration_us = data.duration_us


def _end_turn(turn: Turn, type_: str, data: e.EventData | None) -> None:
    if turn.state != "open":
        return
    match data:
        case e.TurnCompleted():
            turn.state, turn.answer_call, turn.duration_us = "completed", data.answer_call, data.duration_us
        case e.TurnFailed():
            turn.state, turn.error, turn.duration_us = "failed", data.error, data.duration_us
        case e.TurnInterrupted():
            turn.state, turn.reason, turn.duration_us = "interrupted", data.reason, data.duration_us
        case _:
            turn.state = "completed" if type_ == "turn.completed" else "failed"

"""Sessions, turns and steps: as read models for lists, and as a pure fold of events for what is drawn."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, repeat
from typing import ClassVar, Literal

from msgspec import Struct, field
from sqlalchemy import (
    Column,
    Connection,
    Float,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    bindparam,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from timeline import events as e
from timeline.errors import AmbiguousName, NotFound
from timeline.events import Attachment, Cost, DeltaKind, ErrorInfo, Event, MessageRef, Owner, Usage
from timeline.projections import Projection

__all__ = [
    "Attempt",
    "Blocks",
    "Fragment",
    "OpenTurn",
    "Session",
    "SessionRow",
    "Step",
    "Turn",
    "find_session",
    "fold",
    "list_sessions",
    "open_turns",
    "sessions",
    "steps",
    "turns",
]

State = Literal["open", "completed", "failed", "interrupted", "skipped"]

_metadata = MetaData()

sessions = Table(
    "sessions",
    _metadata,
    Column("session_id", Text, primary_key=True, nullable=False),
    Column("title", Text),
    Column("started_at", Integer, nullable=False),
    Column("last_at", Integer, nullable=False),
    Column("last_position", Integer, nullable=False),
    Column("turns", Integer, nullable=False),
)

turns = Table(
    "turns",
    _metadata,
    Column("turn_id", Text, primary_key=True, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("started_at", Integer, nullable=False),
    Column("duration_us", Integer),
    Column("answer_call", Text),
    Column("reason", Text),  # error kind, or why it was interrupted
    Column("owner_host", Text),
    Column("owner_pid", Integer),
    Column("owner_started", Float),
)

# A literal, not a parameter: only then does SQLite use the partial index.
_is_open = turns.c.state == literal_column("'open'")
Index("turns_open", turns.c.started_at, sqlite_where=_is_open)

steps = Table(
    "steps",
    _metadata,
    Column("step_id", Text, primary_key=True, nullable=False),
    Column("turn_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("duration_us", Integer),
)


# ------------------------------------------------------------------ the read model


_begin_session = insert(sessions).prefix_with("OR IGNORE")
_this_session = sessions.c.session_id == bindparam("of_session")
_title_session = update(sessions).where(_this_session).values(title=bindparam("title"))
_advance_session = (
    update(sessions)
    .where(_this_session)
    .values(last_at=bindparam("at"), last_position=bindparam("position"), turns=sessions.c.turns + 1)
)
_begin_turn = (
    insert(turns)
    .prefix_with("OR IGNORE")
    .values(number=func.coalesce(select(sessions.c.turns).where(_this_session).scalar_subquery(), 1), state="open")
)
# The owner matters only while the turn is open.
_end_turn = (
    update(turns)
    .where(turns.c.turn_id == bindparam("of_turn"), _is_open)
    .values(
        state=bindparam("state"),
        duration_us=bindparam("duration_us"),
        answer_call=bindparam("answer_call"),
        reason=bindparam("reason"),
        owner_host=None,
        owner_pid=None,
        owner_started=None,
    )
)
_begin_step = insert(steps).prefix_with("OR IGNORE")
_end_step = (
    update(steps)
    .where(steps.c.step_id == bindparam("of_step"), steps.c.state == "open")
    .values(state=bindparam("state"), duration_us=bindparam("duration_us"))
)


class Blocks(Projection):
    """Folds sessions, turns and steps into tables; texts stay in the log and in `contents`."""

    name: ClassVar[str] = "blocks"
    version: ClassVar[int] = 1
    tables: ClassVar[tuple[Table, ...]] = (sessions, turns, steps)

    def apply(self, conn: Connection, event: Event) -> None:
        """See `Projection.apply`."""
        # By type where a forgotten body (None) still says all that is needed.
        match event.type, event.data:
            case "session.started", data:
                row = {
                    "session_id": event.session_id,
                    "title": data.title if isinstance(data, e.SessionStarted) else None,
                    "started_at": event.recorded_at,
                    "last_at": event.recorded_at,
                    "last_position": event.position,
                    "turns": 0,
                }
                conn.execute(_begin_session, row)
            case _, e.SessionRenamed(title):
                conn.execute(_title_session, {"of_session": event.session_id, "title": title})
            case "session.redacted", _:
                conn.execute(_title_session, {"of_session": event.session_id, "title": None})
            case "turn.started", data:
                self._begin_turn(conn, event, data.owner if isinstance(data, e.TurnStarted) else None)
            case (("turn.completed" | "turn.failed" | "turn.interrupted"), data):
                row = {
                    "of_turn": event.turn_id,
                    "state": event.type.removeprefix("turn."),
                    "duration_us": getattr(data, "duration_us", None),
                    "answer_call": data.answer_call if isinstance(data, e.TurnCompleted) else None,
                    "reason": data.error.kind if isinstance(data, e.TurnFailed) else getattr(data, "reason", None),
                }
                conn.execute(_end_turn, row)
            case _, (e.StepStarted() | e.StepSkipped()) as data:
                row = {
                    "step_id": event.step_id,
                    "turn_id": event.turn_id,
                    "kind": data.kind,
                    "number": data.index,
                    "state": "skipped" if isinstance(data, e.StepSkipped) else "open",
                }
                conn.execute(_begin_step, row)
            case (("step.completed" | "step.failed"), data):
                row = {
                    "of_step": event.step_id,
                    "state": event.type.removeprefix("step."),
                    "duration_us": getattr(data, "duration_us", None),
                }
                conn.execute(_end_step, row)

    @staticmethod
    def _begin_turn(conn: Connection, event: Event, owner: Owner | None) -> None:
        of_session = {"of_session": event.session_id}
        conn.execute(_advance_session, of_session | {"at": event.recorded_at, "position": event.position})
        row = {
            "turn_id": event.turn_id,
            "session_id": event.session_id,
            "started_at": event.recorded_at,
            "owner_host": owner.host if owner else None,
            "owner_pid": owner.pid if owner else None,
            "owner_started": owner.started if owner else None,
        }
        conn.execute(_begin_turn, of_session | row)


class SessionRow(Struct, frozen=True):
    """A session as lists show it; instants in µs UTC."""

    id: str
    title: str | None
    turns: int
    started_at: int
    last_at: int


def list_sessions(conn: Connection, *, limit: int | None = None) -> list[SessionRow]:
    """Sessions, the one used last first."""
    query = select(sessions).order_by(sessions.c.last_position.desc()).limit(limit)
    return [
        SessionRow(row.session_id, row.title, row.turns, row.started_at, row.last_at) for row in conn.execute(query)
    ]


def find_session(conn: Connection, name: str) -> str:
    """The id of the session that a user means.

    Args:
        conn: Any connection.
        name: `last`, an id, a unique prefix of one, or a title.

    Raises:
        NotFound: None is meant.
        AmbiguousName: More than one is.
    """
    if name == "last":
        row = conn.execute(select(sessions.c.session_id).order_by(sessions.c.last_position.desc()).limit(1)).first()
        if row is None:
            msg = "there is no session yet: 'timeline ask' begins one"
            raise NotFound(msg)
        return str(row.session_id)
    # What was no UTF-8 on the command line names nothing.
    name = name.encode("utf-8", "replace").decode()
    prefix = sessions.c.session_id.startswith(name.lower(), autoescape=True)
    # By SQLite's own lower(), which knows ASCII alone, on both sides.
    titled = func.lower(sessions.c.title) == func.lower(name)
    found = conn.execute(select(sessions.c.session_id).where(or_(prefix, titled)).limit(6)).all()
    if any(row.session_id == name for row in found):
        return name
    if not name or not found:
        msg = f"there is no session {name!r}: see 'timeline sessions list'"
        raise NotFound(msg)
    if len(found) > 1:
        few = ", ".join(row.session_id for row in found[:5]) + (", …" if len(found) > 5 else "")  # noqa: PLR2004
        msg = f"{name!r} may be any of {few}: give more of the id"
        raise AmbiguousName(msg)
    return str(found[0].session_id)


class OpenTurn(Struct, frozen=True):
    """A turn without an end, and who has to end it."""

    session_id: str
    turn_id: str
    started_at: int
    owner: Owner


def open_turns(conn: Connection) -> list[OpenTurn]:
    """Every turn that has not ended and whose owner is known."""
    query = select(turns).where(_is_open, turns.c.owner_host.is_not(None)).order_by(turns.c.started_at)
    return [
        OpenTurn(row.session_id, row.turn_id, row.started_at, Owner(row.owner_host, row.owner_pid, row.owner_started))
        for row in conn.execute(query)
    ]


# ------------------------------------------------------------------ the fold that is drawn


class Fragment(Struct, frozen=True):
    """One delta as it arrived: its text, and µs since the one before it."""

    kind: DeltaKind
    text: str
    gap_us: int


class Attempt(Struct):
    """One try of a call."""

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

    @property
    def text(self) -> str:
        """What it answered, as far as it came."""
        return "".join(part.text for part in self.fragments if part.kind == "text")


class Step(Struct):
    """One sub-block of cognition."""

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

    @property
    def answer(self) -> Attempt | None:
        """The attempt whose text is the answer; of an unfinished turn the last one that was shown."""
        tried = [attempt for step in self.steps for attempt in step.attempts]
        chosen = [attempt for attempt in tried if attempt.call_id == self.answer_call]
        last = chosen or tried
        return last[-1] if last else None


class Session(Struct):
    """A whole timeline."""

    session_id: str
    title: str | None = None
    started_at: int = 0
    turns: list[Turn] = field(default_factory=list)


def fold(events: Iterable[Event]) -> Session:
    """Fold one session's events, in their order, into what is drawn.

    Args:
        events: From the session's first on; forgotten ones (`data` None) leave gaps, not errors.
    """
    folding = _Folding()
    for event in events:
        folding.add(event)
    return folding.session


class _Folding:
    """A session and what of it is still looked up; what belongs to nothing known is folded into nothing."""

    def __init__(self) -> None:
        self.session = Session("")
        self._turns: dict[str | None, Turn] = {}
        self._steps: dict[str | None, Step] = {}
        self._calls: dict[str | None, dict[int, Attempt]] = {}

    def add(self, event: Event) -> None:
        self.session.session_id = event.session_id
        match event.type.partition(".")[0]:
            case "session":
                self._add_to_session(event)
            case "turn":
                self._add_to_turn(event)
            case "step":
                self._add_to_step(event)
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
            _end_drawn_turn(self._turns.get(event.turn_id) or Turn("", 0), event.type, data)
            return
        turn = self._turns[event.turn_id] = Turn(event.turn_id or "", event.recorded_at)
        self.session.turns.append(turn)
        if isinstance(data, e.TurnStarted):
            turn.prompt, turn.system, turn.attachments = data.prompt, data.system, data.attachments
            turn.private, turn.mode = data.private, data.mode

    def _add_to_step(self, event: Event) -> None:
        data = event.data
        if not isinstance(data, e.StepStarted | e.StepSkipped):
            _end_drawn_step(self._steps.get(event.step_id) or Step("", ""), event.type, data)
            return
        step = self._steps[event.step_id] = Step(event.step_id or "", data.kind, data.index)
        if isinstance(data, e.StepSkipped):
            step.state, step.reason = "skipped", data.reason
        if event.turn_id in self._turns:
            self._turns[event.turn_id].steps.append(step)

    def _add_to_call(self, event: Event) -> None:
        match event.data:
            case e.RequestSent() as data:
                attempt = Attempt(event.call_id or "", data.attempt, data.provider, data.model, data.why, data.messages)
                self._calls.setdefault(event.call_id, {})[data.attempt] = attempt
                if event.step_id in self._steps:
                    self._steps[event.step_id].attempts.append(attempt)
            case e.ChunkReceived() as data:
                gaps = chain(data.gaps_us, repeat(0))
                self._attempt(event.call_id, data.attempt).fragments.extend(
                    Fragment(data.kind, text, gap) for text, gap in zip(data.texts, gaps, strict=False)
                )
            case e.ResponseCompleted() | e.CallFailed() | e.CallInterrupted() as data:
                _end_attempt(self._attempt(event.call_id, data.attempt), data)
            case None if event.type == "call.failed":
                # Which attempt it was is gone with the body; it is the call's open one.
                for attempt in self._calls.get(event.call_id, {}).values():
                    if attempt.state == "open":
                        attempt.state = "failed"

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
            attempt.time_to_first_token_us = data.time_to_first_token_us
        case e.CallFailed():
            attempt.state, attempt.error = "failed", data.error
        case e.CallInterrupted():
            attempt.state, attempt.reason = "interrupted", data.reason


def _explain(attempt: Attempt, failed: e.FailedAttempt) -> None:
    attempt.duration_us, attempt.usage_source, attempt.cost = failed.duration_us, failed.usage_source, failed.cost
    attempt.usage = failed.usage
    attempt.error = ErrorInfo(failed.kind, "what the provider said was forgotten")


def _end_drawn_step(step: Step, type_: str, data: e.EventData | None) -> None:
    if step.state != "open":
        return
    step.state = "failed" if type_ == "step.failed" else "completed"
    match data:
        case e.StepFailed():
            step.error, step.duration_us = data.error, data.duration_us
        case e.StepCompleted():
            step.decision, step.reason, step.degraded = data.decision, data.reason, data.degraded
            step.duration_us = data.duration_us


def _end_drawn_turn(turn: Turn, type_: str, data: e.EventData | None) -> None:
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

"""Sessions, turns and steps: as read models for lists, and as a pure fold of events for what is drawn."""

from __future__ import annotations

from collections.abc import Iterable
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


class Blocks(Projection):
    """Folds sessions, turns and steps into tables; texts stay in the log and in `contents`."""

    name: ClassVar[str] = "blocks"
    version: ClassVar[int] = 1
    tables: ClassVar[tuple[Table, ...]] = (sessions, turns, steps)

    def apply(self, conn: Connection, event: Event) -> None:
        """See `Projection.apply`."""
        kind, _, _ = event.type.partition(".")
        if kind == "session":
            self._session(conn, event)
        elif kind == "turn":
            self._turn(conn, event)
        elif kind == "step":
            self._step(conn, event)

    def _session(self, conn: Connection, event: Event) -> None:
        this = sessions.c.session_id == event.session_id
        match event.type, event.data:
            case "session.started", data:
                conn.execute(
                    insert(sessions).values(
                        session_id=event.session_id,
                        title=data.title if isinstance(data, e.SessionStarted) else None,
                        started_at=event.recorded_at,
                        last_at=event.recorded_at,
                        last_position=event.position,
                        turns=0,
                    )
                )
            case _, e.SessionRenamed(title):
                conn.execute(update(sessions).where(this).values(title=title))
            case "session.redacted", _:
                conn.execute(update(sessions).where(this).values(title=None))

    def _turn(self, conn: Connection, event: Event) -> None:
        data = event.data
        if event.type == "turn.started":
            owner = data.owner if isinstance(data, e.TurnStarted) else None
            this = sessions.c.session_id == event.session_id
            conn.execute(
                update(sessions)
                .where(this)
                .values(last_at=event.recorded_at, last_position=event.position, turns=sessions.c.turns + 1)
            )
            conn.execute(
                insert(turns).values(
                    turn_id=event.turn_id,
                    session_id=event.session_id,
                    number=select(sessions.c.turns).where(this).scalar_subquery(),
                    state="open",
                    started_at=event.recorded_at,
                    owner_host=owner.host if owner else None,
                    owner_pid=owner.pid if owner else None,
                    owner_started=owner.started if owner else None,
                )
            )
            return
        values: dict[str, object] = {"owner_host": None, "owner_pid": None, "owner_started": None}
        match data:
            case e.TurnCompleted():
                values |= {"state": "completed", "duration_us": data.duration_us, "answer_call": data.answer_call}
            case e.TurnFailed():
                values |= {"state": "failed", "duration_us": data.duration_us, "reason": data.error.kind}
            case e.TurnInterrupted():
                values |= {"state": "interrupted", "duration_us": data.duration_us, "reason": data.reason}
        conn.execute(update(turns).where(turns.c.turn_id == event.turn_id).values(**values))

    def _step(self, conn: Connection, event: Event) -> None:
        this = steps.c.step_id == event.step_id
        row = {"step_id": event.step_id, "turn_id": event.turn_id}
        match event.data:
            case e.StepStarted(kind, index):
                conn.execute(insert(steps).values(**row, kind=kind, number=index, state="open"))
            case e.StepSkipped(kind, _, index):
                conn.execute(insert(steps).values(**row, kind=kind, number=index, state="skipped"))
            case e.StepCompleted(duration):
                conn.execute(update(steps).where(this).values(state="completed", duration_us=duration))
            case e.StepFailed(_, duration):
                conn.execute(update(steps).where(this).values(state="failed", duration_us=duration))


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
    prefix = sessions.c.session_id.startswith(name.lower(), autoescape=True)
    titled = func.lower(sessions.c.title) == name.lower()
    found = list(conn.execute(select(sessions.c.session_id, sessions.c.title).where(or_(prefix, titled)).limit(6)))
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
    session = Session("")
    turn_by_id: dict[str | None, Turn] = {}
    step_by_id: dict[str | None, Step] = {}
    attempt_by_id: dict[tuple[str | None, int], Attempt] = {}
    for event in events:
        session.session_id = event.session_id
        if event.type == "turn.started":
            turn = Turn(event.turn_id or "", event.recorded_at)
            session.turns.append(turn)
            turn_by_id[event.turn_id] = turn
        match event.data:
            case e.SessionStarted() as data:
                session.title, session.started_at = data.title, event.recorded_at
            case e.SessionRenamed() as data:
                session.title = data.title
            case e.StepStarted() | e.StepSkipped() as data:
                step = Step(event.step_id or "", data.kind, data.index)
                if isinstance(data, e.StepSkipped):
                    step.state, step.reason = "skipped", data.reason
                turn_by_id[event.turn_id].steps.append(step)
                step_by_id[event.step_id] = step
            case e.RequestSent() as data:
                attempt = Attempt(event.call_id or "", data.attempt, data.provider, data.model, data.why, data.messages)
                step_by_id[event.step_id].attempts.append(attempt)
                attempt_by_id[event.call_id, data.attempt] = attempt
            case e.ChunkReceived() as data:
                attempt_by_id[event.call_id, data.attempt].fragments.extend(
                    Fragment(data.kind, text, gap) for text, gap in zip(data.texts, data.gaps_us, strict=True)
                )
            case e.ResponseCompleted() | e.CallFailed() | e.CallInterrupted() as data:
                _end_attempt(attempt_by_id[event.call_id, data.attempt], data)
            case e.StepCompleted() | e.StepFailed() as data:
                _end_step(step_by_id[event.step_id], data)
            case e.TurnStarted() | e.TurnCompleted() | e.TurnFailed() | e.TurnInterrupted() as data:
                _advance_turn(turn_by_id[event.turn_id], data)
    return session


def _end_attempt(attempt: Attempt, data: e.ResponseCompleted | e.CallFailed | e.CallInterrupted) -> None:
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


def _end_step(step: Step, data: e.StepCompleted | e.StepFailed) -> None:
    step.duration_us = data.duration_us
    if isinstance(data, e.StepFailed):
        step.state, step.error = "failed", data.error
    else:
        step.state, step.decision, step.reason, step.degraded = "completed", data.decision, data.reason, data.degraded


def _advance_turn(turn: Turn, data: e.TurnStarted | e.TurnCompleted | e.TurnFailed | e.TurnInterrupted) -> None:
    match data:
        case e.TurnStarted():
            turn.prompt, turn.system, turn.attachments = data.prompt, data.system, data.attachments
            turn.private, turn.mode = data.private, data.mode
        case e.TurnCompleted():
            turn.state, turn.answer_call, turn.duration_us = "completed", data.answer_call, data.duration_us
        case e.TurnFailed():
            turn.state, turn.error, turn.duration_us = "failed", data.error, data.duration_us
        case e.TurnInterrupted():
            turn.state, turn.reason, turn.duration_us = "interrupted", data.reason, data.duration_us

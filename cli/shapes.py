"""The JSON that other programs may rely on: snake_case names, additions only (docs/json.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from timeline.config import BudgetConfig
from timeline.events import CallRerouted, Cost, Event, Usage
from timeline.projections.blocks import Attempt, Session, SessionRow, Step, ToolUse, Turn
from timeline.projections.budgets import BudgetState
from timeline.projections.search import Found
from timeline.projections.usage import ReportRow

from . import output

if TYPE_CHECKING:
    from timeline.cognition.batch import BatchResult

__all__ = [
    "batch_object",
    "budgets_object",
    "event_object",
    "report_object",
    "search_object",
    "session_object",
    "sessions_object",
    "turn_object",
]

NANO = 1_000_000_000


def _seconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / 1_000_000


def _usage(attempts: list[Attempt]) -> dict[str, Any]:
    total = dict.fromkeys(Usage.__struct_fields__, 0)
    sources = {attempt.usage_source for attempt in attempts if attempt.usage is not None}
    for attempt in attempts:
        for name in total:
            total[name] += getattr(attempt.usage, name) if attempt.usage else 0
    # One estimate makes the sum an estimate.
    source = next((name for name in ("estimated", "provider") if name in sources), "none")
    return {**total, "source": source}


def _cost(attempts: list[Attempt]) -> dict[str, Any]:
    costs = [attempt.cost for attempt in attempts if attempt.cost is not None]
    return {"state": _cost_state(costs), "usd": _usd(costs)}


def _cost_state(costs: list[Cost]) -> str | None:
    states = {cost.state for cost in costs}
    return next((state for state in ("unpriced", "priced", "free") if state in states), None)


def _usd(costs: list[Cost]) -> float | None:
    state = _cost_state(costs)
    if state in (None, "unpriced"):
        return None
    return sum(cost.nano_usd or 0 for cost in costs) / NANO


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "provider": attempt.provider,
        "model": attempt.model,
        "why": attempt.why,
        "outcome": "cached" if attempt.source_call is not None else attempt.state,
        "error": msgspec.to_builtins(attempt.error) if attempt.error else None,
    }


def _body(bodies: Mapping[str, str | bytes], ref: str | None) -> str | None:
    body = bodies.get(ref or "")
    return body.decode(errors="replace") if isinstance(body, bytes) else body


def _arguments(body: str | None) -> Any:
    """Arguments as JSON; as text where a model gave something else; null where they aren't recorded."""
    if body is None:
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return body


def _tool(use: ToolUse, bodies: Mapping[str, str | bytes]) -> dict[str, Any]:
    return {
        "name": use.name,
        "arguments": _arguments(_body(bodies, use.arguments_ref)),
        "result": _body(bodies, use.result_ref),
        "state": use.state,
        "error": msgspec.to_builtins(use.error) if use.error else None,
        "duration_seconds": _seconds(use.duration_us),
    }


def _step(step: Step, bodies: Mapping[str, str | bytes]) -> dict[str, Any]:
    last = step.attempts[-1] if step.attempts else None
    return {
        "kind": step.kind,
        "state": step.state,
        "provider": last.provider if last else None,
        "model": last.model if last else None,
        "tools": [_tool(use, bodies) for use in step.tools],
        "usage": _usage(step.attempts),
        "cost": _cost(step.attempts),
        "decision": step.decision,
        "reason": step.reason,
        "degraded": step.degraded,
        "duration_seconds": _seconds(step.duration_us),
        "error": msgspec.to_builtins(step.error) if step.error else None,
        "cached": any(attempt.source_call is not None for attempt in step.attempts),
    }


def _instead_of(turn: Turn, answer: Attempt) -> list[dict[str, Any]]:
    """Who was wanted before the one that answered, and why none of them did."""
    name = f"{answer.provider}:{answer.model}"
    steps = [step for step in turn.steps if any(attempt.call_id == answer.call_id for attempt in step.attempts)]
    passed = [note for step in steps for note in step.notes if isinstance(note, CallRerouted)]
    if name not in {note.target for note in passed}:
        return []
    return [{"model": note.source, "why": note.reason} for note in passed]


def turn_object(session_id: str, turn: Turn, bodies: Mapping[str, str | bytes]) -> dict[str, Any]:
    """One turn, as `ask --json` prints it; `bodies` are the arguments and results of its tools by digest."""
    attempts = [attempt for step in turn.steps for attempt in step.attempts]
    answer = turn.answer
    instead_of = _instead_of(turn, answer) if answer else []
    value = {
        "session_id": session_id,
        "turn_id": turn.turn_id,
        "answer": turn.answer_text,
        "provider": answer.provider if answer else None,
        "model": answer.model if answer else None,
        "why": answer.why if answer else None,
        "fallback": bool(instead_of),
        "instead_of": instead_of,
        "finish_reason": answer.finish_reason if answer else None,
        "sources": [{"url": source.url, "title": source.title} for source in answer.sources] if answer else [],
        "usage": _usage(attempts),
        "cost": _cost(attempts),
        "time_to_first_token_seconds": _seconds(answer.time_to_first_token_us) if answer else None,
        "duration_seconds": _seconds(turn.duration_us),
        "steps": [_step(step, bodies) for step in turn.steps],
        "attempts": [_attempt(attempt) for attempt in attempts],
    }
    if turn.error:
        value["error"] = msgspec.to_builtins(turn.error)
    return value


def batch_object(result: BatchResult, id_: str | int | None, line: int) -> dict[str, Any]:
    """One prompt of a batch, as `batch` prints it on a line."""
    nothing: dict[str, Any] = {"answer": "", **dict.fromkeys(_OF_TURN)}
    turn = turn_object(result.session_id, result.turn, {}) if result.turn else nothing
    value = {"id": id_, "line": line, **{name: turn[name] for name in ("answer", *_OF_TURN)}}
    value["session_id"] = result.session_id
    if result.error is not None:
        value["error"] = output.error_object(result.error, turn.get("error"))
    return value


_OF_TURN = (
    "provider",
    "model",
    "finish_reason",
    "sources",
    "usage",
    "cost",
    "duration_seconds",
    "session_id",
    "turn_id",
)


def session_object(session: Session, bodies: Mapping[str, str | bytes]) -> dict[str, Any]:
    """A whole session, as `replay --json` and `sessions show --json` print it."""
    return {
        "session_id": session.session_id,
        "title": session.title,
        "started_at": _seconds(session.started_at),
        "turns": [
            {
                **turn_object(session.session_id, turn, bodies),
                "state": turn.state,
                "prompt": bodies.get(turn.prompt or ""),
                "system": bodies.get(turn.system or ""),
                "attachments": [{"name": item.name, "size": item.size} for item in turn.attachments],
                "started_at": _seconds(turn.started_at),
            }
            for turn in session.turns
        ],
    }


def event_object(event: Event) -> dict[str, Any]:
    """One event, as `--events` prints it on a line."""
    value = {name: getattr(event, name) for name in Event.__struct_fields__ if name != "data"}
    value["data"] = msgspec.to_builtins(event.data) if event.data else None
    return {key: item for key, item in value.items() if item is not None}


def report_object(by: str, rows: list[ReportRow], totals: ReportRow) -> dict[str, Any]:
    """What `report --json` prints."""
    return {
        "rows": [{by: row.group, **_sums(row)} for row in rows],
        "totals": _sums(totals),
    }


def _sums(row: ReportRow) -> dict[str, Any]:
    value = {name: getattr(row, name) for name in ReportRow.__struct_fields__ if name not in {"group", "nano_usd"}}
    known = row.nano_usd or not row.unpriced
    state = "unpriced" if row.unpriced else "priced" if row.nano_usd else "free" if row.free else None
    return {**value, "cost_usd": row.nano_usd / NANO if known else None, "cost_state": state}


def budgets_object(budgets: Sequence[BudgetConfig], states: Sequence[BudgetState]) -> dict[str, Any]:
    """What `budget --json` prints."""

    def amount(state: BudgetState, value: int) -> float:
        return value if state.unit == "tokens" else value / NANO

    return {
        "budgets": [
            {
                "name": state.name,
                "window": budget.window,
                "period": state.window if state.ends_at or budget.window == "session" else None,
                "ends_at": _seconds(state.ends_at),
                "provider": budget.provider,
                "model": budget.model,
                "action": state.action,
                "unit": "tokens" if state.unit == "tokens" else "usd",
                "limit": amount(state, state.limit),
                "spent": amount(state, state.spent),
                "reserved": amount(state, state.reserved),
                "left": amount(state, max(state.limit - state.spent - state.reserved, 0)),
                "alerted": state.alerted,
                "unpriced": state.unpriced,
            }
            for budget, state in zip(budgets, states, strict=True)
        ]
    }


def sessions_object(rows: list[SessionRow]) -> dict[str, Any]:
    """What `sessions list --json` prints."""
    return {
        "sessions": [
            {
                "id": row.id,
                "title": row.title,
                "turns": row.turns,
                "started_at": _seconds(row.started_at),
                "last_at": _seconds(row.last_at),
            }
            for row in rows
        ]
    }


def search_object(found: list[Found]) -> dict[str, Any]:
    """What `search --json` prints."""
    return {
        "found": [
            {
                "session_id": turn.session_id,
                "turn_id": turn.turn_id,
                "title": turn.title,
                "at": _seconds(turn.at),
                "role": turn.role,
                "snippet": turn.snippet,
                "prompt": turn.prompt,
                "answer": turn.answer,
                "provider": turn.provider,
                "model": turn.model,
                "score": turn.score,
                "partial": turn.partial,
            }
            for turn in found
        ]
    }

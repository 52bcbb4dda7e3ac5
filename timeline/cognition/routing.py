"""Which tools a prompt needs: the request that asks a model, and how its answer and the tools' signals become a decision. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from timeline.cognition.signals import Signal
from timeline.config import Complexity
from timeline.providers.base import LLMRequest, LLMResponse, Message, Tool

__all__ = ["Asking", "Decision", "Malformed", "by_signals", "decide", "repair", "request"]


class Decision(Struct, frozen=True):
    """What a prompt needs.

    Args:
        intent: In a few words.
        tools: Names, in the order in which they are of use.
        complexity: How much the answer asks of a model.
        source: Who decided.
        degraded: It was not decided as it should have been.
        reason: Why, in words.
    """

    intent: str
    tools: tuple[str, ...]
    complexity: Complexity
    source: Literal["model", "repaired", "signals", "none"]
    degraded: bool = False
    reason: str | None = None


class Malformed(Struct, frozen=True):
    """What can't be read as a decision, and why."""

    reason: str


class Asking(Struct, frozen=True):
    """What is to be decided.

    Args:
        text: The user's words.
        tools: Those that are on.
        signals: What the text hints at.
        small: The model is one to ask in few words.
    """

    text: str
    tools: tuple[Tool, ...]
    signals: tuple[Signal, ...]
    small: bool = False


def request(asking: Asking) -> LLMRequest:
    """What a model is asked; its name is left to be filled in."""
    tools = "\n".join(f"- {tool.name}: {tool.description}" for tool in asking.tools)
    hints = "".join(f"\nHint: {signal.tool}: {signal.reason}" for signal in asking.signals)
    system = (
        "Decide which tools are needed to answer the message, if any, and how complex it is."
        f' Answer with JSON: {{"intent": "…", "tools": ["…"], "complexity": "low|medium|high"}}.\nTools:\n{tools}'
    )
    names = [tool.name for tool in asking.tools]
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {
            "intent": {"type": "string", "maxLength": 80},
            "tools": {"type": "array", "items": {"type": "string", "enum": names}, "maxItems": 4},
            "complexity": {"type": "string", "enum": ["low", "medium", "high"]},
        },
        "required": ["intent", "tools", "complexity"],
        "additionalProperties": False,
    }
    message = Message("user", f"{asking.text}{hints}")
    return LLMRequest("", (message,), system=system, temperature=0, max_tokens=160, response_schema=schema)


def repair(asking: Asking, malformed: Malformed) -> LLMRequest:
    """As `request`, once more, saying what was wrong."""
    first = request(asking)
    note = Message("user", f"That was no decision ({malformed.reason}). Answer with the JSON object alone.")
    return msgspec.structs.replace(first, messages=(*first.messages, note))


class _Answer(Struct, frozen=True):
    intent: str
    tools: list[str]
    complexity: Complexity = "medium"


def decide(asking: Asking, response: LLMResponse) -> Decision | Malformed:
    """Read what a model answered."""
    text = response.content
    begin, end = text.find("{"), text.rfind("}")
    if begin < 0 or end < begin:
        return Malformed("there is no JSON object in it")
    try:
        answer = msgspec.json.decode(text[begin : end + 1], type=_Answer)
    except msgspec.MsgspecError as exc:
        return Malformed(str(exc))
    known = {tool.name for tool in asking.tools}
    if unknown := [name for name in answer.tools if name not in known and name.casefold() != "none"]:
        return Malformed(f"there is no tool {unknown[0]!r}")
    chosen = [name for name in answer.tools if name in known]
    certain = [signal.tool for signal in asking.signals if signal.certain]
    if asking.small:
        # It is asked, and yet hints that leave no doubt count for more than a very small model.
        chosen = [signal.tool for signal in asking.signals] or []
    tools = tuple(dict.fromkeys([*certain, *chosen]))
    return Decision(answer.intent[:80], tools, answer.complexity, "model", reason=_reason(asking.signals))


def by_signals(asking: Asking, malformed: Malformed) -> Decision:
    """What the text says by itself, where no model could tell."""
    tools = tuple(dict.fromkeys(signal.tool for signal in asking.signals))
    reason = f"no route could be read: {malformed.reason}"
    return Decision("answer", tools, "medium", "signals" if tools else "none", degraded=True, reason=reason)


def _reason(signals: Sequence[Signal]) -> str | None:
    return "; ".join(signal.reason for signal in signals) or None

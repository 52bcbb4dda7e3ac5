"""What the generations of Claude take: tokens of an answer, temperature, thoughts, and an answer's schema.

Pure. Source: Anthropic's documentation, "Models overview", "Extended thinking", "Adaptive thinking" and
"Structured outputs".
"""

from __future__ import annotations

import re
from typing import Any

from timeline.providers.base import LLMRequest

__all__ = [
    "ANSWER_TOOL",
    "chooses_itself",
    "constrain",
    "default_max_tokens",
    "generation",
    "named",
    "schema_as_tool",
    "takes_temperature",
    "think",
]

ANSWER_TOOL = "answer"
"""The tool that models without structured outputs are made to call for a schema's sake."""
_NAME = re.compile(r"claude-(?:[a-z]+-)?(\d{1,2})(?:[-.](\d{1,2}))?(?!\d)")


def generation(model: str) -> tuple[int, int] | None:
    """`(4, 5)` for `claude-sonnet-4-5-20250929`, `(3, 7)` for `claude-3-7-sonnet-latest`; None where the name tells none."""
    found = _NAME.search(model)
    return (int(found[1]), int(found[2] or 0)) if found else None


_FIRST_WITH_SCHEMA = (4, 5)
_FIRST_ADAPTIVE = (4, 6)
_FIRST_THINKING = (3, 7)
_FIRST_WITHOUT_TEMPERATURE = (4, 7)
_ALWAYS_THINKS = re.compile(r"claude-(?:fable|opus-5[-.]5)")
_CHOOSES_ITSELF = re.compile(r"claude-(?:fable-5[-.]1|opus-5[-.]5)")
_BUDGETS = {"low": 2048, "medium": 8192, "high": 16384}
_LEAST_BUDGET = 1024


def default_max_tokens(model: str) -> int:
    """The API requires a limit: what is sent where the caller gives none."""
    known = generation(model)
    return 4096 if known is not None and known < _FIRST_THINKING else 16384


def closed(schema: Any) -> Any:
    """The schema with every object closed, as structured outputs ask."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {
        key: value if key in ("enum", "const", "default", "examples") else closed(value)
        for key, value in schema.items()
    }
    if copy.get("type") == "object" or isinstance(copy.get("properties"), dict):
        copy.setdefault("additionalProperties", False)
    return copy


def takes_temperature(model: str) -> bool:
    """Whether it takes another temperature than its own."""
    return (generation(model) or (0, 0)) < _FIRST_WITHOUT_TEMPERATURE


def chooses_itself(model: str) -> bool:
    """Whether it refuses to be made to call a tool."""
    return _CHOOSES_ITSELF.search(model) is not None


def named(tool: str) -> dict[str, Any]:
    """The choice of one tool."""
    return {"type": "tool", "name": tool}


def think(body: dict[str, Any], request: LLMRequest) -> bool:
    """Ask for thoughts in the way of the model's generation; whether it was asked for any."""
    known = generation(request.model)
    level = request.reasoning
    if level is None or (known is not None and known < _FIRST_THINKING):
        return False
    if level == "none":
        if _ALWAYS_THINKS.search(request.model):
            body["output_config"] = {"effort": "low"}
        elif known is not None and known >= _FIRST_ADAPTIVE:
            body["thinking"] = {"type": "disabled"}
        return False
    # Thinking goes with its own temperature alone.
    body.pop("temperature", None)
    if known is not None and known >= _FIRST_ADAPTIVE:
        body["thinking"] = {"type": "adaptive"}
        body["output_config"] = {"effort": level}
        return True
    budget = _BUDGETS[level]
    if body["max_tokens"] <= budget:
        # The budget counts against max_tokens: half of it is left for the answer.
        budget = max(body["max_tokens"] // 2, _LEAST_BUDGET)
        body["max_tokens"] = max(body["max_tokens"], _LEAST_BUDGET + 1)
    body["thinking"] = {"type": "enabled", "budget_tokens": budget}
    return True


def schema_as_tool(request: LLMRequest) -> bool:
    """Whether the model's generation has no structured outputs, so that its schema is put as a tool."""
    return request.response_schema is not None and (generation(request.model) or (0, 0)) < _FIRST_WITH_SCHEMA


def constrain(body: dict[str, Any], request: LLMRequest, schema: dict[str, Any], *, thinks: bool) -> None:
    """Put the schema as the output's format, or as a tool that has to be called."""
    if not schema_as_tool(request):
        body.setdefault("output_config", {})["format"] = {"type": "json_schema", "schema": closed(schema)}
        return
    body["tools"] = [
        *body.get("tools", ()),
        {"name": ANSWER_TOOL, "description": "Give the answer.", "input_schema": schema},
    ]
    if thinks:
        # A model that thinks can't be made to call a tool.
        body["tool_choice"] = {"type": "auto"}
    else:
        body["tool_choice"] = {"type": "any"} if request.tools else named(ANSWER_TOOL)

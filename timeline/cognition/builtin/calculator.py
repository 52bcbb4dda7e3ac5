"""The calculator as a tool."""

from __future__ import annotations

from typing import Any

from timeline.cognition.builtin.evaluator import evaluate
from timeline.cognition.tools import Tool, ToolResult, Workspace

__all__ = ["Calculator"]

ECHOED = 200
"""Characters of an expression that are repeated before its result."""
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"expression": {"type": "string", "description": "For example 12*7 or 15% of 240"}},
    "required": ["expression"],
    "additionalProperties": False,
}


class Calculator(Tool):
    """Works out an expression, exactly where that is possible."""

    name = "calculator"
    description = (
        "Calculates exactly: + - * / ^, parentheses, percentages (15% of 240, 200 + 10%), mod, !, and functions such as"
        " sqrt, round, min, max, log, ln, sin (radians). Use it for every calculation."
    )
    parameters = PARAMETERS
    deterministic = True

    async def run(self, arguments: dict[str, Any], workspace: Workspace) -> ToolResult:  # noqa: ARG002
        """Work it out; a fifth of a second at most."""
        worked = evaluate(arguments["expression"])
        expression = worked.expression
        if len(expression) > ECHOED:
            expression = f"{expression[:ECHOED]}…"
        # 1/3 is no news of 1/3.
        text = worked.text.removeprefix(f"{expression} ")
        equals = "" if text.startswith("≈") else "= "
        return ToolResult(f"{expression} {equals}{text}", fact=worked.text)

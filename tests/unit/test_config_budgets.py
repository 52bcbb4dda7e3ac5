"""Budgets as they may be written; a budget that could never hold anybody back is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from timeline import config
from timeline.errors import ConfigError


def load(folder: Path, text: str) -> config.Config:
    (folder / "config.yaml").write_text(text)
    return config.load(environ={"TIMELINE_HOME": str(folder), "HOME": str(folder)}, cwd=folder)


def test_budgets_are_read_as_written(tmp_path: Path) -> None:
    text = """
        budgets:
          - {name: monthly, limit_usd: 20}
          - {name: day, limit_tokens: 100000, window: day, provider: groq, action: fallback}
          - {name: one, limit_usd: 0.05, window: turn, provider: openai, model: "openai:gpt-4o:x", action: warn}
    """

    assert [
        config.BudgetConfig("monthly", limit_usd=20, window="month", action="block"),
        config.BudgetConfig("day", limit_tokens=100_000, window="day", provider="groq", action="fallback"),
        config.BudgetConfig(
            "one", limit_usd=0.05, window="turn", provider="openai", model="openai:gpt-4o:x", action="warn"
        ),
    ] == load(tmp_path, text).settings.budgets


@pytest.mark.parametrize(
    ("budgets", "says"),
    [
        ("[{name: a}]", "budgets[0].limit_usd: expected limit_usd or limit_tokens, got neither: write how much it allows"),
        (
            "[{name: a, limit_usd: 1, limit_tokens: 5}]",
            "budgets[0].limit_tokens: expected limit_usd or limit_tokens, got both: make two budgets of it",
        ),
        (
            "[{name: a, limit_usd: 1}, {name: b, limit_usd: 1}, {name: a, limit_usd: 2}]",
            'budgets[2].name: expected another name, as there is a budget "a" before it',
        ),
        ("[{name: a, limit_usd: 1, provider: opnai}]", 'budgets[0].provider: there is no provider "opnai": did you mean openai?'),
        ("[{name: a, limit_usd: 1, model: gpt-4o}]", 'budgets[0].model: expected provider:model, got "gpt-4o"'),
        ("[{name: a, limit_usd: 1, model: 'opnai:x'}]", 'budgets[0].model: there is no provider "opnai": did you mean openai?'),
        (
            "[{name: a, limit_usd: 1, provider: groq, model: 'openai:x'}]",
            'budgets[0].model: expected a model of groq, got "openai:x": leave provider out',
        ),
        ("[{name: a, limit_usd: 1, window: year}]", "budgets[0].window: "),
        ("[{name: a, limit_usd: -1}]", "budgets[0].limit_usd: "),
    ],
)  # fmt: skip
def test_a_budget_that_makes_no_sense_is_refused_with_what_to_write(tmp_path: Path, budgets: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"budgets: {budgets}")

    assert str(caught.value).startswith(f"{tmp_path / 'config.yaml'}: {says}")


def test_a_budget_may_be_about_a_provider_of_the_users_own(tmp_path: Path) -> None:
    text = "llm_providers: {work: {kind: openai}}\nbudgets: [{name: a, limit_usd: 1, model: 'work:m'}]"

    assert "work:m" == load(tmp_path, text).settings.budgets[0].model

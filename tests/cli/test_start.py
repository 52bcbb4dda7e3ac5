"""What a command imports before it does its work: most of its time is that, so what was saved has to stay saved."""

from __future__ import annotations

import importlib
import re

import pytest
import typer
from support.answers import answer
from support.command import Backend, Home
from timeline_cli.app import COMMANDS

SLOW = ("pydantic", "sqlalchemy.orm", "httpx", "rich.markdown", "rich", "sqlalchemy", "timeline.cognition")
"""What takes longest; the last stands for all that asks models."""


def imported(home: Home, *argv: str) -> set[str]:
    """The modules that a command imports."""
    done = home.run(*argv, env={"PYTHONPROFILEIMPORTTIME": "1"}, fresh=True, timeout=90)

    assert 0 == done.code, done.err
    return set(re.findall(r"^import time:.*\| +(\S+)$", done.err, re.MULTILINE))


@pytest.mark.parametrize(
    ("argv", "needed"),
    {
        ("--version",): (),
        ("--help",): (),
        ("config", "path"): (),
        ("report", "--json", "--by", "model", "--since", "7d"): ("sqlalchemy",),
        ("search", "why"): ("sqlalchemy", "rich"),
        ("replay", "last"): ("sqlalchemy", "rich"),
        ("ask", "-m", "t:m", "why"): ("sqlalchemy", "rich", "httpx", "timeline.cognition"),
    }.items(),
)
def test_a_command_imports_nothing_slow_that_it_can_do_without(
    home: Home, backend: Backend, argv: tuple[str, ...], needed: tuple[str, ...]
) -> None:
    backend.says(answer("Because"))
    home.run("ask", "why")

    assert {*needed} == imported(home, *argv) & {*SLOW}


@pytest.mark.parametrize("name", COMMANDS)
def test_typer_is_told_the_types_of_a_command_s_parameters_not_their_text(name: str) -> None:
    module, _, part = COMMANDS[name].partition(".")
    runs = getattr(importlib.import_module(f"timeline_cli.{module}"), part or module)
    functions = [each.callback for each in runs.registered_commands] if isinstance(runs, typer.Typer) else [runs]

    assert [] == [hint for each in functions for hint in each.__annotations__.values() if isinstance(hint, str)]


def test_a_whole_interpreter_takes_numbers_and_files_as_the_forked_runs_of_the_other_tests_do(
    home: Home, backend: Backend
) -> None:
    backend.says(answer("Because"))
    home.work.joinpath("note.txt").write_text("Noted.")

    asked = home.run("ask", "why", "--max-tokens", "7", "--temperature", "0.5", "-f", "note.txt", fresh=True)

    assert (0, "Because\n") == (asked.code, asked.out), asked.err
    body = backend.requests[0].json()
    assert (7, 0.5) == (body["max_tokens"], body["temperature"])
    assert "Noted." in body["messages"][0]["content"]

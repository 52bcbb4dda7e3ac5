"""`timeline tools`, and tools among the plugins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command import Home
from support.sites import ToolSite

from timeline.config import TOOLS

TOOL = """
from timeline.cognition.tools import Tool, ToolResult

class Made(Tool):
    name = "note"
    description = "Keeps a note."
    parameters = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    changes = True

    async def run(self, arguments, workspace):
        (workspace.folder / "note.txt").write_text(arguments["text"])
        return ToolResult("kept")
"""


@pytest.fixture
def site(tmp_path: Path) -> ToolSite:
    made = ToolSite(tmp_path / "site")
    made.path.mkdir()
    return made


def test_tools_are_listed_with_why_one_is_off(home: Home, site: ToolSite) -> None:
    site.install("note", TOOL)
    site.install("bad", TOOL)
    env = {"PYTHONPATH": str(site.path)}

    shown = home.run("tools", "list", env=env)
    listed = home.run("tools", "list", "--json", env=env).json()["tools"]

    assert 0 == shown.code
    lines = shown.out.splitlines()
    assert lines[0].startswith("calculator       on   Calculates exactly")
    assert "note             on   Keeps a note. (asks first: it changes something) [dist-note 1.0]" in lines
    assert "off: it fetches from the internet: allow it with" in shown.out
    assert 'bad              off  dist-bad 1.0  off: the tool bad broke the rule "name"' in shown.out
    assert {*TOOLS, "note", "bad"} == {row["name"] for row in listed}
    assert {"name", "description", "origin", "on", "reason", "changes"} == set(listed[0])
    assert not home.store.exists()


def test_a_tool_is_tried_by_hand(home: Home) -> None:
    text = home.run("tools", "run", "calculator", "15% of 240")
    same = home.run("tools", "run", "calculator", '{"expression": "15% of 240"}', "--json")

    assert (0, "15% of 240 = 36\n") == (text.code, text.out)
    assert ("15% of 240 = 36", "36", False) == tuple(same.json()[key] for key in ("result", "fact", "truncated"))
    assert isinstance(same.json()["duration_seconds"], float)


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["calculator", "1/0"], 1, "divides by zero"),
        (["calculator", "{1"], 2, "the arguments are no JSON object"),
        (["calculator", '{"x": 1}'], 1, "there is no such argument"),
        (["read_file", "/etc/passwd"], 1, "outside of the folders that may be read"),
        (["fetch_url", "http://127.0.0.1"], 2, "the tool fetch_url is off"),
        (["nothing"], 6, "there is no tool 'nothing': use one of calculator"),
    ],
)
def test_what_cant_be_done_is_said(home: Home, words: list[str], code: int, what: str) -> None:
    result = home.run("tools", "run", *words, "--json")

    error = result.json()["error"]
    assert (code, code) == (result.code, error["exit_code"])
    assert what in error["message"]


def test_a_folder_is_allowed_for_once(home: Home, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far/a.txt").write_text("far away")

    result = home.run("tools", "run", "read_file", str(tmp_path / "far/a.txt"), "--allow-dir", str(tmp_path / "far"))

    assert (0, "far away\n") == (result.code, result.out)


def test_the_timeline_is_searched_by_hand(home: Home) -> None:
    before = home.run("tools", "run", "search_timeline", "rust")
    home.run("ask", "--direct", "What is ownership in rust?")

    found = home.run("tools", "run", "search_timeline", "rust", "--json").json()

    assert (1, True) == (before.code, "can be searched here" in before.err)
    assert "What is ownership in rust?" == found["fact"]
    assert "the user asked: What is ownership in rust?" in found["result"]


def test_what_changes_something_needs_yes_where_nobody_can_be_asked(home: Home, site: ToolSite) -> None:
    site.install("note", TOOL)
    env = {"PYTHONPATH": str(site.path)}

    refused = home.run("tools", "run", "note", "hello", env=env)
    done = home.run("tools", "run", "note", "hello", "--yes", env=env)

    assert (1, True) == (refused.code, "allow it with --yes" in refused.err)
    assert (0, "kept\n") == (done.code, done.out)


def test_tool_plugins_are_listed_and_validated_with_the_others(home: Home, site: ToolSite) -> None:
    site.install("note", TOOL)
    site.install("bad", TOOL.replace("async def", "def").replace('"note"', '"bad"'))
    env = {"PYTHONPATH": str(site.path)}

    listed = home.run("plugins", "list", env=env)
    good = home.run("plugins", "validate", "note", env=env)
    bad = home.run("plugins", "validate", "bad", "--json", env=env)
    live = home.run("plugins", "validate", "note", "--live", env=env)

    assert 'can\'t be used: the tool bad broke the rule "methods" (run is not async def)' in listed.out
    assert "note  tool  dist_note_note_tool:Made  dist-note 1.0" in listed.out.splitlines()
    assert (0, 6) == (good.code, good.out.count("kept"))
    assert (1, [{"rule": "methods", "what": "run is not async def"}]) == (bad.code, bad.json()["problems"])
    assert (2, True) == (live.code, "timeline tools run note" in live.err)


def test_settings_decide_which_are_on(home: Home) -> None:
    (home.path / "config.yaml").write_text(json.dumps({"tools": {"disabled": ["clock"], "fetch_url": True}}))

    states = {row["name"]: row["on"] for row in home.run("tools", "list", "--json").json()["tools"]}

    assert (False, True) == (states["clock"], states["fetch_url"])

"""Which tools are on: built in, of plugins and of servers; what is off or broken says why and stops nothing."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.sites import ToolSite

from timeline.cognition.tool_plugins import RULES, check_tool, plugins
from timeline.cognition.toolbox import Listed, Toolbox, open_tools
from timeline.cognition.tools import Tools, Workspace
from timeline.config import TOOLS, Config, load
from timeline.providers.base import ToolCall

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/tools.md").read_text()
HERE = Workspace(Path())

GOOD = """
from timeline.cognition.tools import Tool, ToolResult

class Made(Tool):
    name = "NAME"
    description = "Turns text around."
    parameters = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}

    async def run(self, arguments, workspace):
        return ToolResult(arguments["text"][::-1])
"""


def good(name: str, *changes: tuple[str, str]) -> str:
    source = GOOD.replace("NAME", name)
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    return source


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ToolSite]:
    made = ToolSite(tmp_path / "site")
    made.path.mkdir()
    monkeypatch.syspath_prepend(made.path)
    yield made
    for module in made.modules:
        sys.modules.pop(module, None)


def config(tmp_path: Path, offline: bool = False, **tools: Any) -> Config:
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    (home / "config.yaml").write_text(json.dumps({"tools": tools, "offline": offline}))
    return load(environ={"TIMELINE_HOME": str(home), "HOME": str(home)}, cwd=home)


def row(box: Toolbox, name: str) -> Listed:
    return next(row for row in box.listed if row.name == name)


# ------------------------------------------------------------------ what is on


async def test_all_built_in_tools_but_the_webs_are_on(tmp_path: Path) -> None:
    async with open_tools(config(tmp_path)) as box:
        assert TOOLS[:-1] == box.tools.names
        assert TOOLS == tuple(row.name for row in box.listed)
        assert "allow it with tools: {fetch_url: true} in" in (row(box, "fetch_url").reason or "")


async def test_settings_choose(tmp_path: Path) -> None:
    async with open_tools(config(tmp_path, disabled=["clock"], fetch_url=True, max_result=600)) as box:
        assert set(TOOLS) - {"clock"} == set(box.tools.names)
        assert (row(box, "clock").reason or "").startswith("tools.disabled in /")
        outcome = await box.tools.run(ToolCall("1", "calculator", {"expression": "1463!"}), HERE)
        assert "[cut here: the first 600 of " in outcome.text
    async with open_tools(config(tmp_path, enabled=["clock"])) as box:
        assert ("clock",) == box.tools.names
        assert "doesn't name it" in (row(box, "calculator").reason or "")


async def test_offline_fetches_nothing(tmp_path: Path) -> None:
    settings = config(tmp_path, offline=True, fetch_url=True, mcp={"wiki": {"url": "https://wiki.example.com/mcp"}})
    async with open_tools(settings) as box:
        assert [False, False] == [row(box, "fetch_url").on, row(box, "wiki_*").on]
        assert "offline" in (row(box, "wiki_*").reason or "")


async def test_a_server_whose_variable_is_missing_is_listed_with_it(tmp_path: Path) -> None:
    async with open_tools(config(tmp_path, mcp={"a": {"command": ["serve", "${NOWHERE_SET}"]}})) as box:
        assert "the environment variable NOWHERE_SET is not set" in (row(box, "a_*").reason or "")


async def test_a_name_that_is_taken_is_not_offered_twice(tmp_path: Path, site: ToolSite) -> None:
    pytest.importorskip("mcp")
    script = str(Path(__file__).parents[1] / "support/mcp_server.py")
    site.install("test_greet", good("test_greet"))

    async with open_tools(config(tmp_path, mcp={"test": {"command": [sys.executable, script]}})) as box:
        rows = [row for row in box.listed if row.name == "test_greet"]

    assert [True, False] == [row.on for row in rows]
    assert "another tool has that name" in (rows[1].reason or "")
    assert ("MCP server test", True) == (row(box, "test_crash").origin, row(box, "test_crash").on)


# ------------------------------------------------------------------ plugins


async def test_a_plugins_tool_is_run(tmp_path: Path, site: ToolSite) -> None:
    site.install("turn", good("turn"))

    async with open_tools(config(tmp_path)) as box:
        outcome = await box.tools.run(ToolCall("1", "turn", {"text": "abc"}), HERE)

    assert "cba" == outcome.text
    assert Listed("turn", "Turns text around.", "dist-turn 1.0", on=True) == row(box, "turn")


async def test_a_plugin_can_be_turned_off(tmp_path: Path, site: ToolSite) -> None:
    site.install("turn", good("turn"))

    async with open_tools(config(tmp_path, disabled=["turn"])) as box:
        assert "turn" not in box.tools.names


@pytest.mark.parametrize(
    ("rule", "old", "new", "what"),
    [
        ("name", 'name = "turn"', 'name = "turn around"', "name is 'turn around'"),
        ("name", 'name = "turn"', 'name = "other"', "name is other, but the entry point's is turn"),
        ("description", '"Turns text around."', '" "', "description is missing"),
        ("parameters", '{"type": "object"', '{"type": "array"', "no JSON Schema of an object"),
        ("parameters", '"required": ["text"]', '"required": {open}', "no JSON (TypeError)"),
        ("attributes", "    async def", "    changes = 1\n    async def", "changes is neither true nor false"),
        ("attributes", "    async def", "    timeout_seconds = 1e9\n    async def", "timeout_seconds is 1000000000.0"),
        ("methods", "async def run", "def run", "run is not async def"),
        ("methods", "(self, arguments, workspace)", "(self)", "run can't be called with (arguments, workspace)"),
        ("methods", "async def run", "async def execute", "run is missing"),
        (
            "methods",
            "    async def",
            "    async def signal(self, text, workspace): pass\n    async def",
            "signal is async def",
        ),
        (
            "class",
            "    async def",
            "    def __init__(self, key): pass\n    async def",
            "can't be made without arguments",
        ),
    ],
)
async def test_a_plugin_that_breaks_a_rule_is_named_with_it_and_stops_nothing(
    tmp_path: Path, site: ToolSite, rule: str, old: str, new: str, what: str
) -> None:
    site.install("turn", good("turn", (old, new)))

    async with open_tools(config(tmp_path)) as box:
        reason = row(box, "turn").reason or ""

    assert f'the tool turn broke the rule "{rule}" (' in reason
    assert what in reason
    assert rule in RULES
    assert "calculator" in box.tools.names


def test_a_plugin_that_cant_be_loaded_says_why(site: ToolSite) -> None:
    site.install("missing", "", value="nowhere:Made")
    site.install("raises", "raise RuntimeError('sk-secret')")
    site.install("exits", "import sys; sys.exit(1)")
    site.install("fails", good("fails", ("    async def", "    def __init__(self): {}['sk-secret']\n    async def")))
    site.install("nothing", "Made = 7")
    site.install("calculator", good("calculator"))
    site.install("twin", good("twin"))
    site.install("twin", good("twin"), distribution="other")

    reasons = {plugin.entry.name: plugin.reason or "" for plugin in plugins()}

    assert "can't be imported from nowhere:Made (ModuleNotFoundError: No module named 'nowhere')" in reasons["missing"]
    assert "(RuntimeError at dist_raises_raises_tool.py:1)" in reasons["raises"]
    assert "(SystemExit at dist_exits_exits_tool.py:1)" in reasons["exits"]
    assert "(KeyError at dist_fails_fails_tool.py:" in reasons["fails"]
    assert "names no class, but something of type int" in reasons["nothing"]
    assert "as that name is built in" in reasons["calculator"]
    assert "is brought by dist-twin and other: uninstall all but one" in reasons["twin"]
    assert "sk-secret" not in str(reasons)


# ------------------------------------------------------------------ the guide


async def test_the_guides_tool_keeps_the_rules_and_works() -> None:
    (source,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    namespace: dict[str, Any] = {"__name__": "timeline_dice"}
    exec(source, namespace)
    dice = namespace["Dice"]()
    registry = Tools([dice])

    assert [] == check_tool(dice, "dice")
    assert re.fullmatch(r"[1-6] [1-6] [1-6]", (await registry.run(ToolCall("1", "dice", {"count": "3"}), HERE)).text)
    assert "throw fewer" in (await registry.run(ToolCall("1", "dice", {"count": 101}), HERE)).text
    assert ["dice"] == [signal.tool for signal in registry.signals("Throw a dice!", HERE)]


def test_the_guide_has_every_rule_and_every_tool() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", GUIDE, re.MULTILINE))

    assert {**rows, **RULES} == rows
    assert set(TOOLS) <= set(rows)

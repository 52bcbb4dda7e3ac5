"""A tool that changes something: the user is asked, one question at a time, and may walk away."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support import mcp_server
from support.answers import answer, delta, event, stream, usage
from support.command import Backend, Home
from support.loopback import Reply, Request
from support.terminal import Terminal

TOOL = "test_remove"
ROUTED = answer(json.dumps({"intent": "remove", "tools": [TOOL, "read_file"], "complexity": "low"}))


def calling(*calls: tuple[str, dict[str, str]]) -> Reply:
    wished = [
        {"index": n, "id": f"c{n}", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for n, (name, arguments) in enumerate(calls)
    ]
    return stream(delta(tool_calls=wished), delta(finish="tool_calls"), usage(9, 3), event("[DONE]"))


@pytest.fixture
def removing(home: Home) -> Home:
    server = {"command": [sys.executable, str(Path(mcp_server.__file__))]}
    home.configure({"tools": {"mcp": {"test": server}}, "mode": "pipeline"}, models=["a", "b"])
    return home


def ended(home: Home) -> list[tuple[str, str]]:
    return [
        (row["type"], row["data"].get("error", {}).get("kind", ""))
        for kind in ("tool.returned", "tool.failed")
        for row in home.events(kind)
    ]


def test_questions_come_one_after_the_other(removing: Home, backend: Backend) -> None:
    backend.says(ROUTED, calling((TOOL, {"who": "Ann"}), (TOOL, {"who": "Bob"})), answer("Ok."), answer("Done."))

    with Terminal(removing, "ask", "-m", "t:a", "Remove both", columns=240) as terminal:
        terminal.wait_for('"Ann"} changes something. Run it? [y/N]:')
        assert "Bob" not in terminal.text
        terminal.type("what\ny\n")
        terminal.wait_for('"Bob"} changes something. Run it? [y/N]:')
        terminal.type("\n")
        assert 0 == terminal.wait(), terminal.text

    assert [("tool.returned", ""), ("tool.failed", "tool")] == ended(removing)


def test_what_is_agreed_to_stands_in_the_order_in_which_it_is_run(removing: Home, backend: Backend) -> None:
    turns = "".join(map(chr, (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))))
    backend.says(ROUTED, calling((TOOL, {"who": f"a{turns}b"})), answer("Done."))

    with Terminal(removing, "ask", "-m", "t:a", "Remove her", columns=240) as terminal:
        terminal.wait_for("Run it? [y/N]:")
        asked = terminal.text
        terminal.type("n\n")
        assert 0 == terminal.wait(), terminal.text

    assert "a" + "".join(f"\\u{ord(sign):04x}" for sign in turns) + "b" in asked
    assert not set(turns) & set(asked)


def test_ctrl_c_at_the_question_ends_the_command_at_once(removing: Home, backend: Backend) -> None:
    backend.says(ROUTED, calling((TOOL, {"who": "Ann"})))

    with Terminal(removing, "ask", "-m", "t:a", "Remove her", columns=120) as terminal:
        terminal.wait_for("Run it? [y/N]:")
        terminal.type("\x03")
        assert 130 == terminal.wait(10), terminal.text
        assert "Fatal" not in terminal.text

    assert [("tool.failed", "interrupted")] == ended(removing)
    assert 1 == len(removing.events("turn.interrupted"))


@pytest.mark.parametrize(("argv", "kinds"), [(("--yes",), ["tool.returned"] * 2), ((), ["tool.failed"] * 2)])
def test_several_models_keep_to_what_was_allowed(
    removing: Home, backend: Backend, tmp_path: Path, argv: tuple[str, ...], kinds: list[str]
) -> None:
    (tmp_path / "notes.txt").write_text("swordfish")

    def says(request: Request) -> Reply:
        asked = request.json()
        if "response_format" in asked or "You decide" in str(asked["messages"][0]):
            return ROUTED
        if not asked.get("tools") or asked["messages"][-1]["role"] == "tool":
            return answer("Done.")
        return calling((TOOL, {"who": "Ann"}), ("read_file", {"path": str(tmp_path / "notes.txt")}))

    backend.says(says)

    allowed = ("--allow-dir", str(tmp_path)) if argv else ()
    result = removing.run("ask", "-m", "t:a", "-m", "t:b", *argv, *allowed, "Remove her")

    assert 0 == result.code, result.err
    assert kinds * 2 == [kind for kind, _ in ended(removing)]

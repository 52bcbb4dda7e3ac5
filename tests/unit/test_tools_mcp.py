"""Tools of MCP servers: a real one on its standard streams and by HTTP, and such that aren't well."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.loopback import free_port

from timeline.cognition import mcp as module
from timeline.cognition.mcp import Connection, serving
from timeline.cognition.tools import ToolOutcome, Tools, Workspace
from timeline.config import ResolvedServer
from timeline.providers.base import ToolCall

pytest.importorskip("mcp")

SUPPORT = Path(__file__).parents[1] / "support"
SCRIPT = str(SUPPORT / "mcp_server.py")
HERE = Workspace(Path())


def settings(*words: str, **changed: Any) -> ResolvedServer:
    fields: dict[str, Any] = {
        "name": "test",
        "command": (sys.executable, SCRIPT, *words),
        "url": None,
        "env": {},
        "headers": {},
        "cwd": None,
        "confirm": True,
        "timeout": 15.0,
    }
    return ResolvedServer(**{**fields, **changed})


def running(*words: str, **changed: Any) -> AbstractAsyncContextManager[list[Connection]]:
    return serving([settings(*words, **changed)])


async def call(connection: Connection, name: str, **arguments: Any) -> ToolOutcome:
    return await Tools(connection.tools).run(ToolCall("1", f"test_{name}", arguments), HERE)


async def test_a_servers_tools_are_offered_and_run() -> None:
    async with running(env={"GIVEN": "1"}) as (connection,):
        tools = {tool.name: tool for tool in connection.tools}
        greeted = await call(connection, "greet", who="Ada", times="2")
        wrong = await call(connection, "greet")
        failed = await call(connection, "fail")
        refused = await call(connection, "refuse")
        garbled = await call(connection, "garble")
        picture = await call(connection, "picture")
        environment = (await call(connection, "environment")).text.split()
        both = await asyncio.gather(call(connection, "greet", who="A"), call(connection, "greet", who="B"))

    assert connection.problem is None
    assert 9 == len(tools)
    assert {"test_greet", "test_crash"} < set(tools)
    assert "Greets somebody." == tools["test_greet"].description
    assert "Hello Ada! Hello Ada!" == greeted.text
    assert "Error: test_greet: who: is missing: add it" == wrong.text
    assert (True, "tool") == ("no such record" in failed.text, failed.error and failed.error.kind)
    assert "Error: the MCP server test answered with an error: there is no such method" == refused.text
    assert "the MCP server test gave no sound answer (ValidationError)" in garbled.text
    assert "[image left out]\na" == picture.text
    assert "GIVEN" in environment
    assert not [name for name in environment if "KEY" in name or name.startswith("PYTEST")]
    assert ["Hello A!", "Hello B!"] == [outcome.text for outcome in both]


async def test_what_isnt_read_only_needs_somebody_to_agree() -> None:
    async with running() as (connection,), running(confirm=False) as (trusted,):
        refused = await call(connection, "remove", who="x")
        removed = await call(trusted, "remove", who="x")

    assert "allow it with --yes" in refused.text
    assert "removed x" == removed.text


async def test_a_call_that_takes_too_long_is_ended_and_the_server_goes_on() -> None:
    async with running() as (connection,):
        slow = next(tool for tool in connection.tools if tool.name == "test_sleep")
        slow.timeout_seconds = 0.3
        outcome = await call(connection, "sleep")
        greeted = await call(connection, "greet", who="Ada")

    assert "took longer than 0.3 seconds" in outcome.text
    assert "Hello Ada!" == greeted.text


async def test_a_server_that_dies_fails_its_calls_at_once() -> None:
    async with running() as (connection,):
        crashed = await call(connection, "crash")
        after = await call(connection, "greet", who="Ada")

    assert [True, True] == [
        outcome.error is not None and "MCP server test" in outcome.text for outcome in (crashed, after)
    ]


async def test_a_server_ends_with_us() -> None:
    before = {child.pid for child in psutil.Process().children()}
    async with running():
        started = [child for child in psutil.Process().children() if child.pid not in before]
        assert 1 == len(started)

    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in started)


async def test_a_cancelled_use_ends_its_server() -> None:
    before = {child.pid for child in psutil.Process().children()}
    inside = asyncio.Event()
    started: list[psutil.Process] = []

    async def use() -> None:
        async with running():
            started.extend(child for child in psutil.Process().children() if child.pid not in before)
            inside.set()
            await asyncio.sleep(3600)

    task = asyncio.create_task(use())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert 1 == len(started)
    assert not started[0].is_running()


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        (
            {"command": ("/nowhere/server",)},
            "it can't be used (FileNotFoundError: No such file or directory): check tools.mcp.test",
        ),
        ({"command": (sys.executable, SCRIPT, "dies")}, "it said: no database at /srv/db): check tools.mcp.test"),
        ({"command": None, "url": "http://127.0.0.1:{port}/mcp"}, "it can't be used (ConnectError"),
    ],
    ids=["missing", "dies", "nobody"],
)
async def test_a_server_that_cant_be_used_says_why_and_stops_no_other(changed: dict[str, Any], what: str) -> None:
    url = changed.get("url")
    broken = settings(**{**changed, "url": url.format(port=free_port()) if url else None})

    async with serving([broken, settings()]) as (failed, fine):
        assert "Hello Ada!" == (await call(fine, "greet", who="Ada")).text

    assert what in (failed.problem or "")
    assert () == failed.tools


async def test_a_server_that_says_nothing_is_given_up() -> None:
    connection = Connection(settings("silent"), starting_seconds=0.5)

    await connection.open()
    await connection.close()

    assert "it didn't say within 0.5 seconds what it offers" in (connection.problem or "")


@pytest.fixture
def port() -> Iterator[int]:
    """Where a server answers by HTTP."""
    found = free_port()
    command = [sys.executable, str(SUPPORT / "mcp_sdk_server.py"), str(found)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", found)) == 0:
                    break
            time.sleep(0.05)
        yield found
        process.kill()


@pytest.mark.slow
async def test_a_server_by_http_is_used_too(port: int) -> None:
    async with running(confirm=False, command=None, url=f"http://127.0.0.1:{port}/mcp", headers={"x-token": "t"}) as (
        connection,
    ):
        greeted = await call(connection, "greet", who="Ada")

    assert (None, "Hello Ada!") == (connection.problem, greeted.text)


async def test_names_and_descriptions_of_a_server_are_cut_to_size() -> None:
    from mcp.types import Tool as Offered

    schema = {"type": "object"}
    offered = [
        Offered(name="a b/c" * 30, description="Says\nmuch. " * 500, input_schema=schema),
        Offered(name="twice", input_schema=schema),
        Offered(name="twice", input_schema=schema),
        Offered(name="huge", input_schema={"type": "object", "x": "y" * 60_000}),
        *[Offered(name=f"n{number}", input_schema=schema) for number in range(200)],
    ]

    tools, problem = module._ours(settings(), None, offered)

    assert (64, 1_000) == (len(tools[0].name), len(tools[0].description))
    assert tools[0].name.startswith("test_a_b_ca_b_c")
    assert 98 == len(tools)
    assert "left out for their name, schema or number: n96, n97" in (problem or "")

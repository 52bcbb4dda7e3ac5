"""What people get wrong: one clear sentence, the right exit code, nothing asked and nothing lost."""

from __future__ import annotations

import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from support.answers import FOREVER, answer, refused, stream
from support.command import Backend, Home, Result
from timeline_cli.app import COMMANDS
from timeline_cli.options import MOST

from timeline.config import MOST_TOKENS

LISTS = (("sessions", "list"), ("report",), ("limits",))
NAMING = (
    ("replay", "last"),
    ("sessions", "show", "last"),
    ("report", "--session", "last"),
    ("search", "question"),
    ("store", "verify"),
    ("store", "stats"),
)
LOOKING = (*LISTS, *NAMING)


@pytest.fixture(autouse=True)
def reply(backend: Backend) -> None:
    backend.says(answer("Yes"))


def sentence(result: Result, code: int) -> str:
    """The one sentence that was said, after checking that there is nothing else."""
    assert (code, "") == (result.code, result.out), result.err
    assert result.err.startswith("Error: ")
    assert 1 == len(result.err.splitlines()), result.err
    # What happened, and what to do next.
    assert ": " in result.err[len("Error: ") :]
    return result.err


# ------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    "argv", [("aks", "hi"), ("hi there",), ("what", "is", "this"), ("Ask", "hi"), ("ask hi",)], ids=" ".join
)
def test_a_mistyped_command_never_becomes_a_prompt(home: Home, backend: Backend, argv: tuple[str, ...]) -> None:
    said = sentence(home.run(*argv), 2)

    assert repr(argv[0]) in said
    assert ([], False) == (backend.requests, home.store.exists())


@pytest.mark.parametrize("argv", [(), ("sessions",), ("store",)], ids=["timeline", "sessions", "store"])
def test_a_bare_command_shows_its_help(home: Home, argv: tuple[str, ...]) -> None:
    result = home.run(*argv)

    assert (2, "") == (result.code, result.err)
    assert "Usage: timeline" in result.out


@pytest.mark.parametrize(
    "argv",
    [
        ("--bogus",),
        ("ask", "hi", "--bogus"),
        ("ask", "hi", "-m"),
        ("ask", "hi", "--temperature", "9"),
        ("ask", "hi", "--temperature", "hot"),
        ("ask", "hi", "--max-tokens", "0"),
        ("ask", "hi", "--json", "--events", "--quiet"),
        ("ask", "hi", "-m", ""),
        ("ask", "hi", "-m", "t:"),
        ("ask", "hi", "-m", "nobody-has-it"),
        ("replay",),
        ("replay", "a", "b"),
        ("report", "--by", "weather"),
        ("sessions", "list", "--limit", "-1"),
        ("store", "backup"),
    ],
    ids=" ".join,
)
def test_misuse_is_one_sentence(home: Home, backend: Backend, argv: tuple[str, ...]) -> None:
    result = home.run(*argv)

    if "--json" in argv:
        assert (2, "usage") == (result.code, result.json()["error"]["kind"])
    else:
        sentence(result, 2)
    assert ([], []) == (backend.requests, home.events() if home.store.exists() else [])


@pytest.mark.parametrize("argv", [("ask", "hi", "-f", "/dev/zero"), ("ask",)], ids=["file", "standard input"])
def test_what_never_ends_is_no_prompt(home: Home, argv: tuple[str, ...]) -> None:
    with Path("/dev/zero").open("rb") as endless, tempfile.TemporaryFile() as out:
        process = home.start(*argv, stdin=endless if argv == ("ask",) else subprocess.DEVNULL, stdout=out)

        assert 2 == process.wait()
    what = "standard input" if argv == ("ask",) else "/dev/zero"
    assert f"Error: {what} is larger than 32 MiB, which no model takes: ask about a part of it\n" == process.errors()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("ask hi --temperature hot", "Invalid value for '--temperature': expected a number: see 'timeline ask --help'"),
        ("ask hi --temperature 9", "Invalid value for '--temperature': expected at most 2: see 'timeline ask --help'"),
        ("ask hi --max-tokens 1" + "0" * 30, "Invalid value for '--max-tokens': expected at most 1000000000"),
        ("sessions list -n 1" + "0" * 30, "Invalid value for '--limit' / '-n': expected at most 1000000000"),
        ("ask hi --seed 1" + "0" * 30, "Invalid value for '--seed': expected at most"),
        ("ask hi --seed 1.5", "Invalid value for '--seed': expected a whole number: see 'timeline ask --help'"),
        ("batch - -n 0", "Invalid value for '--concurrency' / '-n': expected at least 1: see 'timeline batch --help'"),
        ("ask hi --model", "Option '--model' requires an argument: see 'timeline ask --help'"),
        (
            "ask hi --allow-dir /nowhere",
            "Invalid value for '--allow-dir': there is no folder '/nowhere': see 'timeline ask --help'",
        ),
        (
            "report --by year",
            "Invalid value for '--by': 'year' is not one of 'day', 'month', 'model', 'provider', 'session'",
        ),
    ],
)
def test_a_wrong_value_is_told_in_words_of_the_command_line(home: Home, argv: str, said: str) -> None:
    assert sentence(home.run(*argv.split()), 2).removeprefix("Error: ").startswith(said)


def test_help_and_version_need_nothing(home: Home) -> None:
    for argv in (("--help",), ("-h",), ("ask", "--help"), ("--version",), ("-V",)):
        result = home.run(*argv)
        assert (0, "", True) == (result.code, result.err, bool(result.out)), argv
    assert not home.store.exists()


EACH = """
import contextlib, json, os, sys, tempfile
import timeline_cli, timeline_cli.app
with contextlib.suppress(ImportError):
    # What typer imports when it reads a command line, whatever the command.
    import pydantic.type_adapter, typer._adapters
shown = {}
for name, place in timeline_cli.app.COMMANDS.items():
    assert "timeline_cli." + place.partition(".")[0] not in sys.modules
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        if not (pid := os.fork()):
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = ["timeline", name, "--help"]
            timeline_cli.main()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out.seek(0)
        err.seek(0)
        shown[name] = code, err.read(), out.read()
print(json.dumps(shown))
"""


def test_each_command_imports_what_it_needs_by_itself(home: Home) -> None:
    # What other tests run is forked from a process that has imported them all; these from one that has imported none.
    done = subprocess.run([sys.executable, "-c", EACH], env=home.env, cwd=home.work, capture_output=True, check=False)
    shown = json.loads(done.stdout)

    assert list(COMMANDS) == list(shown), done.stderr
    for name, (code, err, out) in shown.items():
        assert (0, "", True) == (code, err, f" {name} [OPTIONS]" in out), name


def test_no_number_of_tokens_is_too_large_for_an_option_alone() -> None:
    assert MOST_TOKENS == MOST


@pytest.mark.parametrize("argv", [(), ("ask",), ("batch",), ("route",), ("sessions", "forget"), ("providers", "check")])
def test_help_fits_into_60_columns_and_cuts_no_options_name(home: Home, argv: tuple[str, ...]) -> None:
    lines = home.run(*argv, "--help", env={"COLUMNS": "60"}).out.splitlines()

    assert max(map(len, lines)) <= 60
    assert [] == [line for line in lines if re.search(r"--[\w-]*…|--[\w-]*\.\.\.|\[/?bold", line)]
    if argv == ("ask",):
        assert any("--show-cognition / --no-show-cognition" in line for line in lines)


# ------------------------------------------------------------------ providers, models, keys


@pytest.mark.parametrize(
    ("model", "code", "said"),
    [
        ("nope:x", 6, "there is no provider"),
        ("openai:gpt-4o", 4, "OPENAI_API_KEY"),
        ("embedded:nope", 6, "nope"),
    ],
)
def test_an_unknown_provider_or_model_or_a_missing_key(home: Home, model: str, code: int, said: str) -> None:
    assert said in sentence(home.run("ask", "hi", "-m", model), code)
    if home.store.exists() and home.events():
        # It was asked, and refused.
        assert "call.failed" == home.end()["type"]


def test_a_configured_provider_without_its_key(home: Home, backend: Backend) -> None:
    home.configure(api_key="${NOT_SET}")

    assert "NOT_SET" in sentence(home.run("ask", "hi"), 4)
    assert [] == backend.requests


def test_a_prompt_larger_than_the_context(home: Home, backend: Backend) -> None:
    backend.says(refused(400, "This model's maximum context length is 10 tokens", "context_length_exceeded"))

    assert "shorten it" in sentence(home.run("ask", stdin="word " * 100_000), 1)
    assert "context_too_long" == home.end()["data"]["error"]["kind"]


@pytest.mark.parametrize("text", ["llm_providers: {", "llm_providers:\n  t: {bogus: 1}\n", "- 1\n", "a: b: c\n"])
def test_a_broken_configuration(home: Home, backend: Backend, text: str) -> None:
    (home.path / "config.yaml").write_text(text)

    for argv in (("ask", "hi"), ("store", "path")):
        assert "config.yaml" in sentence(home.run(*argv), 2)
    assert ([], False) == (backend.requests, home.store.exists())


def test_no_key_is_ever_shown(home: Home, backend: Backend) -> None:
    key = "sk-verysecretkey-0123456789"
    home.configure(api_key="${MY_KEY}")
    env = {"MY_KEY": key}
    for reply in (
        refused(401, f"Incorrect API key provided: {key}"),
        refused(500, f"key {key} in header"),
        answer("x"),
    ):
        backend.says(reply)
        result = home.run("ask", "hi", env=env)
        assert f"Bearer {key}" == backend.requests[0].headers["authorization"]
        assert key not in result.out + result.err
    assert key.encode() not in home.bytes()


# ------------------------------------------------------------------ the folder and the file


@pytest.mark.parametrize(
    "argv",
    [*NAMING, ("store", "rebuild"), ("sessions", "rename", "last", "x"), ("sessions", "forget", "last")],
    ids=" ".join,
)
def test_looking_where_nothing_is_makes_nothing(home: Home, argv: tuple[str, ...]) -> None:
    assert "there is no store" in sentence(home.run(*argv), 6)
    assert not home.store.exists()


@pytest.mark.parametrize("argv", [*LISTS, ("report", "--by", "session")], ids=" ".join)
def test_a_list_of_nothing_is_empty_where_nothing_was_ever_asked(home: Home, argv: tuple[str, ...]) -> None:
    result, as_json = home.run(*argv), home.run(*argv, "--json")

    assert (0, "", 1) == (result.code, result.out, len(result.err.splitlines()))
    assert (0, "") == (as_json.code, as_json.err)
    assert [[]] * (3 if argv == ("limits",) else 1) == [
        value for value in as_json.json().values() if isinstance(value, list)
    ]
    assert not home.store.exists()


def _database(path: Path) -> None:
    conn = sqlite3.connect(path)
    conn.execute("CREATE TABLE mine (x)")
    conn.commit()
    conn.close()


FOREIGN = {
    "text": lambda path: path.write_text("these are my notes, not a database\n" * 50),
    "another database": _database,
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_not_ours_is_left_alone(home: Home, backend: Backend, kind: str) -> None:
    FOREIGN[kind](home.store)
    before = home.store.read_bytes() if home.store.is_file() else b""

    for argv in (("ask", "hi"), ("replay", "last"), ("report",), ("store", "verify"), ("store", "rebuild")):
        sentence(home.run(*argv), 1)

    assert before == (home.store.read_bytes() if home.store.is_file() else b"")
    assert ([], ["config.yaml", "timeline.db"]) == (backend.requests, sorted(path.name for path in home.path.iterdir()))


def test_a_file_from_a_newer_version_is_left_alone(home: Home, backend: Backend) -> None:
    home.run("ask", "hi")
    with home.connect() as conn:
        conn.execute("UPDATE alembic_version SET version_num = '9999'")
        conn.commit()
    backend.says(answer("never"))

    for argv in (("ask", "hi"), ("replay", "last"), ("store", "verify"), ("sessions", "forget", "last", "--yes")):
        assert "update timeline" in sentence(home.run(*argv), 1)

    assert [] == backend.requests


def test_an_event_from_a_newer_version_is_one_sentence(home: Home) -> None:
    home.run("ask", "hi")
    with home.connect() as conn:
        row = conn.execute("SELECT * FROM events ORDER BY position DESC LIMIT 1").fetchone()
        last = {**dict(row), "position": row["position"] + 1, "version": row["version"] + 1, "event_id": "new"}
        conn.execute(
            f"INSERT INTO events ({', '.join(last)}) VALUES ({', '.join('?' * len(last))})",
            [*({**last, "type": "moon.landed"}.values())],
        )
        conn.commit()

    assert "newer" in sentence(home.run("replay", "last"), 1)


def test_a_home_that_is_a_file(home: Home, backend: Backend) -> None:
    env = {"TIMELINE_HOME": str(home.path / "config.yaml")}

    assert "TIMELINE_HOME" in sentence(home.run("ask", "hi", env=env), 1)
    for argv in (("replay", "last"), ("store", "rebuild")):
        assert "there is no store" in sentence(home.run(*argv, env=env), 6)
    assert [] == backend.requests


def test_no_home_at_all(home: Home) -> None:
    for argv in (("ask", "hi"), ("store", "path"), ("replay", "last")):
        assert "TIMELINE_HOME" in sentence(home.run(*argv, env={"HOME": "", "TIMELINE_HOME": ""}), 2)


def mounted(home: Home, mount: str, *argv: str) -> Result:
    """Run a command where something is mounted over its folder, seen by it alone."""
    where = f"H={shlex.quote(str(home.path))};"
    result = home.run(*argv, apart=(f"{where} {mount}", f"{where} cp -a $H/. $H.after 2>/dev/null; true"))
    if result.code == 99:
        pytest.skip(f"mounting isn't allowed here: {result.err}")
    return result


READ_ONLY = "mount --bind $H $H && mount -o remount,ro,bind $H"


def test_a_read_only_folder_can_be_looked_at_and_not_asked_in(home: Home, backend: Backend) -> None:
    home.run("ask", "a question")
    before = home.events()
    backend.says(answer("never"))

    said = sentence(mounted(home, READ_ONLY, "ask", "hi"), 1)

    assert "can't be written" in said
    assert "can't be written" in sentence(mounted(home, READ_ONLY, "sessions", "rename", "last", "A title"), 1)
    assert ([], before) == (backend.requests, home.events())
    for argv in LOOKING:
        result = mounted(home, READ_ONLY, *argv)
        assert (0, home.run(*argv).err) == (result.code, result.err), argv
    assert "a question" in mounted(home, READ_ONLY, "replay", "last").out


def test_a_read_only_folder_without_a_store(home: Home, backend: Backend) -> None:
    said = sentence(mounted(home, READ_ONLY, "ask", "hi"), 1)

    assert ("Read-only file system" in said, []) == (True, backend.requests)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a folder in which no file can be made")
def test_a_folder_in_which_no_file_can_be_made(home: Home, backend: Backend) -> None:
    env = {"TIMELINE_HOME": "/proc", "OPENAI_API_KEY": ""}

    said = sentence(home.run("ask", "-m", "openai:x", "hi", env=env, timeout=10), 1)
    kept = sentence(home.run("keys", "set", "openai", stdin="sk-1\n", env=env, timeout=10), 2)
    pulled = sentence(home.run("models", "pull", "smollm2", env=env, timeout=10), 1)

    assert "the store /proc/timeline.db can't be opened (No such file or directory): choose another place" in said
    assert "/proc/keys.json: can't be written (No such file or directory)" in kept
    assert "/proc/models can't be written" in pulled


def test_a_folder_of_someone_else(home: Home, backend: Backend) -> None:
    if not os.geteuid():
        pytest.skip("root may write anywhere")
    home.run("ask", "a question")
    home.path.chmod(0o500)
    home.store.chmod(0o400)

    try:
        assert "can't be written" in sentence(home.run("ask", "hi"), 1)
        assert 0 == home.run("replay", "last").code
    finally:
        home.path.chmod(0o700)


def small_disk(kilobytes: int) -> str:
    return f"cp -a $H $H.before && mount -t tmpfs -o size={kilobytes}k tmpfs $H && cp -a $H.before/. $H && mkdir -p $H.after"


def after(home: Home) -> list[str]:
    """The types of the events that were on the small disk at the end."""
    conn = sqlite3.connect(home.path.with_name(home.path.name + ".after") / "timeline.db")
    try:
        assert "ok" == conn.execute("PRAGMA integrity_check").fetchone()[0]
        positions = [row[0] for row in conn.execute("SELECT position FROM events ORDER BY position")]
        assert list(range(1, len(positions) + 1)) == positions
        return [row[0] for row in conn.execute("SELECT type FROM events ORDER BY position")]
    finally:
        conn.close()


@pytest.mark.parametrize(("free", "said"), [(80, "no space left"), (24, "")], ids=["little", "none"])
def test_a_disk_that_is_full_at_the_start(home: Home, backend: Backend, free: int, said: str) -> None:
    home.run("ask", "a question")
    before = home.types()
    backend.says(answer("never"))
    size = sum(path.stat().st_size for path in home.path.iterdir()) // 1024 + free

    result = mounted(home, small_disk(size), "ask", "x" * 100_000)

    assert said in sentence(result, 1)
    assert [] == backend.requests
    assert before == after(home)


@pytest.mark.parametrize(
    "argv", [("sessions", "forget", "last", "--yes"), ("sessions", "rename", "last", "A title"), ("store", "rebuild")]
)
def test_a_full_disk_is_told_from_one_that_can_t_be_written(
    home: Home, backend: Backend, argv: tuple[str, ...]
) -> None:
    home.run("ask", "a question")
    before = home.types()
    size = sum(path.stat().st_size for path in home.path.iterdir()) // 1024 + 24

    result = mounted(home, small_disk(size), *argv)

    assert "no space left to record in" in sentence(result, 1)
    assert before == after(home)


def test_a_disk_that_fills_up_in_mid_stream(home: Home, backend: Backend) -> None:
    home.run("ask", "a question")
    before = home.types()
    # Each piece is a window of its own.
    backend.says(stream("Begin ", *([0.12, "y" * 30_000] * 40), FOREVER))
    size = sum(path.stat().st_size for path in home.path.iterdir()) // 1024 + 400

    result = mounted(home, small_disk(size), "ask", "hi", "--quiet")

    assert 1 == result.code
    assert result.out.startswith("Begin yyy")
    assert "no space left" in result.err
    assert 1 == len(result.err.splitlines())
    kept = after(home)
    assert before == kept[: len(before)]
    assert "chunk.received" in kept[len(before) :]


def test_a_limit_on_the_size_of_files(home: Home, backend: Backend) -> None:
    home.run("ask", "a question")
    before = home.types()
    limit = home.store.stat().st_size + 60 * 1024
    backend.says(stream("Begin ", *([0.12, "y" * 30_000] * 40), FOREVER))

    result = home.run("ask", "hi", "-q", apart=(f"prlimit --pid $PPID --fsize={limit}", ""))

    assert (1, 1) == (result.code, len(result.err.splitlines())), result.err
    assert result.err.startswith("Error: ")
    assert before == home.types()[: len(before)]
    assert 0 == home.run("store", "verify").code


def test_a_store_locked_by_another_program_is_waited_for(home: Home, backend: Backend) -> None:
    home.run("ask", "a question")
    with home.connect() as conn:
        conn.execute("BEGIN IMMEDIATE")
        process = home.start("ask", "hi")
        time.sleep(1)
        os.kill(process.pid, 0)
        conn.rollback()

    assert 0 == process.wait()
    assert "response.completed" == home.end()["type"]

"""`timeline keys`: what is kept, who sees it, and which key goes out."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import answers
from support.command import Backend, Home

from timeline.config.keys import KeyFile
from timeline.errors import ConfigError

KEY = "sk-proj-0123456789abcdefWXYZ"
OTHER = "sk-other-0123456789abcdef9876"


def kept(home: Home) -> Any:
    return json.loads((home.path / "keys.json").read_text())


def keep(home: Home, name: str, key: str = KEY) -> None:
    assert 0 == home.run("keys", "set", name, stdin=f"{key}\n").code


def sent(home: Home, backend: Backend, model: str = "t:m", **env: str) -> str | None:
    """The Authorization header of a question."""
    backend.says(answers.answer("Hi"))
    done = home.run("ask", "-m", model, "hello", env=env)
    assert 0 == done.code, done.err
    return backend.requests[-1].headers.get("authorization")


def configure(home: Home, **providers: Any) -> None:
    (home.path / "config.yaml").write_text(
        json.dumps({"llm_providers": providers, "routing_strategy": {"fallback": None}})
    )


# ------------------------------------------------------------------ keeping


@pytest.mark.parametrize("text", [KEY, f"  {KEY}\r\n\n"])
def test_key_from_a_pipe_is_kept_for_its_owner_alone_and_sent(home: Home, backend: Backend, text: str) -> None:
    done = home.run("keys", "set", "t", stdin=text)

    assert (0, "") == (done.code, done.out)
    assert {"t": KEY} == kept(home)
    assert 0o600 == stat.S_IMODE((home.path / "keys.json").stat().st_mode)
    assert f"Bearer {KEY}" == sent(home, backend)


def test_what_is_too_long_for_a_key_is_refused_and_not_cut(home: Home) -> None:
    longest, longer = "k" * 65536, "k" * 65537

    assert 0 == home.run("keys", "set", "t", stdin=longest).code
    done = home.run("keys", "set", "t", stdin=longer)

    assert (2, 1, False) == (done.code, len(done.err.splitlines()), "kkk" in done.err)
    assert "longer than 65536 bytes" in done.err
    assert {"t": longest} == kept(home)


def test_key_is_shown_nowhere(home: Home, backend: Backend) -> None:
    backend.says(answers.refused(401, f"Incorrect API key provided: {KEY}", "invalid_api_key"))
    runs = [home.run("keys", "set", "t", stdin=KEY)]
    runs += [
        home.run(*argv) for argv in (["keys", "list"], ["keys", "list", "--json"], ["config", "show"], ["ask", "hi"])
    ]
    runs += [home.run("providers", "check", "t"), home.run("keys", "remove", "t")]

    assert 4 == runs[4].code
    assert not any(KEY in run.out + run.err for run in runs)
    assert KEY.encode() not in home.bytes()


def test_key_typed_at_the_terminal_is_not_echoed(home: Home) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "timeline_cli", "keys", "set", "openai"]
    process = subprocess.Popen(
        # Without a terminal of its own it can't ask on the one that the tests run on.
        command,
        env=home.env,
        cwd=home.work,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    while b"(it is not shown): " not in shown:
        shown += os.read(ours, 1024)
    os.write(ours, f"{KEY}\n".encode())
    while True:
        try:
            shown += os.read(ours, 1024)
        except OSError:
            break
    os.close(ours)

    assert 0 == process.wait(30)
    assert {"openai": KEY} == kept(home)
    assert KEY.encode() not in shown


@pytest.mark.parametrize("words", [[KEY], [f"--key={KEY}"], ["--", KEY]])
def test_key_on_the_command_line_is_refused_and_not_repeated(home: Home, words: list[str]) -> None:
    done = home.run("keys", "set", "openai", *words)

    assert 2 == done.code
    assert "takes nothing more, and no key: it asks for the key, or reads it from a pipe" in done.err
    assert KEY not in done.out + done.err
    assert not (home.path / "keys.json").exists()


@pytest.mark.parametrize(
    ("argv", "stdin", "code", "sentence"),
    [
        (["openai"], "", 2, "no key was given for openai, so nothing has changed"),
        (["openai"], " \n", 2, "no key was given for openai"),
        (
            ["openai"],
            f"{KEY}\n{OTHER}",
            4,
            "the API key of openai holds a space, a line break or a letter that no key has",
        ),
        (["openai"], b"\xff\xfe\x00", 4, "the API key of openai holds"),
        (["opnai"], KEY, 6, 'there is no provider "opnai": did you mean openai?'),
        (["embedded"], KEY, 2, "embedded runs in this process and asks for no key"),
    ],
)
def test_what_is_no_key_changes_nothing(
    home: Home, argv: list[str], stdin: str | bytes, code: int, sentence: str
) -> None:
    done = home.run("keys", "set", *argv, stdin=stdin)

    assert code == done.code
    assert done.err.startswith(f"Error: {sentence}")
    assert KEY not in done.err
    assert not (home.path / "keys.json").exists()


def test_sets_at_the_same_time_lose_none(home: Home) -> None:
    names = [f"p{number}" for number in range(8)]
    configure(home, **{name: {"kind": "openai", "base_url": home.url} for name in names})
    source = home.work / "key"
    source.write_text(KEY)
    with contextlib.ExitStack() as files:
        running = [home.start("keys", "set", name, stdin=files.enter_context(source.open("rb"))) for name in names]

        assert {0} == {process.wait() for process in running}
    assert dict.fromkeys(names, KEY) == kept(home)
    assert {"config.yaml", "keys.json", "keys.json.lock"} == {path.name for path in home.path.iterdir()}


def test_link_in_place_of_the_file_stays_one(home: Home) -> None:
    elsewhere = home.work / "secrets.json"
    elsewhere.touch(0o600)
    elsewhere.write_text("{}")
    (home.path / "keys.json").symlink_to(elsewhere)
    keep(home, "openai")

    assert (home.path / "keys.json").is_symlink()
    assert {"openai": KEY} == json.loads(elsewhere.read_text())


def test_set_warns_where_another_key_wins(home: Home) -> None:
    done = home.run("keys", "set", "openai", stdin=KEY, env={"OPENAI_API_KEY": OTHER})

    assert "Warning: it is not used as long as environment: OPENAI_API_KEY has one" in done.err


# ------------------------------------------------------------------ which one goes out


def test_environment_wins_over_the_file(home: Home, backend: Backend) -> None:
    configure(home, openai={"base_url": home.url})
    keep(home, "openai")

    assert f"Bearer {OTHER}" == sent(home, backend, "openai:m", OPENAI_API_KEY=OTHER)
    assert f"Bearer {KEY}" == sent(home, backend, "openai:m")
    assert f"Bearer {KEY}" == sent(home, backend, "openai:m", OPENAI_API_KEY="")


def test_configured_key_and_key_command_win_over_the_file(home: Home, backend: Backend) -> None:
    base = {"kind": "openai", "base_url": home.url}
    configure(home, t={**base, "api_key": OTHER}, u={**base, "key_cmd": f"echo {OTHER}"})
    keep(home, "t")
    keep(home, "u")

    assert [f"Bearer {OTHER}"] * 2 == [sent(home, backend, model) for model in ("t:m", "u:m")]


def test_file_stands_in_for_a_variable_that_is_not_set(home: Home, backend: Backend) -> None:
    home.configure(api_key="${MY_KEY}")
    missing = home.run("ask", "hello")
    keep(home, "t")

    assert 4 == missing.code
    assert "MY_KEY is not set: set it, run 'timeline keys set t', or disable" in missing.err
    assert f"Bearer {OTHER}" == sent(home, backend, MY_KEY=OTHER)
    assert f"Bearer {KEY}" == sent(home, backend)


def test_key_is_sent_by_the_provider_of_its_name_alone(home: Home, backend: Backend) -> None:
    keep(home, "openai")

    assert sent(home, backend, "t:m") is None


def test_missing_key_says_both_remedies(home: Home) -> None:
    done = home.run("ask", "-m", "openai:gpt-4o", "hello")

    assert 4 == done.code
    assert "Error: openai needs an API key: set OPENAI_API_KEY or run 'timeline keys set openai'\n" == done.err


# ------------------------------------------------------------------ files that can't be trusted


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_file_that_others_can_get_at_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys.json"
    path.write_text("{}")
    path.chmod(mode)

    with pytest.raises(ConfigError) as caught:
        KeyFile(path).read()
    advice = f"others on this machine can get at these keys (mode {mode:04o}): run chmod 600 on it"
    assert f"{path}: {advice}" == str(caught.value)


@pytest.mark.parametrize(
    "text", [b'{"openai": "sk-cut-off', b'["sk-list"]', b'{"a": {"key": "sk-deep"}}', b"", b"\xff"]
)
def test_broken_file_is_named_and_not_quoted(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "keys.json"
    path.touch(0o600)
    path.write_bytes(text)

    with pytest.raises(ConfigError) as caught:
        KeyFile(path).read()
    with pytest.raises(ConfigError):
        KeyFile(path).set("openai", KEY)
    assert str(caught.value).startswith(f"{path}: not a JSON object of names and keys: mend it, or remove it")
    assert "sk-" not in str(caught.value)
    assert text == path.read_bytes()


@pytest.mark.parametrize("argv", [["ask", "hello"], ["keys", "list"], ["keys", "set", "t"], ["keys", "remove", "t"]])
def test_command_that_meets_a_broken_file_says_so(home: Home, argv: list[str]) -> None:
    (home.path / "keys.json").touch(0o600)
    done = home.run(*argv, stdin=KEY if "set" in argv else b"")

    assert 2 == done.code
    assert done.err.startswith(f"Error: {home.path}/keys.json: not a JSON object of names and keys")


def test_environment_is_enough_where_the_file_is_broken(home: Home, backend: Backend) -> None:
    configure(home, openai={"base_url": home.url})
    (home.path / "keys.json").write_text("{")

    assert f"Bearer {KEY}" == sent(home, backend, "openai:m", OPENAI_API_KEY=KEY)


# ------------------------------------------------------------------ listing and removing


def test_list_says_where_each_key_is_and_which_is_used(home: Home) -> None:
    configure(
        home,
        t={"kind": "openai", "base_url": home.url, "api_key": "short"},
        u={"kind": "openai", "key_cmd": "pass show u"},
    )
    keep(home, "openai")
    keep(home, "t")
    (home.path / "keys.json").write_text(json.dumps({**kept(home), "gone": KEY}))
    done = home.run("keys", "list", env={"OPENAI_API_KEY": OTHER})
    as_json = home.run("keys", "list", "--json", env={"OPENAI_API_KEY": OTHER}).json()

    path = f"{home.path}/keys.json"
    assert [
        "openai  …9876  environment: OPENAI_API_KEY",
        f"openai  …WXYZ  {path}  (not used)",
        f"t       ***    api_key in {home.path}/config.yaml",
        f"t       …WXYZ  {path}  (not used)",
        "u       ***    key_cmd pass",
        f"gone    …WXYZ  {path}  (not used)",
    ] == done.out.splitlines()
    assert {
        "provider": "openai",
        "origin": "environment",
        "place": "OPENAI_API_KEY",
        "key": "…9876",
        "used": True,
    } == as_json["keys"][0]
    assert [] == as_json["problems"]


def test_list_of_nothing_says_how_to_begin(home: Home) -> None:
    done = home.run("keys", "list")

    assert (0, "") == (done.code, done.out)
    assert "no key is known: 'timeline keys set openai' keeps one\n" == done.err


def test_removed_key_is_gone_from_the_file(home: Home) -> None:
    keep(home, "t")
    keep(home, "openai", OTHER)
    done = home.run("keys", "remove", "t")
    again = home.run("keys", "remove", "t", "--json")

    assert 0 == done.code
    assert {"openai": OTHER} == kept(home)
    assert 2 == again.code
    assert 6 == home.run("keys", "remove", "t").code


# ------------------------------------------------------------------ the keyring

RING = """
import json, pathlib
from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked, PasswordDeleteError

class Keyring(KeyringBackend):
    priority = 1
    path = pathlib.Path(__file__).with_name("ring.json")

    def _all(self):
        if self.path.with_name("locked").exists():
            raise KeyringLocked("the secret is sk-locked")
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def get_password(self, service, name):
        return self._all().get(f"{service}/{name}")

    def set_password(self, service, name, password):
        self.path.write_text(json.dumps({**self._all(), f"{service}/{name}": password}))

    def delete_password(self, service, name):
        keys = self._all()
        if keys.pop(f"{service}/{name}", None) is None:
            raise PasswordDeleteError("gone")
        self.path.write_text(json.dumps(keys))
"""


def test_keyring_keeps_the_key_and_the_file_only_its_name(home: Home, backend: Backend) -> None:
    (home.work / "ring.py").write_text(RING)
    ring = {"PYTHON_KEYRING_BACKEND": "ring.Keyring", "PYTHONPATH": str(home.work)}
    done = home.run("keys", "set", "t", "--keyring", stdin=KEY, env=ring)
    backend.says(answers.answer("Hi"))
    asked = home.run("ask", "hello", env=ring)
    listed = home.run("keys", "list", env=ring)
    (home.work / "locked").touch()
    locked = home.run("ask", "hello", env=ring)
    (home.work / "locked").unlink()
    removed = home.run("keys", "remove", "t", env=ring)

    assert [0, 0, 0, 4, 0] == [run.code for run in (done, asked, listed, locked, removed)]
    assert f"Bearer {KEY}" == backend.requests[0].headers["authorization"]
    assert "t  ***  keyring\n" == listed.out
    assert (
        "Error: the system's keyring can't be used (it is locked): unlock it, or keep the key in a file without --keyring\n"
        == locked.err
    )
    assert {} == kept(home)
    assert "{}" == (home.work / "ring.json").read_text()


def test_keyring_that_is_not_installed_is_one_sentence(home: Home) -> None:
    script = "import sys; sys.modules['keyring'] = None; sys.argv[1:] = ['keys', 'set', 't', '--keyring']; from timeline_cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script], env=home.env, input=KEY, capture_output=True, text=True, check=False
    )

    assert (2, "") == (done.returncode, done.stdout)
    assert (
        "Error: the system's keyring needs a package that isn't installed: pip install 'llm-timeline[keyring]'\n"
        == done.stderr
    )
    assert not (home.path / "keys.json").exists()

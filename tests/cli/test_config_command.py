"""`timeline config` and `timeline paths` as a user runs them."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.command import Zygote

from timeline import config

SECRET = "sk-0123456789"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def timeline(home: Path, tmp_path: Path, zygote: Zygote) -> Run:
    def run(*arguments: str, umask: int = 0o022, **environ: str) -> subprocess.CompletedProcess[str]:
        env = {"TIMELINE_HOME": str(home), "HOME": str(tmp_path), **environ}
        with Path(os.devnull).open() as null, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            streams = [stream.fileno() for stream in (null, out, err)]
            _, wait = zygote.start(arguments, env, tmp_path, streams, umask=umask)
            code = wait(30)
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(arguments, code, out.read().decode(), err.read().decode())

    return run


def shown(done: subprocess.CompletedProcess[str]) -> Any:
    assert 0 == done.returncode, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_init_writes_a_file_that_only_its_owner_reads(home: Path, timeline: Run, umask: int) -> None:
    done = timeline("config", "init", umask=umask)

    assert (0, f"{home}/config.yaml\n", "") == (done.returncode, done.stdout, done.stderr)
    assert 0o600 == stat.S_IMODE((home / "config.yaml").stat().st_mode)
    assert 0o700 == stat.S_IMODE(home.stat().st_mode)


def test_file_of_init_changes_nothing_until_edited(home: Path, timeline: Run) -> None:
    before = shown(timeline("config", "show", "--json"))
    timeline("config", "init")

    assert before == shown(timeline("config", "show", "--json"))


def test_examples_in_the_file_of_init_are_valid_settings(home: Path, timeline: Run) -> None:
    timeline("config", "init")
    file = home / "config.yaml"
    file.write_text(re.sub(r"^#(?!#)", "", file.read_text(), flags=re.MULTILINE))
    loaded = config.load(environ={"TIMELINE_HOME": str(home), "HOME": str(home), "OPENAI_API_KEY": SECRET}, cwd=home)

    assert {"openai", "anthropic", "groq", "ollama", "embedded", "myserver"} == set(loaded.providers)
    assert SECRET == loaded.provider("openai").api_key
    assert "ollama:llama3.1" == str(loaded.default_route()[0])
    assert [] == loaded.route_problems()
    # None of what can be set is missing, and each example says something else than what is so without it.
    unlike = {field: getattr(loaded.settings, field) for field in loaded.settings.__struct_fields__}
    assert [] == [field for field, value in unlike.items() if value == getattr(config.Settings(), field)]


def test_init_never_replaces_a_file_unless_forced(home: Path, timeline: Run) -> None:
    home.mkdir()
    file = home / "config.yaml"
    file.write_text("offline: true")
    refused = timeline("config", "init")

    assert 2 == refused.returncode
    assert f"Error: {file} is there already: edit it, or replace it with --force\n" == refused.stderr
    assert "offline: true" == file.read_text()
    assert 0 == timeline("config", "init", "--force").returncode
    assert "offline: true" not in file.read_text().splitlines()
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)


def test_forced_init_keeps_a_link_and_replaces_what_it_points_to(home: Path, timeline: Run, tmp_path: Path) -> None:
    home.mkdir()
    elsewhere = tmp_path / "dotfiles.yaml"
    elsewhere.write_text("broken: [")
    (home / "config.yaml").symlink_to(elsewhere)

    assert 0 == timeline("config", "init", "--force").returncode
    assert (home / "config.yaml").is_symlink()
    assert elsewhere.read_text().startswith("## Settings of timeline.")


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc").is_dir(), reason="root writes everywhere")
def test_init_in_a_folder_that_cannot_be_made_is_one_sentence(timeline: Run) -> None:
    done = timeline("config", "init", TIMELINE_HOME="/proc/nowhere")

    assert 2 == done.returncode
    assert done.stderr.startswith("Error: /proc/nowhere/config.yaml: can't be written (")


def test_path_prints_the_file_even_where_it_is_broken(home: Path, timeline: Run) -> None:
    home.mkdir()
    (home / "config.yaml").write_text("broken: [")
    done = timeline("config", "path")

    assert (0, f"{home}/config.yaml\n", "") == (done.returncode, done.stdout, done.stderr)


def test_show_prints_yaml_that_means_what_is_in_force(home: Path, timeline: Run) -> None:
    home.mkdir()
    (home / "config.yaml").write_text(
        "llm_providers:\n  'on': {kind: openai, base_url: 'http://localhost:1', models: ['a: b', '#c']}\n"
        "  my server: {kind: ollama, timeouts: {connect: null}}\n"
        "budgets: [{name: all of it, limit_usd: 20, window: total}, {name: careful, limit_tokens: 5}]"
    )
    done = timeline("config", "show")
    as_json = shown(timeline("config", "show", "--json"))

    assert as_json["settings"] == yaml.safe_load(done.stdout)
    assert max(map(len, (line.partition("  # ")[0] for line in done.stdout.splitlines()))) <= 70
    assert {"kind": "openai", "base_url": "http://localhost:1", "models": ["a: b", "#c"]} == as_json["settings"][
        "llm_providers"
    ]["on"]


def test_show_says_where_each_value_comes_from(home: Path, timeline: Run, tmp_path: Path) -> None:
    home.mkdir()
    (home / "config.yaml").write_text("llm_providers: {ollama: {models: [phi-3]}}")
    (tmp_path / ".timeline.yaml").write_text("offline: true")
    done = timeline("config", "show", TIMELINE_MODEL="ollama:phi-3")

    sources = dict(re.findall(r"^ *(\w+): .*?  # (.*)$", done.stdout, flags=re.MULTILINE))
    assert "~/home/config.yaml" == sources["models"]
    assert "~/.timeline.yaml" == sources["offline"]
    assert "TIMELINE_MODEL" == sources["default"]
    assert "default" == sources["synchronous"]


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_show_masks_secrets_and_keeps_references(home: Path, timeline: Run, flags: list[str]) -> None:
    home.mkdir()
    (home / "config.yaml").write_text(
        f"llm_providers: {{openai: {{api_key: {SECRET}, headers: {{x: {SECRET}}}}}, groq: {{api_key: '${{MY_KEY}}'}}}}"
    )
    done = timeline("config", "show", *flags, MY_KEY=f"{SECRET}9")

    assert 0 == done.returncode
    assert SECRET not in done.stdout + done.stderr
    assert '"***"' in done.stdout
    assert '"${MY_KEY}"' in done.stdout


def test_show_warns_of_an_enabled_provider_without_its_key(home: Path, timeline: Run) -> None:
    home.mkdir()
    (home / "config.yaml").write_text(
        "llm_providers: {openai: {api_key: '${MY_KEY}'}, groq: {enabled: false, api_key: '${X}'}}"
    )
    done = timeline("config", "show", "--json")

    assert [
        {
            "provider": "openai",
            "kind": "missing_key",
            "message": f"{home}/config.yaml: llm_providers.openai.api_key: the environment variable MY_KEY is not set:"
            " set it, run 'timeline keys set openai', or disable the provider with enabled: false",
        }
    ] == shown(done)["problems"]
    assert "Warning: " in done.stderr
    assert "groq" not in done.stderr


def test_show_warns_of_routes_to_nobody(home: Path, timeline: Run) -> None:
    home.mkdir()
    (home / "config.yaml").write_text(
        "routing_strategy: {default: 'nosuch:model', tool_calling: 'openai:gpt-4o', complexity: {low: 'ollama:phi-3'}}"
    )
    done = timeline("config", "show", "--json")

    (problem,) = shown(done)["route_problems"]
    assert "config" == problem["kind"]
    assert problem["message"].startswith(
        f'{home}/config.yaml: routing_strategy.default: there is no provider "nosuch": expected one of '
    )
    assert [("openai", "missing_key")] == [(each["provider"], each["kind"]) for each in shown(done)["problems"]]
    assert f"Warning: {problem['message']}" in done.stderr.splitlines()
    assert "Warning: openai needs an API key" in done.stderr


def test_show_runs_no_key_command(home: Path, timeline: Run, tmp_path: Path) -> None:
    home.mkdir()
    (home / "config.yaml").write_text(f"llm_providers: {{openai: {{key_cmd: 'touch {tmp_path}/ran'}}}}")

    assert 0 == timeline("config", "show").returncode
    assert not (tmp_path / "ran").exists()


BROKEN = "llm_providers: {openai: {enabled: yes please}}"
WRONG = 'llm_providers.openai.enabled: expected true or false, got "yes please"'


def test_show_and_paths_look_past_a_broken_file_and_name_it(home: Path, timeline: Run, tmp_path: Path) -> None:
    home.mkdir()
    (home / "config.yaml").write_text("store: {path: log.db}")
    (tmp_path / ".timeline.yaml").write_text(BROKEN)
    show, paths = timeline("config", "show"), timeline("paths")

    assert (2, f"Error: {tmp_path}/.timeline.yaml: {WRONG}\n") == (show.returncode, show.stderr)
    assert "log.db" == yaml.safe_load(show.stdout)["store"]["path"]
    assert (0, f"Warning: {tmp_path}/.timeline.yaml: {WRONG}\n") == (paths.returncode, paths.stderr)
    assert f"project_file  {tmp_path}/.timeline.yaml" in paths.stdout.splitlines()
    assert f"store         {home}/log.db  (not there)" in paths.stdout.splitlines()


def test_show_and_paths_name_all_files_that_are_broken(home: Path, timeline: Run, tmp_path: Path) -> None:
    home.mkdir()
    (home / "config.yaml").write_text(BROKEN)
    (tmp_path / ".timeline.yaml").write_text("offline: [")
    show, as_json, paths = timeline("config", "show"), timeline("config", "show", "--json"), timeline("paths", "--json")

    assert [f"{home}/config.yaml", f"{tmp_path}/.timeline.yaml"] == re.findall(r"Error: (.*?): ", show.stderr)
    assert 2 == as_json.returncode
    told = json.loads(as_json.stdout)
    assert {"kind": "config", "message": f"{home}/config.yaml: {WRONG}", "exit_code": 2} == told["error"]
    assert told["error"] == told["errors"][0]
    assert re.findall(r"Error: (.*)", show.stderr) == [each["message"] for each in told["errors"]]
    assert f"{home}/timeline.db" == shown(paths)["paths"]["store"]["path"]


@pytest.mark.parametrize("command", [["providers", "list"], ["ask", "hi"]])
def test_broken_file_is_one_sentence_and_exit_code_2(home: Path, timeline: Run, command: list[str]) -> None:
    home.mkdir()
    (home / "config.yaml").write_text(BROKEN)
    done = timeline(*command)

    assert (2, "", f"Error: {home}/config.yaml: {WRONG}\n") == (done.returncode, done.stdout, done.stderr)


def test_paths_says_what_is_there(home: Path, timeline: Run) -> None:
    home.mkdir()
    (home / "config.yaml").write_text("store: {path: log.db}")

    assert {
        "schema_version": 1,
        "paths": {
            "config_file": {"path": f"{home}/config.yaml", "exists": True},
            "project_file": None,
            "store": {"path": f"{home}/log.db", "exists": False},
            "models_dir": {"path": f"{home}/models", "exists": False},
            "keys_file": {"path": f"{home}/keys.json", "exists": False},
        },
    } == shown(timeline("paths", "--json"))
    assert f"store         {home}/log.db  (not there)" in timeline("paths").stdout.splitlines()

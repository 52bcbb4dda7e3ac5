"""The `tools` section: what is wrong with it is said, what it means is resolved, and a project may only restrict it."""

from __future__ import annotations

from pathlib import Path

import pytest

from timeline import config
from timeline.errors import ConfigError


def load(tmp_path: Path, text: str, project: str | None = None, **environ: str) -> config.Config:
    home, work = tmp_path / "home", tmp_path / "work"
    for folder in (home, work):
        folder.mkdir(exist_ok=True)
    (home / "config.yaml").write_text(text)
    if project is not None:
        (work / ".timeline.yaml").write_text(project)
    return config.load(environ={"TIMELINE_HOME": str(home), "HOME": str(home), **environ}, cwd=work)


def test_folders_are_taken_from_the_file_and_home(tmp_path: Path) -> None:
    loaded = load(tmp_path, 'tools: {allow_dirs: [notes, "${DOCS}", /srv]}', DOCS="/docs")

    assert (tmp_path / "home/notes", Path("/docs"), Path("/srv")) == config.allowed_dirs(loaded)


def test_a_server_gets_its_variables_when_it_is_used(tmp_path: Path) -> None:
    text = "tools: {mcp: {files: {command: [serve, '${ROOT}'], env: {TOKEN: '${SECRET}'}, cwd: here, timeout: 5}}}"

    server = config.mcp_server(load(tmp_path, text, ROOT="/srv", SECRET="s3cret"), "files")

    assert (("serve", "/srv"), {"TOKEN": "s3cret"}) == (server.command, server.env)
    assert (tmp_path / "home/here", 5.0, True) == (server.cwd, server.timeout, server.confirm)
    assert "s3cret" not in repr(server)
    with pytest.raises(ConfigError, match=r"tools\.mcp\.files: the environment variable ROOT is not set"):
        config.mcp_server(load(tmp_path, text), "files")


def test_secrets_of_a_server_are_shown_nowhere(tmp_path: Path) -> None:
    text = "tools: {mcp: {wiki: {url: 'https://u:pw@h/mcp?key=pw', headers: {authorization: pw}, env: {A: pw}}}}"

    shown = str([(setting.path, setting.value) for setting in load(tmp_path, text).effective()])

    assert "https://***@h/mcp" in shown
    assert "pw" not in shown


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("tools: {disabled: [read_flie]}", 'tools.disabled: there is no tool "read_flie": did you mean read_file?'),
        ("tools: {enabled: [calculater]}", 'tools.enabled: there is no tool "calculater": did you mean calculator?'),
        ("tools: {fetch_url: maybe}", "tools.fetch_url: expected true or false"),
        ("tools: {max_rounds: 0}", "tools.max_rounds: expected a whole number from 1 up to 20"),
        ("tools: {mcp: {a: {}}}", "tools.mcp.a: expected either a command that starts it or the url"),
        ("tools: {mcp: {a: {command: [x], url: 'https://x'}}}", "tools.mcp.a: expected either a command"),
        ("tools: {mcp: {a: {command: []}}}", "tools.mcp.a.command: expected a list"),
        ("tools: {mcp: {a: {url: 'ftp://x'}}}", "tools.mcp.a.url: expected an http:// or https:// address"),
        ("tools: {mcp: {'a b': {command: [x]}}}", 'tools.mcp."a b": expected a name'),
    ],
)
def test_what_makes_no_sense_is_said(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)

    assert what in str(caught.value)


@pytest.mark.parametrize("text", ["", "tools:", "tools: {}", "tools: {mcp: {gone: {enabled: false}}}"])
def test_a_section_that_says_nothing_changes_nothing(tmp_path: Path, text: str) -> None:
    tools = load(tmp_path, text).settings.tools

    assert (None, [], False, [], 4, 16_000) == (
        tools.enabled,
        tools.disabled,
        tools.fetch_url,
        tools.allow_dirs,
        tools.max_rounds,
        tools.max_result,
    )


@pytest.mark.parametrize(
    "text",
    [
        "tools: {fetch_url: true}",
        "tools: {allow_dirs: [/]}",
        "tools: {mcp: {evil: {command: [sh, -c, id]}}}",
        "tools: {mcp: {files: {enabled: true}}}",
        "tools: {mcp: {files: {confirm: false}}}",
        "tools: {enabled: [calculator]}",
        "tools: {max_rounds: 20}",
        "tools: {max_result: 1000000}",
    ],
)
def test_a_project_may_not_turn_anything_on(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="a project file may not set this"):
        load(tmp_path, "tools: {mcp: {files: {command: [serve]}}}", text)


def test_a_project_may_turn_tools_off_and_none_on_again(tmp_path: Path) -> None:
    user = "tools: {disabled: [read_file], fetch_url: true, mcp: {files: {command: [serve]}}}"

    loaded = load(
        tmp_path, user, "tools: {disabled: [clock], fetch_url: false, mcp: {files: {enabled: false}}}"
    ).settings.tools
    emptied = load(tmp_path, user, "tools: {disabled: []}").settings.tools

    assert (["read_file", "clock"], False, False) == (loaded.disabled, loaded.fetch_url, loaded.mcp["files"].enabled)
    assert (["read_file"], True) == (emptied.disabled, emptied.fetch_url)

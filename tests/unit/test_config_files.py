"""A configuration file is read strictly, and what is wrong with it is said exactly."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from timeline import config
from timeline.errors import ConfigError, TimelineError

EXAMPLE = """\
llm_providers:
  ollama:   {enabled: true, base_url: "http://localhost:11434", models: ["tinyllama", "phi-3", "llama3.1"]}
  openai:   {enabled: false, api_key: "${OPENAI_API_KEY}", base_url: "https://api.openai.com/v1", models: ["gpt-4o"]}
  anthropic: {enabled: false, api_key: "${ANTHROPIC_API_KEY}", models: [...]}
  groq:     {enabled: false, api_key: "${GROQ_API_KEY}", models: [...]}
  embedded: {enabled: true, models: {smollm2: null, mine: "/path/to/model.gguf"}}
routing_strategy:
  query_routing: "ollama:tinyllama"
  tool_calling: "ollama:llama3.1"
  response_formatting: "ollama:phi-3"
  fallback: "embedded:smollm2"
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def load(home: Path, text: str | bytes | None = None, **environ: str) -> config.Config:
    if text is not None:
        (home / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return config.load(environ={"TIMELINE_HOME": str(home), "HOME": str(home), **environ}, cwd=home)


def refusal(home: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        load(home, text)
    return str(caught.value).removeprefix(f"{home}/")


def test_example_of_the_documentation_loads_as_written(home: Path) -> None:
    loaded = load(home, EXAMPLE)

    assert {"embedded", "ollama"} == set(loaded.providers)
    assert ["tinyllama", "phi-3", "llama3.1"] == loaded.settings.llm_providers["ollama"].models
    assert "${OPENAI_API_KEY}" == loaded.settings.llm_providers["openai"].api_key
    assert {"smollm2": None, "mine": "/path/to/model.gguf"} == loaded.provider("embedded").models
    assert "ollama:llama3.1" == loaded.settings.routing_strategy.tool_calling


@pytest.mark.parametrize("text", ["", "\n", "# nothing yet\n", "---\n", "{}", "\ufeff", "null"])
def test_file_that_says_nothing_changes_nothing(home: Path, text: str) -> None:
    assert load(home).settings == load(home, text).settings


@pytest.mark.parametrize(
    "text", ["llm_providers:\n", "routing_strategy:\nstore:\n", "llm_providers:\n  ollama:\n  embedded:\n"]
)
def test_section_with_everything_commented_out_changes_nothing(home: Path, text: str) -> None:
    assert load(home).settings == load(home, text).settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "llm_providers: {openai: {enabled: yes please}}",
            'llm_providers.openai.enabled: expected true or false, got "yes please"',
        ),
        (
            "llm_providers: {openai: {enabeld: true}}",
            'llm_providers.openai: unknown key "enabeld": did you mean enabled?',
        ),
        ("llm_provider: {}", 'unknown key "llm_provider": did you mean llm_providers?'),
        (
            "zzz: 1",
            'unknown key "zzz": expected one of llm_providers, routing_strategy, store, prices, offline, mode, retry, budgets, cache, tools',
        ),
        (
            "1: 2",
            "unknown key 1: expected one of llm_providers, routing_strategy, store, prices, offline, mode, retry, budgets, cache, tools",
        ),
        ("llm_providers: [openai]", "llm_providers: expected a mapping, got a list"),
        ("llm_providers: {openai: true}", "llm_providers.openai: expected a mapping, got true"),
        ("llm_providers: {404: {}}", "llm_providers: expected text as a key, got 404: put it in quotes"),
        ("llm_providers: {'': {}}", "llm_providers: expected a name as a key, got an empty one"),
        ("llm_providers: {ollama: {models: [a, [b]]}}", "llm_providers.ollama.models[1]: expected text, got a list"),
        (
            "llm_providers: {ollama: {models: [3.5]}}",
            "llm_providers.ollama.models[0]: expected text, got 3.5: put it in quotes",
        ),
        (
            "llm_providers: {ollama: {models: no}}",
            "llm_providers.ollama.models: expected a list of text or a mapping, got false",
        ),
        (
            "llm_providers: {ollama: {models: {a: 1}}}",
            "llm_providers.ollama.models.a: expected text, got 1: put it in quotes",
        ),
        (
            "llm_providers: {ollama: {context: 0}}",
            "llm_providers.ollama.context: expected a whole number above 0 up to 1000000000, got 0",
        ),
        (
            "llm_providers: {ollama: {context: 1000000000000000000000}}",
            "llm_providers.ollama.context: expected a whole number above 0 up to 1000000000, got 1000000000000000000000",
        ),
        (
            "llm_providers: {ollama: {context: 4.5}}",
            "llm_providers.ollama.context: expected a whole number above 0 up to 1000000000, got 4.5",
        ),
        (
            "llm_providers: {ollama: {timeouts: {conect: 3}}}",
            'llm_providers.ollama.timeouts: unknown key "conect": did you mean connect?',
        ),
        (
            "llm_providers: {ollama: {timeouts: {connect: .nan}}}",
            "llm_providers.ollama.timeouts.connect: expected a number above 0 up to 86400, got NaN",
        ),
        (
            "llm_providers: {ollama: {timeouts: {connect: true}}}",
            "llm_providers.ollama.timeouts.connect: expected a number above 0 up to 86400, got true",
        ),
        (
            "llm_providers: {my.server: {kind: openai, local: 1}}",
            'llm_providers."my.server".local: expected true or false, got 1',
        ),
        ("store: {synchronous: off}", 'store.synchronous: expected "full" or "normal", got false'),
        ("routing_strategy: {default: []}", "routing_strategy.default: expected a list of text, got an empty list"),
        ("routing_strategy: {default: ''}", 'routing_strategy.default: expected text or a list of text, got ""'),
        ("offline: maybe", 'offline: expected true or false, got "maybe"'),
        ("offline: 2026-01-01", 'offline: expected true or false, got "2026-01-01"'),
        (f"offline: {'x' * 500}", f'offline: expected true or false, got "{"x" * 59}...'),
        ("llm_providers: {'a:b': {kind: openai}}", "expected a name without a colon, which separates provider:model"),
        (
            "llm_providers: {mine: {base_url: 'http://localhost:1'}}",
            "llm_providers.mine.kind: expected the API that mine speaks (openai, anthropic, groq, ollama, embedded), got nothing",
        ),
        (
            "llm_providers: {mine: {kind: opnai}}",
            'llm_providers.mine.kind: unknown kind "opnai": did you mean openai?',
        ),
        (
            "llm_providers: {openai: {api_key: a, key_cmd: b}}",
            "llm_providers.openai.key_cmd: expected api_key or key_cmd, got both: remove one",
        ),
        (
            "llm_providers: {openai: {models: {gpt-4o: /x.gguf}}}",
            "llm_providers.openai.models: expected a list of names: only embedded models have a file",
        ),
    ],
)
def test_wrong_setting_is_named_with_what_was_expected(home: Path, text: str, message: str) -> None:
    assert refusal(home, text).endswith(f": {message}")
    assert refusal(home, text).startswith("config.yaml: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("offline: [", "line 1, column 11: not valid YAML: expected the node content, but found '<stream end>'"),
        ("a: b: c", "line 1, column 5: not valid YAML: mapping values are not allowed here"),
        ("store:\n\tpath: x", "line 2, column 1: not valid YAML: found character '\\t' that cannot start any token"),
        (
            "offline: true\nstore: {}\noffline: false",
            'line 3, column 1: not valid YAML: the key "offline" stands here for the second time',
        ),
        (
            "a: &x [1]\nb: *x",
            "line 1, column 4: not valid YAML: anchors and aliases are not supported, write the value out",
        ),
        ("&a [*a]", "line 1, column 1: not valid YAML: anchors and aliases are not supported, write the value out"),
        ("offline: !!python/name:os.system", "line 1, column 10: not valid YAML: tags are not supported"),
        ("offline: !!int abc", "line 1, column 10: not valid YAML: tags are not supported"),
        ("store: !mine {}", "line 1, column 8: not valid YAML: tags are not supported"),
        ("? [a]\n: b", "line 1, column 3: not valid YAML: expected text as a key"),
        ("a: 1\n---\nb: 2", "line 2, column 1: not valid YAML: but found another document"),
        ("a: \x07", "line 1, column 4: not valid YAML: a control character"),
        (f"offline: {'1' * 5000}", "line 1, column 10: not valid YAML: a number that is too long"),
        ("[" * 2000, "nested too deeply to be a configuration"),
        ("- a\n- b", "expected a mapping of settings like `offline: true`, got a list"),
        ("sk-secret", "expected a mapping of settings like `offline: true`, got text"),
        (b"a: \xff", "not UTF-8 text (byte 3): save it as UTF-8"),
        (b"#" * (1 << 20) + b"#", "larger than 1 MiB, which no configuration is: check what wrote it"),
    ],
)
def test_broken_yaml_is_an_error_with_its_place(home: Path, text: str | bytes, message: str) -> None:
    assert f"config.yaml: {message}" == refusal(home, text)


def test_folder_in_place_of_the_file_is_an_error(home: Path) -> None:
    (home / "config.yaml").mkdir()

    with pytest.raises(ConfigError, match="is no plain file: move it away"):
        load(home)


def test_unreadable_file_is_an_error_and_not_a_missing_one(home: Path) -> None:
    (home / "config.yaml").symlink_to(home / "config.yaml")

    with pytest.raises(ConfigError, match=r"config.yaml: can't be read \(.*\): check its permissions"):
        load(home)


@pytest.mark.parametrize(
    "text",
    [
        "llm_providers: {openai: {api_key: [sk-secret]}}",
        "llm_providers: {openai: {api_key: 12345678}}",
        "llm_providers: {openai: {headers: {authorization: [sk-secret]}}}",
        "llm_providers: {openai: {headers: 12345678}}",
        "llm_providers: {openai: {api_key: sk-secret, bad: 1}}",
        "llm_providers: {openai: {api_key: sk-secret\n",
    ],
)
def test_no_error_repeats_a_key(home: Path, text: str) -> None:
    with pytest.raises(TimelineError) as caught:
        load(home, text)

    shown = "".join(traceback.format_exception(caught.value))
    lines = [line for line in shown.splitlines() if not line.startswith("  ")]
    assert "secret" not in "".join(lines)
    assert "12345678" not in "".join(lines)

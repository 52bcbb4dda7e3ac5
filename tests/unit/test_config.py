"""Who wins over whom, what a project may not do, and when keys and variables are looked up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from timeline import config
from timeline.errors import AmbiguousName, ConfigError, MissingKey, NotFound, UsageError

SECRET = "sk-0123456789"


class Machine:
    """A home, a cloned repository below it, and an environment."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.data = self.home / "timeline"
        self.repository = self.home / "src" / "project"
        (self.repository / ".git").mkdir(parents=True)
        self.data.mkdir()
        self.user_file = self.data / "config.yaml"
        self.project_file = self.repository / ".timeline.yaml"
        self.environ = {"HOME": str(self.home), "TIMELINE_HOME": str(self.data)}

    def load(
        self, user: str | None = None, project: str | None = None, *, cwd: Path | None = None, **environ: str
    ) -> config.Config:
        if user is not None:
            self.user_file.write_text(user)
        if project is not None:
            self.project_file.write_text(project)
        return config.load(environ=self.environ | environ, cwd=cwd or self.repository)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# ------------------------------------------------------------------ without any configuration


def test_without_configuration_the_embedded_model_answers(machine: Machine) -> None:
    loaded = machine.load()

    assert (config.ModelRef("embedded", "smollm2"),) == loaded.default_route()
    assert ("embedded", "ollama") == loaded.providers
    assert "http://localhost:11434" == loaded.provider("ollama").base_url
    assert not loaded.settings.offline
    assert "full" == loaded.settings.store.synchronous


def test_key_in_the_environment_alone_enables_no_paid_provider(machine: Machine) -> None:
    loaded = machine.load(OPENAI_API_KEY=SECRET, ANTHROPIC_API_KEY=SECRET, GROQ_API_KEY=SECRET)

    assert ("embedded", "ollama") == loaded.providers
    assert "embedded" == loaded.default_route()[0].provider


@pytest.mark.parametrize(
    ("name", "variable", "address"),
    [
        ("openai", "OPENAI_API_KEY", "https://api.openai.com/v1"),
        ("anthropic", "ANTHROPIC_API_KEY", "https://api.anthropic.com"),
        ("groq", "GROQ_API_KEY", "https://api.groq.com/openai/v1"),
    ],
)
def test_paid_provider_asked_for_by_name_takes_its_key_from_the_environment(
    machine: Machine, name: str, variable: str, address: str
) -> None:
    provider = machine.load(**{variable: f"{SECRET}\n"}).provider(name)

    assert SECRET == provider.api_key
    assert address == provider.base_url
    with pytest.raises(
        MissingKey, match=f"^{name} needs an API key: set {variable} or run 'timeline keys set {name}'$"
    ):
        machine.load().provider(name)


def test_unknown_provider_says_what_there_is_and_how_to_add_one(machine: Machine) -> None:
    with pytest.raises(NotFound, match=r'no provider "opnai": did you mean openai\?.*opnai: \{kind: openai, base_url'):
        machine.load().provider("opnai")


# ------------------------------------------------------------------ precedence


def test_flag_wins_over_environment_over_project_over_user_over_default(machine: Machine) -> None:
    user = "llm_providers: {ollama: {}}\nrouting_strategy: {default: 'ollama:user'}"
    project = "routing_strategy: {default: 'ollama:project'}"
    flag = {"routing_strategy": {"default": "ollama:flag"}}

    assert "embedded:smollm2" == str(machine.load().default_route()[0])
    assert "ollama:user" == str(machine.load(user).default_route()[0])
    assert "ollama:project" == str(machine.load(user, project).default_route()[0])
    assert "ollama:environment" == str(machine.load(TIMELINE_MODEL="ollama:environment").default_route()[0])
    environ = machine.environ | {"TIMELINE_MODEL": "ollama:environment"}
    flagged = config.load(environ=environ, cwd=machine.repository, overrides=flag)
    assert "ollama:flag" == str(flagged.default_route()[0])


def test_mappings_are_merged_and_lists_replaced(machine: Machine) -> None:
    loaded = machine.load("""
        llm_providers:
          embedded: {models: {mine: /models/mine.gguf}}
          ollama: {models: [a, b]}
        """)

    assert {"smollm2": None, "mine": "/models/mine.gguf"} == loaded.provider("embedded").models
    assert {"a": None, "b": None} == loaded.provider("ollama").models
    assert "http://localhost:11434" == loaded.provider("ollama").base_url
    assert ["smollm2"] == list(
        machine.load("llm_providers: {embedded: {models: [smollm2]}}").provider("embedded").models
    )


def test_direct_question_goes_to_default_then_response_formatting_then_fallback(machine: Machine) -> None:
    routes = "routing_strategy: {response_formatting: 'ollama:format', fallback: 'ollama:last'"

    assert "ollama:first" == str(
        machine.load(f"{routes}, default: ['ollama:first', 'ollama:second']}}").default_route()[0]
    )
    assert "ollama:format" == str(machine.load(f"{routes}}}").default_route()[0])
    assert "ollama:last" == str(machine.load("routing_strategy: {fallback: 'ollama:last'}").default_route()[0])
    assert "embedded:smollm2" == str(machine.load("routing_strategy: {fallback: null}").default_route()[0])


def test_every_value_in_force_names_its_source(machine: Machine) -> None:
    loaded = machine.load(
        "llm_providers: {ollama: {models: [a]}}\noffline: false", "offline: true", TIMELINE_MODEL="ollama:a"
    )

    sources = {setting.path: (setting.value, setting.source) for setting in loaded.effective()}
    assert (True, str(machine.project_file)) == sources["offline",]
    assert (["a"], str(machine.user_file)) == sources["llm_providers", "ollama", "models"]
    assert ("http://localhost:11434", "default") == sources["llm_providers", "ollama", "base_url"]
    assert ("ollama:a", "TIMELINE_MODEL") == sources["routing_strategy", "default"]


# ------------------------------------------------------------------ a project's file


@pytest.mark.parametrize(
    "text",
    [
        "llm_providers: {openai: {base_url: 'https://evil.example/v1'}}",
        "llm_providers: {openai: {api_key: '${AWS_SECRET_ACCESS_KEY}'}}",
        "llm_providers: {openai: {key_cmd: 'rm -rf /'}}",
        "llm_providers: {openai: {headers: {x-leak: '${OPENAI_API_KEY}'}}}",
        "llm_providers: {openai: {ca_file: evil.pem}}",
        "llm_providers: {openai: {enabled: true}}",
        "llm_providers: {openai: }",
        "llm_providers: {evil: {kind: openai, base_url: 'https://evil.example/v1'}}",
        "llm_providers: {embedded: {models: {smollm2: ./evil.gguf}}}",
        "llm_providers: {ollama: {local: true}}",
        "store: {path: /dev/shm/theirs.db}",
        "store: {synchronous: normal}",
        "offline: false",
    ],
)
def test_project_file_may_only_choose_and_restrict(machine: Machine, text: str) -> None:
    with pytest.raises(ConfigError, match=r"a project file may not set this.*put it into") as caught:
        machine.load(project=text)

    assert str(caught.value).startswith(f"{machine.project_file}: ")
    assert str(machine.user_file) in str(caught.value)


def test_project_file_may_disable_providers_and_go_offline(machine: Machine) -> None:
    loaded = machine.load(
        "llm_providers: {openai: {api_key: x}}",
        "llm_providers: {openai: {enabled: false}, unheard_of: {enabled: false}}\noffline: true",
    )

    assert loaded.settings.offline
    with pytest.raises(ConfigError) as caught:
        loaded.provider("openai")
    assert f"{machine.project_file}: llm_providers.openai.enabled: openai is disabled here" in str(caught.value)


@pytest.mark.parametrize("model", ["openai:gpt-4o", "ollama:gpt-oss:120b-cloud", "embedded:/tmp/evil.gguf"])
def test_project_file_may_not_choose_what_the_user_never_listed(machine: Machine, model: str) -> None:
    project = f"routing_strategy: {{default: '{model}'}}"

    with pytest.raises(ConfigError, match=r"the project asks for .*, which you never listed: to allow it, put"):
        machine.load(project=project, OPENAI_API_KEY=SECRET).default_route()


def test_project_file_may_choose_what_the_user_listed_and_the_embedded_model(machine: Machine) -> None:
    listed = "llm_providers: {openai: {api_key: x}}"

    assert "openai:gpt-4o" == str(
        machine.load(listed, "routing_strategy: {default: 'openai:gpt-4o'}").default_route()[0]
    )
    assert "embedded:smollm2" == str(machine.load(project="routing_strategy: {default: smollm2}").default_route()[0])


def test_project_file_is_found_up_to_the_root_of_the_repository(machine: Machine) -> None:
    below = machine.repository / "deep" / "er"
    below.mkdir(parents=True)

    assert machine.load(project="offline: true", cwd=below).settings.offline
    assert machine.project_file == config.find_paths(machine.environ, below).project_file


def test_project_file_above_the_repository_does_not_count(machine: Machine) -> None:
    (machine.repository.parent / ".timeline.yaml").write_text("offline: true")

    assert not machine.load().settings.offline


def test_project_file_outside_home_and_repository_counts_only_in_the_working_directory(
    machine: Machine, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    (shared / "mine").mkdir(parents=True)
    (shared / ".timeline.yaml").write_text("offline: true")

    assert not machine.load(cwd=shared / "mine").settings.offline
    assert machine.load(cwd=shared).settings.offline


def test_working_directory_that_was_deleted_has_no_project_file(machine: Machine) -> None:
    script = (
        "import os, pathlib; from timeline.config import find_paths;"
        " gone = pathlib.Path('gone'); gone.mkdir(); os.chdir(gone); os.rmdir('../gone');"
        " print(find_paths().project_file)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=machine.environ,
        cwd=machine.home,
        capture_output=True,
        text=True,
        check=True,
    )

    assert "None\n" == done.stdout


# ------------------------------------------------------------------ variables and keys


def test_variables_are_looked_up_when_a_provider_is_used_and_not_before(machine: Machine) -> None:
    loaded = machine.load("llm_providers: {openai: {api_key: '${UNSET}'}, groq: {enabled: false, api_key: '${UNSET}'}}")

    assert "embedded" == loaded.provider("embedded").name
    with pytest.raises(MissingKey) as caught:
        loaded.provider("openai")
    assert (
        f"{machine.user_file}: llm_providers.openai.api_key: the environment variable UNSET is not set:"
        " set it, run 'timeline keys set openai', or disable the provider with enabled: false"
    ) == str(caught.value)


def test_disabled_provider_names_the_file_that_disables_it(machine: Machine) -> None:
    with pytest.raises(ConfigError) as caught:
        machine.load("llm_providers: {openai: {enabled: false}}", OPENAI_API_KEY=SECRET).provider("openai")

    assert (
        f"{machine.user_file}: llm_providers.openai.enabled: openai is disabled here: set it to true to use openai"
    ) == str(caught.value)


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("${KEY}", "value"),
        ("a-${KEY}-${KEY}", "a-value-value"),
        ("${NONE:-other}", "other"),
        ("${EMPTY:-other}", "other"),
        ("${KEY:-other}", "value"),
        ("${NONE:-}x", "x"),
        ("$${KEY}", "${KEY}"),
        ("$KEY$", "$KEY$"),
        ("${KEY:-${KEY}", "value"),
    ],
)
def test_variable_forms(machine: Machine, text: str, filled: str) -> None:
    provider = machine.load(f"llm_providers: {{ollama: {{headers: {{x: '{text}'}}}}}}", KEY="value", EMPTY="").provider(
        "ollama"
    )

    assert {"x": filled} == provider.headers


@pytest.mark.parametrize("text", ["${}", "${KEY", "${KEY-x}", "${9}", "${A B}"])
def test_malformed_variable_is_an_error(machine: Machine, text: str) -> None:
    loaded = machine.load(f"llm_providers: {{ollama: {{headers: {{x: '{text}'}}}}}}", KEY="value")

    with pytest.raises(ConfigError, match=r"llm_providers.ollama.headers.x: expected \$\{NAME\} or"):
        loaded.provider("ollama")


def test_key_of_the_environment_goes_to_no_server_of_another_name(machine: Machine) -> None:
    loaded = machine.load(
        "llm_providers: {mine: {kind: openai, base_url: 'http://127.0.0.1:1/v1'}}", OPENAI_API_KEY=SECRET
    )

    assert loaded.provider("mine").api_key is None
    assert "openai" == loaded.provider("mine").kind


def test_second_account_at_the_vendor_needs_a_key_of_its_own(machine: Machine) -> None:
    loaded = machine.load("llm_providers: {work: {kind: openai}}", OPENAI_API_KEY=SECRET)

    message = (
        r"^work needs an API key: set llm_providers.work.api_key in .*config.yaml or run 'timeline keys set work'$"
    )
    with pytest.raises(MissingKey, match=message):
        loaded.provider("work")


@pytest.mark.parametrize("key", ["sk-a b", "sk-ä", "“sk-a”", "sk-a\nb"])
def test_key_that_no_header_can_carry_is_refused_without_being_shown(machine: Machine, key: str) -> None:
    with pytest.raises(MissingKey, match=r"API key of openai holds a space, a line break or a letter") as caught:
        machine.load(OPENAI_API_KEY=key).provider("openai")

    assert key not in str(caught.value)


def test_address_that_is_none_is_refused_without_being_shown(machine: Machine) -> None:
    with pytest.raises(ConfigError, match=r"llm_providers.ollama.base_url: expected an address like https") as caught:
        machine.load("llm_providers: {ollama: {base_url: 'user:secret@localhost'}}").provider("ollama")

    assert "secret" not in str(caught.value)


def test_key_command_prints_the_key_and_reads_nothing(machine: Machine) -> None:
    (machine.home / "key.py").write_text("import sys; assert not sys.stdin.read(); print(' sk-from-command ')")
    loaded = machine.load(f"llm_providers: {{openai: {{key_cmd: {sys.executable} {machine.home}/key.py}}}}")

    assert loaded.provider("openai").api_key == "sk-from-command"


@pytest.mark.parametrize(
    ("key_cmd", "message"),
    [
        (f"{sys.executable} -c 'raise SystemExit(3)'", "ended with status 3: run it by hand to see why"),
        (f"{sys.executable} -c ''", "printed nothing: run it by hand to see why"),
        ("/no/such/program --key", "/no/such/program can't be run (No such file or directory): check the command"),
    ],
)
def test_key_command_that_fails_is_a_missing_key(machine: Machine, key_cmd: str, message: str) -> None:
    loaded = machine.load(f'llm_providers: {{openai: {{key_cmd: "{key_cmd}"}}}}')

    with pytest.raises(MissingKey) as caught:
        loaded.provider("openai")
    assert str(caught.value).startswith(f"{machine.user_file}: llm_providers.openai.key_cmd: ")
    assert str(caught.value).endswith(message)


@pytest.mark.parametrize("key_cmd", ["", "cat 'key"])
def test_key_command_that_is_none_is_an_error(machine: Machine, key_cmd: str) -> None:
    with pytest.raises(ConfigError, match=r"key_cmd: expected a command that prints the key: check its quotes"):
        machine.load(f'llm_providers: {{openai: {{key_cmd: "{key_cmd}"}}}}').provider("openai")


def test_key_command_runs_without_a_shell(machine: Machine) -> None:
    loaded = machine.load('llm_providers: {openai: {key_cmd: "echo $HOME;id"}}')

    assert loaded.provider("openai").api_key == "$HOME;id"


def test_nothing_that_can_be_printed_holds_a_secret(machine: Machine) -> None:
    loaded = machine.load(f"""
        llm_providers:
          openai:
            api_key: {SECRET}
            headers: {{authorization: "Bearer {SECRET}"}}
            base_url: "https://me:{SECRET}@api.example.com/v1?key={SECRET}"
          groq: {{api_key: "${{UNSET:-{SECRET}}}"}}
        """)
    provider = loaded.provider("openai")

    assert SECRET == provider.api_key
    shown = f"{loaded!r} {loaded.settings!r} {provider!r} {provider} {loaded.effective()!r}"
    shown += f"{provider.__rich_repr__()} {loaded.settings.llm_providers['openai'].__rich_repr__()}"
    assert SECRET not in shown
    assert "https://***@api.example.com/v1?***" in shown


def test_relative_paths_are_taken_from_the_folder_of_their_file(machine: Machine) -> None:
    loaded = machine.load(
        "llm_providers: {embedded: {models: {mine: models/mine.gguf}}, openai: {ca_file: ~/ca.pem, api_key: x}}\n"
        "store: {path: '${WHERE:-elsewhere}/log.db'}"
    )

    assert str(machine.data / "models/mine.gguf") == loaded.provider("embedded").models["mine"]
    assert Path("~/ca.pem").expanduser() == loaded.provider("openai").ca_file
    assert machine.data / "elsewhere/log.db" == loaded.paths.store


def test_store_path_with_an_unset_variable_is_an_error(machine: Machine) -> None:
    with pytest.raises(ConfigError, match=r"store.path: the environment variable UNSET is not set: set it or write"):
        machine.load("store: {path: '${UNSET}/log.db'}")


# ------------------------------------------------------------------ names of models


def test_first_colon_separates_provider_and_model(machine: Machine) -> None:
    assert config.ModelRef("ollama", "llama3.1:8b") == machine.load().parse_model(" ollama:llama3.1:8b ")
    assert "ollama:llama3.1:8b" == str(machine.load().parse_model("ollama:llama3.1:8b"))


def test_bare_name_that_one_provider_lists_is_enough(machine: Machine) -> None:
    loaded = machine.load(
        "llm_providers: {ollama: {models: [phi-3, 'llama3.1:8b']}, groq: {enabled: false, models: [phi-3]}}"
    )

    assert "ollama:phi-3" == str(loaded.parse_model("phi-3"))
    assert "ollama:llama3.1:8b" == str(loaded.parse_model("llama3.1:8b"))
    assert "embedded:smollm2" == str(loaded.parse_model("smollm2"))


def test_bare_name_that_several_providers_list_is_ambiguous(machine: Machine) -> None:
    loaded = machine.load("llm_providers: {ollama: {models: [phi-3]}, groq: {api_key: x, models: [phi-3]}}")

    with pytest.raises(AmbiguousName, match=r'"phi-3" is a model of ollama and groq: write ollama:phi-3 or groq:phi-3'):
        loaded.parse_model("phi-3")


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        *((text, "write provider:model, for example embedded:smollm2") for text in ("", "xyz", ":", ":xyz")),
        ("openai", "write openai:MODEL ('timeline models list openai' names them)"),
        ("openai:", "write openai:MODEL ('timeline models list openai' names them)"),
        ("work", "write work:MODEL, for example work:llama-70b"),
        ("llama70b", "write provider:model, did you mean work:llama-70b?"),
        ("Llama-70B", "write provider:model, did you mean work:llama-70b?"),
        ("phi3", "write provider:model, did you mean ollama:phi-3 or mine:phi-3?"),
        ("smolm2", "write provider:model, did you mean embedded:smollm2?"),
        ("gpt-4o", "write provider:model, did you mean openai:gpt-4o?"),
        ("claude-sonnet-4-5", "write provider:model, for example embedded:smollm2"),
        ("openai/gpt-4o", "write provider:model, did you mean openai:gpt-4o?"),
    ],
)
def test_text_that_names_no_model_says_how_to_write_the_one_that_was_meant(
    machine: Machine, text: str, remedy: str
) -> None:
    loaded = machine.load("""
        llm_providers:
          work: {kind: openai, base_url: "http://localhost:1/v1", models: [llama-70b]}
          ollama: {models: [phi-3]}
          mine: {kind: ollama, models: [phi-3]}
          anthropic: {enabled: false}
        """)
    with pytest.raises(UsageError) as caught:
        loaded.parse_model(text)

    assert f'"{text}" names no model: {remedy}' == str(caught.value)


@pytest.mark.parametrize(
    ("text", "guess"),
    [
        ("llama3.1:8b", "ollama:llama3.1:8b"),
        ("olama:phi-3", "ollama:phi-3"),
        # Its weights are open, and no server of OpenAI's has it.
        ("gpt-oss:20b", "ollama:gpt-oss:20b"),
    ],
)
def test_a_model_whose_provider_is_unknown_may_be_one_that_is_known(machine: Machine, text: str, guess: str) -> None:
    with pytest.raises(NotFound) as caught:
        machine.load("llm_providers: {ollama: {models: [phi-3]}}").parse_model(text)

    assert f"did you mean {guess}?" in str(caught.value)


def test_model_of_an_unknown_provider_is_not_found(machine: Machine) -> None:
    with pytest.raises(NotFound, match=r'there is no provider "olama": did you mean ollama'):
        machine.load().parse_model("olama:phi-3")


@pytest.mark.parametrize(
    ("environ", "user", "message"),
    [
        ({}, "routing_strategy: {default: gpt}", '{user}: routing_strategy.default: "gpt" names no model: '),
        ({"TIMELINE_MODEL": "gpt"}, "", 'TIMELINE_MODEL: "gpt" names no model: '),
    ],
)
def test_route_that_names_no_model_names_the_place_where_it_stands(
    machine: Machine, environ: dict[str, str], user: str, message: str
) -> None:
    loaded = machine.load(user, **environ)

    with pytest.raises(ConfigError) as caught:
        loaded.default_route()
    assert str(caught.value).startswith(message.format(user=machine.user_file))


# ------------------------------------------------------------------ folders


def test_timeline_home_holds_everything(tmp_path: Path) -> None:
    paths = config.find_paths({"TIMELINE_HOME": str(tmp_path), "HOME": "/nowhere"}, tmp_path)

    assert tmp_path / "config.yaml" == paths.config_file
    assert tmp_path / "timeline.db" == paths.store
    assert tmp_path / "models" == paths.models_dir
    assert tmp_path / "keys.json" == paths.keys_file


def test_without_timeline_home_the_folders_of_the_platform_are_used(tmp_path: Path) -> None:
    script = "from timeline.config import find_paths; p = find_paths(); print(p.config_file, p.store, sep='\\n')"
    environ = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)

    config_file, store = map(Path, done.stdout.split())
    assert "config.yaml" == config_file.name
    assert tmp_path in config_file.parents
    assert tmp_path in store.parents
    if sys.platform == "linux":
        assert tmp_path / ".config/llm-timeline/config.yaml" == config_file
        assert tmp_path / "data/llm-timeline/timeline.db" == store


def test_without_any_home_the_error_names_timeline_home(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no home directory to keep anything in: set TIMELINE_HOME"):
        config.find_paths({"HOME": ""}, tmp_path)

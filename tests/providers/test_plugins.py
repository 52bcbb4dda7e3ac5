"""Plugins from their installation to a recorded answer: found, checked, given their settings, asked; broken ones contained."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from support.command import Home, clean_environment

from timeline import Timeline, TurnEnd, providers
from timeline.config import Config, load
from timeline.errors import ConfigError, MissingKey, NotFound, PluginError, TimelineError
from timeline.events import CallFailed
from timeline.providers import (
    Delta,
    Finish,
    LLMRequest,
    LLMResponse,
    Message,
    ModelInfo,
    OllamaProvider,
    OpenAIProvider,
    Timeouts,
    UsageReport,
    base,
    collect,
)
from timeline.providers.address import key_mark, secrets_in
from timeline.providers.contract import RULES
from timeline.providers.guarded import Guarded
from timeline.providers.plugins import Listed, listing, make_provider, validate

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "tests/plugins/example"
KEY = "sk-0123456789"

GOOD = """
from timeline.providers.base import *

class Provider(LLMProvider):
    name = "good"
    async def stream_request(self, request):
        yield Delta("Hello")
        yield UsageReport(Usage(input=1, output=1), {})
        yield Finish("stop")
    async def make_request(self, request):
        return await collect(self.stream_request(request))
    async def get_available_models(self):
        return []
"""


class Site:
    """A folder of installed distributions, as pip leaves them behind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.modules: set[str] = set()

    def install(
        self,
        name: str,
        source: str = GOOD,
        *,
        distribution: str | None = None,
        value: str | None = None,
        tools: str = "",
    ) -> None:
        """A distribution with the provider plugin `name`, which is `Provider` of a module of its own."""
        distribution = distribution or f"dist-{name}"
        module = re.sub(r"\W", "_", f"{distribution}_{name}")
        self.modules.add(module)
        (self.path / f"{module}.py").write_text(source)
        info = self.path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        with (info / "entry_points.txt").open("a") as file:
            file.write(f"[timeline.providers]\n{name} = {value or f'{module}:Provider'}\n")
            file.write(f"[timeline.tools]\n{tools}\n" if tools else "")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = Site(tmp_path / "site")
    made.path.mkdir()
    monkeypatch.syspath_prepend(made.path)
    yield made
    for module in made.modules:
        sys.modules.pop(module, None)


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip has installed the example, built from its source."""
    folder = tmp_path_factory.mktemp("example")
    # Building leaves files behind, which don't belong into the repository.
    shutil.copytree(EXAMPLE, folder / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["--disable-pip-version-check", "--target", str(folder / "site"), str(folder / "source")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)

    assert 0 == done.returncode, done.stderr
    return folder / "site"


def config(tmp_path: Path, **providers: dict[str, Any]) -> Config:
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    (home / "config.yaml").write_text(
        json.dumps({"llm_providers": providers, "routing_strategy": {"fallback": None}, "mode": "direct"})
    )
    return load(environ={"TIMELINE_HOME": str(home), "HOME": str(home)}, cwd=home)


def configure(home: Home, **providers: dict[str, Any]) -> None:
    (home.path / "config.yaml").write_text(
        json.dumps({"llm_providers": providers, "routing_strategy": {"fallback": None}, "mode": "direct"})
    )


# ------------------------------------------------------------------ the example, installed


def test_installed_example_is_listed_asked_and_recorded(home: Home, example: Path) -> None:
    env = {"PYTHONPATH": str(example)}

    listed = home.run("plugins", "list", env=env)
    asked = home.run("ask", "-m", "echo:parrot", "Hello there", "--json", env=env, fresh=True)

    assert (0, "echo  provider  timeline_echo:EchoProvider  timeline-echo 1.0\n") == (listed.code, listed.out)
    assert (0, "Hello there") == (asked.code, asked.json()["answer"])
    assert {"state": "free", "usd": 0.0} == asked.json()["cost"]
    end = home.end()
    assert ("response.completed", {"input": 2, "output": 2}) == (end["type"], end["data"]["usage"])
    (sent,) = home.events("request.sent")
    assert ("echo", "parrot") == (sent["data"]["provider"], sent["data"]["model"])


def test_configured_plugin_gets_its_options_and_its_own_name(home: Home, example: Path) -> None:
    configure(home, mine={"kind": "echo", "models": ["parrot"], "options": {"prefix": "You said: "}})

    asked = home.run("ask", "-m", "parrot", "hi", env={"PYTHONPATH": str(example)})

    assert (0, "You said: hi\n") == (asked.code, asked.out)
    (sent,) = home.events("request.sent")
    assert "mine" == sent["data"]["provider"]


def test_example_is_valid_live(home: Home, example: Path) -> None:
    env = {"PYTHONPATH": str(example)}

    result = home.run("plugins", "validate", "echo", "--live", "-m", "parrot", "--json", env=env)

    assert (0, True, []) == (result.code, result.json()["valid"], result.json()["problems"])
    assert {"passed", "skipped"} == {check["state"] for check in result.json()["live"]}
    assert not home.store.exists()


def test_guide_shows_the_example_and_its_suite_runs_under_plain_pytest(example: Path, tmp_path: Path) -> None:
    guide = (ROOT / "docs/plugins.md").read_text()
    python = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    (toml,) = re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)
    suite = next(block for block in python if "ProviderContract" in block)

    assert (EXAMPLE / "timeline_echo.py").read_text() == python[0]
    assert (EXAMPLE / "pyproject.toml").read_text() == toml
    (tmp_path / "test_echo.py").write_text(suite)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:cacheprovider", str(tmp_path)],
        env={**clean_environment(), "PYTHONPATH": str(example)},
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert 0 == run.returncode, run.stdout
    assert re.search(r"8 passed, 4 skipped", run.stdout)


def test_guide_has_every_rule() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", (ROOT / "docs/plugins.md").read_text(), re.MULTILINE)

    assert RULES == {rule: meaning for rule, meaning in rows if rule in RULES}


def test_a_key_of_bytes_that_are_no_text_is_a_secret_as_any() -> None:
    assert {"sk-\udc80", "sk-%3F"} == set(secrets_in(("sk-\udc80",), {}))


@pytest.mark.parametrize("item", [Delta, UsageReport, Finish])
def test_guide_has_every_field_of_what_an_answer_is_made_of(item: type[Delta | UsageReport | Finish]) -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\w, `]+) \| ", (ROOT / "docs/plugins.md").read_text(), re.MULTILINE)
    fields = [names for name, names in rows if name == item.__name__]

    assert list(item.__struct_fields__) == re.findall(r"\w+", " ".join(fields))


@pytest.mark.parametrize("item", [Delta, UsageReport, Finish, LLMRequest, LLMResponse, Message, ModelInfo])
def test_all_that_a_plugin_takes_and_gives_is_made_of_public_types(item: type) -> None:
    def structs(hint: Any) -> set[type]:
        of = {part for argument in get_args(hint) for part in structs(argument)}
        return of | ({hint} if isinstance(hint, type) and issubclass(hint, msgspec.Struct) else set())

    parts = {part for hint in get_type_hints(item).values() for part in structs(hint)}

    assert set() == {part.__name__ for part in parts} - set(providers.__all__)
    assert set() == {part.__name__ for part in parts} - set(base.__all__)


def test_guides_other_plugin_is_one() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/plugins.md").read_text(), re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(blocks[1], namespace)

    assert "https://api.example.com/v1" == namespace["MineProvider"](KEY, region="us").base_url


# ------------------------------------------------------------------ broken ones through the command line


BROKEN = GOOD.replace('yield Finish("stop")', 'yield Finish("stop"); yield Delta("more")')
CRASHING = GOOD.replace('yield Finish("stop")', f'raise KeyError("{KEY}")')


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (BROKEN, 'the plugin bad broke the rule "finish" (Delta came after its Finish)'),
        (CRASHING, 'the plugin bad broke the rule "errors" (KeyError came out of it at dist_bad_bad.py:9)'),
    ],
)
def test_plugin_that_breaks_a_rule_fails_the_call_and_is_recorded(
    home: Home, site: Site, source: str, message: str
) -> None:
    site.install("bad", source)

    result = home.run("ask", "-m", "bad:m", "hi", env={"PYTHONPATH": str(site.path)})

    assert 1 == result.code
    assert message in result.err
    end = home.end()
    assert ("call.failed", "plugin") == (end["type"], end["data"]["error"]["kind"])
    assert end["data"]["error"]["message"].startswith(message)
    assert "Hello" == home.recorded()
    assert [end["data"]["error"]] == [row["data"]["error"] for row in home.events("turn.failed")]
    assert KEY not in result.err
    assert KEY.encode() not in home.bytes()


def test_ctrl_c_reaches_a_plugin_and_is_recorded(home: Home, site: Site) -> None:
    site.install(
        "slow", GOOD.replace('yield Delta("Hello")', 'yield Delta("Hello"); await __import__("asyncio").sleep(3600)')
    )

    process = home.start("ask", "-m", "slow:m", "hi", env={"PYTHONPATH": str(site.path)})
    process.read_until("Hello")
    process.send(signal.SIGINT)

    assert 130 == process.wait()
    assert ("call.interrupted", "sigint") == (home.end()["type"], home.end()["data"]["reason"])


def test_plugin_that_cant_be_imported_stops_nothing_but_itself(home: Home, site: Site) -> None:
    site.install("bad", "import no_such_module")
    env = {"PYTHONPATH": str(site.path)}
    reason = "the plugin bad can't be imported from dist_bad_bad:Provider (ModuleNotFoundError at dist_bad_bad.py:1: No module"
    configure(home, mine={"kind": "bad"})

    listed = home.run("plugins", "list", env=env)
    asked = home.run("ask", "-m", "mine:m", "hi", env=env)
    shown = home.run("config", "show", env=env)

    assert 0 == listed.code
    assert f"can't be used: {reason}" in listed.out
    assert (1, True) == (asked.code, reason in asked.err)
    assert 0 == shown.code
    assert not home.store.exists() or not home.events()


async def test_broken_answer_is_a_failed_call_of_the_library_too(tmp_path: Path, site: Site) -> None:
    site.install("bad", BROKEN)

    async with Timeline.open(config=config(tmp_path)) as timeline:
        items = [item async for item in timeline.ask("hi", model="bad:m")]

    (failed,) = [item.data for item in items if isinstance(getattr(item, "data", None), CallFailed)]
    assert isinstance(items[-1], TurnEnd)
    assert isinstance(items[-1].error, PluginError)
    assert (True, "plugin", "provider") == (failed.partial, failed.error.kind, failed.usage_source)
    assert [Delta("Hello")] == [item for item in items if isinstance(item, Delta)]


# ------------------------------------------------------------------ listing and validating


def test_plugins_are_listed_with_why_they_cant_be_used(site: Site) -> None:
    site.install("good", tools="calc = calculator:Add")
    site.install("exits", "import sys; sys.exit(3)")
    site.install("secretive", f"raise RuntimeError('{KEY}')")
    site.install("missing", "", value="nowhere:Provider")
    site.install("nothing", "")
    site.install("openai")
    site.install("twin")
    site.install("twin", distribution="other")
    site.install("half", "class Provider: name = 'half'")

    found = {(plugin.name, plugin.distribution): plugin for plugin in listing()}

    def reason(name: str, distribution: str | None = None) -> str:
        return found[name, distribution or f"dist-{name}"].reason or ""

    assert Listed("good", "provider", "dist_good_good:Provider", "dist-good", "1.0") == found["good", "dist-good"]
    assert Listed("calc", "tool", "calculator:Add", "dist-good", "1.0") == found["calc", "dist-good"]
    assert "(SystemExit at dist_exits_exits.py:1)" in reason("exits")
    assert "(RuntimeError at dist_secretive_secretive.py:1)" in reason("secretive")
    assert "(ModuleNotFoundError: No module named 'nowhere')" in reason("missing")
    assert "has no attribute 'Provider'" in reason("nothing")
    assert "can't be used, as that name is built in" in reason("openai")
    assert "is brought by dist-twin and other: uninstall all but one" in reason("twin")
    assert reason("twin") == reason("twin", "other")
    assert 'broke the rule "methods" (make_request is missing)' in reason("half")
    assert 3 == len(found["half", "dist-half"].problems)


@pytest.mark.parametrize("kind", ["openai", "anthropic", "groq", "ollama", "embedded"])
def test_built_in_kinds_keep_the_rules(kind: str) -> None:
    assert (None, ()) == (validate(kind).reason, validate(kind).problems)


def test_validate_shows_each_broken_rule(home: Home, site: Site) -> None:
    site.install("bad", GOOD.replace("async def make_request", "def make_request").replace("await collect", "collect"))
    env = {"PYTHONPATH": str(site.path)}

    shown = home.run("plugins", "validate", "bad", env=env)
    as_json = home.run("plugins", "validate", "bad", "--json", "--live", env=env)

    assert 1 == shown.code
    assert "broken  async       make_request is not async def" in shown.out.splitlines()
    assert "breaks 1 of the rules above" in shown.err
    assert (1, False) == (as_json.code, as_json.json()["valid"])
    assert [{"rule": "async", "what": "make_request is not async def"}] == as_json.json()["problems"]


def test_live_validation_finds_what_the_class_hides(home: Home, site: Site) -> None:
    site.install("bad", CRASHING)
    configure(home, mine={"kind": "bad", "models": ["m"]}, other={"kind": "openai"})
    env = {"PYTHONPATH": str(site.path)}

    result = home.run("plugins", "validate", "bad", "--live", "-m", "mine:m", env=env)

    assert 1 == result.code
    assert re.search(r"^failed +A stream yields .*: .*KeyError came out of it", result.out, re.MULTILINE)
    assert "bad failed 6 of 12 checks" in result.err
    assert KEY not in result.out + result.err


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["nope"], 6, 'there is no provider plugin "nope"'),
        (["openai", "-m", "x"], 2, "add --live"),
        (["openai", "--live"], 2, "--live needs a model to ask: name one with -m, for example -m openai:MODEL"),
        (["openai", "--live", "-m", "gpt-4o"], 4, "openai needs an API key"),
        (["ollama", "--live", "-m", "t:m"], 2, "t is of kind openai, not ollama"),
    ],
)
def test_validate_that_makes_no_sense_says_why(home: Home, argv: list[str], code: int, message: str) -> None:
    result = home.run("plugins", "validate", *argv)

    assert code == result.code
    assert message in result.err


# ------------------------------------------------------------------ what a plugin is given


TELLING = GOOD.replace(
    '    name = "good"\n',
    """
    def __init__(self, PARAMETERS):
        self.name = "telling"
        self.given = {key: value for key, value in locals().items() if key != "self"}
""",
)


def given(tmp_path: Path, site: Site, parameters: str, **entry: Any) -> dict[str, Any]:
    site.install("telling", TELLING.replace("PARAMETERS", parameters))
    provider = make_provider(config(tmp_path, mine={"kind": "telling", **entry}), "mine")
    assert isinstance(provider, Guarded)
    return provider.provider.given


def test_constructor_gets_what_is_set_and_keeps_its_defaults(tmp_path: Path, site: Site) -> None:
    parameters = "name, api_key=None, base_url='https://x', timeouts=None, models=(), *, headers, region='eu', depth=1"
    entry = {"api_key": KEY, "models": ["a", "b"], "timeouts": {"connect": 5}, "options": {"depth": 2}}

    assert {
        "name": "mine",
        "api_key": KEY,
        "base_url": "https://x",
        "timeouts": Timeouts(connect=5.0),
        "models": ("a", "b"),
        "headers": {},
        "region": "eu",
        "depth": 2,
    } == given(tmp_path, site, parameters, **entry)


def test_constructor_that_takes_everything_gets_all_that_is_set(tmp_path: Path, site: Site) -> None:
    entry = {"base_url": "https://y", "options": {"region": "us"}, "local": False, "context": 5}

    assert {"kwargs": {"name": "mine", "base_url": "https://y", "local": False, "context": 5, "region": "us"}} == given(
        tmp_path, site, "**kwargs", **entry
    )


def test_constructor_without_arguments_is_enough(tmp_path: Path, site: Site) -> None:
    assert {} == given(tmp_path, site, "", api_key=KEY, models=["m"])


@pytest.mark.parametrize(
    ("parameters", "entry", "error", "message"),
    [
        ("api_key", {}, MissingKey, "mine needs an API key: set llm_providers.mine.api_key"),
        ("base_url", {}, ConfigError, "llm_providers.mine.base_url: set it, the plugin telling needs it"),
        ("region", {}, ConfigError, "llm_providers.mine.options.region: set it"),
        ("", {"base_url": "https://x"}, ConfigError, "llm_providers.mine.base_url: remove it"),
        (
            "region='eu'",
            {"options": {"zone": "a"}},
            ConfigError,
            r"options.zone: remove it, .* takes other options \(region\)",
        ),
        ("name", {"options": {"name": "a"}}, ConfigError, "options.name: write it beside options"),
        ("a='${'", {"options": {"a": "${NOT_SET_ANYWHERE}"}}, ConfigError, "variable NOT_SET_ANYWHERE is not set"),
        ("*, x=1 / 0", {}, PluginError, r"can't be imported .*ZeroDivisionError at dist_telling_telling.py"),
    ],
)
def test_settings_that_dont_fit_are_named(
    tmp_path: Path, site: Site, parameters: str, entry: dict[str, Any], error: type[TimelineError], message: str
) -> None:
    with pytest.raises(error, match=message):
        given(tmp_path, site, parameters, **entry)


def test_constructor_that_fails_is_a_broken_rule(tmp_path: Path, site: Site) -> None:
    site.install(
        "bad", TELLING.replace("PARAMETERS", "api_key").replace('self.name = "telling"', "raise OSError(api_key)")
    )

    with pytest.raises(PluginError, match=r'"errors" \(OSError came out of it at dist_bad_bad.py:\d+\)') as refused:
        make_provider(config(tmp_path, bad={"api_key": KEY}), "bad")
    assert KEY not in str(refused.value)


def test_options_are_masked_where_settings_are_shown(tmp_path: Path, site: Site) -> None:
    site.install("good")
    loaded = config(tmp_path, good={"options": {"token": KEY, "depth": 5, "region": "${REGION}"}})

    shown = {setting.path[-1]: setting.value for setting in loaded.effective() if "options" in setting.path}
    assert {"token": "***", "depth": "***", "region": "${REGION}"} == shown
    assert KEY not in repr(loaded.settings)


HERE = GOOD.replace(
    '    name = "good"\n',
    '    name = "good"\n    local = True\n    def __init__(self, base_url="", api_key=""): pass\n',
)


@pytest.mark.parametrize(
    ("entry", "local"),
    [
        ({}, True),
        ({"base_url": "http://127.0.0.1:9"}, True),
        ({"base_url": "https://api.example.com"}, False),
        ({"local": False}, False),
    ],
    ids=str,
)
def test_the_user_has_the_last_word_on_what_runs_here(
    tmp_path: Path, site: Site, entry: dict[str, Any], local: bool
) -> None:
    site.install("here", HERE)

    provider = make_provider(config(tmp_path, mine={"kind": "here", **entry}), "mine")

    assert local is provider.is_local("m")


def test_a_plugins_key_has_a_mark(tmp_path: Path, site: Site) -> None:
    site.install("here", HERE)

    provider = make_provider(config(tmp_path, mine={"kind": "here", "api_key": KEY}), "mine")

    assert key_mark(KEY) == provider.key_mark


def test_a_plugins_own_model_is_free_and_asked_offline(home: Home, site: Site) -> None:
    site.install("here", HERE)
    env = {"PYTHONPATH": str(site.path)}
    configure(home)

    result = home.run("ask", "--offline", "-m", "here:m", "hi", env=env)
    report = home.run("report", "--json")

    assert (0, "Hello\n") == (result.code, result.out)
    assert "free" == report.json()["rows"][0]["cost_state"]


# ------------------------------------------------------------------ which kinds there are


async def test_installed_plugin_needs_no_configuration(tmp_path: Path, site: Site) -> None:
    site.install("good")
    loaded = config(tmp_path)

    provider = make_provider(loaded, str(loaded.parse_model("good:m").provider))

    answer = await collect(provider.stream_request(LLMRequest("m", [{"role": "user", "content": "hi"}])))
    assert "Hello" == answer.content


def test_plugin_that_isnt_there_is_missed_when_it_is_used(tmp_path: Path) -> None:
    loaded = config(tmp_path, mine={"kind": "gone"})

    with pytest.raises(ConfigError, match=r'mine.kind: no plugin "gone" is installed: install it or disable'):
        make_provider(loaded, "mine")
    with pytest.raises(NotFound, match=r'no provider "gone"'):
        loaded.parse_model("gone:m")
    assert isinstance(loaded.problem("mine"), ConfigError)


def test_only_plugins_take_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"openai.options: expected no options: only plugins take them"):
        config(tmp_path, openai={"options": {"a": 1}})


def test_built_in_kinds_are_made_without_a_guard(tmp_path: Path) -> None:
    url = "http://127.0.0.1:1/v1"
    loaded = config(
        tmp_path,
        mine={"kind": "openai", "base_url": url, "api_key": KEY, "local": True},
        ollama={"api_key": KEY},
        far={"kind": "ollama", "local": False},
    )

    mine, ollama, far = (make_provider(loaded, name) for name in ("mine", "ollama", "far"))

    assert (OpenAIProvider, "mine", True) == (type(mine), mine.name, mine.local)
    assert (OllamaProvider, True, False) == (type(ollama), ollama.local, far.local)

"""`timeline keys`: API keys kept for later, shown only as far as tells one from another, and removed.

A key is typed at a prompt that doesn't echo it, or read from standard input; on the command line
other users and the shell's history would see it.
"""

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from timeline.errors import ConfigError, NotFound, TimelineError, UsageError

from . import output
from .options import AsJson

if TYPE_CHECKING:
    from timeline.config import Config, FoundKey

__all__ = ["app", "described"]

app = typer.Typer(help="Keep, list and remove API keys.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The provider, as in -m NAME:model.")]

LARGEST = 1 << 16
"""Bytes that a key may have; what is longer is none."""
PLACES = {"config": "api_key in", "key_cmd": "key_cmd", "environment": "environment:", "file": "", "keyring": "keyring"}


@app.command("set", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def set_(
    context: typer.Context,
    name: Name,
    *,
    keyring: Annotated[
        bool, typer.Option("--keyring", help="Keep it in the system's keyring instead of a file.")
    ] = False,
) -> None:
    """Keep an API key; it is asked for, or read from standard input.

    Example: pass show openai | timeline keys set openai
    """
    from timeline.config import load
    from timeline.config.keys import KeyFile, checked, remove_from_keyring, store_in_keyring

    if context.args:
        # What stands there may be a key: it isn't repeated.
        msg = f"'timeline keys set {name}' takes nothing more, and no key: it asks for the key, or reads it from a pipe"
        raise UsageError(msg)
    config = load()
    with suppress(ConfigError):
        config.served(name)
    if not config.takes_key(name):
        msg = f"{name} runs in this process and asks for no key"
        raise UsageError(msg)
    key = checked(name, _typed(name))
    if not key:
        msg = f"no key was given for {name}, so nothing has changed: run 'timeline keys set {name}' again"
        raise UsageError(msg)
    kept = KeyFile(config.paths.keys_file)
    was_in_keyring = kept.read().get(name) == ""
    if keyring:
        store_in_keyring(name, key)
        kept.set(name, "")
    else:
        kept.set(name, key)
        if was_in_keyring:
            with suppress(UsageError):
                remove_from_keyring(name)
    output.notice(f"{name}: the key is kept in {'the keyring' if keyring else kept.path}")
    first = next(iter(config.keys(name)))
    if first.origin not in ("file", "keyring"):
        output.notice(f"Warning: it is not used as long as {described(first)} has one")


@app.command("list")
def list_(*, as_json: AsJson = False) -> None:
    """List the keys, and where each comes from. The first of a provider is used."""
    from timeline.config import KINDS, load
    from timeline.config.keys import KeyFile

    config = load()
    kept = KeyFile(config.paths.keys_file).read()
    names = list(dict.fromkeys([*KINDS, *config.settings.llm_providers, *kept]))
    found, problems = [], []
    for name in names:
        try:
            found += [(name, key, used) for key, used in _found(config, name, kept)]
        except TimelineError as exc:
            problems.append((name, exc))
    if as_json:
        output.emit_json(
            {
                "keys": [
                    {"provider": name, "origin": key.origin, "place": _place(key), "key": key.masked, "used": used}
                    for name, key, used in found
                ],
                "problems": [
                    {"provider": name, "kind": problem.kind, "message": str(problem)} for name, problem in problems
                ],
            }
        )
        return
    rows = [(name, key.masked, described(key) + ("" if used else "  (not used)")) for name, key, used in found]
    sys.stdout.writelines(f"{line}\n" for line in output.columns(rows))
    for _, problem in problems:
        output.notice(f"Warning: {problem}")
    if not found:
        output.notice("no key is known: 'timeline keys set openai' keeps one")


@app.command()
def remove(name: Name) -> None:
    """Remove a key that 'timeline keys set' has kept."""
    from timeline.config import find_paths
    from timeline.config.keys import KeyFile, remove_from_keyring

    kept = KeyFile(find_paths().keys_file)
    key = kept.read().get(name)
    if key is None:
        msg = f"no key is kept for {name}: see 'timeline keys list'"
        raise NotFound(msg)
    if not key:
        remove_from_keyring(name)
    kept.remove(name)
    output.notice(f"{name}: the key is removed from {kept.path if key else 'the keyring'}")


def described(key: "FoundKey") -> str:
    """Where a key is, in words."""
    return f"{PLACES[key.origin]} {_place(key) or ''}".strip()


def _place(key: "FoundKey") -> str | None:
    """The variable, file or program; of a command not its arguments, which can be anything."""
    if key.origin == "keyring":
        return None
    return (key.place.split() or [""])[0] if key.origin == "key_cmd" else key.place


def _found(config: "Config", name: str, kept: dict[str, str]) -> "list[tuple[FoundKey, bool]]":
    """Where a name's keys are, and whether they are used."""
    from timeline.config import FoundKey

    try:
        config.served(name)
    except NotFound:
        # A key outlives the provider's entry.
        path = str(config.paths.keys_file)
        return [(FoundKey("file", path, kept[name]) if kept[name] else FoundKey("keyring", name), False)]
    except ConfigError:
        pass  # Its address is wrong, which matters when it is used.
    return [(key, index == 0) for index, key in enumerate(config.keys(name))]


def _typed(name: str) -> str:
    """What the user types unseen, or what standard input holds."""
    if sys.stdin is None or sys.stdin.closed:
        return ""
    if not sys.stdin.isatty():
        typed = sys.stdin.buffer.read(LARGEST + 1)
        if len(typed) > LARGEST:
            msg = f"what standard input holds is longer than {LARGEST} bytes and no API key of {name}: pipe in the key alone"
            raise UsageError(msg)
        return typed.decode("utf-8", "replace")
    from getpass import getpass

    try:
        return getpass(f"API key of {name} (it is not shown): ")
    except EOFError:
        return ""

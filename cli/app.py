"""The commands and what surrounds each: errors become one sentence and an exit code, signals are recorded, pipes may close."""

import asyncio
import importlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException
from typer.main import get_command

import timeline
from timeline.errors import TimelineError, UsageError

from . import output

T = TypeVar("T")

EXIT_INTERRUPTED = 130
EXIT_PIPE = 128 + signal.SIGPIPE
PATIENCE_SECONDS = 2.0
"""After a first Ctrl-C, how long what it began may take before another one ends the process at once."""


class _Commands(TyperGroup):
    """All commands; a reader that has enough ends any of them silently."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            _give_up_stdout()
            raise typer.Exit(EXIT_PIPE) from None
        except OSError as exc:
            _give_up_stdout()
            what = f"{exc.filename} can't be used" if exc.filename else "the output can't be written"
            msg = f"{what} ({exc.strerror or exc}): make room or choose another place, then try again"
            raise TimelineError(msg) from exc
        return result


def _give_up_stdout() -> None:
    """Nothing more can be said there; Python would complain once more when it flushes at exit."""
    output.json_errors(False)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


app = typer.Typer(
    name="timeline",
    cls=_Commands,
    help="Ask language models; every event of every call is recorded, and can be replayed and accounted for.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:  # noqa: FBT001  typer calls it so
    if value:
        sys.stdout.write(f"timeline {timeline.__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


COMMANDS = {
    "ask": "ask",
    "batch": "batch",
    "route": "route",
    "replay": "replay",
    "report": "report",
    "search": "search",
    "budget": "budget",
    "limits": "limits",
    "sessions": "sessions.app",
    "store": "store.app",
    "models": "models.app",
    "providers": "providers.app",
    "keys": "keys.app",
    "plugins": "plugins.app",
    "tools": "tools.app",
    "config": "config.app",
    "paths": "config.paths",
}
"""What each first word runs: a module's function of the same name, or what of the module is named; in the help's order."""


def _register(words: list[str]) -> None:
    """Make the command known that these words begin with; all of them, where they begin with none.

    A command line that is read costs for each command that is known; nobody needs the others to run one. Their modules
    do without `from __future__ import annotations`: typer would evaluate the text of each parameter's type four times.
    """
    for name in words[:1] if words and words[0] in COMMANDS else COMMANDS:
        module, _, part = COMMANDS[name].partition(".")
        runs = getattr(importlib.import_module(f".{module}", __package__), part or module)
        if isinstance(runs, typer.Typer):
            app.add_typer(runs, name=name)
        else:
            app.command(name)(runs)


def _sparing(command: Any) -> Any:
    """The command, its parameters taking as it is what needs no converting.

    Typer converts everything with pydantic, text to text and nothing to nothing too, and that takes longer to import
    than typer itself. Of a typer that does it otherwise, everything is left as it is.
    """
    command.get_params = partial(_spared, command.get_params)
    for each in getattr(command, "commands", {}).values():
        _sparing(each)
    return command


def _spared(get_params: Callable[[Any], list[Any]], context: Any) -> list[Any]:
    """What `Command.get_params` gives, `--help` included."""
    parameters = get_params(context)
    for parameter in parameters:
        convert = getattr(parameter, "process_value", None)
        if convert is not None and not isinstance(convert, partial):
            parameter.process_value = partial(_taken, parameter, convert)
    return parameters


def _taken(parameter: Any, convert: Callable[[Any, Any], Any], context: Any, value: Any) -> Any:
    """What `Parameter.process_value` makes of a value."""
    if not _is_ready(parameter, value):
        return convert(context, value)
    return parameter.callback(context, parameter, value) if parameter.callback else value


def _is_ready(parameter: Any, value: Any) -> bool:
    """Whether a value is what the command's function takes already."""
    described: Any = getattr(parameter, "type_descriptor", None)
    if described is None or described.parameter_info.parser is not None:
        return False
    wanted = described.annotation
    if value is None or value is parameter.default:
        return not parameter.required
    if get_origin(wanted) is Literal:
        return value in get_args(wanted)
    if wanted == list[str]:
        return bool(value) and all(isinstance(item, str) for item in value)
    return wanted is str and isinstance(value, str)


def run() -> int:
    """Run the command that `sys.argv` names.

    Returns:
        The exit code, as the table in README.md says.
    """
    output.json_errors("--json" in sys.argv)
    _register(sys.argv[1:])
    try:
        _check_words(sys.argv)
        code = _sparing(get_command(app))(standalone_mode=False)
    except TimelineError as exc:
        return output.fail(exc)
    except typer.Abort:
        return EXIT_INTERRUPTED
    except TyperException as exc:
        return _misused(exc)
    return code if isinstance(code, int) else 0


def _check_words(words: list[str]) -> None:
    """Refuse what is no text: it could be neither sent nor recorded."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as exc:
            msg = f"{word!a} on the command line is not UTF-8 text: check the terminal's encoding"
            raise UsageError(msg) from exc


def _misused(exc: TyperException) -> int:
    """Say what was wrong with the command line; a bare command group shows its help instead."""
    message, context = exc.format_message(), getattr(exc, "ctx", None)
    if context is not None and message == context.get_help():
        sys.stdout.write(f"{message}\n")
        return UsageError.exit_code
    for theirs, ours in _WORDS:
        message = theirs.sub(ours, message)
    first = re.findall(r"^\w+$", "".join(sys.argv[1:2]))
    command = context.command_path if context else " ".join(["timeline", *first])
    return output.fail(UsageError(f"{message.rstrip('.')}: see '{command} --help'"))


_WORDS = (
    (re.compile(r"Value error, "), ""),
    (re.compile(r"\. Did you mean (.*)\?$"), r" (did you mean \1?)"),
    (re.compile(r"\b[Dd]ir(?:ectory)? ('.*') does not exist\.?"), r"there is no folder \1"),
    (re.compile(r"\b[Dd]ir(?:ectory)? ('.*') is a file\.?"), r"\1 is no folder"),
    (re.compile(r"Input should be a valid number\b.*"), "expected a number"),
    (re.compile(r"Input should be a valid integer\b.*"), "expected a whole number"),
    (re.compile(r"Input should be greater than or equal to "), "expected at least "),
    (re.compile(r"Input should be less than or equal to "), "expected at most "),
)
"""What typer and pydantic say, as a sentence of ours."""


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine. SIGINT cancels it; SIGTERM and SIGHUP too, as a closed output would.

    Raises:
        typer.Exit: A signal ended it, and that is recorded.
    """

    async def main() -> T:
        signals.reach(asyncio.current_task())
        return await work

    with _Signals() as signals:
        try:
            return asyncio.run(main())
        except asyncio.CancelledError:
            raise typer.Exit(128 + signals.received) from None


class _Signals:
    """Makes the first signal to end a cancellation, and keeps the next ones from breaking into what that records."""

    def __init__(self) -> None:
        self.received = 0
        self._at = 0.0
        self._task: asyncio.Task[Any] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Whoever started us in the background or under nohup has them ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._end)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self.received else handler)

    def reach(self, task: asyncio.Task[Any] | None) -> None:
        """From now on it is this task that a signal cancels."""
        self._task = task
        if self.received:
            self._cancel()

    def _end(self, number: int, _frame: object) -> None:
        if not self.received:
            self.received, self._at = number, time.monotonic()
            self._cancel()
        elif time.monotonic() - self._at > PATIENCE_SECONDS:
            # Something hangs; the next start ends in the log what this one could not.
            os._exit(128 + number)

    def _cancel(self) -> None:
        if self._task is not None and not (loop := self._task.get_loop()).is_closed():
            # A handler runs in between anything: the loop hears of it as from another thread.
            loop.call_soon_threadsafe(self._task.cancel, "sigint" if self.received == signal.SIGINT else "closed")

"""`timeline batch`: many prompts from a file, their answers as JSON lines in the same order; doing it again goes on."""

import asyncio
import os
import sys
import time
from collections import Counter
from contextlib import ExitStack, aclosing, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Self

import msgspec
import typer

from timeline.errors import NotFound, TimelineError, UsageError

from . import output
from .options import LARGEST, MOST, Offline

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress, TaskID

    from timeline.cognition.batch import BatchStatus
    from timeline.cognition.prompt_file import Prompt, PromptFile
    from timeline.config import BudgetConfig

__all__ = ["batch"]

EVERY_SECONDS = 30.0
"""How often a line says how far it is, where no bar can be drawn."""
BUFFER = 64 * 1024
REASONS = 5
"""Most reasons that are told of what failed; each line of the answers has its own."""


def batch(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Prompts, a JSON line each; `-` for standard input.")],
    *,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="PROVIDER:MODEL", help="Which model to ask, where the line names none."),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", "-s", metavar="TEXT", help="System prompt, where the line has none.")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", metavar="NUMBER", min=0, max=2, help="Sampling temperature, where the line has none."
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", metavar="N", min=1, max=MOST, help="Most tokens of an answer, where the line says nothing."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", metavar="N", min=-LARGEST, max=LARGEST, help="For repeatable sampling, where the line has none."
        ),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the answers there instead of to standard output."),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-n", metavar="N", min=1, help="How many to ask at a time.")
    ] = 4,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="What the batch is known by, instead of by its file's path."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask all prompts, also those answered before.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Ask no more after the first that fails.")] = False,
    provider_batch: Annotated[
        bool,
        typer.Option(
            "--provider-batch", help="Hand them in to the provider's batch API: half the price, within a day."
        ),
    ] = False,
    max_cost: Annotated[
        str | None,
        typer.Option(
            "--max-cost", metavar="USD", help="Most that the batch may cost, US dollars, all its runs together."
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", min=0.1, metavar="SECONDS", help="How long until an answer's first words, retries included."
        ),
    ] = None,
    cache: Annotated[
        bool | None,
        typer.Option("--cache/--no-cache", help="Take recorded answers of equal requests.", show_default=False),
    ] = None,
    offline: Offline = False,
    poll: Annotated[
        float,
        typer.Option("--poll", min=0.01, metavar="SECONDS", help="How long to wait at most between two looks at that."),
    ] = 60.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")] = False,
) -> None:
    """Ask many prompts. After a stop, run it again: what is answered isn't asked again.

    Example: timeline batch prompts.jsonl -o answers.jsonl
    """
    from timeline.cognition.prompt_file import Prompt

    from .app import wait_for

    defaults = Prompt("", model=model, system=system, temperature=temperature, max_tokens=max_tokens, seed=seed)
    budgets: tuple[BudgetConfig, ...] = ()
    if max_cost is not None:
        from timeline import config

        # Of the session: that is the batch, whoever asked a part of it before.
        budgets = (msgspec.structs.replace(config.max_cost(max_cost), window="session"),)
    with ExitStack() as stack:
        prompts, known_as, title = _prompts(file, defaults, stack)
        sink = stack.enter_context(closing(_Sink(target, source=file)))
        options = {
            "name": name or known_as,
            "title": name or title,
            "concurrency": concurrency,
            "fresh": fresh,
            "fail_fast": fail_fast,
            "provider_batch": provider_batch,
            "poll_seconds": poll,
            "timeout": timeout,
            "cache": cache,
            "budgets": budgets,
        }
        failures = _Failures()
        status = wait_for(_batch(prompts, sink, failures, quiet=quiet, offline=offline, **options))
        stopped = status.before + status.answered + status.failed < status.total
        if not stopped:
            sink.finish()
    failures.tell()
    if not quiet or status.failed:
        output.notice(_summary(status))
    if stopped and target is not None:
        output.notice(f"what is answered so far stands in {sink.path}")
    if status.failed or stopped:
        raise typer.Exit(1 if status.before or status.answered else failures.exit_code)


async def _batch(
    prompts: "PromptFile", sink: "_Sink", failures: "_Failures", *, quiet: bool, offline: bool, **options: object
) -> "BatchStatus":
    from timeline.cognition.batch import BatchStatus
    from timeline.config import load
    from timeline.providers.pool import Providers
    from timeline.runtime import Timeline

    from .progress import Fetching
    from .shapes import batch_object

    status = BatchStatus("", 0, 0)
    with Fetching(quiet=quiet) as fetching:
        config = load(overrides={"offline": True} if offline else None)
        async with Providers(config, fetching) as providers, Timeline.open(providers=providers) as timeline:
            with _Progress(quiet=quiet or (sys.stdout.isatty() and sink.path is None)) as progress:
                try:
                    async with aclosing(timeline.batch(prompts, **options)) as items:  # type: ignore[arg-type]
                        async for item in items:
                            if isinstance(item, BatchStatus):
                                if not status.session_id:
                                    sink.open()
                                status = item
                                progress.show(item)
                                await sink.flush()
                            else:
                                failures.add(item.error)
                                value = batch_object(item, prompts[item.index].id, prompts.line(item.index))
                                await sink.write({"schema_version": output.SCHEMA_VERSION, **value})
                        await sink.flush()
                except asyncio.CancelledError:
                    progress.stop()
                    if status.session_id:
                        failures.tell()
                        output.notice(_stopped(status))
                    raise
    return status


# ------------------------------------------------------------------ what is asked


def _prompts(file: str, defaults: "Prompt", stack: ExitStack) -> "tuple[PromptFile, str, str]":
    """The prompts, what the batch is known by if it is given no name, and its title."""
    from timeline.cognition.prompt_file import PromptFile
    from timeline.store import content_digest

    if file == "-":
        import shutil
        import tempfile

        # To be read twice: once to check all of it, then as each is asked.
        copy = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  the stack closes it
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.seek(0)
        prompts = PromptFile(copy, "standard input", defaults)
        copy.seek(0)
        return prompts, f"standard input {content_digest(copy.read())}", "standard input"
    path = Path(file)
    try:
        opened = stack.enter_context(path.open("rb"))
        prompts = PromptFile(opened, file, defaults)
    except FileNotFoundError as exc:
        msg = f"there is no file {file}: check the path"
        raise NotFound(msg) from exc
    except OSError as exc:
        msg = f"{file} can't be read ({exc.strerror}): check the path"
        raise UsageError(msg) from exc
    return prompts, str(path.resolve()), path.name


# ------------------------------------------------------------------ what comes out


class _Sink:
    """Where the answers go. A file has its name only when it is whole; until then it is called `….partial`."""

    def __init__(self, target: Path | None, *, source: str) -> None:
        if target is not None and target.is_dir():
            msg = f"{target} is a folder: name a file to write the answers to"
            raise UsageError(msg)
        self._target = target
        self.path = target and target.with_name(target.name + ".partial")
        self._lines: list[bytes] = []
        self._size = 0
        self._file: BinaryIO = sys.stdout.buffer
        if target is not None and source != "-" and target.exists() and target.samefile(source):
            msg = f"{target} holds the prompts: choose another file for the answers"
            raise UsageError(msg)

    def open(self) -> None:
        """Begin; nobody else writes the answers of this batch now."""
        if self.path is not None:
            try:
                self._file = self.path.open("wb")
            except OSError as exc:
                msg = f"{self._target} can't be written ({exc.strerror}): choose another path after -o"
                raise UsageError(msg) from exc

    def close(self) -> None:
        """Leave it as it is."""
        if self._file is not sys.stdout.buffer:
            self._file.close()

    async def write(self, value: dict[str, object]) -> None:
        """One line."""
        line = msgspec.json.encode(value) + b"\n"
        self._lines.append(line)
        self._size += len(line)
        if self._size > BUFFER:
            await self.flush()

    async def flush(self) -> None:
        """Hand over what was written; in a thread, so that a reader who takes his time holds up no answer."""
        if self._lines:
            data = b"".join(self._lines)
            self._lines, self._size = [], 0
            await asyncio.to_thread(self._hand_over, data)

    def _hand_over(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()

    def finish(self) -> None:
        """It is whole."""
        if self.path is not None and self._target is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self.path.replace(self._target)


class _Failures:
    """Why prompts failed: each reason once, however many failed for it."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._exit_codes: set[int] = set()

    def add(self, error: TimelineError | None) -> None:
        """One more prompt has ended, with or without an error."""
        if error is not None:
            self._counts[error.kind, str(error)] += 1
            self._exit_codes.add(error.exit_code)

    @property
    def exit_code(self) -> int:
        """What the one reason means, 1 of several."""
        return self._exit_codes.copy().pop() if len(self._exit_codes) == 1 else TimelineError.exit_code

    def tell(self) -> None:
        """Say the reasons on stderr, those of most prompts first."""
        told = self._counts.most_common(REASONS)
        for (kind, message), count in told:
            output.notice(f"{count:,} × {kind}: {message}")
        others = self._counts.total() - sum(count for _, count in told)
        if others:
            output.notice(f"{others:,} × other reasons: each line of the answers has its own")


class _Progress:
    """A bar on a terminal, else a line now and then, on stderr."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: tuple[Progress, TaskID] | None = None
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Nothing more comes."""
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None
        self._quiet = True

    def show(self, status: "BatchStatus") -> None:
        """How far it is now."""
        if self._quiet:
            return
        ended = status.before + status.answered + status.failed
        if not output.stderr().is_terminal:
            if time.monotonic() - self._said >= EVERY_SECONDS:
                self._said = time.monotonic()
                parts = [f"{ended:,} of {status.total:,}", _aside(status)]
                output.notice(" · ".join(filter(None, parts)) + " …")
            return
        if self._bar is None:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            bar = Progress(
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}", markup=False),
                TimeRemainingColumn(),
                console=output.stderr(),
                transient=True,
            )
            self._bar = bar, bar.add_task("", total=status.total)
            bar.start()
        bar, task = self._bar
        bar.update(task, completed=ended, description=_aside(status))


def _aside(status: "BatchStatus") -> str:
    parts = [f"{status.failed:,} failed"] if status.failed else []
    if status.handed_in:
        parts.append(f"{status.ended_there:,} of {status.handed_in:,} ended at the provider")
    parts += [output.usd(status.nano_usd)] if status.nano_usd else []
    return " · ".join(parts)


def _stopped(status: "BatchStatus") -> str:
    answered = status.before + status.answered
    told = f"stopped with {answered:,} of {status.total:,} answered: the same command goes on"
    return told + (f"; {status.handed_in:,} are with the provider, who goes on meanwhile" if status.handed_in else "")


def _summary(status: "BatchStatus") -> str:
    answered = status.before + status.answered
    before = f" ({status.before:,} before)" if status.before else ""
    parts = [f"{answered:,} of {status.total:,} answered{before}"]
    if status.failed:
        parts.append(f"{status.failed:,} failed: the same command asks them again")
    elif status.before == status.total:
        parts.append("nothing was asked: --fresh asks all again")
    if status.answered or status.failed:
        parts.append(f"{status.input:,} in, {status.output:,} out")
        cost = output.usd(status.nano_usd) if status.nano_usd else ""
        parts += [cost + (" + ?" if cost else "?")] if status.unpriced else [cost] if cost else []
    parts.append(f"session {status.session_id[:13]}")
    return " · ".join(parts)

"""What the `tools` section says once its variables are filled in and its paths are absolute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from timeline.config.file import where
from timeline.config.paths import beside
from timeline.config.resolved import Config
from timeline.config.settings import Masked, fill
from timeline.errors import ConfigError

__all__ = ["ResolvedServer", "allowed_dirs", "mcp_server"]


class ResolvedServer(Masked, frozen=True):
    """A server of tools, ready to be reached.

    Args:
        name: What its tools' names begin with.
        command: What starts it, with its arguments; None for one that is reached by its address.
        url: Its address.
        env: Variables for the command.
        headers: For the address.
        cwd: Where the command runs, None for the working directory.
        confirm: Whether somebody has to agree to what isn't read-only.
        timeout: Seconds that a call may take.
    """

    name: str
    command: tuple[str, ...] | None
    url: str | None
    env: dict[str, str]
    headers: dict[str, str]
    cwd: Path | None
    confirm: bool
    timeout: float


def allowed_dirs(config: Config) -> tuple[Path, ...]:
    """The folders that tools may read beside the working directory.

    Raises:
        ConfigError: A variable in one of them is not set.
    """
    path = ("tools", "allow_dirs")
    source = config.source(*path)
    return tuple(beside(source, _filler(config, *path)(text)) for text in config.settings.tools.allow_dirs)


def mcp_server(config: Config, name: str) -> ResolvedServer:
    """A configured server of tools, its variables looked up now.

    Args:
        config: The settings in force.
        name: A key of `tools.mcp`.

    Raises:
        ConfigError: A variable is not set.
    """
    written, path = config.settings.tools.mcp[name], ("tools", "mcp", name)
    filled = _filler(config, *path)
    return ResolvedServer(
        name=name,
        command=None if written.command is None else tuple(map(filled, written.command)),
        url=None if written.url is None else filled(written.url),
        env={key: filled(value) for key, value in written.env.items()},
        headers={key: filled(value) for key, value in written.headers.items()},
        cwd=None if written.cwd is None else beside(config.source(*path, "cwd"), filled(written.cwd)),
        confirm=written.confirm,
        timeout=written.timeout,
    )


def _filler(config: Config, *path: str) -> Callable[[str], str]:
    def filled(text: str) -> str:
        try:
            return fill(text, config.environ)
        except LookupError as exc:
            what = f"the environment variable {exc.args[0]} is not set: set it or write the value out"
        except ValueError as exc:
            what = str(exc)
        raise ConfigError(where(config.source(*path), path, what))

    return filled

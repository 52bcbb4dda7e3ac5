"""What a base URL and a header say, which of it is secret, and whether it means this machine."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from timeline.errors import ConfigError

__all__ = ["blotted", "header_value", "is_loopback", "key_mark", "secrets_in", "split_url"]


def split_url(base_url: str) -> tuple[str, str, str, str | None, str]:
    """A base URL as `(scheme://host:port, path without a slash at its end, query, user:password, host)`.

    Raises:
        ConfigError: It isn't an http or https URL.
    """
    try:
        parts = urlsplit(base_url.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        # The value itself may hold a password: it is not repeated.
        msg = "base_url is no http:// or https:// address: write it like https://api.example.com/v1"
        raise ConfigError(msg)
    place = f"[{host}]" if ":" in host else host
    place += f":{port}" if port is not None else ""
    userinfo = None
    if parts.username is not None or parts.password is not None:
        userinfo = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return f"{parts.scheme}://{place}", parts.path.rstrip("/"), parts.query, userinfo, host


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    return host in ("localhost", "::1", "0.0.0.0", "::") or host.startswith("127.") or host.endswith(".localhost")  # noqa: S104 - compared, not bound


def header_value(name: str, value: str) -> str:
    """A key or header as HTTP takes it.

    Raises:
        ConfigError: It holds what can't stand in a header; the value is not repeated.
    """
    if not value.isascii() or not value.isprintable():
        msg = f"the key or a header of {name} holds characters that HTTP doesn't allow: paste it again"
        raise ConfigError(msg)
    return value


def key_mark(api_key: str | None) -> str | None:
    """Tells one key from another, since limits are each key's own: 16 bits of a digest, so that it tells nothing of a key."""
    if not api_key:
        return None
    return hashlib.blake2b(api_key.encode(), digest_size=2, person=b"timeline key").hexdigest()


_SECRET_HEADER = re.compile(r"key|token|secret|auth|cookie|password", re.IGNORECASE)
_SHORTEST_SECRET = 4


def secrets_in(values: Iterable[str | None], headers: Mapping[str, str]) -> tuple[str, ...]:
    """What no message may repeat, longest first: `values`, and headers whose names say that they are secret.

    A dummy key of one to three characters, as local servers take it, would blot out half of every message.
    """
    found = {*values, *(value for name, value in headers.items() if _SECRET_HEADER.search(name))}
    found |= {value.partition(" ")[2] for value in found if value and value.lower().startswith(("bearer ", "basic "))}
    found |= {quote(value, safe="", errors="replace") for value in found if value}  # As a page's address spells it.
    return tuple(sorted((s for s in found if s and len(s) >= _SHORTEST_SECRET), key=len, reverse=True))


def blotted(said: Any, secrets: Iterable[str]) -> Any:
    """What somebody said, with `[key]` wherever it repeats a secret.

    Args:
        said: A text, or decoded JSON with texts at any depth.
        secrets: What `secrets_in` found.
    """
    if isinstance(said, str):
        for secret in secrets:
            said = said.replace(secret, "[key]")
        return said
    if isinstance(said, dict):
        return {blotted(name, secrets): blotted(value, secrets) for name, value in said.items()}
    return [blotted(each, secrets) for each in said] if isinstance(said, list) else said

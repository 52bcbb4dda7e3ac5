"""Which models can be reached without a network, and whether there is one; opens no socket to find out.

A network that is there may still not work: that is for a request to meet. One that isn't there needn't be waited for.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from timeline.errors import ConfigError
from timeline.providers.address import is_loopback, split_url

if TYPE_CHECKING:
    from timeline.config import Config, ModelRef, Settings

__all__ = ["Network", "is_cloud", "may_be_free", "network", "on_own_link", "runs_here"]

Network = Literal["routed", "link", "none"]
"""Everything may be reachable; only what is on the same cable or Wi-Fi; nothing but this machine."""

OWN_NAME = re.compile(r"[^.]+|.*\.(local|lan|home\.arpa|internal)", re.IGNORECASE)
"""Names that only the own network knows (https://www.rfc-editor.org/rfc/rfc6762, .../rfc8375)."""
UP, GATEWAY, REJECT = 0x1, 0x2, 0x200
"""Flags of a route (linux/route.h, linux/ipv6_route.h)."""
HALF = 1
"""Bits of a prefix that still means half of all addresses: VPNs write the default route as two of these."""


def is_cloud(model: str) -> bool:
    """Whether an Ollama model's name says that its answers are computed elsewhere."""
    return model.endswith(("-cloud", ":cloud"))


def runs_here(config: Config, ref: ModelRef) -> bool | None:
    """Whether a model can be asked without a network; None for a plugin that has to be asked itself.

    A server on this machine counts, unless it is said not to be `local`: it may pass questions on.

    Raises:
        NotFound, ConfigError: See `Config.served`.
    """
    kind, address = config.served(ref.provider)
    written = config.settings.llm_providers.get(ref.provider)
    said = written.local if written else None
    if address is None:
        return True if kind == "embedded" else said
    if said is False or (kind == "ollama" and is_cloud(ref.model)):
        return False
    return is_loopback(split_url(address)[4])


def may_be_free(settings: Settings, provider: str) -> bool:
    """Whether a provider is a server on this machine of which nobody said whether it computes its answers itself (`local`)."""
    written = settings.llm_providers.get(provider)
    if written is None or written.local is not None or (written.kind or provider) == "ollama":
        return False
    try:
        return is_loopback(split_url(written.base_url or "")[4])
    except ConfigError:
        return False


def on_own_link(config: Config, ref: ModelRef) -> bool:
    """Whether a model is served in the own network, which needs no way out of it.

    Raises:
        NotFound, ConfigError: See `Config.served`.
    """
    _, address = config.served(ref.provider)
    if address is None:
        return False
    host = split_url(address)[4]
    number = _number(host)
    return number.is_private if number else bool(OWN_NAME.fullmatch(host))


def network(environ: Mapping[str, str] | None = None, proc: Path = Path("/proc/net")) -> Network:
    """What can be reached from here; `routed` where that can't be told.

    Args:
        environ: Where proxies are looked up: whoever has one needs no route of their own.
        proc: Where Linux tells its routes.
    """
    environ = os.environ if environ is None else environ
    if any(environ.get(name) for name in environ if name.lower() in ("https_proxy", "http_proxy", "all_proxy")):
        return "routed"
    if sys.platform == "linux":
        try:
            routes = [*_ipv4((proc / "route").read_text()), *_ipv6(_text(proc / "ipv6_route"))]
        except (OSError, ValueError, IndexError):
            return "routed"
        return "routed" if any(routes) else "link" if routes else "none"
    return "routed" if any(_routable(text) for text in _addresses()) else "none"


def _ipv4(text: str) -> Iterable[bool]:
    """Of every IPv4 route that leaves this machine, whether it leaves the own network: proc_net_route(5)."""
    for line in text.splitlines()[1:]:
        name, _, _, flags, _, _, _, mask, *_ = line.split()
        if name != "lo" and int(flags, 16) & UP and not int(flags, 16) & REJECT:
            yield bool(int(flags, 16) & GATEWAY) or int(mask, 16).bit_count() <= HALF


def _ipv6(text: str) -> Iterable[bool]:
    """The same of IPv6; link-local and multicast routes are on every interface and lead nowhere."""
    for line in text.splitlines():
        destination, bits, _, _, _, _, _, _, flags, name = line.split()
        nowhere = destination.startswith(("fe8", "ff"))
        if name != "lo" and int(flags, 16) & UP and not int(flags, 16) & REJECT and not nowhere:
            yield bool(int(flags, 16) & GATEWAY) or int(bits, 16) <= HALF


def _text(path: Path) -> str:
    """Empty where the kernel has no IPv6."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _addresses() -> Iterable[str]:
    """Addresses of the interfaces that are up."""
    import psutil

    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    for name, addresses in psutil.net_if_addrs().items():
        if name in up:
            yield from (address.address for address in addresses)


def _routable(text: str) -> bool:
    number = _number(text.partition("%")[0])
    return number is not None and not (number.is_loopback or number.is_link_local)


def _number(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None

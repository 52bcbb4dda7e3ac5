"""Which plugins are installed, as the metadata of their distributions says; imports none of them."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["PROVIDERS", "TOOLS", "EntryPoint", "installed"]

PROVIDERS = "timeline.providers"
TOOLS = "timeline.tools"


class EntryPoint(Struct, frozen=True, order=True):
    """One plugin.

    Args:
        name: What people call it; of a provider: the `kind` of a configuration.
        value: Where its object is: `module:attribute`.
        distribution: What was installed.
        version: Of the distribution.
    """

    name: str
    value: str
    distribution: str = ""
    version: str = ""


def installed(group: str) -> list[EntryPoint]:
    """The plugins of a group, by name. Reads the folders of `sys.path`, which takes some milliseconds.

    Args:
        group: `PROVIDERS` or `TOOLS`.
    """
    from importlib.metadata import entry_points

    found = set()
    for entry in entry_points(group=group):
        dist = entry.dist
        found.add(EntryPoint(entry.name, entry.value, dist.name if dist else "", dist.version if dist else ""))
    return sorted(found)

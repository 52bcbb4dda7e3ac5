"""A folder of installed distributions, as pip leaves them behind, for plugins of tests."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["ToolSite"]


class ToolSite:
    """Distributions with tool plugins.

    Args:
        path: The folder, which the test puts on `sys.path`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.modules: set[str] = set()

    def install(self, name: str, source: str, *, distribution: str | None = None, value: str | None = None) -> None:
        """A distribution with the tool plugin `name`, which is `Made` of a module of its own."""
        distribution = distribution or f"dist-{name}"
        module = re.sub(r"\W", "_", f"{distribution}_{name}_tool")
        self.modules.add(module)
        (self.path / f"{module}.py").write_text(source)
        info = self.path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        with (info / "entry_points.txt").open("a") as file:
            file.write(f"[timeline.tools]\n{name} = {value or f'{module}:Made'}\n")

"""The command line: `timeline`. Only this package knows typer and rich."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line on `sys.argv`; what the installed `timeline` calls."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        # Answered before anything slow is imported.
        from timeline import __version__

        sys.stdout.write(f"timeline {__version__}\n")
        return
    from .app import run

    sys.exit(run())

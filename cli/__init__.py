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
    import signal

    try:
        from .app import run

        code = run()
    except KeyboardInterrupt:
        # Before or after there was anything to record.
        code = 128 + signal.SIGINT
    # Python's own end is no place to be interrupted: it would complain.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)

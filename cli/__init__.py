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

    _open_streams()
    try:
        from .app import run

        code = run()
    except KeyboardInterrupt:
        # Before or after there was anything to record.
        code = 128 + signal.SIGINT
    # Python's own end is no place to be interrupted: it would complain.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _flush()
    sys.exit(code)


def _open_streams() -> None:
    """Let nothing that is opened later take the number of a standard stream that was closed."""
    import os

    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8"))  # noqa: PTH123, SIM115
    # An answer may hold what an encoding other than UTF-8 has no code for.
    if hasattr(sys.stdout, "reconfigure") and not sys.stdout.encoding.lower().startswith("utf"):
        sys.stdout.reconfigure(errors="replace")


def _flush() -> None:
    """Nobody may be left to read; then Python's own end has nothing more to say to them."""
    import os

    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

"""What the commands print, word for word: `*.txt` beside this file are transcripts that people can read.

After a change that is meant, `TIMELINE_UPDATE_GOLDEN=1 pytest tests/golden` writes them anew; look at the difference.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from support.answers import answer, delta, event, refused, stream, usage
from support.command import Backend, Home

HERE = Path(__file__).parent
CHANGING = (
    (r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "<SESSION>"),
    (r"\b01[0-9a-f]{6}-[0-9a-f]{4}(?![0-9a-f-])", "<SESSION-HEAD>"),
    (r"127\.0\.0\.1:\d+", "127.0.0.1:<PORT>"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d", "<TIME>"),
    (r"\d{4}-\d\d-\d\d", "<TODAY>"),
    (r"\b\d+(\.\d)?s\b", "<SECONDS>"),
    (r'("turn_id": )"\w{12}"', r'\1"<TURN>"'),
    (r'("(?:started_at|duration_seconds|time_to_first_token_seconds)": )[\d.e-]+', r"\1<SECONDS>"),
)


class Transcript:
    """Runs commands and writes down what a person would see."""

    def __init__(self, home: Home, backend: Backend) -> None:
        self.home = home
        self.backend = backend
        self.text = ""

    def run(self, *argv: str, stdin: str = "") -> None:
        """A command, what it printed where, and how it ended."""
        result = self.home.run(*argv, stdin=stdin, env={"COLUMNS": "80"})
        self.text += f"$ timeline {shlex.join(argv)}\n{result.out}"
        self.text += "".join(f"2> {line}\n" for line in result.err.splitlines())
        self.text += f"[exit {result.code}]\n" if result.code else ""
        self.text += "\n"

    def says(self, *replies: object) -> None:
        self.backend.says(*replies)  # type: ignore[arg-type]

    def check(self, name: str) -> None:
        """Compare with the file, or write it."""
        actual = self.text.replace(str(self.home.path), "<HOME>")
        for pattern, sign in CHANGING:
            actual = re.sub(pattern, sign, actual)
        # Widths of what changes were padded with spaces.
        actual = "\n".join(line.rstrip() for line in actual.splitlines()) + "\n"
        path = HERE / f"{name}.txt"
        if os.environ.get("TIMELINE_UPDATE_GOLDEN"):
            path.write_text(actual)

        assert path.read_text() == actual


def test_a_conversation(home: Home, backend: Backend) -> None:
    transcript = Transcript(home, backend)
    (home.work / "notes.txt").write_text("remember the milk\n")
    thoughts = (delta(reasoning_content="The user asks "), delta(reasoning_content="about milk."))
    transcript.says(answer("Because of ", "Rayleigh scattering.", tokens=(12, 5)))
    transcript.run("ask", "Why is the sky blue?", "-s", "Be brief")
    transcript.says(stream(*thoughts, "The milk.", delta(finish="stop"), usage(30, 12, reasoning=7), event("[DONE]")))
    transcript.run("ask", "-c", "What did I note?", "-f", "notes.txt")
    transcript.says(stream("One, two, ", delta(finish="length"), usage(40, 3), event("[DONE]")))
    transcript.run("ask", "--session", "last", "Count", "--max-tokens", "3", stdin="to ten\n")
    transcript.run("replay", "last")
    transcript.run("sessions", "rename", "last", "Blue sky")
    transcript.run("sessions", "list")
    transcript.run("sessions", "show", "blue sky", "--json")
    transcript.run("report")
    transcript.run("report", "--by", "session")
    transcript.run("report", "--by", "model", "--csv")
    transcript.run("store", "verify")

    transcript.check("conversation")


def test_what_goes_wrong(home: Home, backend: Backend) -> None:
    transcript = Transcript(home, backend)
    transcript.run("replay", "last")
    transcript.run("ask")
    transcript.run("aks", "Why?")
    transcript.run("ask", "Why?", "-m", "nope:x")
    transcript.run("ask", "Why?", "-m", "openai:gpt-4o")
    transcript.run("ask", "Why?", "-f", "missing.txt")
    transcript.run("ask", "-c", "Why?")
    # Brief: who asks next waits for it.
    transcript.says(refused(429, "Rate limit reached for requests", "rate_limit_exceeded", **{"retry-after": "1"}))
    transcript.run("ask", "Why?")
    transcript.says(refused(401, "Incorrect API key", "invalid_api_key"))
    transcript.run("ask", "Why?")
    transcript.says(stream("Half an ans", b'data: {"error": {"message": "overloaded", "type": "server_error"}}\n\n'))
    transcript.run("ask", "Why?", "--json")
    transcript.run("replay", "last")
    transcript.run("replay", "nope")
    transcript.run("report", "--since", "tomorrow")
    transcript.run("report")

    transcript.check("failures")


def test_what_is_private_or_forgotten(home: Home, backend: Backend) -> None:
    transcript = Transcript(home, backend)
    transcript.says(answer("You are Anna."))
    transcript.run("ask", "Who am I?", "--private")
    transcript.run("replay", "last")
    transcript.says(answer("Paris."))
    transcript.run("ask", "The capital of France?")
    transcript.run("sessions", "forget", "last", stdin="n\n")
    transcript.run("sessions", "forget", "last", "--yes")
    transcript.run("sessions", "show", "last")
    transcript.run("sessions", "list")
    transcript.run("report")

    transcript.check("private")

"""What a prompt is made of: words, standard input and files; and what is refused before anything is asked."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.answers import answer
from support.command import Backend, Home

HOSTILE = {
    "emoji": "Grüße 😀 👩‍👩‍👧",
    "right-to-left": "\u202eabc שלום",
    "ansi": "a\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "nul": "a\0b",
    "newlines": "a\r\nb\u2028c",
    "markup": "[bold]not markup[/bold] {brace} %s 'quote' \"double\"",
    "sql": "'; DROP TABLE events; --",
}


@pytest.fixture(autouse=True)
def reply(backend: Backend) -> None:
    backend.says(answer("Yes"))


def sent(backend: Backend) -> str:
    ((role, text),) = backend.messages()
    assert "user" == role
    return text


@pytest.mark.parametrize(
    ("argv", "stdin", "prompt"),
    [
        (("one", "two"), "", "one two"),
        ((), "piped\n", "piped"),
        (("-",), "piped\n", "piped"),
        (("explain",), "piped\n", "piped\n\nexplain"),
        (("-", "explain"), "piped", "piped\n\nexplain"),
        (("--", "-x", "--json"), "", "-x --json"),
    ],
)
def test_words_and_standard_input_make_the_prompt(
    home: Home, backend: Backend, argv: tuple[str, ...], stdin: str, prompt: str
) -> None:
    result = home.run("ask", *argv, stdin=stdin)

    assert (0, prompt) == (result.code, sent(backend))
    assert [prompt] == home.bodies()


@pytest.mark.parametrize(("argv", "stdin"), [((), ""), (("",), ""), (("  ",), " \n"), (("-",), "")])
def test_nothing_to_ask_is_said(home: Home, backend: Backend, argv: tuple[str, ...], stdin: str) -> None:
    result = home.run("ask", *argv, stdin=stdin)

    assert (2, "") == (result.code, result.out)
    assert result.err.startswith("Error: there is nothing to ask")
    assert ([], 1) == (backend.requests, len(result.err.splitlines()))


@pytest.mark.parametrize("how", ["words", "stdin"])
@pytest.mark.parametrize("name", HOSTILE)
def test_any_text_is_sent_recorded_and_shown_as_it_is(home: Home, backend: Backend, name: str, how: str) -> None:
    text = HOSTILE[name]
    if how == "words" and "\0" in text:
        pytest.skip("no argument holds a NUL")
    backend.says(answer(text[:2], text[2:]))

    result = home.run("ask", *([text] if how == "words" else []), stdin=text if how == "stdin" else "")

    assert (0, text) == (result.code, sent(backend))
    assert (text, [text]) == (home.recorded(), home.bodies())
    # A pipe gets the answer as it is.
    assert text.encode() + b"\n" == result.raw
    assert (text, text) == (
        (turn := home.run("replay", "last", "--json").json()["turns"][0])["prompt"],
        turn["answer"],
    )
    assert 0 == home.run("replay", "last").code
    assert 0 == home.run("sessions", "list").code


def test_words_that_are_no_text_are_refused(home: Home, backend: Backend) -> None:
    result = home.run("ask", os.fsdecode(b"bad \xff byte"))

    assert (2, "", 1) == (result.code, result.out, len(result.err.splitlines()))
    assert "is not UTF-8 text" in result.err
    assert [] == backend.requests


@pytest.mark.parametrize("stdin", [b"\xff\xfe", "\ud83d".encode("utf-8", "surrogatepass")], ids=["bytes", "surrogate"])
def test_standard_input_that_is_no_text_is_refused(home: Home, backend: Backend, stdin: bytes) -> None:
    result = home.run("ask", stdin=stdin)

    assert (2, "", 1) == (result.code, result.out, len(result.err.splitlines()))
    assert "not UTF-8 text" in result.err
    assert [] == backend.requests


def test_a_prompt_of_five_megabytes_is_stored_once(home: Home, backend: Backend) -> None:
    prompt = "word " * 1_000_000

    result = home.run("ask", stdin=prompt)

    assert (0, prompt.strip()) == (result.code, sent(backend))
    assert home.store.stat().st_size < 1.2 * len(prompt)


# ------------------------------------------------------------------ files


def test_a_file_goes_with_the_prompt(home: Home, backend: Backend) -> None:
    (home.work / "a.txt").write_text("file body\n")
    (home.work / "b.md").write_text("other body\n")

    result = home.run("ask", "compare", "-f", "a.txt", "-f", "b.md")

    text = sent(backend)
    assert 0 == result.code
    assert [True] * 5 == [part in text for part in ("a.txt", "file body", "b.md", "other body", "compare")]
    assert {"compare", "file body\n", "other body\n"} == set(home.bodies())
    (turn,) = home.events("turn.started")
    assert [("a.txt", 10), ("b.md", 11)] == [(file["name"], file["size"]) for file in turn["data"]["attachments"]]


def test_a_file_alone_is_enough_to_ask(home: Home, backend: Backend) -> None:
    (home.work / "a.txt").write_text("file body")

    assert 0 == home.run("ask", "-f", "a.txt").code
    assert "file body" in sent(backend)


def test_only_the_files_name_is_recorded_not_where_it_lay(home: Home, backend: Backend) -> None:
    folder = home.work / "customer-acme"
    folder.mkdir()
    (folder / "a.txt").write_text("file body")

    home.run("ask", "x", "-f", str(folder / "a.txt"))

    assert b"customer-acme" not in home.bytes()
    assert "customer-acme" not in sent(backend)


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("missing", 6, "there is no file missing"),
        (
            "https://example.com/a.txt",
            2,
            "-f takes a file, and https://example.com/a.txt is an address: fetch it first",
        ),
        ("binary", 2, "is neither text in UTF-8 nor"),
        ("report.pdf", 2, "report.pdf is a PDF: give its text instead, as pdftotext makes it"),
        (".", 2, "can't be read"),
        ("locked/a", 6, "there is no file"),
    ],
)
def test_a_file_that_can_t_be_attached_is_said(home: Home, backend: Backend, name: str, code: int, said: str) -> None:
    (home.work / "binary").write_bytes(b"\x89PNG\xff\x00")
    (home.work / "report.pdf").write_bytes(b"%PDF-1.4 in ASCII alone")

    result = home.run("ask", "x", "-f", name)

    assert (code, "", 1) == (result.code, result.out, len(result.err.splitlines()))
    assert said in result.err
    assert [] == backend.requests


PIXEL = b"\x89PNG\r\n\x1a\n" + bytes(range(64))


def test_an_image_is_sent_as_one_and_again_with_the_next_turn(home: Home, backend: Backend) -> None:
    (home.work / "picture.png").write_bytes(PIXEL)
    url = "data:image/png;base64," + base64.b64encode(PIXEL).decode()

    home.run("ask", "What is this?", "-f", "picture.png")
    home.run("ask", "-c", "And now?")

    first, second = (request.json()["messages"] for request in backend.requests)
    parts = first[0]["content"]
    assert [url] == [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert ["What is this?"] == [part["text"] for part in parts if part["type"] == "text"]
    assert first[0] == second[0]
    assert 1 == home.bodies().count(PIXEL)


# ------------------------------------------------------------------ standard streams


def shell(home: Home, command: str) -> subprocess.CompletedProcess[bytes]:
    """A command in a real shell; `timeline` is ours."""
    line = command.replace("timeline", f"{sys.executable} -m timeline_cli", 1)
    return subprocess.run(
        ["bash", "-c", line], env=home.env, cwd=home.work, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )


@pytest.mark.parametrize(
    ("argv", "closed", "code", "out"),
    [
        (("hi",), (0,), 0, "Yes\n"),
        ((), (0,), 2, ""),
        (("hi",), (1,), 0, ""),
        (("hi",), (2,), 0, "Yes\n"),
        (("hi",), (0, 1, 2), 0, ""),
    ],
)
def test_closed_standard_streams_hurt_nobody(
    home: Home, argv: tuple[str, ...], closed: tuple[int, ...], code: int, out: str
) -> None:
    result = home.run("ask", *argv, closed=closed)

    assert (code, out) == (result.code, result.out)
    assert len(result.err.splitlines()) <= (2 not in closed)
    if code == 0:
        assert "response.completed" == home.end()["type"]
        assert 0 == home.run("store", "verify").code


def test_an_interpreter_without_any_standard_stream_works_all_the_same(home: Home) -> None:
    done = shell(home, "timeline ask hi <&- >&- 2>&-")

    assert (0, b"", b"") == (done.returncode, done.stdout, done.stderr)
    assert "response.completed" == home.end()["type"]
    assert 0 == home.run("store", "verify").code


@pytest.mark.parametrize(("options", "fresh"), [((), True), (("--json",), False)], ids=["text", "json"])
def test_output_without_room_is_said_and_recorded(home: Home, options: tuple[str, ...], fresh: bool) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")

    with Path("/dev/full").open("wb") as full:
        process = home.start("ask", "hi", *options, stdout=full, fresh=fresh)

        assert 1 == process.wait()
    assert 1 == len(process.errors().splitlines())
    assert "No space left on device" in process.errors()
    assert home.end()["type"] in ("call.interrupted", "response.completed")

"""What a person sees: the whole answer exactly once, whatever the terminal's size, colours and moods."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.answers import FOREVER, answer, delta, event, refused, stream, usage
from support.command import Backend, Home, Zygote
from support.terminal import ESCAPE, Terminal
from timeline_cli.output import at_words

WORDS = [f"w{number:03}" for number in range(160)]
ANSWERS = {
    "a paragraph": " ".join(WORDS),
    "paragraphs": "\n\n".join(" ".join(WORDS[start : start + 20]) for start in range(0, 160, 20)),
    "a list": "\n".join(f"- {word}" for word in WORDS),
    "a numbered list": "\n".join(f"{number}. {word}" for number, word in enumerate(WORDS, 1)),
    "code": "Here:\n\n```python\n" + "\n".join(f"x = '{word}'" for word in WORDS) + "\n```\n",
    "code that never ends": "```\n" + "\n".join(WORDS),
    "a table": "| a | b |\n|---|---|\n"
    + "\n".join(f"| {one} | {two} |" for one, two in zip(WORDS[::2], WORDS[1::2], strict=True)),
    "headings": "\n\n".join(
        f"# {word}\n\n**{other}** text" for word, other in zip(WORDS[:60:2], WORDS[1:60:2], strict=True)
    ),
    "one line after another": "\n".join(WORDS),
}


def pieces(text: str) -> list[str]:
    """The text as it comes: a few characters at a time, also across words."""
    return [text[start : start + 5] for start in range(0, len(text), 5)]


def seen(terminal: Terminal) -> list[str]:
    """The words on the screen and above it, in their order."""
    return re.findall(r"w\d{3}", terminal.text)


@pytest.mark.parametrize("columns", [60, 100])
@pytest.mark.parametrize("name", ANSWERS)
def test_the_whole_answer_stands_there_once(home: Home, backend: Backend, name: str, columns: int) -> None:
    text = ANSWERS[name]
    backend.says(stream(*pieces(text), delta(finish="stop"), usage(), event("[DONE]")))

    with Terminal(home, "ask", "a question", columns=columns, rows=24) as terminal:
        code = terminal.wait()

        assert 0 == code, terminal.text
        assert re.findall(r"w\d{3}", text) == seen(terminal)
        assert "5↑ 2↓" in terminal.text
        assert max(map(len, terminal.lines)) <= columns
        assert not terminal.cursor_hidden
    assert text == home.recorded()


def test_an_answer_shows_while_it_comes(home: Home, backend: Backend) -> None:
    backend.says(stream("The **begin", "ning** of", " a sentence", FOREVER))

    with Terminal(home, "ask", "a question") as terminal:
        terminal.wait_for("The beginning of a sentence")
        terminal.type("\x03")

        assert 130 == terminal.wait(10)
        assert 1 == terminal.text.count("The beginning of a sentence")
        assert "Traceback" not in terminal.text
        assert not terminal.cursor_hidden
    assert "sigint" == home.end()["data"]["reason"]


def test_ctrl_c_typed_twice_is_recorded_once(home: Home, backend: Backend) -> None:
    backend.says(stream("Hello ", "world", FOREVER))

    with Terminal(home, "ask", "a question") as terminal:
        terminal.wait_for("Hello world")
        terminal.type("\x03")
        terminal.type("\x03")

        assert 130 == terminal.wait(10)
        assert "Traceback" not in terminal.text
    assert ("sigint", "Hello world") == (home.end()["data"]["reason"], home.recorded())


def test_a_closed_window_is_recorded(home: Home, backend: Backend) -> None:
    backend.says(stream("Hello ", "world", FOREVER))

    with Terminal(home, "ask", "a question") as terminal:
        terminal.wait_for("Hello world")
        # The terminal goes away: the kernel sends SIGHUP, and writing fails.
        terminal.hang_up()

        assert terminal.exit_code() in (1, 129)
    assert ("call.interrupted", "closed") == (home.end()["type"], home.end()["data"]["reason"])


@pytest.mark.parametrize(("columns", "rows"), [(40, 24), (120, 40), (20, 6)])
def test_a_window_that_is_resized_breaks_nothing(home: Home, backend: Backend, columns: int, rows: int) -> None:
    text = ANSWERS["paragraphs"]
    begin, rest = text[:300], text[300:]
    backend.says(stream(*pieces(begin), 0.6, *pieces(rest), delta(finish="stop"), usage(), event("[DONE]")))

    with Terminal(home, "ask", "a question", columns=80, rows=24) as terminal:
        terminal.wait_for("w040")
        terminal.resize(columns, rows)

        assert 0 == terminal.wait(), terminal.text
        # What comes after is whole; a line that the window cut may stand there twice.
        after = [word for word in seen(terminal) if word >= "w080"]
        assert WORDS[80:] == list(dict.fromkeys(after))
        assert not terminal.cursor_hidden
    assert text == home.recorded()


# ------------------------------------------------------------------ colours

COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m\d]*")
RICH = "# Title\n\n**bold** and `code`\n\n- [link](http://localhost/)\n\n```python\nx = 1\n```\n"
SHOWN = [("ask", "a question"), ("replay", "last"), ("sessions", "list"), ("report",), ("ask", "hi", "-m", "nope:x")]


@pytest.fixture(scope="module")
def store_of_a_turn(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote, running_backend: Backend) -> Path:
    """A store in which one question was asked; to be copied."""
    with Home(tmp_path_factory.mktemp("used") / "home", zygote, running_backend.url) as home:
        running_backend.says(answer(*pieces(RICH)))
        assert 0 == home.run("ask", "a question").code
        return home.store


@pytest.fixture
def used(home: Home, backend: Backend, store_of_a_turn: Path) -> Home:
    backend.says(answer(*pieces(RICH)))
    shutil.copy(store_of_a_turn, home.store)
    return home


def test_a_terminal_gets_colours(used: Home) -> None:
    with Terminal(used, "replay", "last") as terminal:
        assert 0 == terminal.wait()
        assert COLOUR.search(terminal.raw)


@pytest.mark.parametrize("argv", SHOWN, ids=" ".join)
def test_no_color_gets_none(used: Home, argv: tuple[str, ...]) -> None:
    with Terminal(used, *argv, env={"NO_COLOR": "1"}) as terminal:
        terminal.wait()
        assert None is COLOUR.search(terminal.raw)


@pytest.mark.parametrize("argv", SHOWN, ids=" ".join)
def test_a_dumb_terminal_gets_text_alone(used: Home, argv: tuple[str, ...]) -> None:
    with Terminal(used, *argv, env={"TERM": "dumb"}) as terminal:
        terminal.wait()
        assert [] == terminal.escapes
        if argv[0] == "ask" and "-m" not in argv:
            assert 1 == terminal.text.count("Title")


def test_force_color_colours_a_pipe_and_leaves_the_answer_alone(used: Home) -> None:
    listed = used.run("replay", "last", env={"FORCE_COLOR": "1"}, fresh=True)
    asked = used.run("ask", "a question", env={"FORCE_COLOR": "1"})

    assert COLOUR.search(listed.raw)
    assert RICH == asked.out


def test_a_pipe_gets_neither_colours_nor_markdown(used: Home) -> None:
    for argv in SHOWN[:4]:
        result = used.run(*argv)
        assert b"\x1b" not in result.raw
        assert "\x1b" not in result.err
    assert used.run("ask", "a question").out == RICH


# ------------------------------------------------------------------ width


@pytest.fixture(scope="module")
def long_names(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote, running_backend: Backend) -> Iterator[Home]:
    """Three questions and a model with names longer than any line, and large numbers."""
    with Home(tmp_path_factory.mktemp("long") / "home", zygote, running_backend.url) as home:
        running_backend.says(answer("Yes", tokens=(123_456_789, 1_234_567)))
        for number in range(3):
            title = f"a question with a very long title, longer than any line, number {number}"
            assert 0 == home.run("ask", title, "-m", "t:" + "m" * 50).code
        yield home


@pytest.mark.parametrize("columns", [40, 60])
@pytest.mark.parametrize(
    "argv",
    [("report",), ("report", "--by", "session"), ("report", "--by", "model"), ("sessions", "list")],
    ids=" ".join,
)
def test_tables_fit(long_names: Home, argv: tuple[str, ...], columns: int) -> None:
    with Terminal(long_names, *argv, columns=columns) as terminal:
        assert 0 == terminal.wait()
        notices = ("estimates", "price", "left out for the width")
        drawn = [line for line in terminal.raw.decode().split("\r\n") if not any(words in line for words in notices)]
        assert max(len(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line)) for line in drawn) <= columns, terminal.text
        if argv == ("report",):
            # A figure stands there whole, or its column is said to be left out.
            assert "3,703,701 " in terminal.text
            assert (columns == 60) == ("370,370,367 " in terminal.text)
            assert (columns == 40) == ("left out for the width: input;" in terminal.text)


# ------------------------------------------------------------------ sentences


@pytest.mark.parametrize("columns", [40, 60])
def test_sentences_break_between_words_and_never_in_a_path(home: Home, columns: int) -> None:
    file = home.work / ("a-name-that-is-longer-than-any-line-of-this-terminal-can-be" * 2)
    argv = ("ask", "hi", "-f", str(file))
    with Terminal(home, *argv, columns=columns) as terminal:
        assert 6 == terminal.wait()
        lines = ESCAPE.sub(b"", terminal.raw).decode().rstrip().split("\r\n")

    assert home.run(*argv).err.split() == " ".join(lines).split()
    assert len(lines) > 2
    assert all(len(line) <= columns or line == str(file) + ":" for line in lines), lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("one two three", "one two\nthree"),
        ("  one two three", "  one\ntwo\nthree"),
        ("one\ntwo three four", "one\ntwo\nthree\nfour"),
        ("a/path/that/is/long is", "a/path/that/is/long\nis"),
        ("is a/path/that/is/long", "is\na/path/that/is/long"),
        ("二三 四五 six", "二三\n四五 six"),
        ("one  two", "one  two"),
        ("run 'timeline keys set' now", "run\n'timeline keys set'\nnow"),
        ("it ('a b c d' says)", "it\n('a b c d'\nsays)"),
        ("can't be, won't be", "can't\nbe,\nwon't be"),
        ("kept: timeline replay 0193b3f0", "kept:\ntimeline replay 0193b3f0"),
    ],
)
def test_a_sentence_is_broken_where_its_words_end(text: str, expected: str) -> None:
    assert expected == at_words(text, 8)


# ------------------------------------------------------------------ what else a terminal meets


def test_waiting_shows_who_is_asked_and_leaves_no_trace(home: Home, backend: Backend) -> None:
    backend.says(answer("Yes", before=0.7))

    with Terminal(home, "ask", "a question") as terminal:
        terminal.wait_for("t:m")
        assert 0 == terminal.wait()
        assert ["Yes"] == [line for line in terminal.lines if line and "5↑" not in line]


def test_reasoning_stands_before_the_answer(home: Home, backend: Backend) -> None:
    thoughts = [delta(reasoning_content=f"thought{number} ") for number in range(5)]
    backend.says(stream(*thoughts, "The ", "answer", delta(finish="stop"), usage(), event("[DONE]")))

    with Terminal(home, "ask", "a question") as terminal:
        assert 0 == terminal.wait()
        assert [1] * 6 == [terminal.text.count(text) for text in (*(f"thought{n}" for n in range(5)), "The answer")]
        assert terminal.text.index("thought4") < terminal.text.index("The answer")


def test_an_error_stands_alone(home: Home, backend: Backend) -> None:
    backend.says(refused(500, "boom"))

    with Terminal(home, "ask", "a question", columns=200) as terminal:
        assert 1 == terminal.wait()
        (line,) = [line for line in terminal.lines if line]
        assert line.startswith("Error: t failed (500)")


def test_plain_leaves_the_markdown_as_it_is(home: Home, backend: Backend) -> None:
    backend.says(answer(*pieces(RICH)))

    with Terminal(home, "ask", "a question", "--plain") as terminal:
        assert 0 == terminal.wait()
        assert [line for line in RICH.splitlines() if line] == [
            line for line in terminal.lines if line and "5↑" not in line
        ]


def test_nothing_to_ask_does_not_wait_for_a_person(home: Home) -> None:
    with Terminal(home, "ask") as terminal:
        assert 2 == terminal.wait(20)
        assert "there is nothing to ask" in " ".join(terminal.text.split())


def test_a_dash_reads_what_is_typed(home: Home, backend: Backend) -> None:
    backend.says(answer("Yes"))

    with Terminal(home, "ask", "-") as terminal:
        time.sleep(1)
        terminal.type("typed by hand\n\x04")

        assert 0 == terminal.wait()
    assert [("user", "typed by hand")] == backend.messages()


HOSTILE = "before \x1b]0;owned\x07\x1b[2J\x1b[31mred\x1b[0m \x9b31mC1 \x08\x08 a\rb \u202eafter"


@pytest.mark.parametrize("options", [(), ("--plain",)], ids=["markdown", "plain"])
def test_an_answer_can_t_steer_the_terminal(home: Home, backend: Backend, options: tuple[str, ...]) -> None:
    backend.says(answer("first line\n\n", HOSTILE, "\n\nlast line"))

    with Terminal(home, "ask", "a question", *options, env={"NO_COLOR": "1"}) as terminal:
        assert 0 == terminal.wait()
        assert "owned" != terminal.screen.title
        assert b"\x1b[2J" not in terminal.raw
        assert b"\x1b]0;" not in terminal.raw
        assert b"\xc2\x9b" not in terminal.raw
        assert "\u202e".encode() not in terminal.raw
        assert "first line" in terminal.text
        assert "last line" in terminal.text
    # The record has it as it came.
    assert HOSTILE in home.recorded()


@pytest.mark.parametrize("argv", [("replay", "last"), ("sessions", "list"), ("sessions", "show", "last")], ids=" ".join)
def test_what_was_recorded_can_t_steer_it_either(home: Home, backend: Backend, argv: tuple[str, ...]) -> None:
    backend.says(answer(HOSTILE))
    home.run("ask", HOSTILE.replace("before", "prompt"), stdin="")

    with Terminal(home, *argv) as terminal:
        assert 0 == terminal.wait()
        assert "owned" != terminal.screen.title
        assert b"\x1b[2J" not in terminal.raw
        assert b"\x1b]0;" not in terminal.raw

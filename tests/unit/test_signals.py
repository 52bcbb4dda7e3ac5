"""What a text says by itself: sums, dates, files, listings, earlier conversations, addresses; and what only looks like them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from timeline.cognition.signals import (
    arithmetic,
    asks_about_the_past,
    asks_for_date_or_time,
    asks_for_listing,
    paths_in,
    signals,
    urls_in,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "docs").mkdir()
    for name in ("notes.txt", "README.md", "src/main.py", "docs/guide.md", "release_notes"):
        (tmp_path / name).write_text("x\n")
    return tmp_path


def tools(text: str, folder: Path | None = None) -> list[str]:
    return [signal.tool for signal in signals(text, folder) if signal.certain]


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("What is 12*7?", "12*7"),
        ("what is 15% of 240, and what day is it?", "0.15*240"),
        ("12 times 7", "12*7"),
        ("how much is three plus four", "3+4"),
        ("square root of 144", "sqrt(144)"),
        ("divide 100 by 7", "100/7"),
        ("the sum of 3, 4, and 5 divided by 2", "(3+4+5)/2"),
        ("(3+4)*5 - 2", "(3+4)*5-2"),
        ("2 to the power of 10", "2**10"),
        ("what's 2 to the 10th power?", "2**10"),
        ("7 factorial", "factorial(7)"),
        ("20% off 50", "(1-0.2)*50"),
        ("what's a 15% tip on a $56.50 bill?", "0.15*56.50"),
        ("what percent of 80 is 20", "20/80*100"),
        ("increase 80 by 10%", "80*(1+0.1)"),
        ("subtract 3 from 10", "10-3"),
        ("twenty-five times one hundred and five", "25*105"),
        ("1,234 + 5", "1234+5"),
        ("two thirds of 90", "2/3*90"),
        ("12 squared", "12**2"),
        ("how many times does 7 go into 84", "84/7"),
        ("144 ÷ 12", "144/12"),
        ("what is 4 x 12?", "4*12"),
        ("10-3", "10-3"),
    ],
)
def test_a_sum_is_found_and_normalised(text: str, expression: str) -> None:
    assert expression == arithmetic(text)
    assert "calculator" in tools(text)


@pytest.mark.parametrize(
    "text",
    [
        "Tell me a joke",
        "write a poem about the year 1984",
        "What is Python 3.11?",
        "who won the 2010 world cup",
        "explain 24/7 support",
        "call 555-1234",
        "my number is +1 (415) 555-2671",
        "What is a 4x4?",
        "a 9-5 job",
        "the 1939-1945 war",
        "Why is 2+2 4?",
        "what does print(2*3) do in python?",
        "COVID-19 and GPT-4",
        "the meeting is on 2026-12-25 at 12:30",
        "what is a 50/50 chance?",
        "connect to 192.168.0.1",
        "upgrade from v2.0 to v2.1-3",
        "What happened on 9/11?",
    ],
)
def test_what_only_looks_like_a_sum_is_none(text: str) -> None:
    assert None is arithmetic(text)
    assert [] == tools(text)


@pytest.mark.parametrize(
    "text",
    [
        "what day is it today?",
        "What's the date?",
        "what time is it in Tokyo",
        "time",
        "tell me the current time please",
        "how many days until Christmas?",
        "is it Friday yet?",
        "wat time is it rn",
        "are we already past the 20th?",
        "I need the current year for a form",
        "what year is it",
        "how old am I if I was born in 1990",
        "what day of the week will it be in 10 days?",
    ],
)
def test_a_wish_for_the_date_or_the_time_is_found(text: str) -> None:
    assert ["clock"] == tools(text)


@pytest.mark.parametrize(
    "text",
    [
        "what is the time complexity of quicksort",
        "what is a date palm",
        "describe a day in the life of a baker",
        "How many days are in a leap year?",
        "Translate 'what time is it' into French",
        "how do I get the current time in Python?",
        "how are you today?",
        "what is the best time to visit Japan?",
        "what year did Titanic come out?",
        "what films came out this year?",
        "what should I cook tonight?",
        "What was the date of the moon landing?",
    ],
)
def test_what_only_sounds_like_a_date_is_none(text: str) -> None:
    found = asks_for_date_or_time(text)

    assert found is None or not found.certain


@pytest.mark.parametrize(
    "text",
    [
        "I weigh 180 pounds, how many kilos is that?",
        "My bill came to $47.20. What's a 15 percent tip?",
        "Sarah runs 5 km every day. How many km does she run in 30 days?",
        "calculate the area of a circle with radius 5",
    ],
)
def test_reckoning_in_words_is_for_the_calculator_and_leaves_the_expression_to_the_model(text: str) -> None:
    [signal] = signals(text)

    assert ("calculator", None, True) == (signal.tool, signal.arguments, signal.certain)


def test_two_wishes_in_one_text_are_both_found(folder: Path) -> None:
    assert ["calculator", "clock"] == tools("What is 15% of 240, and what day is it?")
    assert ["clock", "read_file"] == tools("read notes.txt and tell me what day it is", folder)


def test_a_file_is_found_by_its_name_alone_or_because_it_is_there(folder: Path) -> None:
    [named] = signals("read missing.txt and tell me the second line", folder)
    [there] = signals("release_notes, the second line?", folder)

    assert ("read_file", {"path": "missing.txt"}, True) == (named.tool, named.arguments, named.certain)
    assert ("read_file", {"path": "release_notes"}, True) == (there.tool, there.arguments, there.certain)
    assert "there" in there.reason


@pytest.mark.parametrize(
    "text",
    [
        "What is package.json used for?",
        "how do I write a Makefile",
        "what is Node.js",
        "is it and/or?",
        "what does e.g. mean",
        "create a file called x.txt",
    ],
)
def test_a_file_that_is_only_spoken_of_is_not_read(text: str, folder: Path) -> None:
    assert [] == tools(text, folder)


def test_paths_are_told_from_words_with_dots_and_slashes(folder: Path) -> None:
    found = paths_in("see ./docs/guide.md, src/ and 'my notes.txt', not node.js, v3.11 or example.com/a.html", folder)

    assert ["./docs/guide.md", "src/", "my notes.txt"] == [path.path for path in found]
    assert [True, True, False] == [path.exists for path in found]
    assert [False, True, False] == [path.folder for path in found]


@pytest.mark.parametrize("text", ["what is in \0x.txt", "read " + "a" * 5000 + ".txt", "read ~nobody-here/x.txt"])
def test_a_path_that_no_system_takes_is_a_path_that_is_not_there(text: str, folder: Path) -> None:
    assert not any(path.exists for path in paths_in(text, folder))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("list the files here", None),
        ("what's in this folder?", None),
        ("ls", None),
        ("what's in src/?", "src/"),
        ("which files are in the docs folder?", "docs"),
    ],
)
def test_a_wish_for_a_listing_is_found_with_its_folder(text: str, path: str | None, folder: Path) -> None:
    [signal] = signals(text, folder)

    assert asks_for_listing(text)
    assert ("list_files", True) == (signal.tool, signal.certain)
    assert path == (signal.arguments or {}).get("path")


@pytest.mark.parametrize("text", ["list three fruits", "how do I list files in Linux", "what is a directory?"])
def test_what_only_sounds_like_a_listing_is_none(text: str) -> None:
    assert not asks_for_listing(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("what did I ask you about rust?", "rust"),
        ("did we talk about Kubernetes?", "Kubernetes"),
        ("earlier you said something about cats", "cats"),
        ("remind me what we said about docker compose", "docker compose"),
        ("what was my first question?", ""),
        ("which of my questions were about Java?", "Java"),
        ("A while back I told you my shoe size.", "shoe size"),
        ("what did we discuss this week?", ""),
    ],
)
def test_a_question_about_the_past_gives_the_words_to_look_for(text: str, words: str) -> None:
    assert words == asks_about_the_past(text)


@pytest.mark.parametrize(
    "text",
    [
        "remember that my name is Ada",
        "what did Einstein say about god?",
        "what did I do wrong here: x = 1",
        "did we land on the moon?",
    ],
)
def test_another_past_is_none(text: str) -> None:
    assert None is asks_about_the_past(text)


def test_addresses_are_found_with_and_without_their_scheme() -> None:
    assert ("https://a.example/x?y=1", "example.com/b") == urls_in("get https://a.example/x?y=1, then example.com/b.")
    assert {"url": "https://example.com"} == signals("open example.com")[0].arguments


@pytest.mark.parametrize(
    "text", ["is https://example.com a valid URL?", "write a regex that matches https://example.com"]
)
def test_an_address_that_is_only_spoken_of_leaves_a_doubt(text: str) -> None:
    assert [False] == [signal.certain for signal in signals(text)]


@pytest.mark.parametrize(
    "piece", ["(1+", "-", "half of ", "1,", "we said ", "how many days ", "a/", "'a/", "sum of 1, ", "2^"]
)
def test_hostile_text_takes_bounded_time(piece: str) -> None:
    begun = time.process_time()
    signals(piece * (100_000 // len(piece)))

    assert time.process_time() - begun < 5

"""What a line of a batch's file may be, and what is said of one that is none."""

from __future__ import annotations

import io
import json

import pytest

from timeline.cognition.prompt_file import Prompt, PromptFile
from timeline.errors import UsageError


def read(text: str | bytes, defaults: Prompt | None = None) -> PromptFile:
    return PromptFile(io.BytesIO(text.encode() if isinstance(text, str) else text), "p.jsonl", defaults)


def test_a_line_is_an_object_or_a_string() -> None:
    file = read('{"prompt": "one", "id": "a", "model": "t:m", "max_tokens": 5, "temperature": 0.5, "seed": 7}\n"two"\n')

    assert [Prompt("one", "a", "t:m", None, 5, 0.5, 7), Prompt("two")] == list(file)


def test_empty_lines_and_a_byte_order_mark_are_no_prompts_and_lines_keep_their_numbers() -> None:
    file = read(b'\xef\xbb\xbf"one"\r\n\r\n  \n"two"')

    assert ["one", "two"] == [prompt.prompt for prompt in file]
    assert [1, 4] == [file.line(index) for index in range(2)]


def test_what_a_line_says_wins_over_the_command_line() -> None:
    defaults = Prompt("", "ignored", "t:default", "Be brief", 9, 0.0, 1)
    file = read('{"prompt": "one", "model": "t:own", "temperature": 1}\n"two"', defaults)

    assert Prompt("one", None, "t:own", "Be brief", 9, 1.0, 1) == file[0]
    assert Prompt("two", None, "t:default", "Be brief", 9, 0.0, 1) == file[1]


def test_lines_can_be_read_in_any_order() -> None:
    file = read("".join(f'"{number}"\n' for number in range(9)))

    assert ["8", "0", "5"] == [file[index].prompt for index in (8, 0, 5)]
    assert ["1", "2"] == [prompt.prompt for prompt in file[1:3]]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "x", "max_token": 5}', 'it has no field "max_token", choose from prompt, id, model'),
        ('{"id": 1}', 'it has no "prompt"'),
        ('{"prompt": 3}', "prompt: expected str, got int"),
        ('{"prompt": "x", "temperature": 3}', "temperature: expected float <= 2.0"),
        ('{"prompt": "x", "max_tokens": 0}', "max_tokens: expected int >= 1"),
        ('{"prompt": "x", "seed": 99999999999999999999}', "seed: expected int <= 9223372036854775807"),
        ('{"prompt": "x", "id": 1.5}', "id: expected int | str | null, got float"),
        ('"  "', "its prompt is empty"),
        ("[1]", "expected str | object, got array"),
        ("nonsense", "write a JSON object or string"),
        ('"\\ud800"', "write a JSON object or string"),
    ],
)
def test_a_line_that_is_no_prompt_is_named_with_its_number_and_what_is_wrong(line: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(f'"fine"\n{line}\n')

    assert str(caught.value).startswith(f"line 2 of p.jsonl is no prompt: {said}")


def test_of_many_bad_lines_the_first_is_told_and_how_many_more_there_are() -> None:
    with pytest.raises(UsageError, match=r"^line 2 of .* is empty \(2 more lines are none either\)$"):
        read('"fine"\n""\n"fine"\n""\n""\n')


def test_bytes_that_are_no_text_are_no_prompt() -> None:
    with pytest.raises(UsageError, match=r"line 1 of p\.jsonl is no prompt: write a JSON object"):
        read(b'"\xff"\n')


def test_a_file_without_a_prompt_is_refused() -> None:
    with pytest.raises(UsageError, match=r"p\.jsonl holds no prompt: write a line like"):
        read("\n\n")


def test_a_file_that_is_changed_meanwhile_is_noticed() -> None:
    stream = io.BytesIO(b'"one"\n"two"\n')
    file = PromptFile(stream, "p.jsonl")
    stream.seek(0)
    stream.write(b"12345")

    with pytest.raises(UsageError, match=r"p\.jsonl was changed while its prompts were asked"):
        file[0]


def test_a_hundred_thousand_lines_are_kept_as_their_places_alone() -> None:
    text = "".join(json.dumps({"prompt": f"{number} {'x' * 50}"}) + "\n" for number in range(100_000))
    file = read(text)

    assert (100_000, f"99999 {'x' * 50}") == (len(file), file[99_999].prompt)
    assert 16 * 100_000 == sum(len(kept) * kept.itemsize for kept in (file._offsets, file._numbers))

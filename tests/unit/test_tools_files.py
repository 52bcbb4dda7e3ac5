"""Reading and listing files: what is inside is given, and nothing leads out, hangs or fills the memory."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from timeline.cognition.builtin import files
from timeline.cognition.builtin.files import LARGEST, ListFiles, ReadFile
from timeline.cognition.tools import ToolResult, Workspace
from timeline.errors import ToolError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "work"
    made.mkdir()
    (made / "notes.txt").write_text("one\nzwei: äöü\nthree\n")
    (made / "sub").mkdir()
    (made / "sub/deep.md").write_text("# Deep")
    (tmp_path / "secret.txt").write_text("the secret")
    return made


async def read(folder: Path, path: str, *allowed: Path, **lines: int) -> ToolResult:
    return await asyncio.wait_for(ReadFile().run({"path": path, **lines}, Workspace(folder, allowed)), 5)


async def listed(folder: Path, **arguments: Any) -> list[str]:
    return (await asyncio.wait_for(ListFiles().run(arguments, Workspace(folder)), 5)).text.splitlines()


# ------------------------------------------------------------------ reading


@pytest.mark.parametrize("path", ["notes.txt", "./notes.txt", "sub/../notes.txt", "{folder}/notes.txt"])
async def test_a_file_inside_is_read(folder: Path, path: str) -> None:
    assert "one\nzwei: äöü\nthree\n" == (await read(folder, path.format(folder=folder))).text


async def test_one_line_is_a_fact(folder: Path) -> None:
    result = await read(folder, "notes.txt", first_line=2, last_line=2)

    assert ToolResult("zwei: äöü", fact="zwei: äöü") == result


@pytest.mark.parametrize(
    ("question", "arguments"),
    [
        ("read notes.txt and tell me the second line", {"path": "notes.txt", "first_line": 2, "last_line": 2}),
        ("what does line 3 of notes.txt say?", {"path": "notes.txt", "first_line": 3, "last_line": 3}),
        ("read notes.txt", {"path": "notes.txt"}),
        ("compare the first line of notes.txt with the third line", {"path": "notes.txt"}),
    ],
)
def test_a_question_says_which_line(folder: Path, question: str, arguments: dict[str, Any]) -> None:
    signal = ReadFile().signal(question, Workspace(folder))

    assert signal is not None
    assert arguments == signal.arguments


async def test_lines_from_one_to_another(folder: Path) -> None:
    assert "zwei: äöü\nthree" == (await read(folder, "notes.txt", first_line=2)).text
    assert "one\nzwei: äöü" == (await read(folder, "notes.txt", last_line=2)).text


async def test_a_line_that_isnt_there_is_said_with_how_many_there_are(folder: Path) -> None:
    with pytest.raises(ToolError, match="has 3 lines, and so no line 4"):
        await read(folder, "notes.txt", first_line=4, last_line=4)


async def test_a_link_that_stays_inside_is_followed(folder: Path) -> None:
    (folder / "link.md").symlink_to("sub/deep.md")
    (folder / "other").symlink_to("sub")

    assert "# Deep" == (await read(folder, "link.md")).text
    assert "# Deep" == (await read(folder, "other/deep.md")).text


async def test_an_allowed_folder_is_read_too(folder: Path, tmp_path: Path) -> None:
    assert "the secret" == (await read(folder, "../secret.txt", tmp_path)).text
    assert "the secret" == (await read(folder, str(tmp_path / "secret.txt"), tmp_path)).text


@pytest.mark.parametrize(
    "path",
    ["../secret.txt", "../../../../../../etc/passwd", "/etc/passwd", "~/x", "sub/../../secret.txt", "/dev/zero", "\0"],
)
async def test_nothing_outside_is_read(folder: Path, path: str) -> None:
    with pytest.raises(ToolError, match=r"outside of the folders that may be read|zero byte"):
        await read(folder, path)


async def test_what_exists_outside_isnt_told_from_what_doesnt(folder: Path) -> None:
    with pytest.raises(ToolError) as there:
        await read(folder, "../secret.txt")
    with pytest.raises(ToolError) as missing:
        await read(folder, "../nothing.txt")

    assert str(there.value).replace("secret", "nothing") == str(missing.value)


async def test_a_link_leading_out_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "way").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop")

    for path in ("link.txt", "way/secret.txt", "loop"):
        with pytest.raises(ToolError):
            await read(folder, path)


@pytest.mark.parametrize("name", ["sub", "notes.txt"])
def test_a_link_put_in_place_after_the_path_was_judged_leads_nowhere(folder: Path, tmp_path: Path, name: str) -> None:
    path = "sub/deep.md" if name == "sub" else name
    (tmp_path / "deep.md").write_text("the secret")
    judged = files._place(path, Workspace(folder))
    (folder / name).rename(folder / "spare")
    (folder / name).symlink_to(tmp_path if name == "sub" else tmp_path / "secret.txt")

    with pytest.raises(ToolError):
        os.close(files._opened(judged, path, folder=False))


async def test_nothing_but_plain_files_is_read(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "socket"))

        for path, what in (("pipe", "a named pipe"), ("sub", "a folder"), (".", "a folder"), ("socket", "a socket")):
            with pytest.raises(ToolError, match=what):
                await read(folder, path)


def test_a_pipe_put_in_place_of_a_file_meanwhile_is_opened_without_waiting(folder: Path) -> None:
    os.mkfifo(folder / "pipe")

    os.close(os.open(folder / "pipe", files._OPEN))


async def test_a_device_is_refused_even_where_it_is_allowed(folder: Path) -> None:
    for device in ("zero", "null", "urandom"):
        with pytest.raises(ToolError, match="a device"):
            await read(folder, f"/dev/{device}", Path("/dev"))


@pytest.mark.parametrize("path", ["/proc/self/environ", "/proc/kmsg", "/proc/self/cwd/etc/passwd", "/sys/kernel/notes"])
async def test_the_systems_own_views_are_no_files_even_where_all_is_allowed(folder: Path, path: str) -> None:
    (folder / "etc").mkdir()
    with pytest.raises(ToolError):
        await read(folder, path, Path("/"))


@pytest.mark.parametrize("path", [".env", ".ssh/id_rsa", "sub/.aws/credentials", "keys.json", "link.json"])
async def test_keys_and_passwords_are_read_by_no_tool(folder: Path, path: str) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / "keys.json").write_text("secret")
    if path == "link.json":
        (folder / path).symlink_to("keys.json")
    else:
        (folder / path).write_text("secret")
    tool = ReadFile(private=[folder / "keys.json"])

    with pytest.raises(ToolError, match="may hold keys or passwords"):
        await tool.run({"path": path}, Workspace(folder))


@pytest.mark.parametrize("data", [b"\xff\xfeh\0i\0", b"GIF89a\0\0", b"caf\xe9", b"\x80" * 100])
async def test_what_is_no_text_is_refused(folder: Path, data: bytes) -> None:
    (folder / "data").write_bytes(data)

    with pytest.raises(ToolError, match="no text in UTF-8"):
        await read(folder, "data")


async def test_a_huge_file_is_cut_and_says_so(folder: Path) -> None:
    with (folder / "huge.txt").open("wb") as file:
        file.write("ä".encode() * (LARGEST // 2 - 1) + b"x")
        file.write("ö".encode())
        file.truncate(1 << 40)

    result = await read(folder, "huge.txt")

    assert result.truncated
    assert result.text.endswith("x\n[cut here: huge.txt goes on after 2 MiB]")


async def test_what_cant_be_opened_is_said(folder: Path) -> None:
    with pytest.raises(ToolError, match="isn't there"):
        await read(folder, "nothing.txt")
    with pytest.raises(ToolError, match="is no folder"):
        await read(folder, "notes.txt/x")


# ------------------------------------------------------------------ listing


async def test_names_and_sizes_are_listed(folder: Path) -> None:
    (folder / ".hidden").touch()
    (folder / "link").symlink_to("/etc/passwd")

    assert ["link (link)", "notes.txt (23 bytes)", "sub/"] == await listed(folder)
    assert ["deep.md (6 bytes)"] == await listed(folder, path="sub")


async def test_a_pattern_chooses(folder: Path) -> None:
    assert ["notes.txt (23 bytes)"] == await listed(folder, pattern="*.txt")
    assert ["sub/deep.md (6 bytes)"] == await listed(folder, pattern="**/*.md")
    assert ["There is nothing called *.rs in ."] == [
        line.rstrip(".") + "." for line in await listed(folder, pattern="*.rs")
    ]


async def test_many_names_are_cut_and_say_so(folder: Path) -> None:
    for number in range(230):
        (folder / "sub" / f"{number:03}").touch()

    lines = await listed(folder, path="sub")

    assert 201 == len(lines)
    assert "[cut here: 200 of 231 names; a pattern chooses]" == lines[-1]


async def test_no_folder_outside_is_listed(folder: Path, tmp_path: Path) -> None:
    (folder / "way").symlink_to(tmp_path)

    for path in ("..", "/", "way", "~"):
        with pytest.raises(ToolError, match="outside"):
            await listed(folder, path=path)
    assert not any("secret" in line for line in await listed(folder, pattern="**/*"))

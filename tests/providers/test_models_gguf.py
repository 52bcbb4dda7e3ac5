"""What is read from the head of a GGUF file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_model import gguf

from timeline.errors import ModelUnavailable
from timeline.providers.gguf import Header, read_header

WHOLE = gguf(
    ("general.name", "Wörter"),
    ("tokenizer.ggml.tokens", ["a", "bc", "def"]),
    ("some.table", [[1, 2, 3], []]),
    ("general.architecture", "llama"),
    ("llama.block_count", 2),
    ("llama.context_length", 8192),
    ("later", "ignored"),
)


def read(folder: Path, content: bytes) -> Header:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return read_header(path)


def test_architecture_and_context_are_read_from_behind_strings_and_arrays(tmp_path):
    header = read(tmp_path, WHOLE)

    assert Header("llama", 8192) == header


def test_a_header_that_says_nothing_is_no_error(tmp_path):
    assert Header() == read(tmp_path, gguf())


@pytest.mark.parametrize("version", [1, 4, 1 << 30])
def test_an_unknown_layout_is_left_for_llama_cpp_to_judge(tmp_path, version):
    assert Header() == read(tmp_path, WHOLE[:4] + version.to_bytes(4, "little") + WHOLE[8:])


def test_a_file_cut_off_anywhere_in_its_head_is_read_as_far_as_it_goes(tmp_path):
    for end in range(4, len(WHOLE)):
        header = read(tmp_path, WHOLE[:end])

        assert header.architecture in (None, "llama")
        assert header.context in (None, 8192)


@given(rest=st.binary(max_size=200))
def test_any_bytes_behind_the_magic_are_survived(tmp_path_factory, rest):
    read(tmp_path_factory.mktemp("any"), b"GGUF\x03\x00\x00\x00" + rest)


@pytest.mark.parametrize("content", [b"", b"GG", b"hello world", b"FUGG" + bytes(100)])
def test_what_is_no_gguf_is_refused_by_name(tmp_path, content):
    with pytest.raises(ModelUnavailable, match=r"model\.gguf is no GGUF file"):
        read(tmp_path, content)


def test_a_folder_or_nothing_is_refused_with_the_reason(tmp_path):
    with pytest.raises(ModelUnavailable, match="Is a directory"):
        read_header(tmp_path)
    with pytest.raises(ModelUnavailable, match="No such file"):
        read_header(tmp_path / "none.gguf")

"""What can go with a prompt, and what a model has to take for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from timeline import Timeline, attach
from timeline.cognition.prompts import user_message
from timeline.config import find_paths, load
from timeline.errors import UsageError
from timeline.providers.base import ImagePart, TextPart
from timeline.providers.pool import Providers

PNG = b"\x89PNG\r\n\x1a\n...."


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0...", "image/jpeg"),
        (b"GIF89a...", "image/gif"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"\xef\xbb\xbfplain", "text/plain"),
    ],
)
def test_a_file_is_known_by_its_content(data: bytes, media_type: str) -> None:
    file = attach("some.name", data)

    assert media_type == file.media_type
    assert (data if media_type != "text/plain" else "plain") == file.body


def test_what_is_neither_text_nor_image_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^data\.bin is neither text in UTF-8 nor"):
        attach("data.bin", b"\x00\xff\xfe")


def test_texts_stand_before_the_words_and_images_are_parts() -> None:
    message = user_message("What is it?", [attach("a.txt", b"body"), attach("b.png", PNG)])

    text = '<file name="a.txt">\nbody\n</file>\n\nWhat is it?'
    assert (ImagePart("image/png", PNG), TextPart(text)) == message.content


async def test_a_model_that_takes_no_images_is_not_sent_one(tmp_path: Path) -> None:
    environ = {"TIMELINE_HOME": str(tmp_path)}
    config = load(find_paths(environ, tmp_path), environ, tmp_path)

    async with Providers(config) as providers, Timeline.open(providers=providers) as timeline:
        with pytest.raises(UsageError, match="embedded:smollm2 takes no images"):
            async for _ in timeline.ask("What is it?", files=[attach("b.png", PNG)]):
                pass

        assert [] == await timeline.sessions()

"""What is put into a model's messages around the user's own words: which files can go with them, and how."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from timeline.errors import UsageError
from timeline.providers.base import ImagePart, Message, TextPart

__all__ = ["File", "attach", "user_message"]

IMAGES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}
"""How the images begin that providers take (https://docs.anthropic.com/en/docs/build-with-claude/vision); WebP
has its own form."""


class File(Struct, frozen=True):
    """A file that goes with a prompt.

    Args:
        name: As the model is told it, without its directory.
        body: Its text, or an image's bytes.
        media_type: For example `text/plain` or `image/png`.
    """

    name: str
    body: str | bytes
    media_type: str = "text/plain"

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.body.encode() if isinstance(self.body, str) else self.body)


def attach(name: str, data: bytes) -> File:
    """A file by its content: text in UTF-8, or an image that models take.

    Args:
        name: Without its directory.
        data: All its bytes.

    Raises:
        UsageError: It is neither.
    """
    media_type = next((kind for start, kind in IMAGES.items() if data.startswith(start)), None)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        media_type = "image/webp"
    if media_type is not None:
        return File(name, data, media_type)
    try:
        return File(name, data.decode("utf-8-sig"))
    except UnicodeDecodeError as exc:
        msg = f"{name} is neither text in UTF-8 nor a PNG, JPEG, GIF or WebP image: convert it first"
        raise UsageError(msg) from exc


def user_message(prompt: str, files: Sequence[File]) -> Message:
    """The user's words with their files: text stands before them, marked with its name; images are parts of their own."""
    texts = [f'<file name="{file.name}">\n{file.body}\n</file>' for file in files if isinstance(file.body, str)]
    text = "\n\n".join([*texts, prompt] if prompt else texts)
    images = tuple(ImagePart(file.media_type, file.body) for file in files if isinstance(file.body, bytes))
    if not images:
        return Message("user", text)
    return Message("user", (*images, TextPart(text)) if text else images)

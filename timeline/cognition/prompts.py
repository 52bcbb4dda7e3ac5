"""What is put into a model's messages around the user's own words."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["with_attachments"]


def with_attachments(prompt: str, files: Iterable[tuple[str, str]]) -> str:
    """A user message that carries text files.

    Args:
        prompt: The user's words.
        files: Name and text of each file.
    """
    blocks = [f'<file name="{name}">\n{text}\n</file>' for name, text in files]
    return "\n\n".join([*blocks, prompt])

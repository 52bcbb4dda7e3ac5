"""What a page says, without its markup.

A page comes from anybody: it is read piece by piece under a limit of time, so that none can be written that keeps the
parser busy, and nothing of it but text is looked at.
"""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser

__all__ = ["charset", "html_text"]

PIECE = 4_096
"""Characters that are parsed between two looks at the clock; what is unfinished is scanned anew with each."""
LONGEST_SECONDS = 2.0
MOST_PENDING = 64 * 1_024
"""Characters of a tag or comment without an end, after which the rest is left out."""

_HIDDEN = frozenset(
    {"script", "style", "noscript", "template", "svg", "iframe", "object", "head", "select", "textarea"}
)
_BLOCKS = frozenset(
    [
        *["address", "article", "aside", "blockquote", "body", "br", "dd", "details", "div", "dl", "dt", "figcaption"],
        *[
            "figure",
            "footer",
            "form",
            "h1",
            "h2",
            "h3",
            "h4",
            "h5",
            "h6",
            "header",
            "hr",
            "li",
            "main",
            "nav",
            "ol",
            "p",
        ],
        *["pre", "section", "summary", "table", "tbody", "thead", "title", "tr", "ul"],
    ]
)
_CHARSETS = {
    "utf8": "utf-8",
    "utf-8": "utf-8",
    "us-ascii": "cp1252",
    "ascii": "cp1252",
    "latin1": "cp1252",
    "iso-8859-1": "cp1252",
    "windows-1252": "cp1252",
    **{f"iso-8859-{n}": f"iso8859-{n}" for n in (2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 14, 15, 16)},
    **{f"windows-125{n}": f"cp125{n}" for n in (0, 1, 3, 4, 5, 6, 7, 8)},
    **{name: name for name in ("utf-16", "utf-16le", "utf-16be", "shift_jis", "euc-jp", "euc-kr", "gb2312", "gbk")},
    **{name: name for name in ("gb18030", "big5", "koi8-r", "koi8-u")},
}
"""Those that pages are written in (https://encoding.spec.whatwg.org/#names-and-labels), with Python's names; others of
Python's decoders can be made to run for hours."""


def charset(content_type: str, data: bytes) -> str:
    """Python's name of the encoding that a response is in; UTF-8 where it says nothing that is known.

    Args:
        content_type: The response's header.
        data: Its body, whose beginning may say.
    """
    header = re.search(r"charset=\s*[\"']?([\w-]{1,20})", content_type, re.IGNORECASE)
    within = re.search(rb"<meta[^>]{0,200}charset=\s*[\"']?([\w-]{1,20})", data[:2_048], re.IGNORECASE)
    name = header[1] if header else within[1].decode("ascii", "replace") if within else "utf-8"
    return _CHARSETS.get(name.lower(), "utf-8")


def html_text(html: str) -> tuple[str, bool]:
    """The text of a page, its title first, and whether some of the page was left out.

    Args:
        html: The whole page, or as much as there is of it.
    """
    parser, until = _Parser(), time.monotonic() + LONGEST_SECONDS
    for start in range(0, len(html), PIECE):
        parser.feed(html[start : start + PIECE])
        if time.monotonic() > until or len(parser.rawdata) > MOST_PENDING:
            return parser.text(), True
    # Not closed: what is unfinished at the end is no text, and closing would scan it once for each of its beginnings.
    pending = parser.rawdata.partition("<")[0]
    return f"{parser.text()}{pending if not parser.hidden else ''}".strip(), False


class _Parser(HTMLParser):
    """Collects the text that a reader would see."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.hidden = ""
        self._depth = 0
        self._title: list[str] = []
        self._in_title = False
        self._preformatted = 0
        self._pieces: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002 - nothing of them is shown
        if tag == "title" and not self._title:
            self._in_title = True
        if tag == "body" and self.hidden == "head":
            # Whose end may be left out.
            self.hidden = ""
        if self.hidden:
            self._depth += tag == self.hidden
        elif tag in _HIDDEN:
            self.hidden, self._depth = tag, 1
        self._preformatted += tag == "pre"
        if not self.hidden:
            self._pieces.append(
                "\n- " if tag == "li" else "\n" if tag in _BLOCKS else " " if tag in ("td", "th") else ""
            )

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        if self.hidden:
            self._depth -= tag == self.hidden
            if self._depth <= 0:
                self.hidden = ""
        elif tag in _BLOCKS:
            self._pieces.append("\n")
            self._preformatted = max(0, self._preformatted - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self._title.append(data)
        elif not self.hidden:
            self._pieces.append(data if self._preformatted else re.sub(r"\s+", " ", data))

    def parse_html_declaration(self, i: int) -> int:
        """Take every other declaration for a comment, as browsers do; Python's own gives up on some."""
        return self.parse_comment(i) if self.rawdata.startswith("<!--", i) else self.parse_bogus_comment(i)

    def text(self) -> str:
        lines = (re.sub(r"[^\S\n]+", " ", line).strip() for line in "".join(self._pieces).split("\n"))
        body = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
        title = " ".join("".join(self._title).split())
        return f"{title}\n\n{body}".strip() if title and not body.startswith(title) else body

"""Parses HTML in tests."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "img", "input", "link", "br", "wbr"}  # elements without an end tag


class Reader(HTMLParser):
    """Collects text and attributes. Fails if tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.goes_on = False  # after a `wbr`, the text before it goes on
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.goes_on = tag == "wbr"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.goes_on = False

    def handle_data(self, data: str) -> None:
        if self.goes_on and self.texts:
            self.texts[-1] += data
        else:
            self.texts.append(data)
        self.goes_on = False


def text(html: str) -> str:
    """What a reader sees, with single spaces."""
    return " ".join(" ".join(Reader(html).texts).split())

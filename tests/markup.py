"""Parses HTML in tests."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "img", "input", "link", "br"}  # elements without an end tag


class Reader(HTMLParser):
    """Collects text and attributes. Fails if tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def text(html: str) -> str:
    """What a reader sees, with single spaces."""
    return " ".join(" ".join(Reader(html).texts).split())

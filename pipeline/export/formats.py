"""The formats of sidecar files: one file beside each image, or each video.

A format turns rows of path, text and language, by path, into files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol
from xml.sax.saxutils import escape, quoteattr

from conf.captioner import ENGLISH
from pipeline.export.names import full_name, short_name
from pipeline.export.webvtt import webvtt_files

Row = tuple[str, str, str | None]
"""Path, text and language."""


class _Name(Protocol):
    def __call__(self, path: str, root: str, suffix: str) -> str: ...


class _Files(Protocol):
    def __call__(self, rows: Iterable[Row], *, alt: bool) -> Iterator[tuple[str, str]]:
        """Yield (path of the image or video, content of its file). With `alt`, the texts are alternative texts."""


class SidecarFormat(NamedTuple):
    """How a file is named, and what it has. Two images with the same `name` get their `full_name` instead."""

    suffix: str
    name: _Name
    files: _Files


def _text(rows: Iterable[Row], *, alt: bool) -> Iterator[tuple[str, str]]:
    for path, text, _ in rows:
        yield path, f"{text}\n" if text else ""


def _webvtt(rows: Iterable[Row], *, alt: bool) -> Iterator[tuple[str, str]]:
    return webvtt_files(rows)


def _xmp(rows: Iterable[Row], *, alt: bool) -> Iterator[tuple[str, str]]:
    for path, text, language in rows:
        if text:  # a photo manager could prefer an empty description to the image's own
            yield path, xmp(text, language or ENGLISH, alt=alt)


SIDECARS = {
    "txt": SidecarFormat(".txt", short_name, _text),
    "webvtt": SidecarFormat(".vtt", short_name, _webvtt),
    "xmp": SidecarFormat(".xmp", full_name, _xmp),
}

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PACKET = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:Iptc4xmpCore="http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/">
{properties}
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""
_PROPERTY = """\
   <{name}>
    <rdf:Alt>
     <rdf:li xml:lang="x-default">{text}</rdf:li>
     <rdf:li xml:lang={language}>{text}</rdf:li>
    </rdf:Alt>
   </{name}>"""


def xmp(text: str, language: str, *, alt: bool = False) -> str:
    """An XMP packet with `dc:description`, and with `alt` also IPTC's property for alternative text."""
    names = ["dc:description", *(["Iptc4xmpCore:AltTextAccessibility"] if alt else [])]
    values = {"text": escape(_NOT_XML.sub(" ", text)), "language": quoteattr(language)}
    return _PACKET.format(properties="\n".join(_PROPERTY.format(name=name, **values) for name in names))

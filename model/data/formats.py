"""The forms in which caption data sets are distributed; docs/data.md shows each.

A reader turns a file into rows and passes what is malformed to `problems`; it looks at no picture. The form
is told by what is in the file. A new one is a reader and an entry in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from conf.errors import DataError
from model.data import json_formats, text_formats
from model.data.problems import Problems
from model.data.source import Row, Source


@dataclass(frozen=True)
class Format:
    """`folders`: where its pictures usually lie, seen from the data file."""

    name: str
    told_by: Callable[[Source], bool]
    read: Callable[[Source, Problems], Iterator[Row]]
    folders: tuple[str, ...]


def tell(source: Source) -> Format:
    """The first of `FORMATS` that the file is in. Raises DataError when it is in none."""
    for form in FORMATS:
        if form.told_by(source):
            return form
    known = ", ".join(form.name for form in FORMATS)
    raise DataError(f"{str(source.path)!r} is no caption data that Nightcap knows: {known}; see docs/data.md")


_BESIDE = (".", "Images", "images", "Flicker8k_Dataset", "flickr30k_images", "flickr30k-images")
_AROUND = _BESIDE + tuple(f"../{name}" for name in _BESIDE)
FORMATS = (
    Format("JSONL", json_formats.is_jsonl, json_formats.jsonl, (".",)),
    Format("Karpathy split", json_formats.is_karpathy, json_formats.karpathy, _AROUND),
    Format("COCO annotations", json_formats.is_coco, json_formats.coco, _AROUND),
    Format("token file", text_formats.is_token, text_formats.token, _AROUND),
    Format("caption table", text_formats.is_table, text_formats.table, _AROUND),
)

"""The formats in which caption data sets are distributed; docs/data.md shows each.

A reader turns a file into rows and adds malformed entries to `problems`; it opens no picture. The format is detected
from the content of the file. To add one, write a reader and an entry in `FORMATS`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from conf.errors import DataError
from model.data.problems import Problems
from model.data.source import Row, Source


@dataclass(frozen=True)
class Format:
    """`folders`: where the pictures of this format usually lie, relative to the data file."""

    name: str
    matches: Callable[[Source], bool]
    read: Callable[[Source, Problems], Iterator[Row]]
    folders: tuple[str, ...]


def find_format(source: Source) -> Format:
    """The first format of `FORMATS` that matches the file. Raises DataError when none does."""
    for form in FORMATS:
        if form.matches(source):
            return form
    known = ", ".join(form.name for form in FORMATS)
    raise DataError(f"{str(source.path)!r} is no caption data that Nightcap knows: {known}; see docs/data.md")


def _picture_row(
    problems: Problems, where: str, name: object, captions: object, folder: object = "", split: object = ""
) -> Iterator[Row]:
    """Yield a row with all captions of one picture, if every value has the right type."""
    valid_captions = isinstance(captions, list) and all(isinstance(caption, str) for caption in captions)
    valid_name = isinstance(name, str) and bool(name)
    if valid_captions and valid_name and isinstance(folder, str) and isinstance(split, str):
        yield Row(where, name, tuple(captions), folder, split)  # type: ignore[arg-type]
    else:
        wrong = f"the picture {name!r:.60}" if not valid_name else f"its captions {captions!r:.100}"
        problems.add("malformed row", f"{where}: wrong type or missing: {wrong}")


# JSONL: {"image": "relative/path.jpg", "captions": ["…", …]}, and attributes: {…, "colour": "red"}


def _json_object(line: str) -> dict[str, Any]:
    """Raises ValueError when the line is no JSON object."""
    try:
        value = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _is_jsonl(source: Source) -> bool:
    if source.path.suffix in (".jsonl", ".ndjson"):
        return True
    try:
        return bool(source.head) and "image" in _json_object(source.head[0])
    except ValueError:
        return False


def _read_jsonl(source: Source, problems: Problems) -> Iterator[Row]:
    for where, line in source.lines(problems):
        try:
            row = _json_object(line)
        except ValueError as error:
            problems.add("malformed row", f"{where}: {error}: {line[:100]}")
            continue
        attributes = {key: value for key, value in row.items() if key != "image" and isinstance(value, str)}
        for picture in _picture_row(problems, where, row.get("image"), row.get("captions")):
            yield replace(picture, attributes=attributes)


# Karpathy's files: {"images": [{"filename": "…", "split": "…", "sentences": [{"raw": "…"}, …]}, …]}


def _entries(source: Source, key: str) -> list[Any]:
    entries = source.document.get(key)
    return entries if isinstance(entries, list) else []


def _is_karpathy(source: Source) -> bool:
    return any(isinstance(i, dict) and "sentences" in i for i in islice(_entries(source, "images"), 100))


def _read_karpathy(source: Source, problems: Problems) -> Iterator[Row]:
    for number, image in enumerate(_entries(source, "images")):
        where = f"{source.path.name}:images[{number}]"
        image = image if isinstance(image, dict) else {}
        sentences = image.get("sentences")
        captions = (
            [sentence.get("raw") if isinstance(sentence, dict) else None for sentence in sentences]
            if isinstance(sentences, list)
            else None
        )
        folder, split = image.get("filepath", ""), image.get("split", "")
        yield from _picture_row(problems, where, image.get("filename"), captions, folder, split)


# COCO annotations: {"images": [{"id": 9, "file_name": "…"}], "annotations": [{"image_id": 9, "caption": "…"}]}


def _is_coco(source: Source) -> bool:
    return bool(_entries(source, "images") and _entries(source, "annotations"))


def _read_coco(source: Source, problems: Problems) -> Iterator[Row]:
    file = source.path.name
    captions: dict[int, list[str]] = {}
    for number, entry in enumerate(_entries(source, "annotations")):
        annotation = entry if isinstance(entry, dict) else {}
        image_id, caption = annotation.get("image_id"), annotation.get("caption")
        if isinstance(image_id, int) and isinstance(caption, str):
            captions.setdefault(image_id, []).append(caption)
        else:
            problems.add("malformed row", f"{file}:annotations[{number}]: no image_id or no caption")
    year = re.match(r"captions_(\w+)", file)  # captions_val2017.json describes the pictures in val2017/
    folder = year[1] if year else ""
    for number, entry in enumerate(_entries(source, "images")):
        image = entry if isinstance(entry, dict) else {}
        group = captions.pop(image["id"], []) if isinstance(image.get("id"), int) else None
        yield from _picture_row(problems, f"{file}:images[{number}]", image.get("file_name"), group, folder)
    for image_id in captions:
        problems.add("no such picture", f"{file}: image_id {image_id} of a caption is in no entry of images")


# Token files of Flickr8k and Flickr30k: image.jpg#0<TAB>caption

_TOKEN = re.compile(r"(.+)#\d+\t(.*)")


def _is_token(source: Source) -> bool:
    return any(_TOKEN.fullmatch(line) for line in source.head)


def _read_token(source: Source, problems: Problems) -> Iterator[Row]:
    for where, line in source.lines(problems):
        if match := _TOKEN.fullmatch(line):
            yield Row(where, match[1], (match[2],), per_picture=False)
        else:
            problems.add("malformed row", f"{where}: not image.jpg#0<TAB>caption: {line[:100]}")


# Tables with one caption per row: the picture is in the first column, the caption in the last


def _split_commas(line: str, columns: int) -> list[str]:
    """Parse each line by itself, so that a stray quote costs one row. A caption may hold commas without quotes."""
    try:
        cells = next(csv.reader([line], strict=True))
    except csv.Error:
        return []
    return [*cells[: columns - 1], ",".join(cells[columns - 1 :])] if len(cells) >= columns else []


def _split_bars(line: str, columns: int) -> list[str]:
    return line.split("|", columns - 1)


_TABLES: dict[str, Callable[[str, int], list[str]]] = {  # header without blanks -> how a line is split
    "image,caption": _split_commas,
    "image_name,comment_number,comment": _split_commas,
    "image_name|comment_number|comment": _split_bars,
}


def _header(line: str) -> str:
    return "".join(line.split()).lower()


def _is_table(source: Source) -> bool:
    return bool(source.head) and _header(source.head[0]) in _TABLES


def _read_table(source: Source, problems: Problems) -> Iterator[Row]:
    header = _header(source.head[0])
    columns = len(re.split(r"[,|]", header))
    lines = source.lines(problems)
    next(lines)
    for where, line in lines:
        cells = _TABLES[header](line, columns)
        if len(cells) == columns and cells[0].strip():
            yield Row(where, cells[0].strip(), (cells[-1],), per_picture=False)
        else:
            problems.add("malformed row", f"{where}: not a row of {header}: {line[:100]}")


_BESIDE = (".", "Images", "images", "Flicker8k_Dataset", "flickr30k_images", "flickr30k-images")
_AROUND = _BESIDE + tuple(f"../{name}" for name in _BESIDE)
FORMATS = (
    Format("JSONL", _is_jsonl, _read_jsonl, (".",)),
    Format("Karpathy split", _is_karpathy, _read_karpathy, _AROUND),
    Format("COCO annotations", _is_coco, _read_coco, _AROUND),
    Format("token file", _is_token, _read_token, _AROUND),
    Format("caption table", _is_table, _read_table, _AROUND),
)
"""The known formats, in the order in which they are tried."""

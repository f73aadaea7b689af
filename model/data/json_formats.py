"""Caption data in JSON: lines, Karpathy's splits, COCO's annotations."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from model.data.problems import Problems
from model.data.source import Row, Source


def _row(
    problems: Problems, where: str, name: object, captions: object, folder: object = "", split: object = ""
) -> Iterator[Row]:
    """A row about a whole picture, where everything has the right type."""
    texts = isinstance(captions, list) and all(isinstance(caption, str) for caption in captions)
    named = isinstance(name, str) and bool(name)
    if texts and named and isinstance(folder, str) and isinstance(split, str):
        yield Row(where, name, tuple(captions), folder, split)  # type: ignore[arg-type]
    else:
        wrong = f"the picture {name!r:.60}" if not named else f"its captions {captions!r:.100}"
        problems.add("malformed row", f"{where}: wrong type or missing: {wrong}")


# JSONL: {"image": "relative/path.jpg", "captions": ["…", …]}


def _object(line: str) -> dict[str, Any]:
    """Raises ValueError."""
    try:
        value = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def is_jsonl(source: Source) -> bool:
    if source.path.suffix in (".jsonl", ".ndjson"):
        return True
    try:
        return bool(source.head) and "image" in _object(source.head[0])
    except ValueError:
        return False


def jsonl(source: Source, problems: Problems) -> Iterator[Row]:
    for where, line in source.lines(problems):
        try:
            row = _object(line)
        except ValueError as error:
            problems.add("malformed row", f"{where}: {error}: {line[:100]}")
            continue
        yield from _row(problems, where, row.get("image"), row.get("captions"))


# Karpathy's files: {"images": [{"filename": "…", "split": "…", "sentences": [{"raw": "…"}, …]}, …]}


def _entries(source: Source, key: str) -> list[Any]:
    entries = source.document.get(key)
    return entries if isinstance(entries, list) else []


def is_karpathy(source: Source) -> bool:
    return any(isinstance(i, dict) and "sentences" in i for i in islice(_entries(source, "images"), 100))


def karpathy(source: Source, problems: Problems) -> Iterator[Row]:
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
        yield from _row(problems, where, image.get("filename"), captions, folder, split)


# COCO's annotations: {"images": [{"id": 9, "file_name": "…"}], "annotations": [{"image_id": 9, "caption": "…"}]}


def is_coco(source: Source) -> bool:
    return bool(_entries(source, "images") and _entries(source, "annotations"))


def coco(source: Source, problems: Problems) -> Iterator[Row]:
    name = source.path.name
    captions: dict[int, list[str]] = {}
    for number, said in enumerate(_entries(source, "annotations")):
        about, text = (said.get("image_id"), said.get("caption")) if isinstance(said, dict) else (None, None)
        if isinstance(about, int) and isinstance(text, str):
            captions.setdefault(about, []).append(text)
        else:
            problems.add("malformed row", f"{name}:annotations[{number}]: no image_id or no caption")
    of_year = re.match(r"captions_(\w+)", name)  # captions_val2017.json is about the pictures in val2017/
    folder = of_year[1] if of_year else ""
    for number, image in enumerate(_entries(source, "images")):
        image = image if isinstance(image, dict) else {}
        found = captions.pop(image["id"], []) if isinstance(image.get("id"), int) else None
        yield from _row(problems, f"{name}:images[{number}]", image.get("file_name"), found, folder)
    for about in captions:
        problems.add("no such picture", f"{name}: image_id {about} of a caption is in no entry of images")

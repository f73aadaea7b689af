"""A caption data set as a user names it -> examples that can be used, and what had to be skipped."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from conf.errors import DataError
from conf.job import ImageLimits
from model.data.formats import Format, tell
from model.data.problems import Problems
from model.data.source import Row, Source
from model.data.splits import choose, is_file, parse
from model.image.decode import ImageError, decode

MAX_CAPTION = 2000  # characters


@dataclass(frozen=True)
class Example:
    """One image and what people wrote about it."""

    image: Path
    captions: tuple[str, ...]


@dataclass(frozen=True)
class DataSet:
    """`listed`: pictures of the split, before any was skipped; `folder`: where they were looked for."""

    spec: str
    format: str
    folder: Path
    listed: int
    examples: list[Example]
    problems: Problems


def read_examples(spec: str, images: str | None, say: Callable[[str], None]) -> list[Example]:
    """The examples of `FILE#SPLIT` whose picture can be decoded; says in one line what was skipped.

    Raises DataError when the file can't be read, is in no known form, or leaves nothing.
    """
    data = decodable(read(spec, images))
    if data.problems:
        say(f"{spec}: {len(data.examples)} of {data.listed} pictures usable; skipped: {data.problems}")
    return data.examples


def read(spec: str, images: str | None = None) -> DataSet:
    """The examples of `FILE#SPLIT` in the order of the file; no picture is opened yet.

    Pictures are looked for in the folder `images`, or where those of this format usually lie. Raises DataError
    when the file can't be read, is in no known form, or leaves nothing.
    """
    path, split = parse(spec)
    problems, source = Problems(), Source(path)
    form = tell(source)
    rows = choose(_merged(form.read(source, problems), problems), split, path, problems)
    folder = _image_folder(path, images, form, rows)
    examples = list(_examples(rows, folder, problems))
    return _not_empty(DataSet(spec, form.name, folder, len(rows), examples, problems))


def decodable(data: DataSet) -> DataSet:
    """Without the examples whose picture can't be decoded. Raises DataError when that leaves nothing.

    Every picture is read once, by a thread a core (Pillow decodes without holding the others up), JPEGs at
    an eighth of their size: damage shows at any.
    """
    problems, whole = data.problems, []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = pool.map(_fault, [example.image for example in data.examples])
        bar = tqdm(faults, total=len(data.examples), desc="checking pictures", leave=False, disable=None)
        for example, fault in zip(data.examples, bar, strict=True):
            if fault:
                problems.add("broken picture", f"{example.image}: {fault}")
            else:
                whole.append(example)
    return _not_empty(replace(data, examples=whole))


def _fault(path: Path) -> str:
    """Why a picture can't be decoded; empty when it can."""
    try:
        with path.open("rb") as file:
            decode(file.read(ImageLimits().max_bytes + 1), ImageLimits(), (32, 32))
    except ImageError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _not_empty(data: DataSet) -> DataSet:
    if data.examples:
        return data
    why = f"skipped: {data.problems}" if data.problems else "it lists no pictures"
    cure = f"pictures were looked for in {str(data.folder)!r}; --images or data.images names another folder"
    raise DataError(f"no usable examples in {data.spec!r}: {why}; {cure}")


def _merged(rows: Iterable[Row], problems: Problems) -> list[Row]:
    """One row a picture, in order of first appearance."""
    found: dict[str, Row] = {}
    for row in rows:
        key = posixpath.normpath(posixpath.join(row.folder, row.name))
        if key not in found:
            found[key] = row
            continue
        first, captions = found[key], row.captions
        if row.whole:
            problems.add("listed twice", f"{row.where}: {row.name}, first at {first.where}")
            captions = tuple(caption for caption in captions if caption not in first.captions)
        found[key] = replace(first, captions=first.captions + captions)
    return list(found.values())


def _examples(rows: list[Row], folder: Path, problems: Problems) -> Iterator[Example]:
    for row in rows:
        captions = tuple(_usable_captions(row, problems))
        places = _places(row, folder)
        if not captions:
            problems.add("no captions", f"{row.where}: {row.name}")
        elif not places:
            problems.add("outside the folder", f"{row.where}: {row.name}")
        elif image := next(filter(is_file, places), None):
            yield Example(image, captions)
        else:
            problems.add("no such picture", f"{row.where}: {places[0]}")


def _usable_captions(row: Row, problems: Problems) -> Iterator[str]:
    """Without line breaks and other white space that says nothing."""
    for caption in row.captions:
        text = " ".join(caption.split())
        if not any(c.isalnum() for c in text):
            problems.add("empty caption", f"{row.where}: {row.name}: {caption!r}")
        elif len(text) > MAX_CAPTION:
            problems.add("long caption", f"{row.where}: {row.name}: {len(text)} characters")
        else:
            yield text


def _places(row: Row, folder: Path) -> list[Path]:
    """Where the picture may lie: in its subfolder, or right in the image folder; never outside of that."""
    places = []
    for below in dict.fromkeys((row.folder, "")):
        name = posixpath.normpath(posixpath.join(below, row.name))
        if posixpath.isabs(name):
            inside = Path(os.path.normpath(Path.cwd() / folder)) in Path(name).parents
        else:
            inside = name != "." and name.partition("/")[0] != ".."
        places += [folder / name] if inside else []
    return places


def _image_folder(path: Path, images: str | None, form: Format, rows: list[Row]) -> Path:
    """The folder given, else the first of the format's own that holds one of the first pictures."""
    if images is not None:
        if not Path(images).is_dir():
            raise DataError(f"no such folder of images: {images!r}; check --images or data.images")
        return Path(images)
    usual = [Path(os.path.normpath(path.parent / name)) for name in form.folders]
    for folder in usual:
        if any(is_file(place) for row in islice(rows, 100) for place in _places(row, folder)):
            return folder
    return usual[0]

"""Reads a caption data set, `FILE` or `FILE#SPLIT`, into examples, and counts what had to be skipped."""

from __future__ import annotations

import logging
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from conf.errors import DataError
from conf.job import ImageLimits
from model.data.formats import Format, find_format
from model.data.problems import Problems
from model.data.source import Row, Source
from model.data.splits import is_file, parse, select_split
from model.image.decode import ImageError, decode

MAX_CAPTION = 2000  # characters
logger = logging.getLogger(f"nightcap.{__name__}")


@dataclass(frozen=True)
class Example:
    """One picture and the captions that people wrote for it.

    `name` is the picture's name in the data file, as folder/name. It is the same wherever the data lie; `image` is
    the path of the picture on this machine.
    """

    image: Path
    captions: tuple[str, ...]
    name: str
    attributes: Mapping[str, str] = field(default_factory=dict)  # as in `Row`


@dataclass(frozen=True)
class DataSet:
    """`listed`: pictures in the split, before any were skipped; `folder`: the image folder."""

    spec: str
    format: str
    folder: Path
    listed: int
    examples: list[Example]
    problems: Problems


def read_examples(spec: str, images: str | None, attributes: Sequence[str] = ()) -> list[Example]:
    """The examples of `FILE#SPLIT` whose picture can be decoded. Logs one warning about what was skipped.

    `images` is the image folder, as in `read`. Raises DataError when the file can't be read, has no known format, or
    holds no usable example, and before any picture is opened when no example states one of the `attributes`.
    """
    data = read(spec, images)
    check_attributes(data.examples, attributes)
    data = decodable(data)
    if data.problems:
        usable = f"{len(data.examples)} of {data.listed} pictures usable"
        logger.warning("%s: %s; skipped: %s", spec, usable, data.problems)
    return data.examples


def check_attributes(examples: Sequence[Example], attributes: Sequence[str]) -> None:
    """Raise DataError naming the first of the `attributes` that no example states."""
    stated = sorted({name for example in examples for name in example.attributes})
    for name in attributes:
        if name not in stated:
            cure = f"give --attribute one of {', '.join(stated)}" if stated else "the data have no attributes"
            raise DataError(f"no line of the data states {name!r} as a text: {cure}")


def read(spec: str, images: str | None = None) -> DataSet:
    """The examples of `FILE#SPLIT`, in the order of the file. No picture is opened yet.

    Pictures are looked for in the folder `images`, by default where those of the format usually lie. Raises DataError
    when the file can't be read, has no known format, or holds no usable example.
    """
    path, split = parse(spec)
    problems, source = Problems(), Source(path)
    form = find_format(source)
    rows = select_split(_merge(form.read(source, problems), problems), split, path, problems)
    folder = _image_folder(path, images, form, rows)
    examples = list(_examples(rows, folder, problems))
    return _not_empty(DataSet(spec, form.name, folder, len(rows), examples, problems))


def decodable(data: DataSet) -> DataSet:
    """The data set without the examples whose picture can't be decoded. Raises DataError when none is left.

    Reads every picture once, with one thread per core. JPEGs are decoded at an eighth of their size, which reads the
    whole file and so detects damage too.
    """
    problems, usable = data.problems, []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        errors = pool.map(_decode_error, [example.image for example in data.examples])
        bar = tqdm(errors, total=len(data.examples), desc="checking pictures", leave=False, disable=None)
        for example, error in zip(data.examples, bar, strict=True):
            if error:
                problems.add("broken picture", f"{example.image}: {error}")
            else:
                usable.append(example)
    return _not_empty(replace(data, examples=usable))


def _decode_error(path: Path) -> str:
    """Why a picture can't be decoded, or an empty string."""
    limits = ImageLimits()
    try:
        with path.open("rb") as file:
            decode(file.read(limits.max_bytes + 1), limits, (32, 32))
    except ImageError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _not_empty(data: DataSet) -> DataSet:
    if data.examples:
        return data
    if not data.problems:
        raise DataError(
            f"no usable examples in {data.spec!r}: it lists no pictures; docs/data.md has the formats"
        )
    cure = f"pictures were looked for in {str(data.folder)!r}; --images or data.images names another folder"
    raise DataError(f"no usable examples in {data.spec!r}: skipped: {data.problems}; {cure}")


def _merge(rows: Iterable[Row], problems: Problems) -> list[Row]:
    """One row per picture, in the order of first appearance."""
    merged: dict[str, Row] = {}
    for row in rows:
        key = _relative(row, row.folder)
        if key not in merged:
            merged[key] = row
            continue
        first, captions = merged[key], row.captions
        if row.per_picture:
            problems.add("listed twice", f"{row.where}: {row.name}, first at {first.where}")
            captions = tuple(caption for caption in captions if caption not in first.captions)
        merged[key] = replace(first, captions=first.captions + captions)
    return list(merged.values())


def _examples(rows: list[Row], folder: Path, problems: Problems) -> Iterator[Example]:
    for row in rows:
        captions = tuple(_usable_captions(row, problems))
        paths = _candidate_paths(row, folder)
        if not captions:
            problems.add("no captions", f"{row.where}: {row.name}")
        elif not paths:
            problems.add("outside the folder", f"{row.where}: {row.name}")
        elif image := next(filter(is_file, paths), None):
            yield Example(image, captions, _portable_name(row, folder), row.attributes)
        else:
            problems.add("no such picture", f"{row.where}: {paths[0]}")


def _usable_captions(row: Row, problems: Problems) -> Iterator[str]:
    """The captions with any run of white space, line breaks included, replaced by one blank."""
    for caption in row.captions:
        text = " ".join(caption.split())
        if not any(c.isalnum() for c in text):
            problems.add("empty caption", f"{row.where}: {row.name}: {caption!r}")
        elif len(text) > MAX_CAPTION:
            problems.add("long caption", f"{row.where}: {row.name}: {len(text)} characters")
        else:
            yield text


def _relative(row: Row, subfolder: str) -> str:
    return posixpath.normpath(posixpath.join(subfolder, row.name))


def _candidate_paths(row: Row, folder: Path) -> list[Path]:
    """Where the picture may lie: in the row's subfolder of the image folder, then in the image folder itself.

    A path that leads out of the image folder is left out.
    """
    paths = []
    for subfolder in dict.fromkeys((row.folder, "")):
        name = _relative(row, subfolder)
        if posixpath.isabs(name):
            inside = _absolute(folder) in Path(name).parents
        else:
            inside = name != "." and name.partition("/")[0] != ".."
        paths += [folder / name] if inside else []
    return paths


def _portable_name(row: Row, folder: Path) -> str:
    """The name of an `Example`; a data file with absolute paths is taken relative to the image folder."""
    name = _relative(row, row.folder)
    return Path(name).relative_to(_absolute(folder)).as_posix() if posixpath.isabs(name) else name


def _absolute(folder: Path) -> Path:
    return Path(os.path.normpath(Path.cwd() / folder))


def _image_folder(path: Path, images: str | None, form: Format, rows: list[Row]) -> Path:
    """`images` if given, else the first usual folder of the format that holds one of the first 100 pictures."""
    if images is not None:
        if not Path(images).is_dir():
            raise DataError(f"no such folder of images: {images!r}; check --images or data.images")
        return Path(images)
    usual = [Path(os.path.normpath(path.parent / name)) for name in form.folders]
    for folder in usual:
        if any(
            is_file(candidate) for row in islice(rows, 100) for candidate in _candidate_paths(row, folder)
        ):
            return folder
    return usual[0]

"""Manifests: files that list images. They are read as streams, so they may have millions of rows.

    .txt        one name per line; no comments, because a name may start with `#`
    .csv        a header with a `path` column
    .jsonl      one object per line, with a `path`
    .parquet    a string column `path`

Each may be gzipped (`.gz`), and on any store. Text is UTF-8, with or without a BOM. Blank lines are skipped, columns
other than `path` are ignored. Names are taken literally: no globs, no `~`, no percent-decoding except in `file://`
URIs without a file of the literal name. Relative names are relative to the manifest's folder. The first invalid line
raises SourceError, which names the file and the line.
"""

from __future__ import annotations

import csv
import gzip
import json
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from conf.errors import SourceError
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores
from pipeline.store.uri import MAX_NAME, extension, file_name, one_line, redact, relative_to_folder_of

KINDS = ("txt", "csv", "jsonl", "parquet")
MAX_LINE = 1 << 20  # bytes of a line with all its columns
_MAX_UNPACKED = 4 << 30  # bytes of a gzipped Parquet file
_CHUNK = 1 << 20
Reader = Callable[[IO[bytes], str], Iterator[tuple[str, Any]]]
DAMAGED = (zlib.error, EOFError, gzip.BadGzipFile, pa.ArrowException)


def manifest_kind(uri: str) -> tuple[str, bool] | None:
    """`(kind, gzipped)` from the name of a manifest; None for other names."""
    name = file_name(uri)
    gzipped = extension(name) == "gz"
    kind = extension(name[:-3] if gzipped else name)
    return (kind, gzipped) if kind in KINDS else None


def read_manifest(stores: Stores, uri: str) -> Iterator[str]:
    """Yield the full name of every entry, in order and with duplicates. Raises SourceError."""
    form = manifest_kind(uri)
    if form is None:
        raise SourceError(
            f"'{redact(uri)}' is not a manifest; its name must end in .txt, .csv, .jsonl or .parquet"
        )
    shown = f"manifest '{one_line(redact(uri))}'"
    store = stores.of(uri)
    try:
        with store.errors("read", uri):
            yield from _entries(stores, uri, form, shown)
    except StoreError as error:
        raise error.as_usage(SourceError) from error


def _entries(stores: Stores, uri: str, form: tuple[str, bool], shown: str) -> Iterator[str]:
    kind, gzipped = form
    reader = {"txt": _txt, "csv": _csv, "jsonl": _jsonl, "parquet": _parquet}[kind]
    try:
        with stores.of(uri).open(uri) as raw:
            stream = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if gzipped else raw
            for where, entry in reader(stream, shown):
                if not isinstance(entry, str) or not entry:
                    raise SourceError(f"{shown}, {where}: `path` is empty; every row must name one image")
                if len(entry) > MAX_NAME:
                    raise SourceError(
                        f"{shown}, {where}: `path` is longer than {MAX_NAME} characters; every row must "
                        "name one image"
                    )
                name = relative_to_folder_of(uri, entry)
                yield stores.full_name(name) if name.startswith("file://") else name
    except DAMAGED as error:
        hint = f"is it a complete .{kind}{'.gz' if gzipped else ''} file?"
        raise SourceError(f"can't read {shown} ({one_line(str(error))}); {hint}") from error


def lines(stream: IO[bytes], shown: str) -> Iterator[tuple[int, str]]:
    """Yield (number, line) of a text file. Raises SourceError for a line that is too long or not UTF-8."""
    number = 0
    while raw := stream.readline(MAX_LINE + 1):
        number += 1
        if len(raw) > MAX_LINE:
            raise SourceError(f"{shown}, line {number}: longer than {MAX_LINE} bytes; is this a text file?")
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{shown}, line {number}: not UTF-8 ({error.reason}); save it as UTF-8"
            ) from error


def _txt(stream: IO[bytes], shown: str) -> Iterator[tuple[str, Any]]:
    for number, text in lines(stream, shown):
        if text.strip():
            yield f"line {number}", text.rstrip("\r\n")


def _csv(stream: IO[bytes], shown: str) -> Iterator[tuple[str, Any]]:
    rows = csv.reader((text for _, text in lines(stream, shown)), strict=True)
    column = None
    try:
        for row in rows:
            if not row:
                continue
            if column is None:
                column = _column_of_path([name.strip() for name in row], shown)
            elif len(row) <= column:
                raise SourceError(f"{shown}, line {rows.line_num}: only {len(row)} columns, no `path`")
            else:
                yield f"line {rows.line_num}", row[column]
    except csv.Error as error:
        raise SourceError(f"{shown}, line {rows.line_num}: {error}; check its quotes") from error


def _jsonl(stream: IO[bytes], shown: str) -> Iterator[tuple[str, Any]]:
    for number, text in lines(stream, shown):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SourceError(
                f"{shown}, line {number}: not JSON ({error}); write one object per line"
            ) from error
        if not isinstance(row, dict):
            raise SourceError(f'{shown}, line {number}: not an object; write {{"path": …}}')
        if "path" not in row:
            _column_of_path(row, f"{shown}, line {number}")
        yield f"line {number}", row["path"]


def _parquet(stream: IO[bytes], shown: str) -> Iterator[tuple[str, Any]]:
    with tempfile.TemporaryFile() as unpacked:
        if isinstance(stream, gzip.GzipFile):  # Parquet needs a seekable file, so unpack it to disk
            _unpack(stream, unpacked, shown)
            stream = cast("IO[bytes]", unpacked)
        file = pq.ParquetFile(stream)
        kind = file.schema_arrow.field(_column_of_path(file.schema_arrow.names, shown)).type
        values = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(values) or pa.types.is_large_string(values)):
            raise SourceError(f"{shown}: column `path` is {kind}, not string")
        number = 0
        for batch in file.iter_batches(batch_size=4096, columns=["path"]):
            for value in batch.column(0).to_pylist():
                number += 1
                yield f"row {number}", value


def _unpack(stream: gzip.GzipFile, target: IO[bytes], shown: str) -> None:
    while data := stream.read(_CHUNK):
        if stream.tell() > _MAX_UNPACKED:
            raise SourceError(
                f"{shown} unpacks to more than {_MAX_UNPACKED} bytes; store it without .gz, Parquet compresses itself"
            )
        target.write(data)


def _column_of_path(names: Iterable[str], shown: str) -> int:
    columns = list(names)
    if "path" not in columns:
        listed = one_line(", ".join(columns), 200) or "none"
        raise SourceError(f"{shown} has no `path` column; its columns are: {listed}")
    return columns.index("path")

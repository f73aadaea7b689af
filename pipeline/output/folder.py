"""The folder of an output, on any store. Files have names relative to it.

Errors of the store become OutputError, or StoreDownError if the store answered that it can't serve requests now.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from conf.errors import OutputError
from pipeline.parquet import parse_parquet, read_parquet
from pipeline.store.base import ObjectInfo
from pipeline.store.errors import BrokenBodyError, StoreError
from pipeline.store.lock import Lock
from pipeline.store.stores import Stores
from pipeline.store.uri import folder_of, join, one_line, redact

JOURNAL, RUNS, HISTORY, INDEXES = "journal", "runs", "history", "indexes"
LATEST, CATALOG = "latest.json", "files.json"
"""Names of folders and files in an output, besides the tables (`rows.TABLES`)."""
MAX_JSON_BYTES, MAX_TABLE_BYTES = 16 << 20, 1 << 40
_BLOCK = 8 << 20


class OutputFolder:
    """`uri` is a full name, see `Stores.full_name`. All methods raise OutputError and StoreDownError."""

    def __init__(self, stores: Stores, uri: str) -> None:
        self.uri = uri
        self._store = stores.of(uri)

    @property
    def local_path(self) -> Path | None:
        """The folder on this machine; None for all stores but the local one."""
        return self._store.local_path(self.uri)

    def check_kind(self) -> None:
        """Raise if nothing can be written here by its kind: a web server, or below a file. Writes nothing."""
        with _output_errors():
            self._store.check_kind(self.uri)

    def check_writable(self) -> None:
        """Raise unless files can be written here, as far as this can be checked. Leaves nothing behind."""
        with _output_errors():
            self._store.check_writable(self.uri)

    def check_exists(self, folders: Sequence[str]) -> None:
        """Raise if these folders have no files and none are listed: a mistyped name must not look like an output."""
        found = any(next(self.list_files(folder), None) for folder in folders)
        if not found and self.read_bytes(CATALOG) is None:
            raise OutputError(f"there is no output of Nightcap at '{redact(self.uri)}'; check the name")

    @contextmanager
    def locked(self, run_id: str) -> Iterator[Lock]:
        """Hold the lock of the output until the end of the block. Raises LockedError, which names the holder."""
        with ExitStack() as stack:
            with _output_errors():
                lock = stack.enter_context(self._store.lock(self.uri, run_id))
            yield lock

    def remove_leftovers(self, folders: Sequence[str], files: Sequence[str] = ()) -> int:
        """Remove what killed processes wrote halfway. Returns how many. The caller must hold the lock."""
        with _output_errors():
            return self._store.remove_leftovers(self.uri, folders, files)

    def full_name(self, name: str) -> str:
        """`captions/x.parquet` -> its path or URI."""
        return join(self.uri, name)

    def list_files(self, folder: str) -> Iterator[str]:
        """Yield `FOLDER/NAME` of every file below a folder of the output, sorted."""
        prefix = join(self.uri, "")
        with _output_errors():
            yield from (uri.removeprefix(prefix) for uri in self._store.list_files(join(self.uri, folder)))

    def stat_files(self, folder: str) -> dict[str, ObjectInfo | None]:
        """`FOLDER/NAME` -> size and content tag of every file in a folder of the output; empty if there is none."""
        top, files = join(self.uri, folder), {}
        try:
            for file in self._store.walk(top, lambda *_: None, levels=1):
                files[f"{folder}/{file.relative_path}"] = file.info
        except StoreError as error:
            if error.error_class != "missing":
                raise error.as_usage(OutputError) from error
        return files

    def walk(self) -> Iterator[str]:
        """Yield the name of every file in and below the folder, except in hidden folders; none if it is missing."""
        try:
            for file in self._store.walk(self.uri, lambda *_: None):
                if not any(part.startswith(".") for part in file.relative_path.split("/")[:-1]):
                    yield file.relative_path
        except StoreError as error:
            if error.error_class != "missing":
                raise error.as_usage(OutputError) from error

    def download(self, name: str, target: Path) -> bool:
        """Copy a file to a local one, in bounded memory. A response that breaks off is retried.

        Returns False if the file does not exist.
        """
        uri = join(self.uri, name)

        def copy() -> None:
            with self._store.open(uri) as stream, target.open("wb") as file:
                shutil.copyfileobj(stream, file, _BLOCK)

        try:
            with self._store.errors("read", uri):
                self._store.retry(copy, lambda error: isinstance(error, BrokenBodyError))
        except StoreError as error:
            if error.error_class == "missing":
                return False
            raise error.as_usage(OutputError) from error
        return True

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file atomically: readers see the old content or the new content, never a part."""
        with _output_errors():
            self._store.write(join(self.uri, name), data)

    def upload(self, name: str, source: Path) -> None:
        """Write or replace a file atomically with the content of a local one, in bounded memory."""
        with _output_errors():
            self._store.upload(join(self.uri, name), source)

    def delete(self, name: str) -> None:
        """Delete a file. It is not an error if the file does not exist."""
        with _output_errors():
            self._store.delete(join(self.uri, name))

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table | None:
        """Read a Parquet file, or those of `columns` that it has. None if the file does not exist (any more)."""
        try:
            return read_parquet(self._store, join(self.uri, name), columns)
        except pa.ArrowException as error:
            raise self.not_ours(name, str(error)) from error
        except StoreError as error:
            if error.error_class == "missing":
                return None
            raise error.as_usage(OutputError) from error

    def parse_table(self, name: str, data: bytes, columns: list[str] | None = None) -> pa.Table:
        """The table in the bytes of the Parquet file `name`, with all columns or with `columns`."""
        try:
            return parse_parquet(data, columns)
        except pa.ArrowException as error:
            raise self.not_ours(name, str(error)) from error

    def read_bytes(self, name: str, max_bytes: int = MAX_TABLE_BYTES) -> bytes | None:
        """Read a file. None if it does not exist."""
        try:
            return self._store.read(join(self.uri, name), max_bytes).data
        except StoreError as error:
            if error.error_class == "missing":
                return None
            raise error.as_usage(OutputError) from error

    def read_json(self, name: str, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any] | None:
        """Read a JSON object. None if the file does not exist, or contains something else."""
        data = self.read_bytes(name, max_bytes)
        try:
            content = None if data is None else json.loads(data)
        except (ValueError, RecursionError):
            return None
        return content if isinstance(content, dict) else None

    def write_json(self, name: str, content: dict[str, Any], *, indent: int | None = 1) -> None:
        """Write or replace a JSON file."""
        self.write(name, (json.dumps(content, indent=indent, ensure_ascii=False) + "\n").encode())

    def not_ours(self, name: str, reason: str) -> OutputError:
        """The error for a file in the output that Nightcap did not write."""
        return OutputError(
            f"'{redact(join(self.uri, name))}' is not a table of Nightcap; move it away: {one_line(reason)}"
        )


class OutputFile:
    """A file that a command writes at its end. Its name is checked at once.

    Raises OutputError if the name is a folder, or if its folder is not writable.
    """

    def __init__(self, stores: Stores, name: str) -> None:
        if not name.strip():
            raise OutputError("the name of the file to write is empty; give a file name or s3://bucket/key")
        with _output_errors():
            uri = stores.full_name(name)
            if stores.of(uri).kind(uri) == "folder":
                raise OutputError(f"'{redact(name)}' is a folder; give the name of a file")
            stores.of(uri).check_writable(folder_of(uri))
        self.uri, self._store = uri, stores.of(uri)

    def write(self, data: bytes) -> None:
        """Write or replace the file. Raises OutputError."""
        with _output_errors():
            self._store.write(self.uri, data)

    def upload(self, source: Path) -> None:
        """Write or replace the file with the content of a local one, in bounded memory. Raises OutputError."""
        with _output_errors():
            self._store.upload(self.uri, source)

    def beginning(self, size: int) -> bytes:
        """The first bytes of the file; empty if it does not exist. Raises OutputError."""
        try:
            with self._store.errors("read", self.uri), self._store.open(self.uri) as file:
                return file.read(size)
        except StoreError as error:
            if error.error_class == "missing":
                return b""
            raise error.as_usage(OutputError) from error

    def equals(self, source: Path) -> bool:
        """Whether the file has the content of a local one."""
        try:
            if self._store.stat(self.uri).size != source.stat().st_size:
                return False
            with (
                self._store.errors("read", self.uri),
                self._store.open(self.uri) as ours,
                source.open("rb") as new,
            ):
                while block := new.read(_BLOCK):
                    if ours.read(len(block)) != block:
                        return False
            return True
        except StoreError:
            return False


@contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise error.as_usage(OutputError) from error

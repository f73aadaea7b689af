"""The folder of an output: files by their name below it, on whatever store it is.

What a store can't do becomes an OutputError here, or a StoreDownError if the store answered that it can't serve now.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa

from conf.errors import OutputError
from pipeline.parquet import read_parquet
from pipeline.store.errors import StoreError
from pipeline.store.lock import Lock
from pipeline.store.stores import Stores
from pipeline.store.uri import folder_of, join, one_line, redact

MAX_JSON_BYTES = 16 << 20


class OutputFolder:
    """`uri` is a full name, see `Stores.full_name`. Every method raises OutputError and StoreDownError."""

    def __init__(self, stores: Stores, uri: str) -> None:
        self.uri = uri
        self._store = stores.of(uri)

    @property
    def remote(self) -> bool:
        """Whether it is on another machine."""
        return self._store.remote

    def check_writable(self) -> None:
        """Raise unless files can be written here, as far as can be known. Leaves nothing behind."""
        with _output_errors():
            self._store.check_writable(self.uri)

    def check_exists(self, folders: Sequence[str]) -> None:
        """Raise if none of these folders holds a file: a mistyped name must not look like an empty output."""
        if not any(next(self.list_files(folder), None) for folder in folders):
            raise OutputError(f"there is no output of Nightcap at '{redact(self.uri)}'; check the name")

    @contextmanager
    def locked(self, run_id: str) -> Iterator[Lock]:
        """Hold the output alone until the end of the block. Raises LockedError that names the holder."""
        with ExitStack() as stack:
            with _output_errors():
                lock = stack.enter_context(self._store.lock(self.uri, run_id))
            yield lock

    def remove_leftovers(self, folders: Sequence[str]) -> int:
        """Remove what killed runs left half-written; for the holder of the lock. How much that was."""
        with _output_errors():
            return self._store.remove_leftovers(self.uri, folders)

    def full_name(self, name: str) -> str:
        """`captions/x.parquet` -> its path or URI."""
        return join(self.uri, name)

    def list_files(self, folder: str) -> Iterator[str]:
        """`FOLDER/NAME` of every file below a folder of the output, sorted."""
        prefix = join(self.uri, "")
        with _output_errors():
            yield from (uri.removeprefix(prefix) for uri in self._store.list_files(join(self.uri, folder)))

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file. A reader sees the old one or the new one, never a part."""
        with _output_errors():
            self._store.write(join(self.uri, name), data)

    def delete(self, name: str) -> None:
        """Delete a file. It is no error if it is gone already."""
        with _output_errors():
            self._store.delete(join(self.uri, name))

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table | None:
        """A Parquet file, or those of these columns that it has; None when there is no such file (any more)."""
        try:
            return read_parquet(self._store, join(self.uri, name), columns)
        except pa.ArrowException as error:
            raise self.not_ours(name, str(error)) from error
        except StoreError as error:
            if error.error_class == "missing":
                return None
            raise error.as_usage(OutputError) from error

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON object; None when there is no such file, or it holds something else."""
        try:
            found = json.loads(self._store.read(join(self.uri, name), MAX_JSON_BYTES).data)
        except StoreError as error:
            if error.error_class == "missing":
                return None
            raise error.as_usage(OutputError) from error
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write or replace a JSON file."""
        self.write(name, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    def not_ours(self, name: str, reason: str) -> OutputError:
        """The error for a file of the output that Nightcap has not written."""
        return OutputError(
            f"'{redact(join(self.uri, name))}' is not a table of Nightcap; move it away: {one_line(reason)}"
        )


class OutputFile:
    """One file to be written at the end of a command, by a name that a user gave; checked when made.

    Raises OutputError: the name is that of a folder, or nothing can be written beside it.
    """

    def __init__(self, stores: Stores, name: str) -> None:
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


@contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise error.as_usage(OutputError) from error

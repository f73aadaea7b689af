"""The interface of all stores.

A store describes a file by its size and its content tag, which changes when the content changes:

    local       "{size}-{mtime_ns}"
    s3          the ETag without quotes (not an MD5 for multipart uploads, but it changes with the content)
    http(s)     the ETag, else "{size}-{Last-Modified}"
    any other   its ETag or checksum, else "{size}-{modification time}", else None
    a member    of a container: its own tag, else "{tag of the container}@{part}", see `pipeline.store.containers`
"""

from __future__ import annotations

import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, NamedTuple, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_chain, wait_fixed, wait_random

from conf.job import S3Settings
from pipeline.store.errors import BrokenBodyError, Operation, StoreError
from pipeline.store.lock import Lock
from pipeline.store.uri import join, one_line, redact

WHOLE_READ_S = 300.0  # time limit for reading one file
SETUP_S = 15.0  # time limit for one request before any work starts
RETRY_PAUSES_S = (0.5, 2.0)  # before the second and the third attempt of a read that broke off
_TAG_FIELDS = ("ETag", "etag", "Content-MD5", "md5", "md5Hash", "content_md5", "checksum")
_TIME_FIELDS = ("Last-Modified", "LastModified", "last_modified", "mtime", "modified", "updated", "created")

Kind = Literal["file", "folder", "missing"]
LeaveOut = Callable[[str, str], None]
"""Called with (reason, path) for each file or folder that a walk leaves out."""
T = TypeVar("T")


class opened_once(cached_property[T]):  # noqa: N801 - used as a decorator
    """A cached property that several threads may read first. Python 3.12 removed the lock of `cached_property`."""

    def __init__(self, function: Callable[[Any], T]) -> None:
        super().__init__(function)
        self._opening = threading.RLock()

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        with self._opening:
            return super().__get__(instance, owner)


@dataclass(frozen=True)
class ObjectInfo:
    """Size in bytes, content tag (see the top of this module) and modification time, seconds since 1970, UTC.

    `part` is where a member of a container is, see `pipeline.store.containers.base`; empty for a file by itself.
    """

    size: int | None
    content_tag: str | None
    modified: float | None = None
    part: str = ""

    @property
    def tag_is_digest(self) -> bool:
        """True if the tag is a digest of the content alone, so that equal tags mean equal bytes."""
        return self.content_tag is not None and re.fullmatch("[0-9a-f]{32}", self.content_tag) is not None


class Body(NamedTuple):
    """All bytes of a file, and the content tag of exactly these bytes, if the store returns one."""

    data: bytes
    content_tag: str | None


@dataclass(frozen=True)
class ListedFile:
    """A file of a listing: its full name, its name relative to the listed folder, and its info, or an error."""

    path: str
    relative_path: str
    info: ObjectInfo | None
    error: StoreError | None = None
    is_image: bool = False  # whatever its name


class Store(ABC):
    """A kind of store. Methods raise StoreError for every failure that can occur in normal operation.

    Names are absolute local paths or full URIs, see `pipeline.store.uri`. `full_name` returns them.
    """

    remote: ClassVar[bool] = True
    """Whether requests take a network round trip. If so, callers read ahead and send requests in parallel."""
    globs: ClassVar[bool] = True
    """Whether `*`, `?` and `[` in a name can be wildcards."""
    digests: ClassVar[bool] = False
    """Whether `digest` is implemented, as the tag of `input.content_hash`."""
    expected: ClassVar[tuple[type[BaseException], ...]] = (OSError,)
    """The exceptions that the library of this store raises in normal operation. Any other exception is a bug."""

    def __init__(self, uri: str, s3: S3Settings) -> None:  # noqa: B027 - not every kind needs them
        """`uri` is the first name that is opened; `stores.Stores` may pass others to the same store."""

    def close(self) -> None:  # noqa: B027 - not every kind has connections
        """Close connections."""

    # Names

    def full_name(self, uri: str) -> str:
        """The name as listings of this store spell it."""
        return uri

    def local_path(self, uri: str) -> Path | None:
        """The file of this machine that `uri` names; None for all stores but the local one."""
        return None

    def contains(self, folder: str, uri: str) -> bool:
        """Whether `uri` is the folder or is below it."""
        return join(uri.rstrip("/"), "").startswith(join(folder.rstrip("/"), ""))

    # Metadata

    @abstractmethod
    def kind(self, uri: str) -> Kind:
        """Whether a name is a file, a folder or missing. A request takes at most `SETUP_S`."""

    @abstractmethod
    def stat(self, uri: str) -> ObjectInfo:
        """The metadata of a file, without reading it. Raises `unsupported` for a folder."""

    @abstractmethod
    def walk(
        self, folder: str, leave_out: LeaveOut, *, stem: str = "", levels: int | None = None
    ) -> Iterator[ListedFile]:
        """Every file below a folder whose relative path starts with `stem`, at most `levels` deep (1: no subfolders).

        A store may ignore `stem` and `levels` and yield more files. It may leave out hidden folders, but not hidden
        files.
        """

    @abstractmethod
    def list_files(self, folder: str) -> Iterator[str]:
        """The full name of every file below a folder, sorted. Empty if the folder does not exist."""

    # Reading

    @abstractmethod
    def fetch(self, uri: str, max_bytes: int) -> Body:
        """One attempt of `read`. Raises the exceptions of the library, and BrokenBodyError if a retry may help."""

    @abstractmethod
    def open(self, uri: str) -> IO[bytes]:
        """A seekable stream. It raises the exceptions of the library, so read it inside `errors`."""

    def read(self, uri: str, max_bytes: int) -> Body:
        """Read a whole file, in up to three attempts if a response breaks off.

        Raises `too_large`, without reading all of it, if the file has more than `max_bytes`.
        """
        with self.errors("read", uri):
            return self.retry(lambda: self.fetch(uri, max_bytes), lambda e: isinstance(e, BrokenBodyError))

    def read_range(self, uri: str, offset: int, length: int) -> Body:
        """Read a part of a file, which is shorter than `length` if the file ends in it, as `read` does.

        The tag is that of the whole file.
        """
        with self.errors("read", uri):
            return self.retry(
                lambda: self.fetch_range(uri, offset, length), lambda e: isinstance(e, BrokenBodyError)
            )

    def fetch_range(self, uri: str, offset: int, length: int) -> Body:
        """One attempt of `read_range`."""
        with self.open(uri) as stream:
            stream.seek(offset)
            return Body(stream.read(length), None)

    def digest(self, uri: str, max_bytes: int, part: str = "") -> str | None:
        """A digest of a file of at most `max_bytes`; None if the store has none without sending the file.

        `part` is where a member of a container is, if it is known.
        """
        return None

    # Writing

    @abstractmethod
    def write(self, uri: str, data: bytes) -> None:
        """Write or replace a file atomically: readers see the old content or the new content, never a part."""

    def upload(self, uri: str, source: Path) -> None:
        """`write` with the content of a local file, which need not fit into memory."""
        self.write(uri, source.read_bytes())

    @abstractmethod
    def delete(self, uri: str) -> None:
        """Delete a file. It is not an error if the file does not exist."""

    def check_kind(self, folder: str) -> None:  # noqa: B027 - most kinds can be written
        """Raise if nothing can ever be written below a folder. Sends no requests and writes nothing."""

    @abstractmethod
    def check_writable(self, folder: str) -> None:
        """Raise unless files can be written below a folder, as far as this can be checked. Leaves nothing behind."""

    def remove_leftovers(self, folder: str, subfolders: Sequence[str], files: Sequence[str] = ()) -> int:
        """Remove what killed processes wrote halfway in a folder, in its `subfolders`, and of its `files`.

        Returns how many there were. The caller must hold the lock of the folder. Files that another program may have
        written are kept.
        """
        return 0

    @abstractmethod
    def lock(self, folder: str, run_id: str) -> AbstractContextManager[Lock]:
        """Hold the lock of a folder until the end of the block. Raises LockedError, which names the holder."""

    # Errors

    @contextmanager
    def errors(self, operation: Operation, uri: str) -> Iterator[None]:
        """Turn exceptions of the library inside the block into StoreError."""
        try:
            yield
        except StoreError:
            raise
        except self.expected as error:
            raise self.translate(error, operation, uri) from error

    @abstractmethod
    def translate(self, error: BaseException, operation: Operation, uri: str) -> StoreError:
        """The StoreError for one of the `expected` exceptions."""

    def retry(self, work: Callable[[], T], when: Callable[[BaseException], bool]) -> T:
        """Call `work`, and retry after each of `RETRY_PAUSES_S` if it raises an exception that `when` accepts."""
        pauses = [wait_fixed(pause) + wait_random(0, pause) for pause in RETRY_PAUSES_S]
        retrying = Retrying(
            stop=stop_after_attempt(len(pauses) + 1),
            wait=wait_chain(*pauses),
            retry=retry_if_exception(when),
            sleep=time.sleep,
            reraise=True,
        )
        return retrying(work)


def info_from(fields: Mapping[str, Any]) -> ObjectInfo:
    """The ObjectInfo from the fields that fsspec or S3 returns for an object."""
    size = fields.get("size", fields.get("Size", fields.get("ContentLength")))
    modified = next((fields[name] for name in _TIME_FIELDS if fields.get(name)), None)
    for name in _TAG_FIELDS:
        if fields.get(name):
            return ObjectInfo(size, str(fields[name]).removeprefix("W/").strip('"'), _seconds(modified))
    return ObjectInfo(size, None if modified is None else f"{size}-{modified}", _seconds(modified))


def _seconds(time: Any) -> float | None:
    """A modification time (datetime, seconds or HTTP date) in seconds since 1970; None if it is invalid."""
    try:
        if isinstance(time, str):
            time = parsedate_to_datetime(time)
        return time.timestamp() if isinstance(time, datetime) else None if time is None else float(time)
    except (TypeError, ValueError, OverflowError):
        return None


def check_size(size: int, max_bytes: int) -> None:
    """Raises `too_large` for a file of more than `max_bytes`."""
    if size > max_bytes:
        raise StoreError("too_large", f"{size} bytes or more, limit {max_bytes}")


def check_whole(data: bytes, size: int | None, max_bytes: int) -> bytes:
    """Return `data`. Raises `too_large` for more than `max_bytes`, and BrokenBodyError for less than `size`."""
    check_size(len(data), max_bytes)
    if size is not None and len(data) < size:
        raise BrokenBodyError(f"short read: {len(data)} of {size} bytes")
    return data


def no_such_name(uri: str, operation: Operation) -> StoreError:
    """The error for a name that no file can have."""
    message = f"can't {operation} '{one_line(redact(uri))}': no file can have this name; check it"
    return StoreError("unsupported", "no file can have this name", message)

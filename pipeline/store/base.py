"""What every kind of store can do, and what it says about a file without sending it.

The content tag tells a changed file from an unchanged one, together with its size:

    local       "{size}-{mtime_ns}"
    s3          the ETag without quotes (not an MD5 for multipart uploads, but it changes with the content)
    http(s)     the ETag, else "{size}-{Last-Modified}"
    any other   its ETag or checksum, else "{size}-{modification time}", else None
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import IO, Any, ClassVar, Literal, NamedTuple, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_chain, wait_fixed, wait_random

from conf.job import S3Settings
from pipeline.store.errors import BrokenBodyError, Doing, StoreError
from pipeline.store.lock import Lock
from pipeline.store.uri import join, one_line, redact

WHOLE_READ_S = 300.0  # one object, however slowly it arrives
SETUP_S = 15.0  # one question that is asked before any work starts
RETRY_PAUSES_S = (0.5, 2.0)  # before the second and the third try of an answer that broke off
_STRONG = ("ETag", "etag", "Content-MD5", "md5", "md5Hash", "content_md5", "checksum")
_WEAK = ("Last-Modified", "LastModified", "last_modified", "mtime", "modified", "updated", "created")

Kind = Literal["file", "folder", "missing"]
LeaveOut = Callable[[str, str], None]
"""Called with (reason, path) for whatever a walk passes by."""
T = TypeVar("T")


@dataclass(frozen=True)
class ObjectInfo:
    """Size in bytes, content tag (see the top of this module) and modification time in seconds since 1970, UTC."""

    size: int | None
    content_tag: str | None
    modified: float | None = None

    @property
    def tag_is_digest(self) -> bool:
        """True when the tag is a digest of the content alone, so that equal tags mean equal bytes."""
        return self.content_tag is not None and re.fullmatch("[0-9a-f]{32}", self.content_tag) is not None


class Body(NamedTuple):
    """All bytes of a file, and the content tag of exactly these bytes where the store says."""

    data: bytes
    content_tag: str | None


@dataclass(frozen=True)
class ListedFile:
    """A file found below a folder: its full name, its name below the folder, and what is known or wrong about it."""

    path: str
    below: str
    info: ObjectInfo | None
    error: StoreError | None = None


class Store(ABC):
    """One kind of store. Every method raises StoreError for what a store may do in normal operation.

    Names are absolute local paths or full URIs, see `pipeline.store.uri`; `full_name` makes them.
    """

    remote: ClassVar[bool] = True
    """Whether asking takes a round trip, so that callers read ahead and ask many questions at once."""
    globs: ClassVar[bool] = True
    """Whether `*` in a name may be a wildcard."""
    expected: ClassVar[tuple[type[BaseException], ...]] = (OSError,)
    """The exceptions that the library behind this store raises in normal operation. Any other one is a bug."""

    def __init__(self, uri: str, s3: S3Settings) -> None:  # noqa: B027 - not every kind needs them
        """For `uri` and all names that `stores.Stores` sends to the same store."""

    def close(self) -> None:  # noqa: B027 - not every kind has any
        """Close connections."""

    # Names

    def full_name(self, uri: str) -> str:
        """The spelling of a name that listings of this store use too."""
        return uri

    def contains(self, folder: str, uri: str) -> bool:
        """Whether `uri` is the folder or lies below it."""
        return join(uri.rstrip("/"), "").startswith(join(folder.rstrip("/"), ""))

    # Looking

    @abstractmethod
    def kind(self, uri: str) -> Kind:
        """What there is under a name that a user gave. Asked before work starts: answers within `SETUP_S`."""

    @abstractmethod
    def stat(self, uri: str) -> ObjectInfo:
        """What is known of a file without reading it; `unsupported` for a folder."""

    @abstractmethod
    def walk(
        self, folder: str, leave_out: LeaveOut, *, stem: str = "", levels: int | None = None
    ) -> Iterator[ListedFile]:
        """Every file below a folder whose name there starts with `stem`, at most `levels` deep (1: no subfolders).

        A store may yield more than `stem` and `levels` ask for. Hidden folders may be left out, hidden files not.
        """

    @abstractmethod
    def list_files(self, folder: str) -> Iterator[str]:
        """The full name of every file below a folder, sorted; nothing where there is no such folder."""

    # Reading

    @abstractmethod
    def fetch(self, uri: str, max_bytes: int) -> Body:
        """One try of `read`. Raises what the library raises; BrokenBodyError for what is worth another try."""

    @abstractmethod
    def open(self, uri: str) -> IO[bytes]:
        """A seekable stream, read inside `errors`: it raises what the library raises."""

    def read(self, uri: str, max_bytes: int) -> Body:
        """A whole file; `too_large`, without reading all of it, when it has more than `max_bytes`.

        An answer that breaks off is tried again, three times in all.
        """
        with self.errors("read", uri):
            return self.retry(lambda: self.fetch(uri, max_bytes), lambda e: isinstance(e, BrokenBodyError))

    def digest(self, uri: str, max_bytes: int) -> str | None:
        """A digest of a file of at most `max_bytes`, where the store can have it without sending the file."""
        return None

    # Writing

    @abstractmethod
    def write(self, uri: str, data: bytes) -> None:
        """Write or replace one file. A reader sees the old one or the new one, never a part."""

    @abstractmethod
    def delete(self, uri: str) -> None:
        """Delete one file. It is no error if it is gone already."""

    @abstractmethod
    def check_writable(self, folder: str) -> None:
        """Raise unless files can be written below a folder, as far as can be known. Leaves nothing behind."""

    def remove_leftovers(self, folder: str, subfolders: Sequence[str]) -> int:
        """Remove what killed runs left half-written in a folder and its subfolders; how much that was.

        For the holder of the folder's lock. Nothing that may be somebody else's is touched.
        """
        return 0

    @abstractmethod
    def lock(self, folder: str, run_id: str) -> AbstractContextManager[Lock]:
        """Hold a folder alone until the end of the block. Raises LockedError that names the holder."""

    # Errors

    @contextmanager
    def errors(self, doing: Doing, uri: str) -> Iterator[None]:
        """Turn what the library raises inside the block into StoreError."""
        try:
            yield
        except StoreError:
            raise
        except self.expected as error:
            raise self.translate(error, doing, uri) from error

    @abstractmethod
    def translate(self, error: BaseException, doing: Doing, uri: str) -> StoreError:
        """One of the `expected` exceptions in Nightcap's terms."""

    def retry(self, work: Callable[[], T], when: Callable[[BaseException], bool]) -> T:
        """`work()`, again after each of `RETRY_PAUSES_S` while it raises what `when` accepts."""
        pauses = [wait_fixed(pause) + wait_random(0, pause) for pause in RETRY_PAUSES_S]
        tries = Retrying(
            stop=stop_after_attempt(len(pauses) + 1),
            wait=wait_chain(*pauses),
            retry=retry_if_exception(when),
            sleep=time.sleep,
            reraise=True,
        )
        return tries(work)


def info_from(fields: Mapping[str, Any]) -> ObjectInfo:
    """What fsspec's or S3's description of an object says."""
    size = fields.get("size", fields.get("Size", fields.get("ContentLength")))
    changed = next((fields[name] for name in _WEAK if fields.get(name)), None)
    for name in _STRONG:
        if fields.get(name):
            return ObjectInfo(size, str(fields[name]).removeprefix("W/").strip('"'), _seconds(changed))
    return ObjectInfo(size, None if changed is None else f"{size}-{changed}", _seconds(changed))


def _seconds(time: Any) -> float | None:
    """A modification time as stores give it (datetime, seconds, an HTTP date) in seconds since 1970."""
    try:
        if isinstance(time, str):
            time = parsedate_to_datetime(time)
        return time.timestamp() if isinstance(time, datetime) else None if time is None else float(time)
    except (TypeError, ValueError, OverflowError):
        return None


def check_size(size: int, max_bytes: int) -> None:
    """Raises StoreError for a file that is too large."""
    if size > max_bytes:
        raise StoreError("too_large", f"{size} bytes or more, limit {max_bytes}")


def check_whole(data: bytes, size: int | None, max_bytes: int) -> bytes:
    """`data`, if it is as long as the store said. Raises BrokenBodyError, StoreError."""
    check_size(len(data), max_bytes)
    if size is not None and len(data) < size:
        raise BrokenBodyError(f"short read: {len(data)} of {size} bytes")
    return data


def no_such_name(uri: str, doing: Doing) -> StoreError:
    """For a name that nothing can have."""
    sentence = f"can't {doing} '{one_line(redact(uri))}': no file can have this name; check it"
    return StoreError("missing", "no file can have this name", sentence)

"""The interface of all kinds of containers: files that hold many images.

A member is named `CONTAINER::NAME`, as in `s3://b/shard-0.tar::cats/1.jpg`. A container is never unpacked to disk.
Listing it yields the `part` of each member: where its bytes are, in one line of text that workers get with the name,
so that they need no listing of their own.

    OFFSET+LENGTH[;…]    bytes of the file. Members can be read in any order, neighbours with one request.
    SEGMENT/POSITION     members of a segment can only be read one after the other. One worker reads a segment.

The members of a video are its frames: `clip.mp4#t=12.48`.

The content tag of a member is its own, such as a checksum, or else that of its container, with the part appended:
if such a container is replaced, all of its members have changed.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import IO, ClassVar, NamedTuple

from pipeline.store.base import Body, Store, check_size
from pipeline.store.errors import StoreError

_CHUNK = 1 << 16


class Member(NamedTuple):
    """A member of a container. With an `error_class`, it can never be read, and `detail` says why.

    `content_tag` is None if the member has none of its own.
    """

    name: str
    part: str
    size: int | None = None
    content_tag: str | None = None
    error_class: str = ""
    detail: str = ""


class Container(ABC):
    """A container on a store. Methods raise StoreError, and the exceptions in `expected`."""

    costly: ClassVar[bool] = False
    """Whether listing reads more than an index of the file. If so, the output keeps the list for the next run."""
    digests: ClassVar[bool] = False
    """Whether `input.content_hash` reads the members: they have no checksum, and can be read in any order."""
    only_images: ClassVar[bool] = False
    """Whether all members are images, whatever their names."""
    listing: str = ""
    """The settings that `members` depends on. An index that the output keeps counts only for these."""
    expected: ClassVar[tuple[type[BaseException], ...]] = ()
    """The exceptions, besides those of the store, that a damaged container causes."""

    def __init__(self, store: Store, uri: str) -> None:
        """`uri` is the name of the file in `store`."""
        self.store, self.uri = store, uri

    def is_container(self) -> bool:
        """Whether the file holds images at all, as far as its kind can tell."""
        return True

    def find(self, name: str) -> Member | None:
        """The member of this name, if that can be told without listing the container."""
        return None

    @abstractmethod
    def members(self) -> Iterator[Member]:
        """Every member that is a file, in the order in which it is best read. Names may repeat: the last one counts.

        Raises for a damaged container, after the members that precede the damage.
        """

    @abstractmethod
    def contents(self, parts: Iterable[str], max_bytes: int) -> Iterator[Body | StoreError]:
        """The content of each part, in order, or why it can't be read. The tag is that of the container.

        If parts have segments, each is taken from the iterable when the content before it was taken.
        """


class Span(NamedTuple):
    """Bytes of a container."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


def span_of(part: str) -> Span:
    """`"512+1000;…"` -> `Span(512, 1000)`."""
    offset, _, length = part.partition(";")[0].partition("+")
    return Span(int(offset), int(length))


def segment_of(part: str) -> str | None:
    """`"3/17"` -> `"3"`; None for a part that can be read in any order."""
    segment, slash, _ = part.rpartition("/")
    return segment if slash else None


class RangedContainer(Container):
    """A container whose members are spans of bytes. If the store is remote, one request reads all the parts."""

    def contents(self, parts: Iterable[str], max_bytes: int) -> Iterator[Body | StoreError]:
        problems = [(part, self._problem(part, max_bytes)) for part in parts]
        spans = [span_of(part) for part, problem in problems if problem is None]
        together = self.store.remote and len(spans) > 1
        first = min((span.offset for span in spans), default=0)
        end = max((span.end for span in spans), default=0)
        block = self.store.read_range(self.uri, first, end - first) if together else Body(b"", None)
        for part, problem in problems:
            span = span_of(part)
            if problem is not None:
                yield problem
            elif together:
                own = block.data[span.offset - first : span.end - first]
                yield self._content(part, Body(own, block.content_tag), max_bytes)
            else:
                yield self._content(part, self.store.read_range(self.uri, *span), max_bytes)

    def _problem(self, part: str, max_bytes: int) -> StoreError | None:
        try:
            self.check(part, max_bytes)
        except StoreError as error:
            return error
        return None

    def _content(self, part: str, stored: Body, max_bytes: int) -> Body | StoreError:
        try:
            if len(stored.data) < span_of(part).length:
                raise StoreError("truncated", "the archive ends before the end of this file")
            return Body(self.extract(part, stored.data), stored.content_tag)
        except StoreError as error:
            return error

    def check(self, part: str, max_bytes: int) -> None:
        """Raises StoreError, before anything is read, for a member of more than `max_bytes`."""
        check_size(span_of(part).length, max_bytes)

    def extract(self, part: str, data: bytes) -> bytes:
        """The content of a member from its bytes in the container. Raises StoreError."""
        return data


class LimitedStream(io.RawIOBase):
    """A seekable stream that reads at most `limit` bytes: a damaged list of files may ask for gigabytes."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream, self._limit = stream, limit
        self.renew()

    def renew(self) -> None:
        """Allow `limit` bytes again, for the next entry of the list."""
        self._left = self._limit

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._stream.seek(offset, whence)
        except (
            ValueError
        ) as error:  # of fsspec, for a place before the start; zipfile expects what a file raises
            raise OSError(str(error)) from error

    def read(self, size: int = -1) -> bytes:
        """Raises StoreError for more than what is left."""
        if 0 <= size <= self._left:
            data = self._stream.read(size)
            self._left -= len(data)
            return data
        data = b""
        while size < 0 and len(data) <= self._left:  # a stream may allocate all that it is asked for
            if not (more := self._stream.read(_CHUNK)):
                self._left -= len(data)
                return data
            data += more
        raise StoreError("corrupt", f"an entry of more than {self._limit} bytes in the list of its files")

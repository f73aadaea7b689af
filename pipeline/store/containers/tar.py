"""Tar archives: `.tar`, in any order, and `.tar.gz`, which can only be read from its start."""

from __future__ import annotations

import gzip
import math
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, ClassVar, cast

from pipeline.store.base import Body, check_size
from pipeline.store.containers.base import Container, LimitedStream, Member, RangedContainer, span_of
from pipeline.store.errors import StoreError

_DAMAGED = (tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError, ValueError, OverflowError)
_BLOCK, _CHUNK = 512, 1 << 20
_MAX_HEADER = 1 << 20  # bytes of all headers of one file, with a long name and extended ones
# Images hardly shrink. Zeros shrink to a thousandth.
_MAX_RATIO, _RATIO_APPLIES = 100, 1 << 30


class Tar(RangedContainer):
    """A tar archive. Only its headers are read to list it."""

    costly: ClassVar[bool] = True
    digests: ClassVar[bool] = True
    expected: ClassVar[tuple[type[BaseException], ...]] = _DAMAGED

    def members(self) -> Iterator[Member]:
        size = self.store.stat(self.uri).size
        with self.store.open(self.uri) as stream:
            for member in _members(stream, ""):
                if not member.error_class and size is not None and span_of(member.part).end > size:
                    yield member._replace(
                        error_class="truncated", detail="the archive ends before the end of this file"
                    )
                else:
                    yield member


class TarGz(Container):
    """A gzipped tar archive: one segment."""

    costly: ClassVar[bool] = True
    expected: ClassVar[tuple[type[BaseException], ...]] = _DAMAGED

    def members(self) -> Iterator[Member]:
        limit = max(_RATIO_APPLIES, _MAX_RATIO * (self.store.stat(self.uri).size or 0))
        with self._unpacked() as stream:
            yield from _members(stream, "0/", limit)
            while stream.read(_CHUNK):  # its checksum is at its end
                _check_end(stream.tell(), limit)

    def contents(self, parts: Iterable[str], max_bytes: int) -> Iterator[Body | StoreError]:
        tag = self.store.stat(self.uri).content_tag
        with self._unpacked() as stream:
            for part in parts:
                span = span_of(part.partition("/")[2])
                try:
                    check_size(span.length, max_bytes)
                except StoreError as error:
                    yield error
                    continue
                stream.seek(span.offset)  # reads what is between, or starts again
                data = stream.read(span.length)
                if len(data) < span.length:
                    raise EOFError("the archive ends before the end of this file")
                yield Body(data, tag)

    @contextmanager
    def _unpacked(self) -> Iterator[IO[bytes]]:
        with self.store.open(self.uri) as stored, gzip.GzipFile(fileobj=stored) as unpacked:
            yield cast("IO[bytes]", unpacked)


def _check_end(end: int, limit: float) -> None:
    if end > limit:
        raise StoreError("corrupt", f"it unpacks to more than {_MAX_RATIO} times its size")


def _members(stream: IO[bytes], segment: str, limit: float = math.inf) -> Iterator[Member]:
    """The members of the archive in `stream`. Raises StoreError for one that ends after `limit` bytes."""
    try:
        yield from _entries(stream, segment, limit)
    except RecursionError as error:
        raise tarfile.ReadError("too many extended headers in a row") from error
    except IndexError as error:
        raise tarfile.ReadError("an extended header is cut off") from error


def _entries(stream: IO[bytes], segment: str, limit: float) -> Iterator[Member]:
    limited = LimitedStream(stream, _MAX_HEADER)
    end = 0
    with tarfile.open(fileobj=cast("IO[bytes]", limited), mode="r:", errors="surrogateescape") as archive:
        while (info := archive.next()) is not None:
            if info.size < 0 or archive.offset <= end:
                raise tarfile.ReadError("a header with a negative size")
            end = archive.offset
            _check_end(end, limit)  # before the stream is read up to there
            if (member := _member(info, segment)) is not None:
                yield member
            limited.renew()
            archive.members = []  # type: ignore[attr-defined]  # tarfile would remember all of them
        # tarfile takes any block that is not a header for the end of the archive.
        stream.seek(archive.offset)
        if (rest := stream.read(_BLOCK)).strip(b"\0"):
            raise tarfile.ReadError(f"no header at byte {archive.offset}, {len(rest)} other bytes")


def _member(info: tarfile.TarInfo, segment: str) -> Member | None:
    part = f"{segment}{info.offset_data}+{info.size}"
    if info.issym() or info.islnk():
        detail = "a link inside an archive; store the file itself"
        return Member(info.name, part, error_class="unsupported", detail=detail)
    if not info.isfile():
        return None
    if info.issparse():
        detail = "a sparse file inside an archive; store it whole"
        return Member(info.name, part, error_class="unsupported", detail=detail)
    return Member(info.name, part, info.size)

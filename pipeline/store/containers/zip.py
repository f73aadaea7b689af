"""Zip archives, also with 64-bit sizes. Members are stored or deflated."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, ClassVar, cast

from pipeline.store.base import check_size
from pipeline.store.containers.base import LimitedStream, Member, RangedContainer
from pipeline.store.errors import StoreError

_MAX_DIRECTORY = 1 << 28  # bytes: about two million files
# The header of a file, in front of its bytes: signature, lengths of its name and extras.
_HEADER = struct.Struct("<4s22xHH")
_SIGNATURE = b"PK\3\4"
_MAX_HEADER = 1 << 18  # bytes of a header with the longest name and extras
_ENCRYPTED = 0x1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Zip(RangedContainer):
    """A zip archive. Its central directory lists it; the part of a member ends with method, sizes and checksum."""

    expected: ClassVar[tuple[type[BaseException], ...]] = (
        *(zipfile.BadZipFile, struct.error, NotImplementedError, UnicodeDecodeError),
        *(ValueError, OverflowError, EOFError),
    )

    def members(self) -> Iterator[Member]:
        with self.store.open(self.uri) as stream:
            limited = cast("IO[bytes]", LimitedStream(stream, _MAX_DIRECTORY))
            with zipfile.ZipFile(limited) as archive:
                files = sorted(archive.infolist(), key=lambda info: info.header_offset)
                starts = [*(info.header_offset for info in files), archive.start_dir]
        for info, end in zip(files, starts[1:], strict=True):
            if not info.is_dir():
                yield _member(info, end)

    def check(self, part: str, max_bytes: int) -> None:
        _, _, stored, size, _ = part.split(";")
        check_size(int(size), max_bytes)
        check_size(int(stored), max_bytes + _MAX_HEADER)  # deflate may add a little to what does not shrink

    def extract(self, part: str, data: bytes) -> bytes:
        _, method, stored, size, checksum = part.split(";")
        signature, name, extras = _HEADER.unpack_from(data)
        start = _HEADER.size + name + extras
        body = data[start : start + int(stored)]
        if signature != _SIGNATURE or len(body) < int(stored):
            raise StoreError("corrupt", "the directory of the archive names bytes that are not this file")
        if int(method) == zipfile.ZIP_DEFLATED:
            body = _inflate(body, int(size))
        if len(body) != int(size):
            raise StoreError("corrupt", f"{len(body)} bytes, but the archive says {size}")
        if zlib.crc32(body) != int(checksum, 16):
            raise StoreError("corrupt", "its checksum differs from the one in the archive")
        return body


def _member(info: zipfile.ZipInfo, end: int) -> Member:
    length = min(end - info.header_offset, _MAX_HEADER + info.compress_size)
    part = f"{info.header_offset}+{length};{info.compress_type};{info.compress_size};{info.file_size};{info.CRC:08x}"
    error_class = detail = ""
    if info.flag_bits & _ENCRYPTED:
        error_class, detail = "unsupported", "encrypted; store it without a password"
    elif info.external_attr >> 28 == 0xA:  # the file type of Unix, in the upper half
        error_class, detail = "unsupported", "a link inside an archive; store the file itself"
    elif info.compress_type not in _METHODS:
        error_class = "unsupported"
        detail = f"compressed by method {info.compress_type}; use deflate, or none"
    elif length < _HEADER.size + info.compress_size:
        error_class, detail = "corrupt", "it overlaps another file of the archive"
    tag = f"{info.file_size}-{info.CRC:08x}"
    return Member(info.filename, part, info.file_size, tag, error_class, detail)


def _inflate(data: bytes, size: int) -> bytes:
    """Unpack at most one byte more than `size`."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        return inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise StoreError("corrupt", f"can't be unpacked: {error}") from error

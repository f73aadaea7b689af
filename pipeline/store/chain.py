"""Chained URLs of fsspec, such as `zip://sub/a.jpg::s3://bucket/x.zip`: a file inside an archive on any store.

The first link names a file of the archive, the others say where the archive is. An archive can't be written.
"""

from __future__ import annotations

import asyncio
import tarfile
import threading
import zipfile
import zlib
from functools import cached_property
from typing import Any, ClassVar

import aiohttp
from botocore import exceptions as boto

from conf.job import S3Settings
from pipeline.store.base import Body, ObjectInfo, info_from
from pipeline.store.errors import Operation, StoreError
from pipeline.store.generic import GenericStore
from pipeline.store.http import HttpStore, check_name
from pipeline.store.s3 import errors as s3_errors
from pipeline.store.uri import CACHES, expand_home, links, local_path, one_line, protocol, redact

_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError)


class ChainStore(GenericStore):
    """The files of one archive."""

    # RuntimeError: the file is encrypted, or compressed in a way that the library can't read.
    expected: ClassVar[tuple[type[BaseException], ...]] = (
        *(*GenericStore.expected, *s3_errors.EXPECTED, *_DAMAGED),
        RuntimeError,
    )

    def __init__(self, uri: str, s3: S3Settings) -> None:
        super().__init__(uri, s3)
        self._s3, self._reading = s3, threading.Lock()

    @cached_property
    def fs(self) -> Any:
        """The file system of the archive. Raises StoreError, and the exceptions in `expected`."""
        import fsspec

        kinds = [protocol(link) for link in links(self._uri)]
        if CACHES.intersection(kinds):
            raise StoreError(
                "unsupported",
                "a cache",
                f"can't open '{redact(self._uri)}': every file is read once, so a cache is of no use; leave it out",
            )
        if kinds[-1] in ("http", "https"):
            check_name(links(self._uri)[-1], "read")
        options: dict[str, Any] = {"skip_instance_cache": True}
        if "s3" in kinds:
            from pipeline.store.s3.store import file_system_options

            options["s3"] = file_system_options(self._s3)
        try:
            return fsspec.core.url_to_fs(self.full_name(self._uri), **options)[0]
        except (ImportError, TypeError, AttributeError) as error:
            raise self._cannot_open(error) from error

    def full_name(self, uri: str) -> str:
        first, *rest = links(uri)
        if protocol(rest[-1]) == "file":
            rest[-1] = local_path(expand_home(rest[-1]))
        return "::".join([f"{protocol(first)}://{self._strip(uri)}", *rest])

    def contains(self, folder: str, uri: str) -> bool:
        return False  # no output is inside an archive

    def check_kind(self, folder: str) -> None:
        raise self._read_only(folder)

    def check_writable(self, folder: str) -> None:
        raise self._read_only(folder)

    def write(self, uri: str, data: bytes) -> None:
        raise self._read_only(uri)

    def delete(self, uri: str) -> None:
        raise self._read_only(uri)

    def fetch(self, uri: str, max_bytes: int) -> Body:
        with self._reading:  # libraries of archives don't read several files at once
            return super().fetch(uri, max_bytes)

    def translate(self, error: BaseException, operation: Operation, uri: str) -> StoreError:
        if isinstance(error, (*_DAMAGED, RuntimeError)):
            reason = one_line(f"{error}" or type(error).__name__)
            message = f"can't {operation} '{redact(uri)}' ({reason}); check the archive"
            return StoreError("unsupported", reason, message)
        target, cause = links(uri)[-1], error.__cause__ or error
        if isinstance(cause, (boto.BotoCoreError, boto.ClientError)):
            return s3_errors.translate(error, operation, target, self._s3.endpoint_url)
        if isinstance(cause, (aiohttp.ClientError, asyncio.TimeoutError)):
            return HttpStore(target, self._s3).translate(error, operation, target)
        return super().translate(error, operation, uri)

    def _strip(self, uri: str) -> str:
        return links(uri)[0].partition("://")[2].strip("/")

    def _unstrip(self, name: str) -> str:
        first, *rest = links(self.full_name(self._uri))
        return "::".join([f"{protocol(first)}://{name.strip('/')}", *rest])

    def _info(self, fields: Any) -> ObjectInfo:
        """For a file in a zip archive, the tag is its size and checksum."""
        if "CRC" in fields:
            return ObjectInfo(fields["size"], f"{fields['size']}-{fields['CRC']:08x}")
        info = info_from(fields)
        if info.content_tag is None and "mtime" in fields:  # many tar archives have only 0 as the time
            return ObjectInfo(info.size, f"{info.size}-{fields['mtime']}")
        return info

    def _read_only(self, uri: str) -> StoreError:
        message = f"output '{redact(uri)}' is inside an archive, which is only read; use a folder or s3://bucket/prefix"
        return StoreError("unsupported", "an archive is only read", message)

"""All other file systems that fsspec opens, such as `gs://`, `abfs://`, `memory://` and `sftp://`."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO, Any, ClassVar

from fsspec.asyn import sync

from conf.job import S3Settings
from pipeline.store.base import (
    SETUP_S,
    WHOLE_READ_S,
    Body,
    Kind,
    LeaveOut,
    ListedFile,
    ObjectInfo,
    Store,
    check_size,
    check_whole,
    info_from,
    opened_once,
)
from pipeline.store.errors import FREE_SPACE, Operation, StoreError, is_full
from pipeline.store.lock import Lock, unlocked
from pipeline.store.uri import container_kind, member_name, one_line, protocol, redact

logger = logging.getLogger(f"nightcap.{__name__}")
_BLOCK = 8 << 20
_UNREACHABLE = (asyncio.TimeoutError, TimeoutError, ConnectionError)


class GenericStore(Store):
    """A file system of fsspec. Writing is atomic if the file system's `pipe_file` is."""

    # Many file systems raise ValueError for a name or an option that they don't accept.
    expected: ClassVar[tuple[type[BaseException], ...]] = (OSError, ValueError, asyncio.TimeoutError)

    def __init__(self, uri: str, s3: S3Settings) -> None:
        self._uri = uri  # its host may be part of the file system's options

    @opened_once
    def fs(self) -> Any:
        """A file system that is not shared by fsspec's cache and does not cache listings."""
        import fsspec

        if "::" in self._uri:
            raise _chained(self._uri)
        try:
            filesystem = fsspec.get_filesystem_class(protocol(self._uri))
            options = filesystem._get_kwargs_from_urls(self._uri)
            return filesystem(use_listings_cache=False, skip_instance_cache=True, **options)
        except (ValueError, ImportError, TypeError, AttributeError) as error:
            raise self._cannot_open(error) from error
        except OSError as error:  # some connect at once
            raise self.translate(error, "read", self._uri) from error

    def close(self) -> None:
        """Close the session of an asynchronous file system; fsspec has no interface to close the others."""
        if (fs := self.__dict__.pop("fs", None)) is not None:
            session, close = getattr(fs, "_session", None), getattr(fs, "close_session", None)
            if session is not None and close is not None:
                close(fs.loop, session)

    def full_name(self, uri: str) -> str:
        return self._unstrip(self._strip(uri))

    def kind(self, uri: str) -> Kind:
        try:
            with self.errors("read", uri):
                kind = self._describe(uri, SETUP_S).get("type")
        except StoreError as error:
            if error.error_class == "missing":
                return "missing"
            raise
        return "folder" if kind == "directory" else "file"

    def stat(self, uri: str) -> ObjectInfo:
        with self.errors("read", uri):
            fields = self._describe(uri, WHOLE_READ_S)
        if fields.get("type") == "directory":
            raise StoreError("unsupported", "a folder, not a file")
        return self._info(fields)

    def _describe(self, uri: str, timeout: float) -> Any:
        path = self._strip(uri)
        if self.fs.async_impl:
            return sync(self.fs.loop, self.fs._info, path, timeout=timeout)
        return self.fs.info(path)

    def walk(
        self, folder: str, leave_out: LeaveOut, *, stem: str = "", levels: int | None = None
    ) -> Iterator[ListedFile]:
        """Each folder sorted by name, files before folders."""
        folders = [folder]
        while folders:
            here = folders.pop()
            try:
                with self.errors("list", here):
                    entries = self._entries(here)
            except StoreError:
                if here == folder:
                    raise
                leave_out("unreadable folder", here)
                continue
            inner = []
            top = self._strip(folder).strip("/")
            for path, is_folder, info in entries:
                name = self._strip(path).strip("/")
                if not is_folder:
                    yield ListedFile(path, name.removeprefix(top).lstrip("/"), info)
                elif name.rpartition("/")[2].startswith("."):
                    leave_out("hidden", path)
                else:
                    inner.append(path)
            folders += reversed(inner)

    def _entries(self, folder: str) -> list[tuple[str, bool, ObjectInfo]]:
        """The files and folders in a folder, sorted by name: (URI, is a folder, info)."""
        listed = self.fs.ls(self._strip(folder), detail=True)
        entries = ((self._unstrip(e["name"]), e.get("type") == "directory", self._info(e)) for e in listed)
        return sorted(entries, key=lambda entry: entry[0])

    def list_files(self, folder: str) -> Iterator[str]:
        with self.errors("list", folder), suppress(FileNotFoundError):
            names = self.fs.find(self._strip(folder))
            yield from sorted(self._unstrip(name) for name in names)

    def fetch(self, uri: str, max_bytes: int) -> Body:
        path = self._strip(uri)
        fields = self.fs.info(path)
        if fields.get("type") == "directory":
            raise StoreError("unsupported", "a folder, not a file")
        size = fields.get("size")
        check_size(size or 0, max_bytes)
        with self.fs.open(path, "rb") as file:
            data: bytes = file.read((max_bytes if size is None else size) + 1)
        return Body(check_whole(data, fields.get("size"), max_bytes), None)

    def fetch_range(self, uri: str, offset: int, length: int) -> Body:
        data: bytes = self.fs.cat_file(self._strip(uri), start=offset, end=offset + length)
        return Body(data, None)

    def open(self, uri: str) -> IO[bytes]:
        stream = self.fs.open(self._strip(uri), "rb", block_size=_BLOCK)
        return io.BufferedReader(stream)  # fsspec's own readline has no limit

    def write(self, uri: str, data: bytes) -> None:
        with self.errors("write", uri):
            self.fs.pipe_file(self._strip(uri), data)

    def upload(self, uri: str, source: Path) -> None:
        with self.errors("write", uri):
            self.fs.put_file(str(source), self._strip(uri))

    def delete(self, uri: str) -> None:
        with self.errors("write", uri), suppress(FileNotFoundError):
            self.fs.rm_file(self._strip(uri))

    def check_writable(self, folder: str) -> None:
        """Only opens the file system: fsspec can't tell whether it is writable."""
        _ = self.fs

    def lock(self, folder: str, run_id: str) -> AbstractContextManager[Lock]:
        logger.warning(
            "'%s': this kind of store has no lock; make sure that only one run uses it", redact(folder)
        )
        return unlocked()

    def _strip(self, uri: str) -> str:
        """A name without protocol, as the methods of `fs` take it."""
        name: str = self.fs._strip_protocol(uri)
        return name

    def _unstrip(self, name: str) -> str:
        full: str = self.fs.unstrip_protocol(name)
        return full

    def _info(self, fields: Any) -> ObjectInfo:
        return info_from(fields)

    def _cannot_open(self, error: Exception) -> StoreError:
        """The error for an unknown protocol, a package that is not installed, or wrong options."""
        reason = one_line(str(error))
        return StoreError(
            "unsupported", reason, f"can't open '{redact(self._uri)}' ({reason}); check its name"
        )

    def translate(self, error: BaseException, operation: Operation, uri: str) -> StoreError:
        shown, reason = redact(uri), _reason(error)
        if isinstance(error, PermissionError):
            message = f"not allowed to {operation} '{shown}' ({reason}); check the permissions"
            return StoreError("forbidden", reason, message)
        if isinstance(error, _UNREACHABLE):
            message = f"can't reach '{shown}' ({reason}); check the address and the network"
            return StoreError("unavailable", reason, message, unreachable=True)
        if is_full(error):
            return StoreError("unavailable", reason, f"can't {operation} '{shown}' ({reason}); {FREE_SPACE}")
        message = f"can't {operation} '{shown}' ({reason}); check its name"
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return StoreError("missing", reason, message)
        if isinstance(error, (ValueError, IsADirectoryError)):  # it will be raised the next time as well
            return StoreError("unsupported", reason, message)
        return StoreError("unavailable", reason, message)


def _chained(uri: str) -> StoreError:
    """The error for a chained URL of fsspec, such as `zip://a.jpg::s3://bucket/x.zip`."""
    first, _, rest = uri.partition("::")
    name = first.partition("://")[2].strip("/")
    cure = f"write '{redact(member_name(rest, name))}'" if container_kind(rest) else "name the file itself"
    return StoreError("unsupported", "a chained URL", f"can't open '{redact(uri)}', a chained URL; {cure}")


def _reason(error: BaseException) -> str:
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)) and not str(error):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return one_line(error.strerror)
    return one_line(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)

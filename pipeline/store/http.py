"""Web servers: reading files, with one request per file."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import IO, Any, ClassVar
from urllib.parse import urlsplit

import aiohttp
from fsspec.asyn import sync
from fsspec.implementations.http import HTTPFileSystem

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
    no_such_name,
    opened_once,
)
from pipeline.store.errors import BrokenBodyError, Operation, StoreError
from pipeline.store.lock import Lock, unlocked
from pipeline.store.uri import one_line, redact

CONNECT_S, READ_S = 3.0, 20.0
REDIRECTS = 5  # followed per request
_LONGEST_HOST = 253
_CHUNK, _BLOCK = 1 << 20, 8 << 20
_PARTIAL = 206  # the HTTP status of an answer with a part of a file
_UNREACHABLE = (aiohttp.ClientConnectionError, asyncio.TimeoutError, TimeoutError, ConnectionError)


_REDIRECTED = (aiohttp.TooManyRedirects, aiohttp.RedirectClientError)
_FORBIDDEN = (401, 402, 403, 407, 451)


class HttpStore(Store):
    """`http://` and `https://`, without listing and writing."""

    globs: ClassVar[bool] = False
    # asyncio.TimeoutError is not the built-in one on Python 3.10; fsspec's FSTimeoutError derives from it.
    # ValueError: an address that the libraries can't parse.
    expected: ClassVar[tuple[type[BaseException], ...]] = (
        *(OSError, asyncio.TimeoutError, aiohttp.ClientError),
        ValueError,
    )

    def __init__(self, uri: str, s3: S3Settings) -> None:
        timeout = aiohttp.ClientTimeout(total=WHOLE_READ_S, sock_connect=CONNECT_S, sock_read=READ_S)
        self._options = {"client_kwargs": {"timeout": timeout}, "max_redirects": REDIRECTS}

    @opened_once
    def fs(self) -> HTTPFileSystem:
        return HTTPFileSystem(use_listings_cache=False, skip_instance_cache=True, **self._options)

    def close(self) -> None:
        if "fs" in self.__dict__:
            fs = self.__dict__.pop("fs")
            if fs._session is not None:
                HTTPFileSystem.close_session(fs.loop, fs._session)

    def kind(self, uri: str) -> Kind:
        try:
            self._describe(uri, SETUP_S)
        except StoreError as error:
            if error.error_class == "missing":
                return "missing"
            raise
        return "file"

    def stat(self, uri: str) -> ObjectInfo:
        return self._describe(uri, WHOLE_READ_S)

    def _describe(self, uri: str, timeout: float) -> ObjectInfo:
        check_name(uri, "read")
        with self.errors("read", uri):
            return info_from(sync(self.fs.loop, self.fs._info, uri, timeout=timeout))

    def walk(
        self, folder: str, leave_out: LeaveOut, *, stem: str = "", levels: int | None = None
    ) -> Iterator[ListedFile]:
        raise self._unsupported(folder, "list")

    def list_files(self, folder: str) -> Iterator[str]:
        raise self._unsupported(folder, "list")

    def fetch(self, uri: str, max_bytes: int) -> Body:
        check_name(uri, "read")
        body: Body = sync(self.fs.loop, self._get, uri, max_bytes, timeout=WHOLE_READ_S)
        return body

    def fetch_range(self, uri: str, offset: int, length: int) -> Body:
        check_name(uri, "read")
        if not length:
            return Body(b"", None)
        span = {"Range": f"bytes={offset}-{offset + length - 1}"}
        body: Body = sync(self.fs.loop, self._get, uri, length, span, timeout=WHOLE_READ_S)
        return body

    async def _get(self, url: str, max_bytes: int, span: Mapping[str, str] | None = None) -> Body:
        session = await self.fs.set_session()
        # aiohttp does not retry, so `read` must: a busy server counts as a broken response.
        headers = {"Accept-Encoding": "identity", **(span or {})}
        request = session.get(self.fs.encode_url(url), headers=headers, max_redirects=REDIRECTS)
        async with request as response:
            try:
                response.raise_for_status()
            except aiohttp.ClientResponseError as error:
                if _busy(error.status):
                    raise BrokenBodyError(_reason(error)) from error
                raise
            if span and response.status != _PARTIAL:
                raise _no_ranges()
            check_size(response.content_length or 0, max_bytes)
            data = bytearray()
            try:
                async for chunk in response.content.iter_chunked(_CHUNK):
                    data += chunk
                    check_size(len(data), max_bytes)
            except self.expected as error:
                raise BrokenBodyError(_reason(error)) from error
        return Body(check_whole(bytes(data), response.content_length, max_bytes), None)

    def open(self, uri: str) -> IO[bytes]:
        check_name(uri, "read")
        file = self.fs.open(uri, "rb", block_size=_BLOCK)
        return io.BufferedReader(_RemoteFile(file))  # fsspec's readline has no limit

    def write(self, uri: str, data: bytes) -> None:
        raise self._unsupported(uri, "write")

    def delete(self, uri: str) -> None:
        raise self._unsupported(uri, "write")

    def check_kind(self, folder: str) -> None:
        raise self._unsupported(folder, "write")

    def check_writable(self, folder: str) -> None:
        raise self._unsupported(folder, "write")

    def lock(self, folder: str, run_id: str) -> AbstractContextManager[Lock]:
        return unlocked()

    def translate(self, error: BaseException, operation: Operation, uri: str) -> StoreError:
        cause = _cause(error)
        status = cause.status if isinstance(cause, aiohttp.ClientResponseError) else None
        shown, reason = redact(uri), _reason(error)
        if isinstance(cause, _UNREACHABLE):
            message = f"can't reach '{shown}' ({reason}); check the address and the network"
            return StoreError("unavailable", reason, message, unreachable=True)
        if isinstance(cause, _REDIRECTED):
            message = f"can't {operation} '{shown}' ({reason}); check where it leads"
            return StoreError("unsupported", reason, message)
        if status in _FORBIDDEN:
            message = f"not allowed to {operation} '{shown}' ({reason}); check the permissions"
            return StoreError("forbidden", reason, message)
        if status is not None and _busy(status):
            message = f"can't {operation} '{shown}' now ({reason}); run it again when the store is back"
            return StoreError("unavailable", reason, message, busy=True)
        message = f"can't {operation} '{shown}' ({reason}); check its name"
        if status == 404 or (status is None and isinstance(cause, FileNotFoundError)):
            return StoreError("missing", reason, message)
        if status is not None or isinstance(cause, ValueError):  # the same request will get the same answer
            return StoreError("unsupported", reason, message)
        return StoreError("unavailable", reason, message)

    def _unsupported(self, uri: str, operation: Operation) -> StoreError:
        shown = redact(uri)
        message = (
            f"output '{shown}' can't be written over http; use a folder or s3://bucket/prefix"
            if operation == "write"
            else f"can't list '{shown}': a web server has no listings; name the files in a manifest"
        )
        return StoreError("unsupported", "a web server can only be read from", message)


class _RemoteFile(io.RawIOBase):
    """A file of fsspec. Raises StoreError if the server sends whole files only, and a part is needed."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._file.readinto(buffer))
        except ValueError as error:
            raise _no_ranges() from error

    def close(self) -> None:
        self._file.close()
        super().close()


def _no_ranges() -> StoreError:
    return StoreError("unsupported", "the server can't send parts of files, as archives need; download it")


def _busy(status: int) -> bool:
    """Whether a later attempt of the same request may succeed."""
    return status in (408, 425, 429) or (status >= 500 and status not in (501, 505))


def check_name(uri: str, operation: Operation) -> None:
    """Raises StoreError for an invalid URL."""
    try:
        uri.encode()
        parts = urlsplit(uri)
        _ = parts.port
        host = (parts.hostname or "").encode("idna")  # as it is looked up
        if host and b" " not in host and len(host) <= _LONGEST_HOST:
            return
    except ValueError:  # `https://[`, port 99999, a lone surrogate, `http://a..b`
        pass
    raise no_such_name(uri, operation)


def _cause(error: BaseException) -> BaseException:
    """The real error: fsspec raises FileNotFoundError for every failure, with the real error as the cause."""
    if isinstance(error, aiohttp.ClientError):
        return error
    cause = error.__cause__
    return cause if isinstance(cause, (aiohttp.ClientError, asyncio.TimeoutError, ValueError)) else error


def _reason(error: BaseException) -> str:
    cause = _cause(error)
    if isinstance(cause, aiohttp.TooManyRedirects):
        return f"more than {REDIRECTS} redirects"
    if isinstance(cause, aiohttp.RedirectClientError):
        return one_line(f"redirected to an address that is not http: {cause}")
    if isinstance(cause, aiohttp.ClientResponseError):
        return one_line(f"HTTP {cause.status} {cause.message}")
    if isinstance(cause, (asyncio.TimeoutError, TimeoutError)) and not str(cause):
        return "no answer in time"
    if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, aiohttp.ClientError):
        return one_line(cause.strerror)
    return one_line(f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__)

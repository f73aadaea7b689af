"""Web servers: files to read, one request each."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from typing import IO, ClassVar
from urllib.parse import urlsplit

import aiohttp
from fsspec.asyn import sync
from fsspec.implementations.http import HTTPFileSystem

from conf.job import S3Settings
from pipeline.store.base import (
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
)
from pipeline.store.errors import BrokenBodyError, Doing, StoreError
from pipeline.store.lock import Lock, unlocked
from pipeline.store.uri import one_line, redact

CONNECT_S, READ_S = 3.0, 20.0
_CHUNK, _BLOCK = 1 << 20, 8 << 20
_UNREACHABLE = (aiohttp.ClientConnectionError, asyncio.TimeoutError, TimeoutError, ConnectionError)


class HttpStore(Store):
    """`http://` and `https://`. There is no listing and no writing."""

    globs: ClassVar[bool] = False
    # asyncio.TimeoutError is not the built-in one on Python 3.10; fsspec's FSTimeoutError derives from it.
    expected: ClassVar[tuple[type[BaseException], ...]] = (OSError, asyncio.TimeoutError, aiohttp.ClientError)

    def __init__(self, uri: str, s3: S3Settings) -> None:
        timeout = aiohttp.ClientTimeout(total=WHOLE_READ_S, sock_connect=CONNECT_S, sock_read=READ_S)
        self._options = {"client_kwargs": {"timeout": timeout}}

    @cached_property
    def fs(self) -> HTTPFileSystem:
        return HTTPFileSystem(use_listings_cache=False, skip_instance_cache=True, **self._options)

    def close(self) -> None:
        if "fs" in self.__dict__:
            fs = self.__dict__.pop("fs")
            if fs._session is not None:
                HTTPFileSystem.close_session(fs.loop, fs._session)

    def kind(self, uri: str) -> Kind:
        try:
            self.stat(uri)
        except StoreError as error:
            if error.error_class == "missing":
                return "missing"
            raise
        return "file"

    def stat(self, uri: str) -> ObjectInfo:
        _check_name(uri, "read")
        with self.errors("read", uri):
            return info_from(sync(self.fs.loop, self.fs._info, uri, timeout=WHOLE_READ_S))

    def walk(
        self, folder: str, leave_out: LeaveOut, *, stem: str = "", levels: int | None = None
    ) -> Iterator[ListedFile]:
        raise self._no_folders(folder, "list")

    def list_files(self, folder: str) -> Iterator[str]:
        raise self._no_folders(folder, "list")

    def fetch(self, uri: str, max_bytes: int) -> Body:
        _check_name(uri, "read")
        body: Body = sync(self.fs.loop, self._get, uri, max_bytes, timeout=WHOLE_READ_S)
        return body

    async def _get(self, url: str, max_bytes: int) -> Body:
        session = await self.fs.set_session()
        # Nothing below retries, so an answer of a server in trouble counts as broken off.
        async with session.get(self.fs.encode_url(url), headers={"Accept-Encoding": "identity"}) as answer:
            try:
                answer.raise_for_status()
            except aiohttp.ClientResponseError as error:
                if _busy(error.status):
                    raise BrokenBodyError(_reason(error)) from error
                raise
            check_size(answer.content_length or 0, max_bytes)
            data = bytearray()
            try:
                async for chunk in answer.content.iter_chunked(_CHUNK):
                    data += chunk
                    check_size(len(data), max_bytes)
            except self.expected as error:
                raise BrokenBodyError(_reason(error)) from error
        return Body(check_whole(bytes(data), answer.content_length, max_bytes), None)

    def open(self, uri: str) -> IO[bytes]:
        _check_name(uri, "read")
        return io.BufferedReader(self.fs.open(uri, "rb", block_size=_BLOCK))  # its own readline has no limit

    def write(self, uri: str, data: bytes) -> None:
        raise self._no_folders(uri, "write")

    def delete(self, uri: str) -> None:
        raise self._no_folders(uri, "write")

    def check_writable(self, folder: str) -> None:
        raise self._no_folders(folder, "write")

    def lock(self, folder: str, run_id: str) -> AbstractContextManager[Lock]:
        return unlocked()

    def translate(self, error: BaseException, doing: Doing, uri: str) -> StoreError:
        cause = _cause(error)
        status = cause.status if isinstance(cause, aiohttp.ClientResponseError) else None
        shown, reason = redact(uri), _reason(error)
        if isinstance(cause, _UNREACHABLE):
            sentence = f"can't reach '{shown}' ({reason}); check the address and the network"
            return StoreError("unavailable", reason, sentence, unreachable=True)
        if status in (401, 403):
            sentence = f"not allowed to {doing} '{shown}' ({reason}); check the permissions"
            return StoreError("forbidden", reason, sentence)
        if status is not None and _busy(status):
            sentence = f"can't {doing} '{shown}' now ({reason}); run again when the store is well"
            return StoreError("unavailable", reason, sentence, busy=True)
        missing = status in (404, 410) or (status is None and isinstance(cause, FileNotFoundError))
        missing = missing or isinstance(cause, aiohttp.InvalidURL)
        sentence = f"can't {doing} '{shown}' ({reason}); check its name"
        return StoreError("missing" if missing else "unavailable", reason, sentence)

    def _no_folders(self, uri: str, doing: Doing) -> StoreError:
        shown = redact(uri)
        sentence = (
            f"output '{shown}' can't be written over http; use a folder or s3://bucket/prefix"
            if doing == "write"
            else f"can't list '{shown}': a web server has no listing; name the files in a manifest"
        )
        return StoreError("unsupported", "a web server can only be read from", sentence)


def _busy(status: int) -> bool:
    return status >= 500 or status == 429


def _check_name(uri: str, doing: Doing) -> None:
    """Raises StoreError for a URL that no server can have."""
    try:
        uri.encode()
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as error:  # `https://[`, a port of 99999, half a surrogate pair
        raise no_such_name(uri, doing) from error


def _cause(error: BaseException) -> BaseException:
    """fsspec raises FileNotFoundError for every failure, with the true one as the cause."""
    cause = error.__cause__
    return cause if isinstance(cause, (aiohttp.ClientError, asyncio.TimeoutError)) else error


def _reason(error: BaseException) -> str:
    cause = _cause(error)
    if isinstance(cause, aiohttp.ClientResponseError):
        return one_line(f"HTTP {cause.status} {cause.message}")
    if isinstance(cause, (asyncio.TimeoutError, TimeoutError)) and not str(cause):
        return "no answer in time"
    if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, aiohttp.ClientError):
        return one_line(cause.strerror)
    return one_line(f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__)

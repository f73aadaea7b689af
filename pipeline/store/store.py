"""Reading from a store: bytes, descriptions and listings. Writing is in `pipeline.store.writing`.

fsspec is touched here and in the three files below this one: `filesystems` opens, `fetch` reads one object,
`failures` translates what goes wrong. Names are absolute local paths or full URIs, see `pipeline.store.uri`.
"""

from __future__ import annotations

import io
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from typing import IO, Any

from conf.job import S3Settings
from model.image.decode import ImageError
from pipeline.store.failures import EXPECTED, image_error
from pipeline.store.fetch import (
    BrokenBodyError,
    Fetched,
    fetch_any,
    fetch_http,
    fetch_local,
    fetch_s3,
    stat_file,
)
from pipeline.store.filesystems import WHOLE_READ_S, S3Options, open_filesystem, resolve_s3_options
from pipeline.store.info import Info, info_from, local_info
from pipeline.store.uri import is_http, is_local, local_path, protocol, split_s3

PAUSES = (0.5, 2.0)  # seconds before the second and the third try of a body that broke off
_CHUNK, _LOOKUPS = 1000, 32
_BLOCK = 8 << 20


class Store:
    """Opens each file system once, when first needed. Pickles as its options; a process has one for the same."""

    def __init__(self, options: S3Options) -> None:
        """`options`: as `resolve_s3_options` returned them."""
        self.options = options
        self._open: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[[S3Options], Store], tuple[S3Options]]:
        return _one_a_process, (self.options,)

    def filesystem(self, uri: str) -> Any:
        """The file system of a remote URI: one for S3, one for http, one for each host of anything else."""
        kind = protocol(uri)
        key = kind if kind in ("s3", "http", "https") else f"{kind}://{split_s3(uri)[0]}"
        with self._lock:
            if key not in self._open:
                self._open[key] = open_filesystem(uri, self.options)
            return self._open[key]

    def call(
        self, uri: str, work: Callable[..., Awaitable[Any]], *args: Any, timeout: float, **kwargs: Any
    ) -> Any:
        """Run a coroutine function on the loop of the URI's file system, for `timeout` seconds at most."""
        from fsspec.asyn import sync

        return sync(self.filesystem(uri).loop, work, *args, timeout=timeout, **kwargs)

    def s3(self, method: str, uri: str, timeout: float = WHOLE_READ_S, **more: Any) -> Any:
        """One S3 API call on the bucket of `uri`, and on its key if it has one; botocore retries."""
        bucket, key = split_s3(uri)
        where = {"Bucket": bucket, "Key": key} if key else {"Bucket": bucket}
        return self.call(uri, self.filesystem(uri)._call_s3, method, timeout=timeout, **where, **more)

    def read(self, uri: str, max_bytes: int) -> bytes:
        """The whole object. ImageError: missing, forbidden, unavailable (a short read too) or too_large.

        An object larger than `max_bytes` is never read whole. Zero bytes are returned as they are.
        """
        return self.read_tagged(uri, max_bytes)[0]

    def read_tagged(self, uri: str, max_bytes: int) -> tuple[bytes, str | None]:
        """As `read`, with the content tag of just these bytes (`Info.tag`), from local disk and S3."""
        for pause in (*PAUSES, None):
            try:
                return self._fetch(uri, max_bytes)
            except EXPECTED as error:
                if pause is None or not isinstance(error, BrokenBodyError):
                    raise image_error(error) from error
                time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - so that workers don't return in step
        raise AssertionError("the last pause is None")

    def _fetch(self, uri: str, max_bytes: int) -> Fetched:
        if is_local(uri):
            return fetch_local(local_path(uri), max_bytes)
        fs = self.filesystem(uri)
        if protocol(uri) == "s3":
            found: Fetched = self.call(uri, fetch_s3, fs, *split_s3(uri), max_bytes, timeout=WHOLE_READ_S)
        elif is_http(uri):
            found = self.call(uri, fetch_http, fs, uri, max_bytes, timeout=WHOLE_READ_S)
        else:
            found = fetch_any(fs, uri, max_bytes)
        return found

    def open(self, uri: str) -> IO[bytes]:
        """A seekable stream, for manifests. Raises what the store raises, here and while it is read."""
        if is_local(uri):
            stat_file(local_path(uri))
            return open(local_path(uri), "rb")  # noqa: PTH123 - a stream, the caller closes it
        fs = self.filesystem(uri)
        stream = fs.open(fs._strip_protocol(uri), "rb", block_size=_BLOCK)
        return io.BufferedReader(stream)  # fsspec's own readline has no limit

    def info(self, uri: str, timeout: float = WHOLE_READ_S) -> Info:
        """Size and content tag. ImageError: missing, forbidden, unavailable; unsupported for a folder."""
        try:
            fields = self.describe(uri, timeout)
        except EXPECTED as error:
            raise image_error(error) from error
        if fields.get("type") == "directory":
            raise ImageError("unsupported", "a folder, not a file")
        return info_from(fields)

    def describe(self, uri: str, timeout: float = WHOLE_READ_S) -> Mapping[str, Any]:
        """The store's own description of one object; raises what the store raises."""
        if is_local(uri):
            info = local_info(stat_file(local_path(uri)))
            return {"size": info.size, "ETag": info.tag}
        fs = self.filesystem(uri)
        answer: Mapping[str, Any]
        if protocol(uri) == "s3":
            answer = self.s3("head_object", uri, timeout)
        elif fs.async_impl:
            answer = self.call(uri, fs._info, fs._strip_protocol(uri), timeout=timeout)
        else:
            answer = fs.info(fs._strip_protocol(uri))
        return answer

    def info_many(self, uris: Iterable[str]) -> Iterator[tuple[str, Info | ImageError]]:
        """`info` of each, in order, failures as values; in chunks of 1,000, remote names 32 at a time."""
        names = iter(uris)
        with ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="look-up") as pool:
            while chunk := list(islice(names, _CHUNK)):
                remote = [uri for uri in chunk if not is_local(uri)]
                answers = dict(zip(remote, pool.map(self._info_or_error, remote), strict=True))
                for uri in chunk:
                    yield uri, answers[uri] if uri in answers else self._info_or_error(uri)

    def _info_or_error(self, uri: str) -> Info | ImageError:
        try:
            return self.info(uri)
        except ImageError as error:
            return error

    def list_s3(
        self, bucket: str, prefix: str, first_timeout: float = WHOLE_READ_S
    ) -> Iterator[tuple[str, Info]]:
        """Every key that starts with `prefix`, page by page (1,000 keys in memory), in S3's own order."""
        uri, more = f"s3://{bucket}", {"Prefix": prefix}
        timeout = first_timeout
        while True:
            page = self.s3("list_objects_v2", uri, timeout, **more)
            for item in page.get("Contents", ()):
                yield item["Key"], info_from(item)
            if not page.get("IsTruncated"):
                return
            more["ContinuationToken"], timeout = page["NextContinuationToken"], WHOLE_READ_S

    def full_name(self, uri: str) -> str:
        """The one spelling of a URI that this file system also uses in its listings."""
        fs = self.filesystem(uri)
        name: str = fs.unstrip_protocol(fs._strip_protocol(uri))
        return name

    def list_folder(self, uri: str) -> list[tuple[str, bool, Info]]:
        """One level of any other remote file system: (URI, is a folder, info), sorted by name."""
        fs = self.filesystem(uri)
        entries = fs.ls(fs._strip_protocol(uri), detail=True)
        return sorted(
            ((fs.unstrip_protocol(e["name"]), e.get("type") == "directory", info_from(e)) for e in entries),
            key=lambda entry: entry[0],
        )


@lru_cache
def _one_a_process(options: S3Options) -> Store:
    """Tasks of one worker share its connections."""
    return Store(options)


def open_store(options: S3Settings) -> Store:
    """The store for a configuration's `s3` section, with the environment's endpoint and region filled in."""
    return Store(resolve_s3_options(S3Options(**options.model_dump())))

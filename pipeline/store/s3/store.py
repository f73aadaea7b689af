"""Amazon S3 and compatible stores."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence, Set
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO, Any, ClassVar

from fsspec.asyn import sync
from s3fs import S3FileSystem

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
from pipeline.store.lock import Lock
from pipeline.store.s3.errors import EXPECTED, lacks_credentials, reason_of, status_of, translate
from pipeline.store.s3.listing import list_keys
from pipeline.store.s3.lock import lock_object
from pipeline.store.uri import first_wildcard, join, redact, split_s3

CONNECT_S, READ_S, ATTEMPTS = 3, 20, 3  # a wrong endpoint fails after 3 × 3 s and two pauses, about 12 s
CONNECTIONS = 256  # at a time; not fewer than files are read ahead
_BLOCK = 8 << 20
PROBE = ".nightcap-can-write"  # an upload of this name has no data


def file_system_options(settings: S3Settings) -> dict[str, Any]:
    """The options of s3fs for our settings."""
    config: dict[str, Any] = {
        "connect_timeout": CONNECT_S,
        "read_timeout": READ_S,
        "retries": {"mode": "standard", "total_max_attempts": ATTEMPTS},
        "max_pool_connections": CONNECTIONS,
    }
    if settings.endpoint_url:  # many compatible stores don't support AWS's newer default checksums
        config |= {
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
    return {
        "anon": settings.anonymous,
        "endpoint_url": settings.endpoint_url,
        "client_kwargs": {"region_name": settings.region} if settings.region else {},
        "config_kwargs": config,
        "use_listings_cache": False,
        "skip_instance_cache": True,
    }


class S3Store(Store):
    """`s3://bucket/key`, by s3fs. botocore retries. Keys are taken literally."""

    expected: ClassVar[tuple[type[BaseException], ...]] = EXPECTED

    def __init__(self, uri: str, s3: S3Settings) -> None:
        self.settings = s3

    @opened_once
    def fs(self) -> S3FileSystem:
        """A file system that is not shared by fsspec's cache and does not cache listings."""
        fs = S3FileSystem(**file_system_options(self.settings))
        fs.retries = 1  # botocore retries already; s3fs would repeat that 5 times
        return fs

    def close(self) -> None:
        if "fs" in self.__dict__:
            fs = self.__dict__.pop("fs")
            creator = getattr(fs, "_s3creator", None)
            if creator is not None:
                S3FileSystem.close_session(fs.loop, creator)

    def call(self, method: str, uri: str, timeout: float = WHOLE_READ_S, **arguments: Any) -> Any:
        """Call the S3 API with the bucket of `uri`, and its key if it has one. Raises botocore's exceptions."""
        bucket, key = split_s3(uri)
        target = {"Bucket": bucket, "Key": key} if key else {"Bucket": bucket}
        return sync(self.fs.loop, self.fs._call_s3, method, timeout=timeout, **target, **arguments)

    def full_name(self, uri: str) -> str:
        bucket, key = split_s3(uri)
        return f"s3://{bucket}/{key}" if key else f"s3://{bucket}"

    def kind(self, uri: str) -> Kind:
        """An object is a file, a prefix of keys is a folder, and a name that is both is a file unless it is empty."""
        bucket, key = split_s3(uri)
        if not bucket:
            raise StoreError(
                "unsupported", "no bucket", f"'{redact(uri)}' names no bucket; write s3://bucket/prefix"
            )
        if first_wildcard(bucket) is not None:
            raise StoreError(
                "unsupported", "no bucket", f"'{redact(uri)}': the bucket can't be a glob; give its name"
            )
        size = None
        if key and not key.endswith("/"):
            try:
                with self.errors("read", uri):
                    size = self.call("head_object", uri, SETUP_S)["ContentLength"]
            except StoreError as error:  # without s3:ListBucket, S3 answers 403 for a missing key
                if error.error_class not in ("missing", "forbidden") or lacks_credentials(error.__cause__):
                    raise
        if size:
            return "file"
        prefix = key.rstrip("/") + "/" if key else ""
        with self.errors("list", uri):
            page = self.call("list_objects_v2", f"s3://{bucket}", SETUP_S, Prefix=prefix, MaxKeys=1)
        if page.get("KeyCount", len(page.get("Contents", ()))) or not key:
            return "folder"
        return "missing" if size is None else "file"

    def stat(self, uri: str) -> ObjectInfo:
        _check_name(uri, "read")
        with self.errors("read", uri):
            return info_from(self.call("head_object", uri))

    def walk(
        self, folder: str, leave_out: LeaveOut, *, stem: str = "", levels: int | None = None
    ) -> Iterator[ListedFile]:
        """Sorted by key as long as the listing is short. Keys that end in `/` (folder markers) are left out."""
        bucket, key = split_s3(folder)
        prefix = key.rstrip("/") + "/" if key else ""

        def page(**arguments: Any) -> Any:
            return self.call("list_objects_v2", f"s3://{bucket}", **arguments)

        with self.errors("list", folder):
            for name, info in list_keys(page, prefix + stem):
                path = f"s3://{bucket}/{name}"
                if name.endswith("/"):
                    leave_out("folder marker", path)
                else:
                    yield ListedFile(path, name[len(prefix) :], info)

    def list_files(self, folder: str) -> Iterator[str]:
        bucket, key = split_s3(folder)
        arguments: dict[str, Any] = {"Prefix": key.rstrip("/") + "/" if key else ""}
        while True:
            with self.errors("list", folder):
                page = self.call("list_objects_v2", f"s3://{bucket}", **arguments)
            yield from (f"s3://{bucket}/{item['Key']}" for item in page.get("Contents", ()))
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def fetch(self, uri: str, max_bytes: int) -> Body:
        _check_name(uri, "read")
        body: Body = sync(self.fs.loop, self._get, *split_s3(uri), max_bytes, timeout=WHOLE_READ_S)
        return body

    def fetch_range(self, uri: str, offset: int, length: int) -> Body:
        _check_name(uri, "read")
        if not length:
            return Body(b"", self.stat(uri).content_tag)
        span = f"bytes={offset}-{offset + length - 1}"
        target = (*split_s3(uri), length)
        body: Body = sync(self.fs.loop, self._get, *target, timeout=WHOLE_READ_S, Range=span)
        return body

    async def _get(self, bucket: str, key: str, max_bytes: int, **arguments: Any) -> Body:
        """One GET. The size precedes the body, so a file that is too large is not read."""
        response = await self.fs._call_s3("get_object", Bucket=bucket, Key=key, **arguments)
        async with response["Body"] as body:
            size = response.get("ContentLength")
            check_size(size or 0, max_bytes)
            try:
                data = bytes(await body.read())
            except self.expected as error:
                raise BrokenBodyError(reason_of(error)) from error
        return Body(check_whole(data, size, max_bytes), info_from(response).content_tag)

    def open(self, uri: str) -> IO[bytes]:
        _check_name(uri, "read")
        stream = self.fs.open(self.fs._strip_protocol(uri), "rb", block_size=_BLOCK)
        return io.BufferedReader(stream)  # fsspec's own readline has no limit

    def write(self, uri: str, data: bytes) -> None:
        """One PUT, or a multipart upload if the file is large."""
        with self.errors("write", uri):
            self.fs.pipe_file(self.fs._strip_protocol(uri), data)

    def upload(self, uri: str, source: Path) -> None:
        with self.errors("write", uri):
            self.fs.put_file(str(source), self.fs._strip_protocol(uri))

    def delete(self, uri: str) -> None:
        with self.errors("write", uri):
            self.call("delete_object", uri)

    def check_writable(self, folder: str) -> None:
        """Start and abort a multipart upload: it requires the permission to PUT, and never appears in listings."""
        probe = join(folder, PROBE)
        try:
            with self.errors("write", folder):
                upload = self.call("create_multipart_upload", probe, SETUP_S)["UploadId"]
        except StoreError as error:
            if status_of(error.__cause__) in (405, 501):  # no multipart uploads, so this can't be checked
                return
            raise
        # An upload that can't be aborted has no data, so this is no reason to refuse the run.
        with suppress(*self.expected):
            self.call("abort_multipart_upload", probe, SETUP_S, UploadId=upload)

    def remove_leftovers(self, folder: str, subfolders: Sequence[str], files: Sequence[str] = ()) -> int:
        """Abort the multipart uploads below these folders and of these files, if the store lists them."""
        removed = 0
        with suppress(*self.expected):  # some stores can't list uploads, or not without a permission
            for name in (*(f"{subfolder}/" for subfolder in subfolders), PROBE):
                removed += self._abort_uploads(join(folder, name))
            if files:
                removed += self._abort_uploads(join(folder, ""), {join(folder, name) for name in files})
        return removed

    def _abort_uploads(self, prefix: str, only: Set[str] | None = None) -> int:
        """Abort the uploads of names with this prefix, or of those in `only`. Returns how many there were."""
        bucket, key = split_s3(prefix)
        marker: dict[str, Any] = {}
        removed = 0
        while True:
            page = self.call("list_multipart_uploads", f"s3://{bucket}", Prefix=key, **marker)
            for upload in page.get("Uploads", ()):
                target = f"s3://{bucket}/{upload['Key']}"
                if only is not None and target not in only:
                    continue
                self.call("abort_multipart_upload", target, UploadId=upload["UploadId"])
                removed += 1
            if not page.get("IsTruncated"):
                return removed
            marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def lock(self, folder: str, run_id: str) -> AbstractContextManager[Lock]:
        return lock_object(self, folder, run_id)

    def translate(self, error: BaseException, operation: Operation, uri: str) -> StoreError:
        return translate(error, operation, uri, self.settings.endpoint_url)


def _check_name(uri: str, operation: Operation) -> None:
    """Raises StoreError for a name that no object can have."""
    try:
        uri.encode()
        if all(split_s3(uri)):
            return
    except UnicodeEncodeError:
        pass
    raise no_such_name(uri, operation)

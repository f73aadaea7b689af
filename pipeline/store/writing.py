"""Writing to a store: small files that appear whole or not at all, and the check made before any work starts.

An output is on a local disk, on S3, or on any other fsspec file system that can be written to; there a file
appears as atomically as that file system's own put.
"""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from conf.errors import OutputError
from pipeline.store.failures import EXPECTED, setup_error, status_of
from pipeline.store.filesystems import SETUP_S
from pipeline.store.store import Store
from pipeline.store.uri import is_http, is_local, join, local_path, protocol, redact, split_s3

_PROBE = ".nightcap-can-write"


def write_bytes_atomic(store: Store, uri: str, data: bytes) -> None:
    """Write or replace one file; a reader sees the old one or the new one, never a part. Else OutputError.

    Local: a temporary name in the same folder (made if need be), fsync, rename. S3: one PUT or multipart.
    """
    with _as_output_error(store, uri):
        if not is_local(uri):
            fs = store.filesystem(uri)
            fs.pipe_file(fs._strip_protocol(uri), data)
            return
        path = Path(local_path(uri))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def list_files(store: Store, uri: str) -> Iterator[str]:
    """Every file below a folder, with its full name, sorted; nothing where there is no such folder."""
    with _as_output_error(store, uri, "list"):
        if is_local(uri):
            yield from sorted(str(p) for p in Path(local_path(uri)).rglob("*") if p.is_file())
        elif protocol(uri) == "s3":
            bucket, key = split_s3(uri)
            prefix = key.rstrip("/") + "/" if key else ""
            yield from (f"s3://{bucket}/{name}" for name, _ in store.list_s3(bucket, prefix))
        else:
            fs = store.filesystem(uri)
            with suppress(FileNotFoundError):
                yield from sorted(fs.unstrip_protocol(name) for name in fs.find(fs._strip_protocol(uri)))


def delete(store: Store, uri: str) -> None:
    """Delete one file. It is no error if it is gone already."""
    with _as_output_error(store, uri):
        if is_local(uri):
            Path(local_path(uri)).unlink(missing_ok=True)
        elif protocol(uri) == "s3":
            store.s3("delete_object", uri)
        else:
            fs = store.filesystem(uri)
            with suppress(FileNotFoundError):
                fs.rm_file(fs._strip_protocol(uri))


def tidy(store: Store, output: str, folders: Sequence[str]) -> int:
    """Remove what killed runs left half-written in an output and these folders of it; for whoever holds its lock.

    Nothing that may be somebody else's is touched. How many that were.
    """
    if is_local(output):
        root = Path(local_path(output))
        left = [path for name in ("", *folders) for path in (root / name).glob(".*.tmp")]
        left = [path for path in left if re.fullmatch(r"\.[0-9a-f]{32}\.tmp", path.name)]
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)
    removed = 0
    if protocol(output) == "s3":
        with suppress(*EXPECTED):  # not every store has such a list, or shows it to everybody
            for name in (*(f"{folder}/" for folder in folders), _PROBE):
                removed += _abort_uploads(store, join(output, name))
    return removed


def _abort_uploads(store: Store, prefix: str) -> int:
    """End the multipart uploads of all keys that start so."""
    bucket, key = split_s3(prefix)
    more: dict[str, Any] = {}
    removed = 0
    while True:
        answer = store.s3("list_multipart_uploads", f"s3://{bucket}", Prefix=key, **more)
        for upload in answer.get("Uploads", ()):
            where = f"s3://{bucket}/{upload['Key']}"
            store.s3("abort_multipart_upload", where, UploadId=upload["UploadId"])
            removed += 1
        if not answer.get("IsTruncated"):
            return removed
        more = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}


def check_writable(store: Store, uri: str) -> None:
    """OutputError if nothing can be written below the folder `uri`. Leaves nothing behind, makes no folder.

    Local: in the nearest folder that exists, a temporary folder is made and removed at once; permission bits
    say too little (root, read-only mounts, /proc). S3: a multipart upload is begun and aborted, which needs
    the same right as a PUT and never shows in a listing. Others: only what is known to be read-only is
    refused.
    """
    if is_local(uri):
        _check_local(Path(local_path(uri)))
        return
    if is_http(uri):
        raise OutputError(
            f"output '{redact(uri)}' can't be written over http; use a folder or s3://bucket/prefix"
        )
    with _as_output_error(store, uri):
        if protocol(uri) != "s3":
            store.filesystem(uri)
            return
        probe = join(uri, _PROBE)
        try:
            upload = store.s3("create_multipart_upload", probe, SETUP_S)["UploadId"]
        except EXPECTED as error:
            if status_of(error) not in (405, 501):  # a store without multipart uploads: can't be known
                raise
            return
        # An upload that can't be aborted holds no bytes, and isn't worth refusing a run for.
        with suppress(*EXPECTED):
            store.s3("abort_multipart_upload", probe, SETUP_S, UploadId=upload)


def _check_local(folder: Path) -> None:
    parent = folder
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        what = "output" if parent == folder else f"output '{folder}' can't be made:"
        raise OutputError(f"{what} '{parent}' is a file, not a folder; choose another output")
    try:
        Path(tempfile.mkdtemp(prefix=".nightcap-", dir=parent)).rmdir()
    except OSError as error:
        raise OutputError(
            f"can't write output '{folder}': no folder can be made in '{parent}' ({error.strerror}); "
            "check its permissions, or choose another output"
        ) from error


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some network file systems can't; the file itself is safe
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _as_output_error(store: Store, uri: str, doing: str = "write") -> Iterator[None]:
    try:
        yield
    except EXPECTED as error:
        raise setup_error(OutputError, doing, uri, error, store.options.endpoint_url) from error

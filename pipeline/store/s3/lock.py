"""A lock on S3: an object that only one writer can create (`If-None-Match: *`) and that its holder renews.

A lock that was not renewed for `EXPIRES_S` may be taken over, again by a conditional write, so that only one of two
contenders succeeds. Its holder stops writing `MARGIN_S` earlier. A store without conditional writes can't keep two
runs apart, and the run says so.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from pipeline.store.base import SETUP_S
from pipeline.store.errors import StoreError
from pipeline.store.lock import LOCK_FILE, MAX_BYTES, Lock, lock_body, locked, now, run_of
from pipeline.store.s3.errors import status_of
from pipeline.store.uri import join, redact

if TYPE_CHECKING:
    from pipeline.store.s3.store import S3Store

logger = logging.getLogger(f"nightcap.{__name__}")
EXPIRES_S, RENEW_S, RENEWAL_TIMEOUT_S = 120.0, 20.0, 10.0
MARGIN_S = 30.0
_REFUSED = (409, 412)  # conflict, precondition failed
_UNSUPPORTED = (400, 405, 501)


@contextmanager
def lock_object(store: S3Store, folder: str, run_id: str) -> Iterator[Lock]:
    """Hold a folder alone by the object `run.lock` in it. Raises LockedError, StoreError."""
    uri, asked = join(folder, LOCK_FILE), now()
    etag = _acquire(store, uri, run_id)
    if not etag:
        logger.warning(
            "'%s': this store has no conditional writes, so a second run can't be kept out", redact(uri)
        )
    lock = Lock(EXPIRES_S - MARGIN_S if etag else math.inf)
    lock.renewed(asked)
    over = threading.Event()

    def renew() -> None:
        mine = etag
        while not over.wait(RENEW_S):
            asked = now()
            try:
                mine = _put(store, uri, run_id, RENEWAL_TIMEOUT_S, IfMatch=mine)
                lock.renewed(asked)
            except store.expected as error:
                if status_of(error) in (*_REFUSED, 404):
                    # Refused, or done and only the answer was lost: the object itself says which.
                    found = _read(store, uri)
                    if found is None:
                        continue
                    body, mine = found
                    if run_of(body) != run_id:
                        lock.lost = "another run took it over"
                        return

    thread = threading.Thread(target=renew, name="lock", daemon=True)
    if etag:
        thread.start()
    try:
        yield lock
    finally:
        over.set()
        if etag:
            thread.join()
        found = _read(store, uri)
        if found is not None and run_of(found[0]) == run_id:
            with suppress(*store.expected):  # else it expires
                store.call("delete_object", uri)


def _acquire(store: S3Store, uri: str, run_id: str) -> str:
    """The ETag of the lock object, which is ours now; empty where the store has no conditional writes.

    Raises LockedError, StoreError.
    """
    for _ in range(3):
        try:
            etag = _put(store, uri, run_id, IfNoneMatch="*")
            try:
                _put(store, uri, run_id, IfNoneMatch="*")
            except store.expected as error:
                if status_of(error) in _REFUSED:
                    return etag
                raise
            return ""  # the store let us write it a second time
        except store.expected as error:
            if status_of(error) in _UNSUPPORTED:
                return ""
            if status_of(error) not in _REFUSED:
                raise store.translate(error, "write", uri) from error
        try:
            with store.errors("read", uri):
                answer = store.call("head_object", uri)
        except StoreError as missing:
            if missing.error_class == "missing":  # released in between
                continue
            raise
        body, etag = _read(store, uri) or (b"", "")
        if run_of(body) == run_id:  # a PUT of ours that was repeated because its answer was lost
            return etag
        if _age(answer) < EXPIRES_S:
            raise locked(uri.removesuffix(f"/{LOCK_FILE}"), body)
        with suppress(*store.expected):  # another contender was faster: see who
            return _put(store, uri, run_id, IfMatch=answer["ETag"])
    raise locked(uri.removesuffix(f"/{LOCK_FILE}"), (_read(store, uri) or (b"", ""))[0])


def _put(store: S3Store, uri: str, run_id: str, timeout: float = SETUP_S, **condition: Any) -> str:
    answer = store.call("put_object", uri, timeout, Body=lock_body(run_id), **condition)
    return str(answer["ETag"])


def _age(answer: dict[str, Any]) -> float:
    """Seconds since the object was written, by the store's own clock where it tells the time."""
    date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    at = datetime.now(timezone.utc)
    if date:
        with suppress(ValueError, TypeError):
            at = parsedate_to_datetime(date)
    return float((at - answer["LastModified"]).total_seconds())


def _read(store: S3Store, uri: str) -> tuple[bytes, str] | None:
    """Content and ETag of the lock object, empty ones if it is gone; None when that can't be known."""
    try:
        data, tag = store.read(uri, MAX_BYTES)
    except StoreError as error:
        return (b"", "") if error.error_class == "missing" else None
    return data, f'"{tag}"'

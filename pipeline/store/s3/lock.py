"""Locks on S3: an object that only one writer can create (`If-None-Match: *`) and that its holder renews.

A lock that was not renewed for `EXPIRES_S` may be taken over, also by a conditional write, so that only one of two
contenders succeeds. Its holder stops writing `MARGIN_S` earlier. Without conditional writes, a store can't keep two
runs apart, and a warning is logged.
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
from pipeline.store.lock import LOCK_FILE, MAX_BYTES, Lock, lock_body, locked_error, now, run_id_of
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
    """Hold the lock of a folder, the object `run.lock` in it. Raises LockedError, StoreError."""
    uri, sent_at = join(folder, LOCK_FILE), now()
    etag = _acquire(store, uri, run_id)
    if not etag:
        logger.warning(
            "'%s': this store has no conditional writes, so it can't lock out a second run", redact(uri)
        )
    lock = Lock(EXPIRES_S - MARGIN_S if etag else math.inf)
    lock.renewed(sent_at)
    over = threading.Event()

    def renew() -> None:
        current = etag
        while not over.wait(RENEW_S):
            sent_at = now()
            try:
                current = _put(store, uri, run_id, RENEWAL_TIMEOUT_S, IfMatch=current)
                lock.renewed(sent_at)
            except store.expected as error:
                if status_of(error) in (*_REFUSED, 404):
                    # Either another run has the lock, or this PUT succeeded and its response was lost.
                    stored = _read(store, uri)
                    if stored is None:
                        continue
                    body, current = stored
                    if run_id_of(body) != run_id:
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
        stored = _read(store, uri)
        if stored is not None and run_id_of(stored[0]) == run_id:
            with suppress(*store.expected):  # if this fails, the lock expires
                store.call("delete_object", uri)


def _acquire(store: S3Store, uri: str, run_id: str) -> str:
    """Take the lock and return the ETag of its object, which is empty if the store has no conditional writes.

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
            return ""  # the store ignores the condition
        except store.expected as error:
            if status_of(error) in _UNSUPPORTED:
                return ""
            if status_of(error) not in _REFUSED:
                raise store.translate(error, "write", uri) from error
        try:
            with store.errors("read", uri):
                response = store.call("head_object", uri)
        except StoreError as missing:
            if missing.error_class == "missing":  # released since
                continue
            raise
        body, etag = _read(store, uri) or (b"", "")
        if run_id_of(body) == run_id:  # botocore repeated our PUT because its response was lost
            return etag
        if _age(response) < EXPIRES_S:
            raise locked_error(uri.removesuffix(f"/{LOCK_FILE}"), body)
        with suppress(*store.expected):  # another contender was faster: try again
            return _put(store, uri, run_id, IfMatch=response["ETag"])
    raise locked_error(uri.removesuffix(f"/{LOCK_FILE}"), (_read(store, uri) or (b"", ""))[0])


def _put(store: S3Store, uri: str, run_id: str, timeout: float = SETUP_S, **condition: Any) -> str:
    response = store.call("put_object", uri, timeout, Body=lock_body(run_id), **condition)
    return str(response["ETag"])


def _age(response: dict[str, Any]) -> float:
    """Seconds since the object was written, by the clock of the store if the response has a date."""
    date = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    at = datetime.now(timezone.utc)
    if date:
        with suppress(ValueError, TypeError):
            at = parsedate_to_datetime(date)
    return float((at - response["LastModified"]).total_seconds())


def _read(store: S3Store, uri: str) -> tuple[bytes, str] | None:
    """Content and ETag of the lock object, both empty if it does not exist; None if it can't be read."""
    try:
        data, tag = store.read(uri, MAX_BYTES)
    except StoreError as error:
        return (b"", "") if error.error_class == "missing" else None
    return data, f'"{tag}"'

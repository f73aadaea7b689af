"""A lock on S3: an object that only one can create (`If-None-Match: *`) and that its holder renews.

One that was not renewed for `EXPIRES_S` may be taken over, again by a conditional write, so that of two that try only
one succeeds. Its holder stops writing `MARGIN_S` earlier. A store without conditional writes can't keep two apart.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from conf.errors import OutputError
from model.image.decode import ImageError
from pipeline.store.failures import EXPECTED, setup_error, status_of
from pipeline.store.filesystems import SETUP_S
from pipeline.store.holder import NAME, SMALL, Lock, holder, locked, now, run_of
from pipeline.store.store import Store
from pipeline.store.uri import redact

EXPIRES_S, RENEW_S, RENEWAL_S = 120.0, 20.0, 10.0  # `RENEWAL_S`: one renewal may take so long
MARGIN_S = 30.0
_REFUSED = (409, 412)  # conflict, precondition failed


@contextmanager
def lock_s3(store: Store, uri: str, run_id: str, say: Callable[[str], None]) -> Iterator[Lock]:
    asked = now()
    tag = _acquire(store, uri, run_id)
    if not tag:
        say(f"'{redact(uri)}': this store has no conditional writes, so a second run can't be kept out")
    held = Lock(EXPIRES_S - MARGIN_S if tag else math.inf)
    held.renewed(asked)
    over = threading.Event()

    def renew() -> None:
        mine = tag
        while not over.wait(RENEW_S):
            asked = now()
            try:
                mine = _put(store, uri, run_id, RENEWAL_S, IfMatch=mine)
                held.renewed(asked)
            except EXPECTED as error:
                if status_of(error) in (*_REFUSED, 404):
                    # Refused, or done and only the answer got lost: what stands there says which.
                    found = _read(store, uri)
                    if found is None:
                        continue
                    body, mine = found
                    if run_of(body) != run_id:
                        held.lost = "another run took it over"
                        return

    thread = threading.Thread(target=renew, name="lock", daemon=True)
    if tag:
        thread.start()
    try:
        yield held
    finally:
        over.set()
        if tag:
            thread.join()
        found = _read(store, uri)
        if found is not None and run_of(found[0]) == run_id:
            with suppress(*EXPECTED):  # else it expires
                store.s3("delete_object", uri)


def _acquire(store: Store, uri: str, run_id: str) -> str:
    """The ETag of the lock object, ours now; "" where the store can't do it. Raises LockedError, OutputError."""
    for _ in range(3):
        try:
            tag = _put(store, uri, run_id, IfNoneMatch="*")
            try:
                _put(store, uri, run_id, IfNoneMatch="*")
            except EXPECTED as error:
                if status_of(error) in _REFUSED:
                    return tag
                raise
            return ""  # it let us write it a second time
        except EXPECTED as error:
            if status_of(error) in (400, 405, 501):
                return ""
            if status_of(error) not in _REFUSED:
                raise setup_error(OutputError, "write", uri, error, store.options.endpoint_url) from error
        try:
            answer = store.s3("head_object", uri)
        except EXPECTED as error:
            if status_of(error) == 404:  # released in between
                continue
            raise setup_error(OutputError, "read", uri, error, store.options.endpoint_url) from error
        body, tag = _read(store, uri) or (b"", "")
        if run_of(body) == run_id:  # a PUT of ours that was repeated because its answer got lost
            return tag
        if _age(answer) < EXPIRES_S:
            raise locked(uri.removesuffix(f"/{NAME}"), body)
        with suppress(*EXPECTED):  # someone else was faster: see who
            return _put(store, uri, run_id, IfMatch=answer["ETag"])
    raise locked(uri.removesuffix(f"/{NAME}"), (_read(store, uri) or (b"", ""))[0])


def _put(store: Store, uri: str, run_id: str, timeout: float = SETUP_S, **condition: Any) -> str:
    answer = store.s3("put_object", uri, timeout, Body=holder(run_id), **condition)
    return str(answer["ETag"])


def _age(answer: dict[str, Any]) -> float:
    """Seconds since the object was written, by the store's own clock where it tells it."""
    date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    at = datetime.now(timezone.utc)
    if date:
        with suppress(ValueError, TypeError):
            at = parsedate_to_datetime(date)
    return float((at - answer["LastModified"]).total_seconds())


def _read(store: Store, uri: str) -> tuple[bytes, str] | None:
    """What stands in the lock object, and its ETag; None when that can't be known."""
    try:
        body, tag = store.read_tagged(uri, SMALL)
    except ImageError as error:
        return (b"", "") if error.error == "missing" else None
    return body, f'"{tag}"'

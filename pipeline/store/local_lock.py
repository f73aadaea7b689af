"""The lock of a local folder: `run.lock`, locked with flock. The kernel releases it when its process ends."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.store.errors import FREE_SPACE, StoreError, is_full
from pipeline.store.lock import LOCK_FILE, MAX_BYTES, Lock, lock_body, locked_error


@contextmanager
def lock_folder(folder: Path, run_id: str) -> Iterator[Lock]:
    """Hold the lock of a folder, which is created if it is missing, and removed again if it stays empty.

    Raises LockedError, StoreError.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        handle = _acquire(folder)
    except OSError as error:
        raise _cannot_lock(folder, error) from error
    try:
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, lock_body(run_id), 0)
        except OSError as error:
            raise _cannot_lock(folder, error) from error
        yield Lock()
    finally:
        with suppress(OSError):
            (folder / LOCK_FILE).unlink()
        os.close(handle)
        with suppress(OSError):  # the folder is not empty
            for path in missing:
                path.rmdir()


def _cannot_lock(folder: Path, error: OSError) -> StoreError:
    cure = FREE_SPACE if is_full(error) else "check its permissions"
    if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
        cure = "its file system has no locks; mount it with locks, or choose another output"
    message = f"can't lock output '{folder}' ({error.strerror}); {cure}"
    return StoreError("forbidden", error.strerror or str(error), message)


def _acquire(folder: Path) -> int:
    """The descriptor of the locked lock file. Raises LockedError, OSError."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)  # less the umask
        except FileNotFoundError:  # the previous holder has just removed the folder
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), (folder / LOCK_FILE).stat()):
                    return handle
        except BlockingIOError:
            body = os.pread(handle, MAX_BYTES, 0)
            os.close(handle)
            raise locked_error(str(folder), body) from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the previous holder has removed this file: lock the one that is there now

"""One run at a time over an output.

    OUT/run.lock    who holds it: run, host, process, since when; on S3 also when it said so last

On a local disk it is an advisory lock of the kernel's (flock), gone the moment its holder is, however that ended.
On S3 it is an object, see `pipeline.store.s3_lock`. Stores without conditional writes, and other fsspec file systems,
can't keep two runs apart; the run says so.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from conf.errors import OutputError
from pipeline.store.holder import NAME, SMALL, Lock, holder, locked
from pipeline.store.s3_lock import lock_s3
from pipeline.store.store import Store
from pipeline.store.uri import is_local, join, local_path, protocol, redact


def lock(store: Store, output: str, run_id: str, say: Callable[[str], None]) -> AbstractContextManager[Lock]:
    """Hold the output until the end of the block. Raises LockedError naming the holder; OutputError."""
    if is_local(output):
        return _lock_local(Path(local_path(output)), run_id)
    if protocol(output) == "s3":
        return lock_s3(store, join(output, NAME), run_id, say)
    return _unlocked(output, say)


@contextmanager
def _lock_local(folder: Path, run_id: str) -> Iterator[Lock]:
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        handle = _acquire_local(folder)
    except OSError as error:
        raise OutputError(
            f"can't lock output '{folder}' ({error.strerror}); check its permissions"
        ) from error
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, holder(run_id), 0)
        yield Lock()
    finally:
        with suppress(OSError):
            (folder / NAME).unlink()
        os.close(handle)
        with suppress(OSError):  # not empty: something was written
            for path in made:
                path.rmdir()


def _acquire_local(folder: Path) -> int:
    """The open lock file, locked. Raises LockedError, OSError."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # the folder went with the one who held it
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), (folder / NAME).stat()):
                    return handle
        except BlockingIOError:
            body = os.pread(handle, SMALL, 0)
            os.close(handle)
            raise locked(str(folder), body) from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # a file that its holder removed when it was done; another may stand there by now


@contextmanager
def _unlocked(output: str, say: Callable[[str], None]) -> Iterator[Lock]:
    say(f"'{redact(output)}': no lock is known for this kind of store; make sure that only one run uses it")
    yield Lock()

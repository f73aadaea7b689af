"""Atomic file writes: a reader sees the old file or the new one, never a part of either."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError

from conf.errors import JobError

TEMPORARY = r"\.[0-9a-f]{32}\.tmp"
"""A pattern for the names of temporary files, by which leftovers of killed processes are known."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block succeeds.

    The block creates the temporary file, writes it and closes it. File and folder are flushed to disk, so that the
    new file also survives a power failure. When the block raises, the temporary file is removed and `path` is
    unchanged. A killed process leaves `.{32 hexadecimal digits}.tmp` behind, which nothing reads.

    The folder of `path` must exist. Raises OSError when the file can't be flushed or renamed.
    """
    temporary = path.with_name(f".{uuid4().hex}.tmp")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    with suppress(OSError):  # some network file systems can't flush a folder; the file itself is safe
        _flush(path.parent)


@contextmanager
def training_file(path: Path) -> Iterator[Path]:
    """`atomic_write` for a file of a training run. Creates its folder. Raises JobError when it can't be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
        raise JobError(
            f"can't write '{path}' ({reason}); free some space, or check the permissions, and run the same command "
            "again to go on"
        ) from error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""One way to write a file so that a reader sees the old one or the new one, never a part."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = r"\.[0-9a-f]{32}\.tmp"
"""A pattern for the names of temporary files, by which leftovers of killed processes are known."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a temporary path in the same folder to write to; when the block ends well, it becomes `path`.

    The file is on the disk by then (fsync), and so is its name where the file system can promise that. When the block
    fails, the temporary file is removed and `path` is as before. Raises OSError.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    with suppress(OSError):  # some network file systems can't; the file itself is safe
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

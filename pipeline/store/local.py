"""The local file system."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import IO, ClassVar

from model.atomic import TEMPORARY, atomic_write
from pipeline.store.base import (
    Body,
    Kind,
    LeaveOut,
    ListedFile,
    ObjectInfo,
    Store,
    check_size,
    check_whole,
    no_such_name,
)
from pipeline.store.errors import FREE_SPACE, BrokenBodyError, Operation, StoreError, is_full
from pipeline.store.local_lock import lock_folder
from pipeline.store.lock import Lock
from pipeline.store.uri import decoded_path, expand_home, local_path, one_line

_NO_SUCH_FILE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_CHUNK = 1 << 20
_PROBE_BYTES = 1 << 16  # the records of a run need about this much


class LocalStore(Store):
    """Paths and `file://` URIs. Names may contain any byte but zero."""

    remote: ClassVar[bool] = False
    digests: ClassVar[bool] = True

    def local_path(self, uri: str) -> Path | None:
        return Path(self.full_name(uri))

    def full_name(self, uri: str) -> str:
        """The absolute path. A `~` at the start is replaced by the home folder.

        Many programs write `file://` URIs without encoding them, so a file with the literal name takes precedence.
        """
        return _existing_name(expand_home(uri))

    def contains(self, folder: str, uri: str) -> bool:
        """Links are resolved first."""
        inside = self._path(folder, "list")
        return inside.is_dir() and self._path(uri, "list").resolve().is_relative_to(inside.resolve())

    def kind(self, uri: str) -> Kind:
        path = self._path(uri, "read")
        try:
            mode = path.stat().st_mode
        except OSError as error:
            if error.errno in _NO_SUCH_FILE | {errno.ENAMETOOLONG}:  # a glob may be longer than a name
                return "missing"
            raise self.translate(error, "read", uri) from error
        if stat.S_ISDIR(mode):
            return "folder"
        if not stat.S_ISREG(mode):
            raise StoreError(
                "unsupported",
                "a pipe, socket or device, not a file",
                f"'{one_line(str(path))}' is a pipe, socket or device; name a folder or a file",
            )
        return "file"

    def stat(self, uri: str) -> ObjectInfo:
        with self.errors("read", uri):
            return info_of(_file_status(self._path(uri, "read")))

    def walk(
        self, folder: str, leave_out: LeaveOut, *, stem: str = "", levels: int | None = None
    ) -> Iterator[ListedFile]:
        """Depth first, each folder sorted by name.

        Links to folders are followed, except to a folder that contains the link (inside or above `folder`). These are
        left out, as are hidden folders, unreadable folders, pipes, sockets and devices. A dead link has an error.
        """
        root = local_path(folder)
        with self.errors("list", folder):
            outside = [_identity(above.stat()) for above in Path(root).resolve().parents]
            stack = [(_identity(Path(root).stat()), _entries(root, leave_out))]
        while stack:
            entry = next(stack[-1][1], None)
            if entry is None:
                stack.pop()
                continue
            relative_path = entry.path[len(root) :].lstrip("/")
            try:
                status = entry.stat()
            except OSError as error:
                yield ListedFile(entry.path, relative_path, None, self.translate(error, "read", entry.path))
                continue
            if stat.S_ISREG(status.st_mode):
                yield ListedFile(entry.path, relative_path, info_of(status))
            elif not stat.S_ISDIR(status.st_mode):
                leave_out("not a file", entry.path)
            elif levels is not None and len(stack) >= levels:
                continue
            elif entry.name.startswith("."):
                leave_out("hidden", entry.path)
            elif _identity(status) in outside or any(_identity(status) == known for known, _ in stack):
                leave_out("link circle", entry.path)
            else:
                stack.append((_identity(status), _entries(entry.path, leave_out)))

    def list_files(self, folder: str) -> Iterator[str]:
        with self.errors("list", folder):
            yield from sorted(str(p) for p in self._path(folder, "list").rglob("*") if p.is_file())

    def fetch(self, uri: str, max_bytes: int) -> Body:
        path = self._path(uri, "read")
        _file_status(path)
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            check_size(before.st_size, max_bytes)
            data = file.read(before.st_size + 1)  # `read` allocates what it is asked for
            after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise BrokenBodyError("the file was changed while it was read")
        return Body(check_whole(data, before.st_size, max_bytes), info_of(before).content_tag)

    def open(self, uri: str) -> IO[bytes]:
        path = self._path(uri, "read")
        _file_status(path)
        return path.open("rb")

    def fetch_range(self, uri: str, offset: int, length: int) -> Body:
        with self.open(uri) as file:
            tag = info_of(os.fstat(file.fileno())).content_tag
            file.seek(offset)
            return Body(file.read(length), tag)

    def digest(self, uri: str, max_bytes: int, part: str = "") -> str | None:
        """BLAKE2b of the content, 32 hexadecimal digits; None if the file is too large or can't be read."""
        hasher = blake2b(digest_size=16)
        try:
            with self._path(uri, "read").open("rb") as file:
                if os.fstat(file.fileno()).st_size > max_bytes:
                    return None
                while chunk := file.read(_CHUNK):
                    hasher.update(chunk)
        except OSError:  # the image is read later, and that reports the reason
            return None
        return hasher.hexdigest()

    def write(self, uri: str, data: bytes) -> None:
        """Create the folder if necessary, write a temporary file in it, fsync it, and rename it."""
        with self._replacing(uri) as temporary:
            temporary.write_bytes(data)

    def upload(self, uri: str, source: Path) -> None:
        with self._replacing(uri) as temporary:
            shutil.copyfile(source, temporary)

    @contextmanager
    def _replacing(self, uri: str) -> Iterator[Path]:
        with self.errors("write", uri):
            path = self._path(uri, "write")
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                yield temporary

    def delete(self, uri: str) -> None:
        with self.errors("write", uri):
            self._path(uri, "write").unlink(missing_ok=True)

    def check_kind(self, folder: str) -> None:
        self._nearest_folder(folder)

    def check_writable(self, folder: str) -> None:
        """Create and remove a temporary folder with a small file, in the nearest folder that exists.

        Permission bits are not enough: they ignore root, read-only mounts and /proc.
        """
        path, parent = self._path(folder, "write"), self._nearest_folder(folder)
        try:
            with tempfile.TemporaryDirectory(prefix=".nightcap-", dir=parent) as probe:
                (Path(probe) / "probe").write_bytes(
                    bytes(_PROBE_BYTES)
                )  # a full disk still takes empty files
        except OSError as error:
            cure = "check its permissions, or choose another output"
            raise StoreError(
                "forbidden",
                error.strerror or str(error),
                f"can't write output '{path}': can't write a file in '{parent}' ({error.strerror}); "
                f"{FREE_SPACE if is_full(error) else cure}",
            ) from error

    def _nearest_folder(self, folder: str) -> Path:
        """The folder, or the nearest one above it that exists. Raises StoreError if there is a file instead."""
        path = parent = self._path(folder, "write")
        while not os.path.lexists(parent):
            parent = parent.parent
        if not parent.is_dir():
            subject = "output" if parent == path else f"output '{path}' can't be created:"
            message = f"{subject} '{parent}' is a file, not a folder; choose another output"
            raise StoreError("forbidden", "a file, not a folder", message)
        return parent

    def remove_leftovers(self, folder: str, subfolders: Sequence[str], files: Sequence[str] = ()) -> int:
        root = self._path(folder, "write")
        folders = {root, *(root / name for name in subfolders), *((root / name).parent for name in files)}
        leftovers = [path for each in folders for path in each.glob(".*.tmp")]
        leftovers = [path for path in leftovers if re.fullmatch(TEMPORARY, path.name)]
        with self.errors("write", folder):
            for path in leftovers:
                path.unlink(missing_ok=True)
        return len(leftovers)

    def lock(self, folder: str, run_id: str) -> AbstractContextManager[Lock]:
        return lock_folder(self._path(folder, "write"), run_id)

    def translate(self, error: BaseException, operation: Operation, uri: str) -> StoreError:
        shown = one_line(local_path(uri))
        number = error.errno if isinstance(error, OSError) else None
        reason = one_line((error.strerror if isinstance(error, OSError) else None) or str(error))
        if isinstance(error, PermissionError) or number == errno.EROFS:
            message = f"not allowed to {operation} '{shown}' ({reason}); check the permissions"
            return StoreError("forbidden", reason, message)
        if number == errno.ENAMETOOLONG:
            return no_such_name(uri, operation)
        cure = FREE_SPACE if is_full(error) else "check its name"
        message = f"can't {operation} '{shown}' ({reason}); {cure}"
        return StoreError("missing" if number in _NO_SUCH_FILE else "unavailable", reason, message)

    def _path(self, uri: str, operation: Operation) -> Path:
        try:
            if "\0" not in os.fsdecode(os.fsencode(uri)):
                return Path(_existing_name(uri))
        except UnicodeEncodeError:  # a lone surrogate
            pass
        raise no_such_name(uri, operation)


def _existing_name(uri: str) -> str:
    literal, decoded = local_path(uri), decoded_path(uri)
    return literal if decoded is None or os.path.lexists(literal) else decoded


def info_of(status: os.stat_result) -> ObjectInfo:
    """The ObjectInfo of a local file."""
    return ObjectInfo(status.st_size, f"{status.st_size}-{status.st_mtime_ns}", status.st_mtime)


def _file_status(path: Path) -> os.stat_result:
    """`os.stat`, following links. Raises `unsupported` if it is not a file: opening a pipe would block."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise StoreError("unsupported", f"{kind}, not a file")
    return status


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _entries(folder: str, leave_out: LeaveOut) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return iter(sorted(entries, key=lambda entry: entry.name))
    except OSError:
        leave_out("unreadable folder", folder)
        return iter(())

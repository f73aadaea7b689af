"""Every file below a folder or prefix, streamed, whatever its name."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from conf.errors import SourceError
from model.image.decode import ImageError
from pipeline.store.failures import EXPECTED, image_error, setup_error
from pipeline.store.info import Info, local_info
from pipeline.store.s3_listing import list_keys
from pipeline.store.store import Store
from pipeline.store.uri import join, split_s3

LeaveOut = Callable[[str, str], None]
"""Told (reason, path) of whatever a walk passes by."""


@dataclass(frozen=True)
class Found:
    """A file: its full name, its name below the folder walked, and what is known or wrong about it."""

    path: str
    below: str
    info: Info | None
    error: ImageError | None = None


def walk_local(root: str, levels: int | None, leave_out: LeaveOut) -> Iterator[Found]:
    """Depth first, each folder sorted by name; at most `levels` deep (1: no subfolders).

    Links to folders are followed, except back into a folder that holds them, above `root` too. Left out:
    hidden folders, link circles, unreadable folders, pipes, sockets, devices. A dead link is Found, in error.
    """
    outside = [_identity(folder.stat()) for folder in Path(root).resolve().parents]
    stack = [(_identity(Path(root).stat()), _entries(root, leave_out))]
    while stack:
        entry = next(stack[-1][1], None)
        if entry is None:
            stack.pop()
            continue
        below = entry.path[len(root) :].lstrip("/")
        try:
            status = entry.stat()
        except OSError as error:
            yield Found(entry.path, below, None, image_error(error))
            continue
        if stat.S_ISREG(status.st_mode):
            yield Found(entry.path, below, local_info(status))
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


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _entries(folder: str, leave_out: LeaveOut) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return iter(sorted(found, key=lambda entry: entry.name))
    except OSError:
        leave_out("unreadable folder", folder)
        return iter(())


def walk_s3(store: Store, folder: str, stem: str, leave_out: LeaveOut) -> Iterator[Found]:
    """Every key below `folder` (`s3://bucket` or `s3://bucket/prefix`) that starts with `stem` there.

    In the order of S3, as long as the listing is short. Keys that end in `/`, the folder
    markers of consoles, are left out.
    """
    bucket, key = split_s3(folder)
    prefix = key.rstrip("/") + "/" if key else ""
    try:
        for name, info in list_keys(partial(store.s3, "list_objects_v2", f"s3://{bucket}"), prefix + stem):
            path = f"s3://{bucket}/{name}"
            if name.endswith("/"):
                leave_out("folder marker", path)
            else:
                yield Found(path, name[len(prefix) :], info)
    except EXPECTED as error:
        raise setup_error(SourceError, "list", folder, error, store.options.endpoint_url) from error


def walk_other(store: Store, root: str, leave_out: LeaveOut) -> Iterator[Found]:
    """Every file below a folder of any other fsspec file system, each folder sorted by name."""
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            entries = store.list_folder(folder)
        except EXPECTED as error:
            if folder == root:
                raise setup_error(SourceError, "list", root, error, None) from error
            leave_out("unreadable folder", folder)
            continue
        inner = []
        for path, is_folder, info in entries:
            if not is_folder:
                yield Found(path, path[len(join(root, "")) :], info)
            elif path.rpartition("/")[2].startswith("."):
                leave_out("hidden", path)
            else:
                inner.append(path)
        folders += reversed(inner)

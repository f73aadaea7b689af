"""The members of one container, as a store: every command that reads an image by its name reads members as well."""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from hashlib import blake2b
from typing import IO, ClassVar

from conf.job import InputSettings
from pipeline.store.base import (
    RETRY_PAUSES_S,
    Body,
    Kind,
    LeaveOut,
    ListedFile,
    ObjectInfo,
    Store,
    check_size,
    opened_once,
)
from pipeline.store.containers.base import Container, Member, segment_of
from pipeline.store.containers.index import Index, build_index, tag_of
from pipeline.store.containers.parquet import Parquet
from pipeline.store.containers.tar import Tar, TarGz
from pipeline.store.containers.video import Video
from pipeline.store.containers.zip import Zip
from pipeline.store.errors import Operation, StoreError
from pipeline.store.lock import Lock
from pipeline.store.uri import ARCHIVES, VIDEOS, container_kind, member_name, one_line, redact, split_member

KINDS: dict[str, type[Container]] = {
    "tar": Tar,
    "tar.gz": TarGz,
    "tgz": TarGz,
    "zip": Zip,
    "parquet": Parquet,
}
"""Ending of the name of an archive -> its class. The keys are `uri.ARCHIVES`; those in `uri.VIDEOS` are a `Video`."""
assert tuple(KINDS) == ARCHIVES  # noqa: S101
_OF_THE_STORE = ("missing", "forbidden", "unavailable")  # errors that are not damage of the file
_REPLACED = "the archive was replaced after it was listed; the next run takes the new one"


class ContainerStore(Store):
    """The members of the container `uri`, a file in the store `within`. Read only."""

    globs: ClassVar[bool] = True

    def __init__(self, within: Store, uri: str, limits: InputSettings) -> None:
        kind = container_kind(uri)
        assert kind is not None  # noqa: S101 - `uri.split_member` checked it
        self.within, self.uri = within, uri
        self.container = Video(within, uri, limits) if kind in VIDEOS else KINDS[kind](within, uri)
        self.remote = within.remote  # type: ignore[misc]
        self.digests = within.digests and self.container.digests  # type: ignore[misc]
        self.expected = (*within.expected, *self.container.expected)  # type: ignore[misc]

    # Names

    def full_name(self, uri: str) -> str:
        container, member = split_member(uri)
        return member_name(self.within.full_name(container), (member or "").strip("/"))

    def contains(self, folder: str, uri: str) -> bool:
        return False  # no output is inside a container

    # Metadata

    def is_container(self) -> bool:
        """Whether the file holds images, as far as its kind can tell. Raises StoreError."""
        try:
            with self.errors("read", self.uri):
                return self.container.is_container()
        except StoreError as error:
            raise self.damage(error) from error

    @opened_once
    def index(self) -> Index:
        """The list of the members. It is read once. Raises StoreError if the file can't be read at all."""
        return self.read_index(self.within.stat(self.uri))

    def read_index(self, container: ObjectInfo) -> Index:
        """Read the list of the members of the file, which `container` describes. Damage does not raise."""
        index = build_index(self._members(), container)
        damage = index.damage
        if damage is not None and damage.error_class in _OF_THE_STORE:
            raise damage
        return index

    def damage(self, error: StoreError) -> StoreError:
        """An error of the file itself, with a message for the user."""
        if error.error_class in _OF_THE_STORE:
            return error
        kind = container_kind(self.uri)
        cure = f"; is it a complete .{kind} file?" if error.error_class == "corrupt" else ""
        message = f"can't read '{redact(self.uri)}' ({error.detail}){cure}"
        return StoreError(error.error_class, error.detail, message)

    def _members(self) -> Iterator[Member]:
        with self.errors("read", self.uri):
            yield from self.container.members()

    def kind(self, uri: str) -> Kind:
        name = split_member(uri)[1]
        if self.within.kind(self.uri) != "file":
            return "missing"
        if not name:
            return "folder"
        if self.index.find(name) is not None:
            return "file"
        below = f"{name.rstrip('/')}/"
        return "folder" if any(other.startswith(below) for other, _ in self.index) else "missing"

    def stat(self, uri: str) -> ObjectInfo:
        member = self.container.find(split_member(uri)[1] or "")
        if member is not None:
            within = self.within.stat(self.uri)
            return ObjectInfo(None, tag_of(within.content_tag, member.part), within.modified, member.part)
        index: Index = self.index
        found = index.find(split_member(uri)[1] or "")
        if isinstance(found, StoreError):
            raise found
        if found is None:
            if index.damage is not None:
                raise self.damage(index.damage)
            message = f"can't read '{redact(uri)}' (no such file in the archive); check its name"
            raise StoreError("missing", "no such file in the archive", message)
        return found

    def walk(
        self, folder: str, leave_out: LeaveOut, *, stem: str = "", levels: int | None = None
    ) -> Iterator[ListedFile]:
        """In the order of the archive. If it is damaged, it comes itself, with the error, after its members."""
        yield from self.list_index(self.index, folder, leave_out)

    def list_index(self, index: Index, folder: str, leave_out: LeaveOut) -> Iterator[ListedFile]:
        """`walk` with the index of this container."""
        top = (split_member(folder)[1] or "").rstrip("/")
        prefix = f"{top}/" if top else ""
        for _ in range(index.duplicates):
            leave_out("duplicate in its archive", self.uri)
        for name, info in index:
            if not name.startswith(prefix):
                continue
            error = info if isinstance(info, StoreError) else None
            known = None if isinstance(info, StoreError) else info
            path, relative = member_name(self.uri, name), name[len(prefix) :]
            yield ListedFile(path, relative, known, error, self.container.only_images)
        if index.damage is not None:
            yield ListedFile(self.uri, self.uri.rpartition("/")[2], None, index.damage, True)

    def list_files(self, folder: str) -> Iterator[str]:
        yield from sorted(file.path for file in self.walk(folder, lambda *_: None))

    # Reading

    def fetch(self, uri: str, max_bytes: int) -> Body:
        try:
            return self._fetch(uri, max_bytes)
        except StoreError:
            index: Index | None = self.__dict__.get("index")
            if index is None or self.within.stat(self.uri).content_tag == index.container.content_tag:
                raise
        self.__dict__.pop("index", None)  # the file was replaced since it was listed
        return self._fetch(uri, max_bytes)

    def _fetch(self, uri: str, max_bytes: int) -> Body:
        info = self.stat(uri)
        check_size(info.size or 0, max_bytes)
        (body,) = self.contents([(info.part, info.content_tag or "")], max_bytes)
        if isinstance(body, StoreError):
            raise body
        return body

    def contents(self, members: Iterable[tuple[str, str]], max_bytes: int) -> Iterator[Body | StoreError]:
        """The content of each member, in order, or why it can't be read. A member is (part, content tag).

        The content of a member that has changed since it had its tag is an error. An empty tag fits all contents.
        Members of a segment are taken from the iterable one by one, see `base.Container.contents`.
        """
        taken: deque[tuple[str, str]] = deque()  # without a content yet
        again: deque[tuple[str, str]] = deque()
        remaining, attempts = iter(members), 0

        def parts() -> Iterator[str]:
            while (member := again.popleft() if again else next(remaining, None)) is not None:
                taken.append(member)
                yield member[0]

        while True:
            try:
                with self.errors("read", self.uri):
                    for content in self.container.contents(parts(), max_bytes):
                        part, tag = taken.popleft()
                        attempts = 0
                        yield _unless_replaced(content, part, tag)
                return
            except StoreError as error:
                in_order = any(segment_of(part) is not None for part, _ in taken)
                if error.error_class == "unavailable" and in_order and attempts < len(RETRY_PAUSES_S):
                    time.sleep(RETRY_PAUSES_S[attempts])
                    attempts += 1
                    again.extend(taken)
                    taken.clear()
                elif not taken and next(parts(), None) is None:  # it failed before it took one
                    return
                while taken:  # the next ones may be readable
                    yield self._reason(error, *taken.popleft())

    def digest(self, uri: str, max_bytes: int, part: str = "") -> str | None:
        """As `LocalStore.digest`; None for kinds whose members have checksums, or can't be read in any order."""
        if not self.digests:
            return None
        try:
            (body,) = self.contents([(part or self.stat(uri).part, "")], max_bytes)
        except StoreError:  # the image is read later, and that reports the reason
            return None
        return None if isinstance(body, StoreError) else blake2b(body.data, digest_size=16).hexdigest()

    def _reason(self, error: StoreError, part: str, tag: str) -> StoreError:
        """Why a member can't be read: damage may be an archive that was replaced after it was listed."""
        if error.error_class not in _OF_THE_STORE and "@" in tag:
            try:
                if tag_of(self.within.stat(self.uri).content_tag, part) != tag:
                    return StoreError("missing", _REPLACED)
            except StoreError as gone:
                return gone
        return error

    def open(self, uri: str) -> IO[bytes]:
        return io.BytesIO(self.fetch(uri, self.stat(uri).size or 0).data)

    # Writing

    def write(self, uri: str, data: bytes) -> None:
        raise _read_only(uri)

    def delete(self, uri: str) -> None:
        raise _read_only(uri)

    def check_kind(self, folder: str) -> None:
        raise _read_only(folder)

    def check_writable(self, folder: str) -> None:
        raise _read_only(folder)

    def lock(self, folder: str, run_id: str) -> AbstractContextManager[Lock]:
        raise _read_only(folder)

    def translate(self, error: BaseException, operation: Operation, uri: str) -> StoreError:
        # For a damaged Parquet file, pyarrow may raise OSError too, but without an errno.
        damaged = type(error) is OSError and error.errno is None
        if not damaged and not isinstance(error, self.container.expected):
            return self.within.translate(error, operation, self.uri)
        reason = one_line(f"{error}" or type(error).__name__)
        return self.damage(StoreError("corrupt", reason))


def _unless_replaced(content: Body | StoreError, part: str, tag: str) -> Body | StoreError:
    """The content, or an error if the container has another tag than when the part was listed."""
    if isinstance(content, StoreError):
        return content
    own = tag_of(content.content_tag, part)
    if tag and own and "@" in tag and tag != own:
        return StoreError("missing", _REPLACED)
    return Body(content.data, tag or own)


def _read_only(uri: str) -> StoreError:
    message = (
        f"output '{redact(uri)}' is inside an archive, which is only read; use a folder or s3://bucket/prefix"
    )
    return StoreError("unsupported", "an archive is only read", message)

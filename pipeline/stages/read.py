"""Read image files, and members of containers, ahead of decoding."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.store.base import Body
from pipeline.store.containers.base import segment_of, span_of
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores
from pipeline.store.uri import split_member

MAX_AHEAD = 256  # of one reader; each takes a thread, which waits for the store
MAX_STREAMS = 8  # segments of containers that stay open though nothing is read from them
_RUN = 4 << 20  # bytes of neighbours in a container that are read at once


class Address(NamedTuple):
    """Where an image is: columns of `rows.TODO`. Without a `part`, a member of a container is found by its name."""

    url: str
    part: str = ""
    content_tag: str = ""


@dataclass
class _Request:
    """A file, or neighbours in a container."""

    addresses: list[Address]
    bodies: Future[list[Body | StoreError]] | None  # None if it is read when it is taken
    segment: tuple[str, str] | None = None  # container and segment, if it must be read in order


@dataclass
class _Batch:
    waiting: deque[_Request]  # not requested yet
    held: int = 0  # that are being read, or wait to be taken


@dataclass
class _Stream:
    """A segment of a container that is being read from its start to its end, by one thread at a time."""

    queue: deque[_Request] = field(default_factory=deque)
    # Part and tag of what `contents` reads next.
    wanted: deque[tuple[str, str]] = field(default_factory=deque)
    contents: Iterator[Body | StoreError] | None = None
    running: bool = False


class Reader:
    """Reads batches of images for several workers, ahead of their turn.

    A worker takes the images of one batch, in order. A request reads one file, or neighbours in a container of at
    most 4 MiB. Of a batch, at most `ahead` requests are being read or wait to be taken, and of all batches at most
    `ahead` × `workers`; each takes up to `max_bytes` of memory. What the batches in turn don't need goes to the next
    ones. Local files, and local containers in which any order is fine, are read when they are taken.
    """

    def __init__(self, stores: Stores, max_bytes: int, ahead: int, workers: int = 1) -> None:
        self.stores, self.max_bytes, self.workers = stores, max_bytes, workers
        self.ahead = max(1, min(ahead, MAX_AHEAD // workers))
        self._free = self.ahead * workers
        self._pool = ThreadPoolExecutor(self._free, thread_name_prefix="read")
        self._batches: deque[_Batch] = deque()  # in turn; those with files to request
        self._streams: dict[tuple[str, str], _Stream] = {}
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Read no more files. A thread that waits for one that is not requested yet gets a CancelledError."""
        with self._lock:
            self._closed = True
            waiting = [request for batch in self._batches for request in batch.waiting]
            waiting += [request for stream in self._streams.values() for request in stream.queue]
            for request in waiting:
                assert request.bodies is not None  # noqa: S101 - it is read ahead
                request.bodies.cancel()
            self._batches.clear()
            for stream in self._streams.values():
                stream.queue.clear()
            self._close_streams(0)
        self._pool.shutdown(wait=False)

    def read(self, images: Sequence[Address | str]) -> Iterator[Body | StoreError]:
        """Begin to read a batch. The iterator returns the content of its images, or their errors, in order."""
        requests = self._requests([Address(image) if isinstance(image, str) else image for image in images])
        batch = _Batch(deque(request for request in requests if request.bodies is not None))
        with self._lock:
            self._batches.append(batch)
            self._request()
        return self._take(requests, batch)

    def _requests(self, addresses: Sequence[Address]) -> list[_Request]:
        requests: list[_Request] = []
        for address in addresses:
            remote = self.stores.of(address.url).remote
            segment = segment_of(address.part)
            if segment is not None:
                key = (split_member(address.url)[0], segment)
                requests.append(_Request([address], Future(), key))
            elif remote and requests and _are_neighbours(requests[-1].addresses, address):
                requests[-1].addresses.append(address)
            else:
                requests.append(_Request([address], Future() if remote else None))
        return requests

    def _take(self, requests: Sequence[_Request], batch: _Batch) -> Iterator[Body | StoreError]:
        for request in requests:
            if request.bodies is None:
                yield from self._fetch(request)
                continue
            bodies = deque(request.bodies.result())
            with self._lock:
                batch.held -= 1
                self._free += 1
                self._request()
            request.bodies = None  # the caller alone decides how long the bytes stay in memory
            while bodies:
                yield bodies.popleft()

    def _request(self) -> None:
        """Request files while there is room. The caller holds the lock."""
        for batch in self._batches:
            while self._free and batch.waiting and batch.held < self.ahead:
                self._free -= 1
                batch.held += 1
                self._submit(batch.waiting.popleft())
            if not self._free:
                break
        while self._batches and not self._batches[0].waiting:
            self._batches.popleft()

    def _submit(self, request: _Request) -> None:
        if request.segment is None:
            self._pool.submit(self._fulfil, request)
            return
        stream = self._streams.pop(request.segment, None) or _Stream()
        self._streams[request.segment] = stream  # the one that was used last comes last
        stream.queue.append(request)
        if not stream.running:
            stream.running = True
            self._close_streams(MAX_STREAMS)
            self._pool.submit(self._read_stream, stream)

    def _fulfil(self, request: _Request) -> None:
        assert request.bodies is not None  # noqa: S101 - it is read ahead
        try:
            request.bodies.set_result(self._fetch(request))
        except BaseException as error:  # a bug: raised where the file is taken
            request.bodies.set_exception(error)

    def _fetch(self, request: _Request) -> list[Body | StoreError]:
        url, part, _ = request.addresses[0]
        if part:
            members = [(address.part, address.content_tag) for address in request.addresses]
            return list(self.stores.container(split_member(url)[0]).contents(members, self.max_bytes))
        try:
            return [self.stores.of(url).read(url, self.max_bytes)]
        except StoreError as error:
            return [error]

    def _read_stream(self, stream: _Stream) -> None:
        """Read what is wanted from a segment, in the order in which it was requested."""
        while True:
            with self._lock:
                if not stream.queue:
                    stream.running = False
                    self._close_streams(0 if self._closed else MAX_STREAMS)
                    return
                request = stream.queue.popleft()
            assert request.bodies is not None and request.segment is not None  # noqa: S101 - it has a segment
            (address,) = request.addresses
            try:
                if stream.contents is None:
                    store = self.stores.container(request.segment[0])
                    stream.contents = store.contents(iter(stream.wanted.popleft, None), self.max_bytes)
                stream.wanted.append((address.part, address.content_tag))
                request.bodies.set_result([next(stream.contents)])
            except BaseException as error:  # a bug: raised where the file is taken
                stream.contents = None
                request.bodies.set_exception(error)

    def _close_streams(self, limit: int) -> None:
        """Close those that were not used for longest, if they are more than `limit`. The caller holds the lock."""
        idle = [key for key, stream in self._streams.items() if not stream.running]
        for key in idle[: max(0, len(idle) - limit)]:
            contents = self._streams.pop(key).contents
            if contents is not None:
                contents.close()  # type: ignore[attr-defined]  # a generator: it closes its file


def _are_neighbours(run: Sequence[Address], address: Address) -> bool:
    """Whether a member of a container comes right after a run of others, so that one request reads them all."""
    last = run[-1]
    if not address.part or not last.part or split_member(last.url)[0] != split_member(address.url)[0]:
        return False
    if segment_of(last.part) is not None:
        return False
    first, end, span = span_of(run[0].part), span_of(last.part).end, span_of(address.part)
    useful = sum(span_of(each.part).length for each in run) + span.length
    return end <= span.offset and span.end - first.offset <= min(_RUN, 2 * useful + 4096 * (len(run) + 1))

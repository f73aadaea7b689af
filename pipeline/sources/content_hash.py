"""Content tags from the bytes, for files whose modification times say nothing (`input.content_hash`).

After a restore or a checkout every local file looks changed by its time; by its content it is not. The price is that
every file is read once for the plan, at the speed of the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from itertools import islice

from pipeline.sources.candidates import Candidate
from pipeline.store.stores import Stores

_THREADS, _CHUNK = 8, 256


def digest(data: bytes) -> str:
    """The tag of these bytes, as `Store.digest` makes it of a file: 32 hexadecimal digits."""
    return blake2b(data, digest_size=16).hexdigest()


def with_digests(stores: Stores, candidates: Iterable[Candidate], max_bytes: int) -> Iterator[Candidate]:
    """The same candidates; those whose store can tell have a digest of the content as their tag."""
    remaining = iter(candidates)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="hash") as pool:
        while chunk := list(islice(remaining, _CHUNK)):
            yield from pool.map(partial(_with_digest, stores, max_bytes), chunk)


def _with_digest(stores: Stores, max_bytes: int, candidate: Candidate) -> Candidate:
    where = candidate.url or candidate.path
    made = None if candidate.error_class else stores.of(where).digest(where, max_bytes)
    return candidate if made is None else replace(candidate, content_tag=made, tag_is_digest=True)

"""Digests as content tags of local files (`input.content_hash`).

After a restore or a checkout, local files have new modification times, but the same content. With digests they count
as unchanged. The plan then takes longer, because it reads every file.
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
    """The digest of these bytes, 32 hexadecimal digits, equal to the `digest` of a local file with this content."""
    return blake2b(data, digest_size=16).hexdigest()


def with_digests(stores: Stores, candidates: Iterable[Candidate], max_bytes: int) -> Iterator[Candidate]:
    """The same candidates, with a digest of the content as their tag if their store has one."""
    remaining = iter(candidates)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="hash") as pool:
        while chunk := list(islice(remaining, _CHUNK)):
            yield from pool.map(partial(_with_digest, stores, max_bytes), chunk)


def _with_digest(stores: Stores, max_bytes: int, candidate: Candidate) -> Candidate:
    url = candidate.url or candidate.path
    tag = None if candidate.error_class else stores.of(url).digest(url, max_bytes, candidate.part)
    return candidate if tag is None else replace(candidate, content_tag=tag, tag_is_digest=True)

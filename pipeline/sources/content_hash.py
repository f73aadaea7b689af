"""Content tags from the bytes, for local files whose modification times say nothing (`input.content_hash`).

After a restore or a checkout every file looks changed by its time; by its content it is not. The price is that every
file is read once for the plan, at the speed of the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from pipeline.sources.candidates import Candidate
from pipeline.store.uri import is_local, local_path

_THREADS, _CHUNK, _PIECE = 8, 256, 1 << 20


def digest(data: bytes) -> str:
    """The tag of these bytes: 32 hexadecimal digits, see `Info.of_content`."""
    return blake2b(data, digest_size=16).hexdigest()


def hashed(candidates: Iterable[Candidate], max_bytes: int) -> Iterator[Candidate]:
    """The same candidates; those on local disk, if not larger than `max_bytes`, with the digest as their tag."""
    remaining = iter(candidates)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="hash") as pool:
        while chunk := list(islice(remaining, _CHUNK)):
            yield from pool.map(partial(_hashed, max_bytes=max_bytes), chunk)


def _hashed(candidate: Candidate, max_bytes: int) -> Candidate:
    where = candidate.url or candidate.path
    if candidate.error or not is_local(where) or candidate.size is None or candidate.size > max_bytes:
        return candidate
    made = blake2b(digest_size=16)
    try:
        with Path(local_path(where)).open("rb") as file:
            while piece := file.read(_PIECE):
                made.update(piece)
    except OSError:  # reading the image will say why
        return candidate
    return replace(candidate, tag=made.hexdigest(), of_content=True)

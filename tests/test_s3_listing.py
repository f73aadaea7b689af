"""Parallel listing of S3, against a fake that answers `list_objects_v2` as S3 does."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import pytest

from conf.job import S3Settings
from pipeline.store.s3.listing import list_keys
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores


class Bucket:
    """Answers `list_objects_v2`: keys in order, at most `size` per page, after `delay` seconds."""

    def __init__(self, keys: list[str], size: int = 10, delay: float = 0.0) -> None:
        self.keys, self.size, self.delay = sorted(keys), size, delay
        self.requests: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def page(self, **parameters: Any) -> Mapping[str, Any]:
        time.sleep(self.delay)
        with self._lock:
            self.requests.append(parameters)
            after = parameters.get("ContinuationToken", parameters.get("StartAfter", ""))
            start = bisect_right(self.keys, after)
            below = [key for key in self.keys[start:] if key.startswith(parameters["Prefix"])]
            contents = below[: parameters.get("MaxKeys", self.size)]
            answer: dict[str, Any] = {
                "Contents": [{"Key": key, "Size": 1, "ETag": '"e"'} for key in contents]
            }
            if len(contents) < len(below):
                answer |= {"IsTruncated": True, "NextContinuationToken": contents[-1]}
            return answer

    def listed(self, prefix: str = "", **options: int) -> list[str]:
        return [key for key, _ in list_keys(self.page, prefix, **options)]


def test_a_short_listing_is_sequential_and_in_order() -> None:
    bucket = Bucket([f"a/{i:03d}" for i in range(40)])
    assert bucket.listed("a/") == bucket.keys
    assert len(bucket.requests) == 4
    assert Bucket([]).listed("a/") == []
    assert Bucket(["b", "a/x", "a"]).listed("a/") == ["a/x"]


SHAPES = {
    "one flat folder of numbers": [f"in/img_{i:06d}.jpg" for i in range(3000)],
    "digests": [f"in/{blake2b(bytes([i % 256, i // 256])).hexdigest()[:16]}" for i in range(3000)],
    "folders by date": [
        f"in/20{y}/{m:02d}/{d:02d}/{i}.jpg"
        for y in range(19, 25)
        for m in range(1, 13)
        for d in (1, 9, 30)
        for i in range(9)
    ],
    "a folder per image": [f"in/{i}/photo.jpg" for i in range(3000)],
    "names in Greek": [f"in/{chr(0x3B1 + i % 24)}{i}" for i in range(3000)],
    "names that are prefixes of each other": ["in/" + "a" * i for i in range(1, 500)],
    "one large, many small": [f"in/z/{i:05d}" for i in range(2500)] + [f"in/{c}/1" for c in "abcdefgh"],
}


@pytest.mark.parametrize("keys", SHAPES.values(), ids=SHAPES.keys())
def test_every_key_is_listed_once(keys: list[str]) -> None:
    bucket = Bucket([*keys, "im/before", "in", "io/after"], delay=0.0005)
    result = bucket.listed("in/")
    assert sorted(result) == sorted(keys)
    assert result[:40] == sorted(keys)[:40]


def test_a_long_listing_is_split_among_threads() -> None:
    bucket = Bucket(SHAPES["one flat folder of numbers"], delay=0.005)
    assert sorted(bucket.listed("in/")) == bucket.keys
    ranges = [sent for sent in bucket.requests if "StartAfter" in sent and "MaxKeys" not in sent]
    assert len(ranges) >= 8
    # Probing for ranges must take fewer requests than the listing itself.
    probes = sum("MaxKeys" in sent for sent in bucket.requests)
    assert probes < len(bucket.keys) / 10 * 1.5


def test_a_store_that_ignores_start_after_is_listed_sequentially() -> None:
    bucket = Bucket([f"in/{i:04d}" for i in range(500)], delay=0.001)

    def page(**parameters: Any) -> Mapping[str, Any]:
        parameters.pop("StartAfter", None)
        return bucket.page(**parameters)

    assert [key for key, _ in list_keys(page, "in/")] == bucket.keys


def test_exceptions_of_threads_are_raised_to_the_caller() -> None:
    bucket = Bucket([f"in/{i:04d}" for i in range(2000)], delay=0.001)

    def page(**parameters: Any) -> Mapping[str, Any]:
        if len(bucket.requests) > 60:
            raise ConnectionResetError("gone")
        return bucket.page(**parameters)

    before = threading.active_count()
    with pytest.raises(ConnectionResetError, match="gone"):
        list(list_keys(page, "in/"))
    assert threading.active_count() == before


def test_closing_the_iterator_early_ends_all_threads() -> None:
    bucket = Bucket([f"in/{i:04d}" for i in range(2000)], delay=0.001)
    before = threading.active_count()
    keys = list_keys(bucket.page, "in/")
    for _ in range(100):
        next(keys)
    keys.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_moto_keys_are_listed_once(s3_server: str) -> None:
    store = Stores(S3Settings(endpoint_url=s3_server)).of("s3://many")
    assert isinstance(store, S3Store)
    store.call("create_bucket", "s3://many")
    keys = [f"in/{i:04d}.jpg" for i in range(250)]
    for key in keys:
        store.call("put_object", f"s3://many/{key}", Body=b"x")

    def page(**parameters: Any) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = store.call(
            "list_objects_v2", "s3://many", **{"MaxKeys": 20, **parameters}
        )
        return answer

    assert sorted(key for key, _ in list_keys(page, "in/", serial_pages=2)) == keys

"""What a decode worker does with a batch: order kept, every row with pixels or a reason."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conf.job import ImageLimits
from model.image.decode import ImageError, decode_resized
from pipeline.stages.decode import READ_AHEAD, Batch, read_all, read_and_decode
from pipeline.stages.decode_process import Bounds
from pipeline.store.filesystems import S3Options
from pipeline.store.info import local_info
from pipeline.store.store import Store
from tests import tiny

LIMITS = ImageLimits()


@pytest.fixture
def local() -> Store:
    return Store(S3Options())


@pytest.fixture(scope="module")
def s3(s3_server: str) -> Store:
    store = Store(S3Options(endpoint_url=s3_server, region="us-east-1"))
    store.s3("create_bucket", "s3://decode")
    return store


def png(seed: int, size: tuple[int, int] = (tiny.SIDE, tiny.SIDE)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(tiny.pixels(1, seed)[0]).resize(size).save(buffer, "png")
    return buffer.getvalue()


def bounds(width: int = 8, height: int = 8, max_bytes: int = 10**8, max_pixels: int = 10**8) -> Bounds:
    return Bounds(width, height, max_bytes, max_pixels, 20, 2**32)


def never() -> bool:
    return False


def batch(*paths: object, **errors: str) -> Batch:
    """As Ray hands it over; `errors` by the position of the row."""
    names = np.array([str(path) for path in paths], object)
    error = np.array([errors.get(f"row{i}", "") for i in range(len(paths))], object)
    detail = np.array(["listed so" if e else "" for e in error], object)
    return {
        "path": names,
        "url": names,
        "tag": np.full(len(paths), "t", object),
        "before": np.full(len(paths), "", object),
        "error": error,
        "detail": detail,
    }


def test_good_bad_and_listed_errors_in_one_batch(local: Store, tmp_path: Path) -> None:
    (tmp_path / "wide.png").write_bytes(png(1, (90, 30)))
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(png(2)[:-60])
    (tmp_path / "there.png").write_bytes(png(3))
    (tmp_path / "last.png").write_bytes(png(4))
    names = ["wide.png", "empty.png", "cut.png", "there.png", "gone.png", "last.png"]
    given = batch(*(tmp_path / name for name in names), row3="forbidden")
    made = read_and_decode(given, local, bounds(24, 16), never)
    assert list(made["error"]) == ["", "empty", "truncated", "forbidden", "missing", ""]
    assert made["detail"][3] == "listed so"
    assert all(bool(d) == bool(e) for d, e in zip(made["detail"], made["error"], strict=True))
    assert made["width"].tolist() == [90, 0, 0, 0, 0, tiny.SIDE]
    assert made["height"].tolist() == [30, 0, 0, 0, 0, tiny.SIDE]
    assert (made["pixels"].shape, made["pixels"].dtype) == ((6, 16, 24, 3), np.uint8)
    for i in (0, 5):
        expected = decode_resized((tmp_path / names[i]).read_bytes(), LIMITS, 24, 16).pixels
        assert np.array_equal(made["pixels"][i], expected)
    assert not made["pixels"][1:5].any()
    assert (made["path"] == given["path"]).all()
    # The tag of what was read, should it be another than was listed; else the listed one.
    there = (0, 1, 2, 5)
    tags = [local_info((tmp_path / n).stat()).tag if i in there else "t" for i, n in enumerate(names)]
    assert list(made["tag"]) == tags


def test_once_asked_to_stop_nothing_more_is_read(local: Store, tmp_path: Path) -> None:
    given = batch(tmp_path / "gone.png", tmp_path / "other.png", row1="missing")
    made = read_and_decode(given, local, bounds(), lambda: True)
    assert list(made["error"]) == ["interrupted", "interrupted"]


def test_the_batch_given_is_left_as_it_was(local: Store, tmp_path: Path) -> None:
    given = batch(tmp_path / "gone.png")
    read_and_decode(given, local, bounds(), never)
    assert list(given["error"]) == [""]


def test_limits_hold(local: Store, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    given = batch(tmp_path / "a.png")
    few_bytes, few_pixels = bounds(max_bytes=10), bounds(max_pixels=10)
    assert list(read_and_decode(given, local, few_bytes, never)["error"]) == ["too_large"]
    assert list(read_and_decode(given, local, few_pixels, never)["error"]) == ["too_many_pixels"]


def test_many_remote_objects_keep_their_order(s3: Store) -> None:
    """More than are read ahead, of very different sizes, one of them missing."""
    count, gone = 2 * READ_AHEAD + 5, READ_AHEAD + 3
    for i in range(count):
        side = 400 if i % 7 == 0 else 20
        s3.s3("put_object", f"s3://decode/{i}.png", Body=png(i, (side + i, side)))
    s3.s3("delete_object", f"s3://decode/{gone}.png")
    made = read_and_decode(batch(*(f"s3://decode/{i}.png" for i in range(count))), s3, bounds(), never)
    wrong = {i: str(e) for i, e in enumerate(made["error"]) if e}
    assert wrong == {gone: "missing"}
    expected = [0 if i == gone else (400 if i % 7 == 0 else 20) + i for i in range(count)]
    assert made["width"].tolist() == expected


def test_local_and_remote_files_mix(s3: Store, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"local")
    s3.s3("put_object", "s3://decode/b", Body=b"remote")
    found = list(
        read_all(s3, ["s3://decode/b", str(tmp_path / "a"), "s3://decode/none", "s3://decode/b"], 100)
    )
    assert [body[0] for body in (found[0], found[1]) if isinstance(body, tuple)] == [b"remote", b"local"]
    assert isinstance(found[2], ImageError)
    assert found[2].error == "missing"
    assert found[3] == found[0] == (b"remote", s3.info("s3://decode/b").tag)


def test_no_further_ahead_than_it_says(local: Store, tmp_path: Path) -> None:
    """A manifest may be endless, and memory is not."""
    (tmp_path / "a").write_bytes(b"a")
    taken = 0

    def names() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield str(tmp_path / "a")

    bodies = read_all(local, names(), 10)
    assert [body[0] for body in (next(bodies) for _ in range(3)) if isinstance(body, tuple)] == [b"a"] * 3
    assert taken == READ_AHEAD + 3


def test_nothing_to_read(local: Store, tmp_path: Path) -> None:
    assert list(read_all(local, [], 10)) == []
    made: Any = read_and_decode(batch(tmp_path / "x", row0="unsupported"), local, bounds(), never)
    assert list(made["error"]) == ["unsupported"]

"""Reading and decoding of a batch: the order is kept, and every row has pixels or an error class."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conf.captioner import Preprocessing
from conf.job import InputSettings, S3Settings
from model.image.decode import decode_resized
from pipeline.stages.decode import Batch, ReadAndDecode
from pipeline.stages.read import MAX_AHEAD, Reader
from pipeline.store.base import Body
from pipeline.store.errors import StoreError
from pipeline.store.local import LocalStore, info_of
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores
from tests import tiny

LIMITS = InputSettings(decode_timeout_seconds=20)
SIZE = Preprocessing(width=32, height=40)


@pytest.fixture
def local() -> Stores:
    return Stores()


@pytest.fixture(scope="module")
def s3(s3_server: str) -> Stores:
    stores = Stores(S3Settings(endpoint_url=s3_server, region="us-east-1"))
    bucket(stores).call("create_bucket", "s3://decode")
    return stores


def bucket(stores: Stores) -> S3Store:
    store = stores.of("s3://decode")
    assert isinstance(store, S3Store)
    return store


def png(seed: int, size: tuple[int, int] = (tiny.SIDE, tiny.SIDE)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(tiny.pixels(1, seed)[0]).resize(size).save(buffer, "png")
    return buffer.getvalue()


def never() -> bool:
    return False


def batch(*paths: object, **errors: str) -> Batch:
    """A batch as Ray passes it to the stage. `errors` are error classes by row, such as row3="forbidden"."""
    names = np.array([str(path) for path in paths], object)
    error = np.array([errors.get(f"row{i}", "") for i in range(len(paths))], object)
    detail = np.array(["listed so" if e else "" for e in error], object)
    return {
        "path": names,
        "url": names,
        "part": np.full(len(paths), "", object),
        "content_tag": np.full(len(paths), "t", object),
        "previous_file": np.full(len(paths), "", object),
        "error_class": error,
        "detail": detail,
    }


def read_and_decode(
    batch: Batch, stores: Stores, size: Preprocessing, limits: InputSettings, stop: Callable[[], bool]
) -> Batch:
    stage = ReadAndDecode(stores, size, limits)
    with closing(stage.process()) as process:
        return stage(batch, stage.read(batch), process, stop)


def test_a_batch_may_mix_images_and_errors(local: Stores, tmp_path: Path) -> None:
    (tmp_path / "wide.png").write_bytes(png(1, (90, 30)))
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(png(2)[:-60])
    (tmp_path / "there.png").write_bytes(png(3))
    (tmp_path / "last.png").write_bytes(png(4))
    names = ["wide.png", "empty.png", "cut.png", "there.png", "gone.png", "last.png"]
    inputs = batch(*(tmp_path / name for name in names), row3="forbidden")
    result = read_and_decode(inputs, local, Preprocessing(width=32, height=40), LIMITS, never)
    assert list(result["error_class"]) == ["", "empty", "truncated", "forbidden", "missing", ""]
    assert result["detail"][3] == "listed so"
    assert all(bool(d) == bool(e) for d, e in zip(result["detail"], result["error_class"], strict=True))
    assert result["width"].tolist() == [90, 0, 0, 0, 0, tiny.SIDE]
    assert result["height"].tolist() == [30, 0, 0, 0, 0, tiny.SIDE]
    assert result["pixels"].shape == (6, 40, 32, 3)
    assert result["pixels"].dtype == np.dtype(np.uint8)
    for i in (0, 5):
        expected = decode_resized((tmp_path / names[i]).read_bytes(), LIMITS, 32, 40).pixels
        assert np.array_equal(result["pixels"][i], expected)
    assert not result["pixels"][1:5].any()
    assert (result["path"] == inputs["path"]).all()
    # Images that were read have the tag of the content read, the others the listed one.
    there = (0, 1, 2, 5)
    tags = [info_of((tmp_path / n).stat()).content_tag if i in there else "t" for i, n in enumerate(names)]
    assert list(result["content_tag"]) == tags


def test_nothing_is_read_after_a_stop_request(local: Stores, tmp_path: Path) -> None:
    inputs = batch(tmp_path / "gone.png", tmp_path / "other.png", row1="missing")
    result = read_and_decode(inputs, local, SIZE, LIMITS, lambda: True)
    assert list(result["error_class"]) == ["interrupted", "interrupted"]


def test_the_input_batch_is_not_modified(local: Stores, tmp_path: Path) -> None:
    inputs = batch(tmp_path / "gone.png")
    read_and_decode(inputs, local, SIZE, LIMITS, never)
    assert list(inputs["error_class"]) == [""]


def test_image_limits_are_applied(local: Stores, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    inputs = batch(tmp_path / "a.png")
    few_bytes, few_pixels = InputSettings(max_bytes=10), InputSettings(max_pixels=10)
    assert list(read_and_decode(inputs, local, SIZE, few_bytes, never)["error_class"]) == ["too_large"]
    assert list(read_and_decode(inputs, local, SIZE, few_pixels, never)["error_class"]) == ["too_many_pixels"]


def test_remote_objects_keep_their_order(s3: Stores) -> None:
    """More objects than are read ahead, of very different sizes, one of them missing."""
    ahead = LIMITS.read_ahead
    count, gone = 2 * ahead + 5, ahead + 3
    for i in range(count):
        side = 400 if i % 7 == 0 else 20
        bucket(s3).call("put_object", f"s3://decode/{i}.png", Body=png(i, (side + i, side)))
    bucket(s3).call("delete_object", f"s3://decode/{gone}.png")
    result = read_and_decode(batch(*(f"s3://decode/{i}.png" for i in range(count))), s3, SIZE, LIMITS, never)
    wrong = {i: str(e) for i, e in enumerate(result["error_class"]) if e}
    assert wrong == {gone: "missing"}
    expected = [0 if i == gone else (400 if i % 7 == 0 else 20) + i for i in range(count)]
    assert result["width"].tolist() == expected


def test_local_and_remote_files_may_be_mixed(s3: Stores, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"local")
    bucket(s3).call("put_object", "s3://decode/b", Body=b"remote")
    with Reader(s3, 100, 4) as reader:
        results = list(
            reader.read(["s3://decode/b", str(tmp_path / "a"), "s3://decode/none", "s3://decode/b"])
        )
    assert [body[0] for body in (results[0], results[1]) if isinstance(body, tuple)] == [b"remote", b"local"]
    assert isinstance(results[2], StoreError)
    assert results[2].error_class == "missing"
    assert results[3] == results[0] == (b"remote", bucket(s3).stat("s3://decode/b").content_tag)


class SlowStores(Stores):
    """One remote store. Reads wait until `open` is set, and are counted. `s3://bug` is a bug."""

    remote = True

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.requested: list[str] = []

    def of(self, uri: str) -> Any:
        return self

    def read(self, uri: str, max_bytes: int) -> Body:
        self.requested.append(uri)
        self.open.wait(20)
        if uri == "s3://bug":
            raise ZeroDivisionError
        return Body(uri.encode(), None)

    def wait_for(self, *uris: str) -> None:
        """Wait until exactly these have been requested. Their order is that of threads."""
        deadline = time.monotonic() + 20
        while len(self.requested) < len(uris) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert sorted(self.requested) == sorted(uris)


@pytest.fixture
def slow() -> Iterator[SlowStores]:
    stores = SlowStores()
    yield stores
    stores.open.set()


def test_a_worker_reads_ahead_as_many_files_as_configured(slow: SlowStores) -> None:
    names = [f"s3://{i}" for i in range(9)]
    with Reader(slow, 100, 3) as reader:
        bodies = reader.read(names)
        slow.wait_for(*names[:3])
        slow.open.set()
        assert next(bodies) == (b"s3://0", None)
        slow.wait_for(*names[:4])  # those that wait to be taken count too
        assert [body[0] for body in bodies if isinstance(body, Body)] == [n.encode() for n in names[1:]]
    stage = ReadAndDecode(slow, SIZE, InputSettings(read_ahead=7))
    with stage.reader(2) as reader:
        assert (reader.ahead, reader.workers) == (7, 2)


def test_what_one_batch_leaves_is_read_ahead_of_the_next(slow: SlowStores) -> None:
    first, second, third = (["s3://a", "s3://b"], ["s3://c", "s3://d", "s3://e"], ["s3://f", "s3://g"])
    with Reader(slow, 100, 2, workers=2) as reader:
        batches = [reader.read(batch) for batch in (first, second, third)]
        slow.wait_for("s3://a", "s3://b", "s3://c", "s3://d")
        slow.open.set()
        next(batches[0])
        slow.wait_for("s3://a", "s3://b", "s3://c", "s3://d", "s3://f")  # the second batch has its two
        next(batches[1])
        slow.wait_for("s3://a", "s3://b", "s3://c", "s3://d", "s3://f", "s3://e")
        assert [len(list(batch)) for batch in batches] == [1, 2, 2]


def test_a_worker_that_is_stuck_does_not_keep_others_from_reading(slow: SlowStores) -> None:
    slow.open.set()
    with Reader(slow, 100, 2, workers=2) as reader:
        stuck, busy = (reader.read([f"s3://{name}{i}" for i in range(50)]) for name in "ab")
        assert next(stuck)
        assert len(list(busy)) == 50


def test_the_files_in_memory_are_limited_for_many_workers(slow: SlowStores) -> None:
    with Reader(slow, 100, 1000, workers=64) as reader:
        assert reader.ahead == MAX_AHEAD // 64
    with Reader(slow, 100, 32, workers=1000) as reader:
        assert reader.ahead == 1


def test_a_bug_in_a_store_is_raised_where_the_file_is_taken(slow: SlowStores) -> None:
    slow.open.set()
    with Reader(slow, 100, 2) as reader, pytest.raises(ZeroDivisionError):
        list(reader.read(["s3://a", "s3://bug"]))


def test_a_closed_reader_keeps_no_thread_waiting(slow: SlowStores) -> None:
    reader = Reader(slow, 100, 1)
    bodies = reader.read(["s3://a", "s3://b", "s3://c"])
    slow.wait_for("s3://a")
    reader.close()
    slow.open.set()
    assert next(bodies) == (b"s3://a", None)
    with pytest.raises(CancelledError):
        next(bodies)
    assert slow.requested == ["s3://a"]


def test_the_time_to_read_and_to_decode_is_measured_for_each_image(
    local: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "b.png").write_bytes(b"no image")
    read = LocalStore.read

    def slowly(self: LocalStore, uri: str, max_bytes: int) -> Body:
        time.sleep(0.2)
        return read(self, uri, max_bytes)

    monkeypatch.setattr(LocalStore, "read", slowly)
    inputs = batch(tmp_path / "a.png", tmp_path / "b.png", tmp_path / "none.png", "x", row3="forbidden")
    started = time.perf_counter()
    result = read_and_decode(inputs, local, SIZE, LIMITS, never)
    took = time.perf_counter() - started
    assert list(result["error_class"]) == ["", "unsupported", "missing", "forbidden"]
    reading, decoding = result["read_seconds"], result["decode_seconds"]
    assert reading.dtype == decoding.dtype == np.float32
    assert (reading[:3] >= 0.2).all()
    assert (decoding[:2] > 0).all()
    assert reading[3] == decoding[3] == 0
    assert reading.sum() + decoding.sum() <= took


def test_empty_input_and_batches_of_errors_are_accepted(local: Stores, tmp_path: Path) -> None:
    with Reader(local, 10, 4) as reader:
        assert list(reader.read([])) == []
    result: Any = read_and_decode(batch(tmp_path / "x", row0="unsupported"), local, SIZE, LIMITS, never)
    assert list(result["error_class"]) == ["unsupported"]

"""Whole runs over archives: captions as from a folder, reruns, kills, replaced archives, prune and verify."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conf.errors import SourceError
from conf.job import S3Settings
from pipeline.output import indexes
from pipeline.output.folder import OutputFolder
from pipeline.output.prune import prune
from pipeline.output.verify import verify
from pipeline.stages.work import whole_segments
from pipeline.store.containers.store import ContainerStore
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores
from tests.archives import write_archive, write_parquet, write_tar, write_zip
from tests.whole import config, image_file, run_job, tables

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = {f"{i:03d}.png": image_file(i) for i in range(60)}


def part(first: int, last: int) -> dict[str, bytes]:
    return {name: PHOTOS[name] for name in list(PHOTOS)[first:last]}


# A command that is killed as soon as it has saved some results.
_KILLED = """
import os, signal, sys
from jobs.cli import main
from pipeline.output.journal import Journal
write = Journal.write
def write_and_die(journal, rows):
    write(journal, rows)
    os.kill(os.getpid(), signal.SIGKILL)
Journal.write = write_and_die
main(sys.argv[1:])
"""


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """All photos as four tar shards, a tar.gz, a zip and a Parquet file, in a folder."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in range(4):
        write_tar(folder / f"shard-{i}.tar", {**part(8 * i, 8 * i + 8), f"{i}.json": b"{}"})
    write_archive(folder / "some.tar.gz", part(32, 40))
    write_zip(folder / "more.zip", part(40, 50))
    write_parquet(folder / "rest.parquet", part(50, 60), 4)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, data in PHOTOS.items():
        (folder / name).write_bytes(data)
    return folder


def captions(output: Path) -> dict[str, tuple[str, float]]:
    """Name of the photo -> its caption and confidence."""
    found, rejects = tables(output)
    assert not len(rejects)
    rows = {}
    for path, text, confidence in zip(found["path"], found["caption"], found["confidence"], strict=True):
        archive, _, member = path.rpartition("::")
        name = f"{50 + int(member):03d}.png" if archive.endswith(".parquet") else Path(member).name
        assert name not in rows
        rows[name] = (text, round(float(confidence), 3))
    assert set(rows) == set(PHOTOS)
    return rows


def check(output: Path) -> None:
    with Stores() as stores:
        assert verify(OutputFolder(stores, str(output))).problems == []


def test_archives_give_the_captions_of_the_folder(
    shards: Path, photos: Path, tmp_path: Path, bundle: Path, engine: str
) -> None:
    settings = config(bundle, engine, model={"batch_size": 7}, workers={"rows_per_block": 7})
    run_job(photos, tmp_path / "out-photos", config(bundle))
    first = run_job(shards, tmp_path / "out", settings)
    assert (first.counts.captioned, first.counts.listed) == (60, 60)
    assert captions(tmp_path / "out") == captions(tmp_path / "out-photos")
    again = run_job(shards, tmp_path / "out", config(bundle))
    assert (again.counts.captioned, again.counts.skipped) == (0, 60)
    check(tmp_path / "out")


def test_archives_on_s3_give_the_captions_of_the_folder(
    s3_server: str, shards: Path, photos: Path, tmp_path: Path, bundle: Path
) -> None:
    with Stores(S3Settings(endpoint_url=s3_server, region="us-east-1")) as stores:
        store = stores.of("s3://shards")
        assert isinstance(store, S3Store)
        store.call("create_bucket", "s3://shards")
        for file in shards.iterdir():
            store.write(f"s3://shards/{file.name}", file.read_bytes())
        settings = config(
            bundle, s3={"endpoint_url": s3_server, "region": "us-east-1"}, model={"batch_size": 7}
        )
        run_job(photos, tmp_path / "out-photos", config(bundle))
        run_job("s3://shards", tmp_path / "out", settings)
        assert captions(tmp_path / "out") == captions(tmp_path / "out-photos")
        write_tar(shards / "shard-1.tar", part(8, 16))
        store.write("s3://shards/shard-1.tar", (shards / "shard-1.tar").read_bytes())
        write_zip(tmp_path / "empty.zip", {})
        store.write("s3://shards/empty.zip", (tmp_path / "empty.zip").read_bytes())
        again = run_job("s3://shards", tmp_path / "out", settings)
        assert (again.counts.listed, again.counts.captioned, again.counts.skipped) == (60, 8, 52)


def test_a_kill_in_the_middle_neither_loses_nor_doubles(
    shards: Path, photos: Path, tmp_path: Path, bundle: Path
) -> None:
    output = tmp_path / "out"
    options = [
        "--set",
        "output.journal_seconds=0.1",
        "--set",
        "model.batch_size=2",
        "--set",
        "model.precision=fp32",
    ]
    command = [
        sys.executable,
        "-c",
        _KILLED,
        "run",
        str(shards),
        "--output",
        str(output),
        "--model",
        str(bundle),
    ]
    killed = subprocess.run(
        [*command, "--engine", "local", *options], cwd=ROOT, capture_output=True, timeout=100
    )
    assert killed.returncode == -signal.SIGKILL
    result = run_job(shards, output, config(bundle, model={"batch_size": 2}))
    assert result.counts.captioned + result.counts.skipped == 60
    assert 0 < result.counts.captioned < 60
    run_job(photos, tmp_path / "out-photos", config(bundle))
    assert captions(output) == captions(tmp_path / "out-photos")
    check(output)


@pytest.mark.parametrize("name", ["shard-2.tar", "some.tar.gz", "rest.parquet"])
def test_the_images_of_a_replaced_archive_alone_are_captioned_again(
    shards: Path, tmp_path: Path, bundle: Path, name: str
) -> None:
    run_job(shards, tmp_path / "out", config(bundle))
    members = {"shard-2.tar": part(16, 24), "some.tar.gz": part(32, 40), "rest.parquet": part(50, 60)}[name]
    write_archive(shards / name, members)
    again = run_job(shards, tmp_path / "out", config(bundle))
    assert (again.counts.captioned, again.counts.skipped) == (len(members), 60 - len(members))
    check(tmp_path / "out")


def test_only_what_is_new_in_a_zip_archive_is_captioned(shards: Path, tmp_path: Path, bundle: Path) -> None:
    run_job(shards, tmp_path / "out", config(bundle))
    write_zip(shards / "more.zip", {"new.png": image_file(99), **part(40, 50)})
    again = run_job(shards, tmp_path / "out", config(bundle))
    assert (again.counts.captioned, again.counts.skipped) == (1, 60)


def test_with_a_content_hash_a_restored_tar_archive_is_not_captioned_again(
    shards: Path, tmp_path: Path, bundle: Path
) -> None:
    settings = config(bundle, input={"content_hash": True})
    run_job(shards / "shard-0.tar", tmp_path / "out", settings)
    os.utime(shards / "shard-0.tar", (1, 1))
    again = run_job(shards / "shard-0.tar", tmp_path / "out", settings)
    assert (again.counts.captioned, again.counts.skipped) == (0, 8)


def test_an_unchanged_archive_is_not_listed_again(
    shards: Path, tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexes, "_MIN_MEMBERS", 1)
    read: list[str] = []
    original = ContainerStore.read_index

    def counted(self: ContainerStore, info: Any) -> Any:
        read.append(Path(self.uri).name)
        return original(self, info)

    monkeypatch.setattr(ContainerStore, "read_index", counted)
    (shards / "shard-3.tar").write_bytes(
        (shards / "shard-3.tar").read_bytes()[:6000]
    )  # a damaged one as well
    indexed = {"shard-0.tar", "shard-1.tar", "shard-2.tar", "shard-3.tar", "some.tar.gz"}
    run_job(shards, tmp_path / "out", config(bundle), limit=10)
    assert indexed < set(read)
    first = sorted(tmp_path.glob("out/indexes/*.parquet"))
    assert len(first) == 5
    read.clear()
    run_job(shards, tmp_path / "out", config(bundle), limit=10)
    assert set(read) == {"more.zip", "rest.parquet"}  # these have a list of their own
    write_tar(shards / "shard-0.tar", part(0, 7))
    first[0].write_bytes(b"damaged")
    read.clear()
    last = run_job(shards, tmp_path / "out", config(bundle))
    assert len(set(read) & indexed) in (1, 2)
    assert "shard-0.tar" in read
    assert last.counts.listed == 60 - 1 - 2 + 1  # without one of shard-0, with the damaged end of shard-3
    assert list(tables(tmp_path / "out")[1]["path"]) == [f"{shards}/shard-3.tar"]


def test_prune_marks_what_left_its_archive_and_refuses_a_damaged_one(
    shards: Path, tmp_path: Path, bundle: Path
) -> None:
    run_job(shards, tmp_path / "out", config(bundle))
    write_tar(shards / "shard-0.tar", part(0, 6))
    (shards / "more.zip").unlink()
    with Stores() as stores:
        output = OutputFolder(stores, str(tmp_path / "out"))
        assert prune(stores, [f"{shards}/shard-0.tar"], output, dry=True).rows == 2
        vanished = prune(stores, [str(shards)], output, dry=True)
        assert (vanished.rows, vanished.total) == (12, 60)
        assert prune(stores, [str(shards)], output, confirm=lambda _: None).rows == 12
    found = tables(tmp_path / "out")[0]
    marked = found[found["vanished_at"].notna()]["path"]
    assert {path.removeprefix(f"{shards}/").partition("::")[0] for path in marked} == {
        "shard-0.tar",
        "more.zip",
    }
    (shards / "shard-1.tar").write_bytes((shards / "shard-1.tar").read_bytes()[:3000])
    with (
        Stores() as stores,
        pytest.raises(SourceError, match="its images would count as vanished; repair it"),
    ):
        prune(stores, [str(shards)], OutputFolder(stores, str(tmp_path / "out")))


def test_a_segment_stays_in_one_block_of_a_cluster(shards: Path) -> None:
    import pyarrow as pa

    from pipeline.rows import TODO

    parts = ["", "0+5", "0/1", "0/2", "0/3", "1/4", "1/5", "1/6", "1/7", "2/8", "0+9", ""]
    rows = {name: [""] * len(parts) for name in TODO.names}
    rows |= {"part": parts, "url": [f"x.parquet::{i}" for i in range(len(parts))]}
    table = pa.table(rows, schema=TODO)
    for size in range(1, len(parts) + 1):
        blocks = list(whole_segments(table.slice(start, size) for start in range(0, len(parts), size)))
        assert pa.concat_tables(blocks).equals(table)
        for segment in ("0/", "1/", "2/"):
            assert sum(any(p.startswith(segment) for p in block["part"].to_pylist()) for block in blocks) == 1
    assert list(whole_segments([])) == []

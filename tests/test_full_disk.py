"""A full disk or quota: only saved results are counted, the message has the cure, and the next run continues."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from conf.errors import JobError, NightcapError, OutputError
from conf.job import S3Settings
from pipeline.output.catalog import Catalog
from pipeline.output.folder import OutputFolder
from pipeline.output.journal import leftover_segments
from pipeline.output.tables import known_rows
from pipeline.output.verify import verify
from pipeline.plan.ledger import Ledger
from pipeline.store import errors
from pipeline.store.errors import StoreError
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores
from tests.whole import config, image_file, run_job, tables

IMAGES = 8


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(IMAGES):
        (folder / f"{i}.png").write_bytes(image_file(i))
    return folder


def settings(bundle: Path, **model: Any) -> Any:
    output = {"rows_per_file": 3, "journal_seconds": 0.0001}
    return config(bundle, model={"batch_size": 2, **model}, output=output)


def saved(out: Path, run_id: str) -> int:
    """Rows of a run in tables and journal; a row that is in both counts once."""
    import pandas as pd

    files = [*(out / "captions").glob("*.parquet"), *(out / "journal").glob("*.parquet")]
    rows = pd.concat([pd.DataFrame({"path": [], "run_id": []}), *map(pd.read_parquet, files)])
    return int(rows[rows["run_id"] == run_id]["path"].nunique())


class Disk:
    """A disk that takes a number of writes in `folder`, or only small ones, and is full then."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.allowed: Callable[[bytes], bool] = lambda data: True
        self.failed: list[str] = []
        real = Path.write_bytes

        def write_bytes(path: Path, data: bytes) -> int:
            if path.is_relative_to(folder) and not self.allowed(data):
                self.failed.append(path.parent.name)
                path.touch()  # a full disk still creates files
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(path, data)

        patch.setattr(Path, "write_bytes", write_bytes)

    def after(self, writes: int) -> None:
        """Full after so many writes."""
        left = [writes]

        def allowed(data: bytes) -> bool:
            left[0] -= 1
            return left[0] >= 0

        self.allowed = allowed


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False], ids=["new", "replace"])
def test_a_disk_that_is_full_from_any_write_on_loses_only_what_is_not_counted(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """With `replace`, every image was captioned before, with other settings."""
    monkeypatch.setattr("model.device.usable_cpus", lambda: 1)  # the same writes in every run
    writes, where = 0, set[str]()
    while True:
        out = tmp_path / f"out-{writes}"
        if not first:
            run_job(photos, out, settings(bundle, beam_width=1))
        runs_before = set((out / "runs").glob("*.json"))
        with monkeypatch.context() as patch:
            disk = Disk(out, patch)
            disk.after(writes)
            try:
                run_job(photos, out, settings(bundle))
                break
            except (JobError, OutputError) as error:
                message = str(error)
            where.add(disk.failed[0].partition("-")[0])
            assert "free some space" in message
            assert "check its name" not in message
        for run in set((out / "runs").glob("*.json")) - runs_before:
            record = json.loads(run.read_text())
            counts = record["counts"]
            assert counts["captioned"] <= saved(out, record["run_id"])
            assert counts["captioned"] + counts["unfinished"] == IMAGES
            assert record["rows"] == {"captions": len(tables(out)[0]), "rejects": 0}
        assert list(out.rglob(".*.tmp")) == []
        assert verify(OutputFolder(Stores(), str(out))).problems == [] if any(out.rglob("*.*")) else True
        run_job(photos, out, settings(bundle))
        captions, _ = tables(out)
        assert len(captions) == captions["path"].nunique() == IMAGES
        assert captions["model_id"].nunique() == 1
        assert verify(OutputFolder(Stores(), str(out))).problems == []
        writes += 1
    assert where >= {"journal", "captions", "runs", "out"}


def test_what_can_not_be_published_is_journaled(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a table needs more space than the few new rows in the journal."""
    out = tmp_path / "out"
    large = config(bundle, output={"rows_per_file": 100})
    run_job(photos, out, large)
    (photos_2 := tmp_path / "photos").mkdir()
    for i in range(3):
        (photos_2 / f"{i}.png").write_bytes(image_file(i))
    first = set((out / "runs").iterdir())
    with monkeypatch.context() as patch:
        disk = Disk(out, patch)
        disk.allowed = lambda data: (
            b"nightcap.format" not in data or b"previous_file" in data
        )  # the journal's column
        with pytest.raises(JobError, match=r"free some space.*finished work is kept; run it again"):
            run_job(photos_2, out, large)
    (run_file,) = set((out / "runs").iterdir()) - first
    record = json.loads(run_file.read_text())
    assert (record["outcome"], record["counts"]["captioned"], saved(out, record["run_id"])) == (
        "failed",
        3,
        3,
    )
    assert json.loads((out / "latest.json").read_text())["outcome"] == "failed"
    again = run_job(photos_2, out, large)
    assert (again.recovered, again.counts.captioned) == (3, 0)


def test_a_run_without_a_record_says_so(
    bundle: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = Disk(tmp_path / "out", monkeypatch)
    disk.allowed = lambda data: False
    with pytest.raises(JobError, match=r"free some space.*8 of 8 finished images could not be saved"):
        run_job(photos, tmp_path / "out", config(bundle))
    assert "this run has no record: can't write" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB with 10 kB free."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        (folder / "other").write_bytes(bytes(190 << 10))
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_nearly_full_is_refused_before_any_work(
    bundle: Path, photos: Path, small_disk: Path
) -> None:
    with pytest.raises(OutputError, match=r"No space left on device.*free some space"):
        run_job(photos, small_disk / "out", config(bundle))
    assert [p.name for p in small_disk.iterdir()] == ["other"]
    (small_disk / "other").write_bytes(b"")
    assert run_job(photos, small_disk / "out", config(bundle)).counts.captioned == IMAGES


def test_a_lock_on_a_full_disk_is_refused(small_disk: Path) -> None:
    with (small_disk / "other").open("ab") as rest, pytest.raises(OSError, match="No space"):
        while True:
            os.write(rest.fileno(), bytes(4096))
    output = OutputFolder(Stores(), str(small_disk))
    with (
        pytest.raises(OutputError, match=r"can't lock .*No space left on device.*free some space"),
        output.locked("r1"),
    ):
        pass
    assert [p.name for p in small_disk.iterdir()] == ["other"]


def test_a_full_temporary_folder_is_named(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    message = r"can't keep the plan in '.*disk'.*free some space there, or set TMPDIR"
    with pytest.raises(JobError, match=message), Ledger() as ledger:
        ledger.add_listed(_many_rows(20_000))


def _many_rows(count: int) -> Any:
    import pyarrow as pa

    from pipeline.rows import LISTED

    columns = {field.name: pa.nulls(count, field.type) for field in LISTED}
    columns["path"] = pa.array([os.urandom(20).hex() for _ in range(count)])
    return pa.table(columns, schema=LISTED)


def test_a_file_that_can_not_be_rewritten_is_counted_as_it_is(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New rows would join the file of the first run, but the disk is full."""
    out, large = tmp_path / "out", config(bundle, output={"rows_per_file": 100})
    run_job(photos, out, large)
    (more := tmp_path / "more").mkdir()
    for i in range(5):
        (more / f"{i}.png").write_bytes(image_file(i + 20))
    with monkeypatch.context() as patch:
        disk = Disk(out, patch)
        disk.allowed = lambda data: b"nightcap.format" not in data  # neither tables nor journal
        with pytest.raises(JobError, match="5 of 5 finished images could not be saved"):
            run_job(more, out, large)
    latest = json.loads((out / "latest.json").read_text())
    assert (latest["outcome"], latest["rows"]) == ("failed", {"captions": IMAGES, "rejects": 0})


class Quota:
    """A bucket that takes `left` more writes, and then answers with an error code and a status."""

    def __init__(self, endpoint: str, patch: pytest.MonkeyPatch, code: str, status: int) -> None:
        self.stores = Stores(S3Settings(endpoint_url=endpoint))
        self.left, real = 0, S3Store.write
        store = self.stores.of("s3://quota")
        assert isinstance(store, S3Store)
        store.call("create_bucket", "s3://quota")

        def write(store: S3Store, uri: str, data: bytes) -> None:
            self.left -= 1
            if self.left < 0:
                answer = {"HTTPStatusCode": status}
                error = {"Error": {"Code": code, "Message": "full"}, "ResponseMetadata": answer}
                with store.errors("write", uri):
                    raise ClientError(error, "PutObject")
            real(store, uri, data)

        patch.setattr(S3Store, "write", write)

    def run(self, bundle: Path, photos: Path, output: OutputFolder) -> None:
        run_job(photos, output.uri, settings(bundle).model_copy(update={"s3": self.stores.s3}))


CODES = ("XMinioAdminBucketQuotaExceeded", 400), ("QuotaExceeded", 403), ("XMinioStorageFull", 507)


@pytest.mark.parametrize(("code", "status"), CODES)
def test_a_quota_of_s3_is_a_full_disk(
    s3_server: str, bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, code: str, status: int
) -> None:
    quota = Quota(s3_server, monkeypatch, code, status)
    quota.left = 5
    with pytest.raises(JobError, match="free some space, or raise the quota"):  # waiting does not help
        quota.run(bundle, photos, OutputFolder(quota.stores, f"s3://quota/{code}"))


@pytest.mark.slow
def test_a_quota_of_s3_that_is_used_up_from_any_write_on_loses_only_what_is_not_counted(
    s3_server: str, bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota, records = Quota(s3_server, monkeypatch, *CODES[0]), 0
    for writes in range(100):
        output, quota.left = OutputFolder(quota.stores, f"s3://quota/{writes}"), writes
        try:
            quota.run(bundle, photos, output)
            break
        except NightcapError as error:
            assert type(error) in (JobError, OutputError)
            assert "free some space, or raise the quota" in str(error)
        for name in output.list_files("runs"):
            record = output.read_json(name)
            assert record is not None
            captions = sum(len(rows) for _, rows in known_rows(Catalog(output, read_only=True)))
            journal = {path for _, rows in leftover_segments(output) for path in rows["path"].to_pylist()}
            assert record["rows"] == {"captions": captions, "rejects": 0}
            assert record["counts"]["captioned"] <= captions + len(journal)
            assert record["counts"]["captioned"] + record["counts"]["unfinished"] == IMAGES
            records += 1
        quota.left = 1000
        quota.run(bundle, photos, output)
        result = verify(output)
        assert (result.captions, result.problems) == (IMAGES, [])
    assert writes > 10
    assert records > 0


def test_full_disks_are_recognized() -> None:
    assert errors.is_full(OSError(errno.EDQUOT, "quota"))
    assert not errors.is_full(OSError(errno.EIO, "broken"))
    memory = Stores().of("memory://x")
    full = memory.translate(OSError(errno.ENOSPC, "full"), "write", "memory://x/a")
    assert isinstance(full, StoreError)
    assert "free some space" in str(full)
    read_only = Stores().of("/x").translate(OSError(errno.EROFS, "Read-only file system"), "write", "/x/a")
    assert (read_only.error_class, "check the permissions" in str(read_only)) == ("forbidden", True)

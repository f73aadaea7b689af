"""Runs under unusual circumstances: clocks, rights, files that change while the job runs, odd file systems."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from conf.errors import JobError, OutputError
from conf.job import S3Settings
from jobs.cli import main
from pipeline.caption import run
from pipeline.engines.stopping import Stopper
from pipeline.output import record as record_module
from pipeline.output.folder import OutputFolder
from pipeline.output.record import read_last_success, read_runs, utc_now
from pipeline.output.verify import verify
from pipeline.plan.policy import Policy
from pipeline.prepare import prepare
from pipeline.progress import Progress
from pipeline.store.lock import LOCK_FILE
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores
from tests.whole import config, image_file, names, run_job, tables

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes(image_file(i))
    return folder


def problems(out: object) -> list[str]:
    return verify(OutputFolder(Stores(), str(out))).problems


def test_a_clock_that_goes_back_between_runs(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a host with another clock: its run ids sort before those of earlier runs."""
    out = tmp_path / "out"
    run_job(photos, out, config(bundle))
    (photos / "new.png").write_bytes(image_file(9))
    (photos / "1.png").write_bytes(image_file(10))
    earlier = utc_now() - timedelta(days=400)
    for module in ("pipeline.prepare", "pipeline.finish"):
        monkeypatch.setattr(f"{module}.utc_now", lambda: earlier)
    again = run_job(photos, out, config(bundle))
    assert (again.counts.captioned, again.counts.skipped) == (2, 3)
    assert again.seconds >= 0
    assert names(tables(out)[0]) == ["0.png", "1.png", "2.png", "3.png", "new.png"]
    assert problems(out) == []
    output = OutputFolder(Stores(), str(out))
    assert read_last_success(output) == earlier.isoformat()
    assert len(list(read_runs(output))) == 2


def test_an_image_that_is_replaced_while_the_job_runs_is_done_by_the_next_run(
    bundle: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with prepare([str(photos)], str(out), config(bundle), Policy()) as job:
        (photos / "0.png").write_bytes(image_file(20))  # before it is read
        (photos / "1.png").unlink()
        run(job, Progress(0, 10), Stopper(10))
    (photos / "2.png").write_bytes(image_file(21))  # after it was read
    again = run_job(photos, out, config(bundle))
    assert again.plan["to_caption"] == {"changed": 1}
    assert problems(out) == []


def test_what_is_written_has_the_umask_of_the_process(bundle: Path, photos: Path, tmp_path: Path) -> None:
    for mask, mode in ((0o027, 0o640), (0o077, 0o600), (0o002, 0o664)):
        previous = os.umask(mask)
        try:
            out = tmp_path / f"out-{mask:o}"
            run_job(photos, out, config(bundle))
            with OutputFolder(Stores(), str(out)).locked("r1"):  # a killed run leaves it behind
                assert stat.S_IMODE((out / LOCK_FILE).stat().st_mode) == mode
        finally:
            os.umask(previous)
        for file in out.rglob("*"):
            status = file.stat()
            expected = mode | 0o111 & ~mask | 0 if file.is_dir() else mode
            assert stat.S_IMODE(status.st_mode) == expected, (file, oct(status.st_mode))
            assert status.st_uid == os.getuid()


@pytest.mark.parametrize("step", ["journal", "publish", "end"])
def test_an_output_that_is_removed_in_the_middle(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The run completes what it had not published yet. If published files are gone, it fails."""
    out = tmp_path / "out"
    settings = config(bundle, output={"rows_per_file": 2, "journal_seconds": 0.0001}, model={"batch_size": 1})
    real, removed = OutputFolder.write, [False]

    def write(self: OutputFolder, name: str, data: bytes) -> None:
        first = {"journal": "journal/", "publish": "captions/", "end": "runs/"}[step]
        if name.startswith(first) and not removed[0]:
            removed[0] = True
            shutil.rmtree(out)
        real(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "write", write)
        if step == "end":
            message = (
                r"2 files of the output, such as captions/.*, were removed while the job ran; run it again"
            )
            with pytest.raises(JobError, match=message):
                run_job(photos, out, settings)
        else:
            assert run_job(photos, out, settings).outcome == "done"
    assert removed[0]
    (run_file,) = (out / "runs").iterdir()
    latest = json.loads((out / "latest.json").read_text())
    for left in (json.loads(run_file.read_text()), latest):
        assert left["outcome"] == ("failed" if step == "end" else "done")
        assert left["rows"] == {"captions": len(tables(out)[0]), "rejects": 0}
    assert latest["exit_code"] == (1 if step == "end" else 0)
    if step == "end":
        assert latest["last_success"] is None
        assert problems(out)[0].startswith("files.json is missing or damaged")
    run_job(photos, out, settings)
    captions, _ = tables(out)
    assert len(captions) == captions["path"].nunique() == 4
    assert problems(out) == []


def test_a_file_that_is_removed_after_it_was_published_fails_the_run(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", OutputFolder.write

    def write(self: OutputFolder, name: str, data: bytes) -> None:
        if name.startswith("runs/"):
            for file in (out / "captions").iterdir():
                file.unlink()
        real(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "write", write)
        command = ["run", str(photos), "--output", str(out), "--model", str(bundle)]
        assert main(command) == 1
    assert json.loads((out / "latest.json").read_text())["rows"] == {"captions": 0, "rejects": 0}
    assert "the file is missing, with 4 rows" in problems(out)[0]
    assert main(command) == 0
    assert problems(out) == []


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EBUSY])
def test_a_rename_that_fails_now_and_then(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As on NFS: every fourth rename fails; some of these have taken place nevertheless."""
    out, renames = tmp_path / "out", [0]
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        renames[0] += 1
        if out in target.parents and renames[0] % 4 == 0:
            if renames[0] % 8 == 0:
                real(self, target)
            raise OSError(number, os.strerror(number), str(target))
        return real(self, target)

    settings = config(bundle, output={"rows_per_file": 2, "journal_seconds": 0.0001}, model={"batch_size": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        for _ in range(12):
            try:
                run_job(photos, out, settings)
                break
            except (JobError, OutputError) as error:
                assert os.strerror(number) in str(error)
                assert problems(out) == [] if (out / "captions").exists() else True
    run_job(photos, out, settings)
    captions, _ = tables(out)
    assert len(captions) == captions["path"].nunique() == 4
    assert problems(out) == []


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("home", ["unset", "read-only", "missing"])
def test_home_is_not_needed(bundle: Path, photos: Path, tmp_path: Path, home: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    if home != "unset":
        environment["HOME"] = "/proc" if home == "read-only" else "/nonexistent/home"
    run = ["run", str(photos), "--output", str(tmp_path / "out"), "--model", str(bundle)]
    on_ray = [[*run, "--set", "engine=ray", "--recaption", "all"]] if home == "missing" else []  # 20 s each
    for arguments in (
        ["caption", str(photos / "0.png"), "--model", str(bundle), "--json"],
        run,
        *on_ray,
        ["verify", str(tmp_path / "out")],
        ["prune", str(photos), "--output", str(tmp_path / "out")],
    ):
        program = [sys.executable, "-c", "from jobs.cli import entry; entry()", *arguments]
        done = subprocess.run(program, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr == "" or arguments[0] == "run"
        assert done.stdout
    assert len(tables(tmp_path / "out")[0]) == 4


@pytest.mark.slow
def test_recaption_and_a_changed_bundle_on_s3(s3_server: str, bundle: Path) -> None:
    stores = Stores(S3Settings(endpoint_url=s3_server))
    store = stores.of("s3://nights")
    assert isinstance(store, S3Store)
    store.call("create_bucket", "s3://nights")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        store.write(f"s3://nights/in/{name}.png", image_file(seed))

    def settings(**model: Any) -> Any:
        return config(bundle, model=model, s3={"endpoint_url": s3_server}, output={"rows_per_file": 2})

    def captioned(job_settings: Any, **policy: Any) -> int:
        done = run_job("s3://nights/in", "s3://nights/out", job_settings, **policy)
        result = verify(OutputFolder(stores, "s3://nights/out"))
        assert (result.problems, result.captions) == ([], 3)
        return done.counts.captioned

    assert captioned(settings(), dedupe=True) == 3
    assert captioned(settings(beam_width=1), recaption="changed") == 0
    assert captioned(settings(beam_width=1)) == 3
    assert captioned(settings(beam_width=1), recaption="all", dedupe=True) == 3
    store.write("s3://nights/in/b.png", image_file(5))
    assert captioned(settings(), recaption="none") == 0
    assert captioned(settings(), recaption="changed") == 1
    assert captioned(settings()) == 2
    assert captioned(settings()) == 0
    assert record_module.read_last_success(OutputFolder(stores, "s3://nights/out"))


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS without its lock daemon."""

    def flock(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    output = OutputFolder(Stores(), str(tmp_path / "out"))
    with (
        pytest.raises(OutputError, match=r"can't lock .*No locks available.*choose another output"),
        output.locked("r1"),
    ):
        pass

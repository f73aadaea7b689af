"""Maintenance of an output: the commands verify, runs and prune."""

from __future__ import annotations

import io
import json
import logging
import shutil
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from conf.errors import LockedError, OutputError, SourceError, UsageError
from jobs.cli import main
from pipeline.output.catalog import Catalog
from pipeline.output.folder import OutputFolder
from pipeline.output.prune import prune
from pipeline.output.record import Counts, read_runs
from pipeline.output.tables import known_rows
from pipeline.output.verify import verify
from pipeline.plan.ledger import Ledger
from pipeline.plan.policy import Policy
from pipeline.rows import CAPTIONS, REJECTS
from pipeline.sources.candidates import Candidate
from pipeline.store.stores import Stores
from tests import records
from tests.tables import fill

STORES = Stores()


def folder(out: Path) -> OutputFolder:
    return OutputFolder(STORES, str(out))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "sub/c.jpg"):
        (tmp_path / "photos" / name).touch()
    return tmp_path / "photos"


@pytest.fixture
def out(tmp_path: Path, photos: Path) -> Path:
    """A complete output of version 0.1: four captions in two files, two rejects, one run, no catalog."""
    folder = tmp_path / "out"
    for table in ("captions", "rejects", "runs"):
        (folder / table).mkdir(parents=True)
    names = (
        [str(photos / name) for name in ("a.jpg", "gone.jpg")],
        [str(photos / "sub/c.jpg"), "/else/where.jpg"],
    )
    for i, paths in enumerate(names):
        rows = [{"path": path, "confidence": 0.5, "run_id": "r1"} for path in paths]
        pq.write_table(fill(CAPTIONS, rows), folder / "captions" / f"r{i}.parquet")
    rejected: list[dict[str, object]] = [
        {"path": str(photos / name), "error_class": "corrupt", "run_id": "r1"}
        for name in ("b.jpg", "vanished.jpg")
    ]
    pq.write_table(fill(REJECTS, rejected), folder / "rejects" / "r0.parquet")
    write_run(folder, "r1", listed=6)
    return folder


def write_run(out: Path, run: str, listed: int) -> None:
    counts = Counts(listed, 3, {"corrupt": 2}, 0, 0, skipped=1, deferred=0, unfinished=0)
    record = records.record(run_id=run, counts=counts)
    (out / "runs" / f"{run}.json").write_text(json.dumps(record.to_json()))


def test_a_complete_output_has_no_problems(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Catalog(folder(out)).entries.lost == {}  # writes files.json
    assert Catalog(folder(out)).stock() == ({"captions": 4, "rejects": 2}, [])
    report = verify(folder(out))
    assert (report.captions, report.rejects, report.runs, report.problems, report.notes) == (4, 2, 1, [], [])
    assert main(["verify", str(out)]) == 0
    assert capsys.readouterr().out == "4 captions, 2 rejects, 1 runs: no problems\n"


def problems(out: Path) -> str:
    (problem,) = verify(folder(out)).problems
    return problem


def test_a_path_with_two_rows_is_a_problem(
    out: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = fill(REJECTS, [{"path": str(photos / "a.jpg"), "error_class": "empty", "run_id": "r1"}])
    pq.write_table(again, out / "rejects" / "r9.parquet")
    assert problems(out) == f"1 paths have more than one row: {photos}/a.jpg"
    assert main(["verify", str(out)]) == 1
    assert "problem: 1 paths have more than one row" in capsys.readouterr().out


def test_damaged_and_foreign_files_are_problems(out: Path) -> None:
    (out / "captions" / "r0.parquet").write_bytes(b"PAR1 and nothing more of it PAR1")
    assert "r0.parquet' is not a table of Nightcap;" in problems(out)
    (out / "captions" / "r0.parquet").unlink()
    (out / "captions" / "notes.txt").touch()
    assert problems(out) == "captions/notes.txt: not a table of Nightcap"


def test_invalid_values_are_problems(out: Path) -> None:
    pq.write_table(
        fill(CAPTIONS, [{"path": "x", "confidence": 1.5, "run_id": "r1"}]), out / "captions" / "r9.parquet"
    )
    assert problems(out) == "captions/r9.parquet: 1 rows with a confidence outside 0…1"
    (out / "captions" / "r9.parquet").unlink()
    pq.write_table(
        fill(REJECTS, [{"path": "x", "error_class": "sad", "run_id": "r1"}]), out / "rejects" / "r9.parquet"
    )
    assert problems(out) == "rejects/r9.parquet: 1 rows with an unknown error class"


def test_run_counts_that_do_not_add_up_are_a_problem(out: Path) -> None:
    write_run(out, "r2", listed=7)
    assert problems(out).startswith("run r2: 7 images were listed, but 6 are accounted for; run it again")
    (out / "runs" / "r2.json").write_text("[]")
    assert problems(out) == "run r2: its run file has no counts"


def test_rows_of_a_killed_run_are_noted(out: Path) -> None:
    pq.write_table(fill(CAPTIONS, [{"path": "x", "run_id": "killed"}]), out / "captions" / "r9.parquet")
    report = verify(folder(out))
    assert report.problems == []
    assert report.notes[1:] == ["1 rows are from 1 runs that were killed before they wrote a run file"]


def test_runs_are_listed(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "runs" / "r2.json").write_text("{")
    assert main(["runs", str(out)]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "started"
    assert first.split() == ["2026-01-31", "02:00", "01:15", "3", "2", "1", "12.5", "-", "done"]
    assert second.endswith("unreadable")
    assert main(["runs", str(out), "--json"]) == 0
    assert [json.loads(line)["run_id"] for line in capsys.readouterr().out.splitlines()] == ["r1", "r2"]
    for command in ("runs", "verify"):
        assert main([command, str(tmp_path / "none")]) == 2
        assert capsys.readouterr().err == (
            f"nightcap: there is no output of Nightcap at '{tmp_path}/none'; check the name\n"
        )
    assert [run["run_id"] for run in read_runs(folder(out))] == ["r1", "r2"]


def test_an_output_of_which_only_the_list_of_files_is_left_exists(
    out: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Catalog(folder(out)).accept_losses()  # writes files.json
    for table in ("captions", "rejects", "runs"):
        shutil.rmtree(out / table)
    assert main(["runs", str(out)]) == 0
    assert main(["verify", str(out)]) == 1
    assert capsys.readouterr().out.count("the file is missing, with 2 rows; run it again") == 3
    assert main(["prune", str(photos), "--output", str(out)]) == 0
    assert main(["verify", str(out)]) == 1


def vanished(out: Path) -> dict[str, datetime]:
    tables = (pq.read_table(out / table).to_pylist() for table in ("captions", "rejects"))
    return {Path(row["path"]).name: row["vanished_at"] for table in tables for row in table}


def test_prune_marks_only_rows_of_missing_images(
    out: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["prune", str(photos), "--output", str(out)]
    assert main([*arguments, "--dry-run"]) == 0
    assert "2 rows to be marked as vanished, such as" in capsys.readouterr().out
    assert not any(vanished(out).values())
    assert main(arguments) == 0
    marked = vanished(out)
    assert {name for name, at in marked.items() if at} == {"gone.jpg", "vanished.jpg"}
    assert len(marked) == 6
    assert main(arguments) == 0
    assert "0 rows marked" in capsys.readouterr().out.splitlines()[-1]
    assert vanished(out) == marked
    assert verify(folder(out)).problems == []
    with Ledger() as ledger:  # an image that exists again is captioned again, even with the same tag
        ledger.add([Candidate(str(photos / "gone.jpg"), 1, "t")])
        for file, rows in known_rows(Catalog(folder(out))):
            ledger.add_known(file, rows)
        assert ledger.plan("m", Policy()).reasons == {"restored": 1}


def test_prune_removes_rows_of_missing_images_on_request(out: Path, photos: Path) -> None:
    report = prune(STORES, [str(photos)], folder(out))
    assert report.rows == 2
    assert prune(STORES, [str(photos)], folder(out), remove=True).rows == 2
    assert sorted(vanished(out)) == ["a.jpg", "b.jpg", "c.jpg", "where.jpg"]
    assert verify(folder(out)).problems == []


def test_prune_refuses_sources_that_are_incomplete_or_locked(
    out: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.txt").write_text("photos/a.jpg\n")
    with pytest.raises(SourceError, match="is not a folder: give the folders"):
        prune(STORES, [str(tmp_path / "list.txt")], folder(out))
    with folder(out).locked("20260131T000000Z-nightly"), pytest.raises(LockedError):
        prune(STORES, [str(photos)], folder(out))
    with pytest.raises(SourceError, match=r"deleted.*if this folder was deleted, give the one above it"):
        prune(STORES, [str(tmp_path / "deleted")], folder(out))
    monkeypatch.setattr("pipeline.store.local._entries", _unreadable_sub)
    with pytest.raises(SourceError, match=r"1 unreadable folder, such as '.*sub'"):
        prune(STORES, [str(photos)], folder(out))
    assert not any(vanished(out).values())


@pytest.fixture
def large(tmp_path: Path, photos: Path) -> Path:
    """An output with 100 rows of images in `photos/0` to `photos/3`, all of which are there."""
    for i in range(100):
        file = photos / str(i % 4) / f"{i}.jpg"
        file.parent.mkdir(exist_ok=True)
        file.touch()
    out = tmp_path / "large"
    paths = [str(photos / str(i % 4) / f"{i}.jpg") for i in range(100)]
    catalog = Catalog(folder(out))
    catalog.write(
        "captions/r0-00000.parquet", fill(CAPTIONS, [{"path": path, "run_id": "r1"} for path in paths])
    )
    catalog.save()
    return out


def marked(out: Path) -> int:
    return sum(at is not None for at in pq.read_table(out / "captions")["vanished_at"].to_pylist())


def test_prune_of_a_source_that_is_empty_now_needs_confirmation(large: Path, photos: Path) -> None:
    """It may not be mounted."""
    assert prune(STORES, [str(photos / "1")], folder(large)).rows == 0
    for file in (photos / "1").iterdir():
        file.unlink()
    for sources in ([photos / "1"], [photos / "0", photos / "1"]):
        with pytest.raises(UsageError, match=r"photos/1/' \(25 rows\) is empty, but not deleted.*give --yes"):
            prune(STORES, list(map(str, sources)), folder(large))
    assert marked(large) == 0
    assert prune(STORES, [str(photos / "1")], folder(large), confirm=lambda _: None).rows == 25
    assert marked(large) == 25


def test_prune_with_a_closed_stdin_refuses(
    large: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(30):
        (photos / str(i % 4) / f"{i}.jpg").unlink()
    monkeypatch.setattr("sys.stdin", None)  # as Python does with `<&-`
    assert main(["prune", str(photos), "--output", str(large)]) == 2
    assert "nothing was changed; if that is right, give --yes" in capsys.readouterr().err
    assert marked(large) == 0


def test_prune_asks_before_it_marks_many_rows(
    large: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(30):
        (photos / str(i % 4) / f"{i}.jpg").unlink()
    command = ["prune", str(photos), "--output", str(large)]
    assert main(command) == 2
    assert (
        "30 of 100 rows, 30%, are of vanished images; nothing was changed; if that is right, give --yes"
        in (capsys.readouterr().err)
    )
    assert main([*command, "--dry-run"]) == 0
    assert "needs --yes: 30 of 100 rows" in capsys.readouterr().out

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for answer, code in (("", 2), ("n\n", 2), ("y\n", 0)):
        assert marked(large) == 0
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        assert main(command) == code
        assert "30 rows to be marked as vanished. Continue? [y/N]" in capsys.readouterr().err
    assert marked(large) == 30
    assert main([*command, "--remove"]) == 2  # removes what is marked: asks again
    assert main([*command, "--remove", "--yes"]) == 0
    assert verify(folder(large)).captions == 70


def test_few_vanished_images_need_no_confirmation(large: Path, photos: Path) -> None:
    for i in range(0, 40, 4):  # 10 of 25 in one folder
        (photos / "0" / f"{i}.jpg").unlink()
    assert prune(STORES, [str(photos)], folder(large)).rows == 10
    for i in range(0, 40, 2):  # a deleted folder is no unmounted one
        (photos / str(i % 4) / f"{i}.jpg").unlink(missing_ok=True)
    assert prune(STORES, [str(photos)], folder(large)).rows == 10


def test_an_emptied_folder_is_suspicious_and_a_deleted_one_is_not(large: Path, photos: Path) -> None:
    """An empty folder may be the mount point of a file system that is not mounted."""
    (photos / "mnt" / "disk").mkdir(parents=True)
    (photos / "mnt" / "disk" / "a.jpg").touch()
    catalog = Catalog(folder(large))
    rows: list[dict[str, object]] = [{"path": str(photos / "mnt" / "disk" / "a.jpg"), "run_id": "r1"}]
    catalog.write("captions/r1-00000.parquet", fill(CAPTIONS, rows))
    catalog.save()
    shutil.rmtree(photos / "mnt" / "disk")
    with pytest.raises(
        UsageError, match=r"/mnt/' \(1 rows\) is empty, but not deleted: is a file system not mounted"
    ):
        prune(STORES, [str(photos)], folder(large))
    assert marked(large) == 0
    (photos / "mnt").rmdir()
    assert prune(STORES, [str(photos)], folder(large)).rows == 1
    assert marked(large) == 1


def test_a_dry_prune_writes_nothing_and_needs_no_lock(large: Path, photos: Path) -> None:
    (photos / "0" / "0.jpg").unlink()
    before = {path: path.stat().st_mtime_ns for path in (large, *large.rglob("*"))}
    with folder(large).locked("20260131T000000Z-nightly"):
        assert prune(STORES, [str(photos)], folder(large), dry=True).rows == 1
    assert {path: path.stat().st_mtime_ns for path in before if path != large} == {
        path: at for path, at in before.items() if path != large
    }
    no_catalog = large / "files.json"
    no_catalog.unlink()
    assert prune(STORES, [str(photos)], folder(large), dry=True).rows == 1
    assert not no_catalog.exists()


def test_prune_shows_progress_and_refuses_a_wrong_output(
    large: Path, photos: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level(logging.INFO, "nightcap"):
        prune(STORES, [str(photos)], folder(large), dry=True, interval=0.0)
    assert "100 files listed so far" in caplog.text
    with pytest.raises(OutputError, match=r"there is no output of Nightcap at .*nowhere"):
        prune(STORES, [str(photos)], folder(tmp_path / "nowhere"))


def _unreadable_sub(folder: str, leave_out: object) -> object:
    if folder.endswith("sub"):
        leave_out("unreadable folder", folder)  # type: ignore[operator]
        return iter(())
    import os

    return iter(sorted(os.scandir(folder), key=lambda entry: entry.name))

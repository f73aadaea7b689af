"""The list of the files of an output, `OUT/files.json`: kept true by every command, and mended by the next run."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from conf.errors import OutputError
from jobs.cli import main
from pipeline.caption import run
from pipeline.engines.stopping import Stopper
from pipeline.output.folder import OutputFolder
from pipeline.output.verify import verify
from pipeline.plan.policy import Policy
from pipeline.prepare import prepare
from pipeline.progress import Progress
from pipeline.store.stores import Stores
from tests.losses import captioned, lose_captions, more_photos, problems, seven_photos
from tests.whole import config, image_file, names, run_job, tables

STORED = Path(__file__).resolve().parent / "stored" / "0.1"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return seven_photos(tmp_path / "photos")


@pytest.fixture
def out(bundle: Path, photos: Path, tmp_path: Path) -> Path:
    return captioned(photos, tmp_path / "out", bundle)


def test_a_lost_list_is_a_loss_itself(bundle: Path, photos: Path, out: Path, tmp_path: Path) -> None:
    lose_captions(out)
    (out / "files.json").unlink()
    run_job(more_photos(tmp_path / "more"), out, config(bundle))
    (problem,) = problems(out)
    assert problem.startswith("files.json was missing or damaged, so lost files can't be named; run it again")
    with prepare([str(photos), str(tmp_path / "more")], str(out), config(bundle), Policy()) as job:
        assert run(job, Progress(0, 10), Stopper(10)).counts.captioned == 6
    assert problems(out) == []


def test_a_list_without_losses_is_read(bundle: Path, photos: Path, out: Path) -> None:
    """As development versions of 0.2 wrote it."""
    content = json.loads((out / "files.json").read_text())
    assert (content.pop("lost"), content.pop("altered")) == ({}, [])
    (out / "files.json").write_text(json.dumps(content))
    assert problems(out) == []
    lose_captions(out)
    assert len(problems(out)) == 2
    assert run_job(photos, out, config(bundle)).counts.captioned == 6
    assert problems(out) == []


def test_replacing_upgrading_and_pruning_keep_the_list_true(bundle: Path, photos: Path, out: Path) -> None:
    settings = config(bundle, output={"rows_per_file": 4})
    (photos / "1.png").write_bytes(image_file(20))
    (photos / "2.png").write_bytes(b"")
    (photos / "new.png").write_bytes(image_file(21))
    run_job(photos, out, settings)
    assert problems(out) == []
    run_job(photos, out, config(bundle, model={"beam_width": 1}, output={"rows_per_file": 4}))
    assert problems(out) == []
    (photos / "3.png").unlink()
    for flags in ([], ["--remove"]):
        assert main(["prune", str(photos), "--output", str(out), "--yes", *flags]) == 0
        assert problems(out) == []
    for file in photos.iterdir():
        if file.name != "0.png":
            file.unlink()
    assert main(["prune", str(photos), "--output", str(out), "--yes", "--remove"]) == 0
    assert problems(out) == []
    assert names(tables(out)[0]) == ["0.png"]
    listed = json.loads((out / "files.json").read_text())
    assert listed["format"] == 1
    (states,) = listed["files"].values()
    assert [state["rows"] for state in states] == [1]


def test_an_output_of_0_1_has_a_note_until_a_run_has_listed_its_files(
    tmp_path: Path, bundle: Path, photos: Path
) -> None:
    shutil.copytree(STORED / "output", tmp_path / "old")
    output = OutputFolder(Stores(), str(tmp_path / "old"))
    result = verify(output)
    assert result.problems == []
    assert result.notes == [
        "there is no files.json, so lost files and rows can't be noticed; the next run writes it"
    ]
    run_job(photos, tmp_path / "old", config(bundle))
    assert (verify(output).problems, verify(output).notes) == ([], [])
    next((tmp_path / "old" / "captions").iterdir()).unlink()
    assert "the file is missing" in problems(tmp_path / "old")[0]


def test_a_missing_or_damaged_list_is_a_problem_that_the_next_run_mends(
    bundle: Path, photos: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for damage in (lambda: (out / "files.json").unlink(), lambda: (out / "files.json").write_text("[")):
        damage()
        (problem,) = problems(out)
        assert problem.startswith("files.json is missing or damaged")
        assert "run it again" in problem
        caplog.clear()
        with caplog.at_level(logging.WARNING, "nightcap"):
            run_job(photos, out, config(bundle))
        assert "files.json is missing or damaged" in caplog.text
        assert problems(out) == []
    for file in (out / "captions").iterdir():
        file.unlink()
    (out / "files.json").unlink()
    assert problems(out)[0].startswith("files.json is missing or damaged")


def test_a_list_of_a_later_version_is_refused(bundle: Path, photos: Path, out: Path) -> None:
    content = json.loads((out / "files.json").read_text())
    (out / "files.json").write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(
        OutputError, match=r"files\.json' was written by a later version of Nightcap \(format 2"
    ):
        verify(OutputFolder(Stores(), str(out)))
    with pytest.raises(OutputError, match="update Nightcap"):
        run_job(photos, out, config(bundle))


def test_a_listing_that_lags_behind_loses_and_repeats_nothing(
    bundle: Path, photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An eventually consistent store: new files are not listed yet, and deleted ones still are."""
    real = OutputFolder.list_files

    def lagging(self: OutputFolder, folder: str) -> Iterator[str]:
        listed = list(real(self, folder))
        yield from listed[1:] if folder == "captions" else listed
        if folder in ("captions", "journal"):
            yield f"{folder}/deleted-00000.parquet"

    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "list_files", lagging)
        record = run_job(photos, out, config(bundle))
        assert (record.counts.captioned, record.counts.skipped) == (0, 7)
        assert verify(OutputFolder(Stores(), str(out))).problems == []
    captions, rejects = tables(out)
    assert (len(captions), len(rejects)) == (6, 1)
    assert problems(out) == []


def test_a_run_in_progress_is_no_problem(
    bundle: Path, photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verified after each single write of a run that replaces, moves and adds rows."""
    real_write, real_delete = OutputFolder.write, OutputFolder.delete
    seen: list[list[str]] = []

    def write(self: OutputFolder, name: str, data: bytes) -> None:
        real_write(self, name, data)
        seen.append(problems(out))

    def delete(self: OutputFolder, name: str) -> None:
        real_delete(self, name)
        seen.append(problems(out))

    monkeypatch.setattr(OutputFolder, "write", write)
    monkeypatch.setattr(OutputFolder, "delete", delete)
    for i in range(5):
        (photos / f"{i}.png").write_bytes(image_file(i + 30) if i % 2 else b"")
    (photos / "empty.png").write_bytes(image_file(40))
    run_job(photos, out, config(bundle, output={"rows_per_file": 2, "journal_seconds": 0.001}))
    assert len(seen) > 10
    assert [found for found in seen if found] == []

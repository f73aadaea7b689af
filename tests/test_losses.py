"""`verify` and the next run notice files and rows of the tables that were lost or altered (`OUT/files.json`)."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from conf.errors import OutputError
from conf.job import S3Settings
from jobs.cli import main
from pipeline.caption import run
from pipeline.engines.stopping import Stopper
from pipeline.output.folder import OutputFolder
from pipeline.output.verify import verify
from pipeline.plan.policy import Policy
from pipeline.prepare import prepare
from pipeline.progress import Progress
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores
from tests.whole import config, image_file, names, run_job, tables

STORED = Path(__file__).resolve().parent / "stored" / "0.1"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.png").write_bytes(image_file(i))
    (folder / "empty.png").write_bytes(b"")
    return folder


@pytest.fixture
def out(bundle: Path, photos: Path, tmp_path: Path) -> Path:
    """The output of a run with six captions in two files, and one reject."""
    run_job(photos, tmp_path / "out", config(bundle, output={"rows_per_file": 4}))
    assert len(list((tmp_path / "out" / "captions").iterdir())) == 2
    return tmp_path / "out"


def problems(out: object) -> list[str]:
    return verify(OutputFolder(Stores(), str(out))).problems


def drop_rows(file: Path, count: int) -> None:
    rows = pq.read_table(file)
    pq.write_table(rows.slice(count), file)


def test_deleted_files_are_named_with_the_cure(
    bundle: Path, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert problems(out) == []
    lost = sorted((out / "captions").iterdir())
    for file in lost:
        file.unlink()
    assert main(["verify", str(out)]) == 1
    printed = capsys.readouterr().out
    for file in lost:
        assert f"problem: captions/{file.name}: the file is missing, with " in printed
    assert "run it again" in printed
    record = run_job(photos, out, config(bundle))
    assert record.counts.captioned == 6
    assert f"warning: captions/{lost[0].name} is missing, with 4 rows" in capsys.readouterr().err
    assert names(tables(out)[0]) == [f"{i}.png" for i in range(6)]
    assert problems(out) == []


def test_a_file_with_fewer_rows_is_named_with_the_cure(bundle: Path, photos: Path, out: Path) -> None:
    first, _ = sorted((out / "captions").iterdir())
    rows = pq.read_metadata(first).num_rows
    drop_rows(first, 2)
    (problem,) = problems(out)
    assert problem.startswith(f"captions/{first.name}: {rows - 2} rows instead of {rows}")
    assert "run it again" in problem
    assert run_job(photos, out, config(bundle)).counts.captioned == 2
    assert len(tables(out)[0]) == 6
    (problem,) = problems(out)  # nobody knows what else was changed
    assert problem.startswith(f"captions/{first.name}: it was altered by another program; move it away")
    first.unlink()
    assert run_job(photos, out, config(bundle)).counts.captioned >= rows - 2
    assert problems(out) == []
    assert len(tables(out)[0]) == 6


def test_a_file_with_altered_bytes_is_named_with_the_cure(bundle: Path, photos: Path, out: Path) -> None:
    first, _ = sorted((out / "captions").iterdir())
    rows = pq.read_table(first)
    alter(first)
    (problem,) = problems(out)
    assert problem == (
        f"captions/{first.name}: its content is not what Nightcap wrote; move it away, and run it again to caption "
        "its images again; to keep it as it is: `nightcap verify OUTPUT --accept-losses`"
    )
    first.unlink()
    assert run_job(photos, out, config(bundle)).counts.captioned == len(rows)
    assert problems(out) == []
    assert "mine" not in set(tables(out)[0]["caption"])


def lose_captions(out: Path) -> list[str]:
    """Delete all files of captions. Returns their names."""
    lost = sorted((out / "captions").iterdir())
    for file in lost:
        file.unlink()
    return [file.name for file in lost]


def more_photos(folder: Path) -> Path:
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes(image_file(i + 50))
    return folder


@pytest.mark.parametrize("command", ["prune", "other source", "limit", "since", "too many rejects"])
def test_a_loss_stays_known_until_a_run_has_mended_it(
    bundle: Path, photos: Path, out: Path, tmp_path: Path, command: str
) -> None:
    lost = lose_captions(out)
    if command == "prune":
        assert main(["prune", str(photos), "--output", str(out)]) == 0
    elif command == "other source":
        run_job(more_photos(tmp_path / "more"), out, config(bundle))
        (tmp_path / "more" / "0.png").write_bytes(image_file(60))
        run_job(tmp_path / "more", out, config(bundle))  # rewrites a file
    elif command == "limit":
        assert run_job(photos, out, config(bundle), limit=2).counts.captioned == 2
    elif command == "since":
        assert run_job(photos, out, config(bundle), since=4e9).counts.captioned == 0
    else:
        (photos / "bad.png").write_bytes(b"bad")
        strict = config(bundle, output={"max_reject_rate": 0.01, "min_tried": 1})
        assert run_job(photos, out, strict).outcome == "too_many_rejects"
    for _ in range(2):
        assert [problem.partition(";")[0] for problem in problems(out)] == [
            f"captions/{name}: the file is missing, with {rows} rows"
            for name, rows in zip(lost, (4, 2), strict=True)
        ]
        assert main(["prune", str(photos), "--output", str(out)]) == 0
    assert main(["verify", str(out)]) == 1
    sources = [str(photos), *([str(tmp_path / "more")] if command == "other source" else [])]
    with prepare(sources, str(out), config(bundle), Policy()) as job:
        assert run(job, Progress(0, 10), Stopper(10)).outcome == "done"
    assert problems(out) == []
    assert {f"{i}.png" for i in range(6)} <= set(names(tables(out)[0]))


def test_a_loss_is_mended_by_a_run_over_all_sources_of_earlier_runs(
    bundle: Path, photos: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = more_photos(tmp_path / "more")
    run_job(more, out, config(bundle, output={"rows_per_file": 1}))
    lose_captions(out)

    def run_over(*sources: str) -> str:
        with prepare(sources, str(out), config(bundle), Policy()) as job:
            return run(job, Progress(0, 10), Stopper(10)).outcome

    for source in (photos, more):  # all images are captioned again, but no single run knows that
        assert run_over(str(source)) == "done"
        result = verify(OutputFolder(Stores(), str(out)))
        assert len(result.problems) == 6
        assert result.notes == [
            "a loss is mended by one run, without --limit and --since, over all sources of the earlier runs: "
            f"{more}, {photos}"
        ]
    monkeypatch.chdir(tmp_path)
    assert run_over("more/", f"file://{photos}") == "done"
    assert problems(out) == []


def test_without_run_files_any_complete_run_mends_a_loss(bundle: Path, photos: Path, out: Path) -> None:
    lose_captions(out)
    shutil.rmtree(out / "runs")
    assert run_job(photos, out, config(bundle)).counts.captioned == 6
    assert problems(out) == []


def test_an_unreadable_run_file_may_name_a_source_that_was_not_read(
    bundle: Path, photos: Path, out: Path
) -> None:
    lose_captions(out)
    (out / "runs" / "20200101T000000Z-000000.json").write_text("{")
    assert run_job(photos, out, config(bundle)).counts.captioned == 6
    assert len([problem for problem in problems(out) if "the file is missing" in problem]) == 2


def test_losses_can_be_accepted(
    bundle: Path, photos: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lose_captions(out)
    run_job(more_photos(tmp_path / "more"), out, config(bundle, output={"rows_per_file": 1}))
    gone, altered, *_ = sorted((out / "captions").iterdir())
    gone.unlink()  # no run has noticed this one
    alter(altered)
    assert main(["verify", str(out)]) == 1
    assert "`nightcap verify OUTPUT --accept-losses`" in capsys.readouterr().out
    with OutputFolder(Stores(), str(out)).locked("r1"):
        assert main(["verify", str(out), "--accept-losses"]) == 5
    assert len(problems(out)) == 4
    assert main(["verify", str(out), "--accept-losses"]) == 0
    assert "3 captions, 1 rejects, 2 runs: no problems" in capsys.readouterr().out
    assert main(["verify", str(out)]) == 0
    record = run_job(photos, out, config(bundle))
    assert (record.counts.captioned, record.rows) == (6, {"captions": 9, "rejects": 1})
    assert main(["verify", str(tmp_path / "nowhere"), "--accept-losses"]) == 2
    assert not (tmp_path / "nowhere").exists()


def test_a_lost_file_that_is_put_back_is_no_loss(
    bundle: Path, photos: Path, out: Path, tmp_path: Path
) -> None:
    first, _ = sorted((out / "captions").iterdir())
    first.rename(tmp_path / first.name)
    assert main(["prune", str(photos), "--output", str(out)]) == 0
    (tmp_path / first.name).rename(first)
    assert problems(out) == []
    assert run_job(photos, out, config(bundle)).counts.captioned == 0
    assert json.loads((out / "files.json").read_text())["lost"] == {}


def test_a_lost_list_is_a_loss_itself(bundle: Path, photos: Path, out: Path, tmp_path: Path) -> None:
    lose_captions(out)
    (out / "files.json").unlink()
    run_job(more_photos(tmp_path / "more"), out, config(bundle))
    (problem,) = problems(out)
    assert problem.startswith("files.json was missing or damaged, so lost files can't be named; run it again")
    with prepare([str(photos), str(tmp_path / "more")], str(out), config(bundle), Policy()) as job:
        assert run(job, Progress(0, 10), Stopper(10)).counts.captioned == 6
    assert problems(out) == []


def alter(file: Path) -> None:
    """Change all captions of a file."""
    rows = pq.read_table(file)
    pq.write_table(rows.set_column(1, rows.schema.field("caption"), [["mine"] * len(rows)]), file)


def test_an_altered_file_stays_named_after_it_was_rewritten(
    bundle: Path, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = sorted((out / "captions").iterdir())
    alter(first)
    name = Path(pq.read_table(first)["path"][0].as_py())
    name.write_bytes(image_file(70))
    assert run_job(photos, out, config(bundle)).plan["to_caption"] == {"changed": 1}
    assert f"warning: captions/{first.name} was altered by another program" in capsys.readouterr().err
    assert set(pq.read_table(first)["caption"].to_pylist()) > {"mine"}
    for _ in range(2):
        (problem,) = problems(out)
        assert problem.startswith(f"captions/{first.name}: it was altered by another program; move it away")
        run_job(photos, out, config(bundle))
    first.unlink()
    run_job(photos, out, config(bundle))
    assert problems(out) == []
    assert "mine" not in set(tables(out)[0]["caption"])
    assert names(tables(out)[0]) == [f"{i}.png" for i in range(6)]


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


def test_a_file_that_nightcap_did_not_write_is_named(bundle: Path, photos: Path, out: Path) -> None:
    first, _ = sorted((out / "captions").iterdir())
    foreign = first.with_name("copy.parquet")
    rows = pq.read_table(first)
    pq.write_table(
        rows.set_column(0, rows.schema.field("path"), [[f"/x/{i}" for i in range(len(rows))]]), foreign
    )
    (problem,) = problems(out)
    assert problem.startswith("captions/copy.parquet: Nightcap did not write this file here")
    run_job(photos, out, config(bundle))  # takes its rows in
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


def test_the_same_on_s3(s3_server: str, bundle: Path) -> None:
    stores = Stores(S3Settings(endpoint_url=s3_server))
    store = stores.of("s3://losses")
    assert isinstance(store, S3Store)
    store.call("create_bucket", "s3://losses")
    for i in range(3):
        store.write(f"s3://losses/in/{i}.png", image_file(i))
    settings = config(bundle, s3={"endpoint_url": s3_server})
    run_job("s3://losses/in", "s3://losses/out", settings)
    output = OutputFolder(stores, "s3://losses/out")
    assert verify(output).problems == []
    (file,) = output.list_files("captions")
    output.delete(file)
    (problem,) = verify(output).problems
    assert problem.startswith(f"{file}: the file is missing, with 3 rows")
    assert run_job("s3://losses/in", "s3://losses/out", settings).counts.captioned == 3
    assert verify(output).problems == []


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

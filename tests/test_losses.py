"""`verify` and the next run notice files and rows of the tables that were lost or altered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from conf.job import S3Settings
from jobs.cli import main
from pipeline.caption import run
from pipeline.engines.stopping import Stopper
from pipeline.output.folder import OutputFolder
from pipeline.output.verify import verify
from pipeline.plan.policy import Policy
from pipeline.prepare import prepare
from pipeline.progress import Progress
from pipeline.store.stores import Stores
from tests.losses import alter, captioned, drop_rows, lose_captions, more_photos, problems, seven_photos
from tests.reading import bucket_store
from tests.whole import config, image_file, names, run_job, tables


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return seven_photos(tmp_path / "photos")


@pytest.fixture
def out(bundle: Path, photos: Path, tmp_path: Path) -> Path:
    return captioned(photos, tmp_path / "out", bundle)


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


def test_the_same_on_s3(s3_server: str, bundle: Path) -> None:
    stores = Stores(S3Settings(endpoint_url=s3_server))
    store = bucket_store(stores)
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

"""The whole job on a real Ray: tiny photos, a tiny bundle with random weights, local disk and S3."""

from __future__ import annotations

import io
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow.dataset as ds
import pytest
import ray
import torch
from PIL import Image

from conf.errors import Interrupted, StoreDownError
from conf.schema import JobConfig
from jobs.cli import main
from model.bundle import Bundle, make_bundle, read_folder, write_folder
from model.images import Limits, load
from pipeline.caption import prepare, run
from pipeline.decode_worker import FAULTS
from pipeline.filesystems import S3Options
from pipeline.ledger import Policy
from pipeline.report import Progress, Record
from pipeline.stopping import Stopper
from pipeline.store import Store
from pipeline.tables import CAPTIONS, REJECTS
from tests import tiny


@pytest.fixture(scope="module")
def cluster(s3_server: str) -> Iterator[None]:
    """One Ray for all tests of this module; its workers inherit the credentials for the S3 server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FAULTS, "1")
        # Workers are started once, and kept for the next test.
        patch.setenv("RAY_idle_worker_killing_time_threshold_ms", "600000")
        patch.setenv("RAY_num_workers_soft_limit", "4")
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    write_folder(make_bundle(tiny.captioner(max_length=6), "tiny", {}, {}), folder, "# tiny\n")
    return folder


def picture(seed: int, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(tiny.pixels(1, seed)[0]).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Nine images that can be captioned and four that can't, and two files that are no candidates."""
    folder = tmp_path / "photos"
    (folder / "2024" / "Spring café").mkdir(parents=True)
    for i in range(6):
        (folder / f"{i}.png").write_bytes(picture(i))
    (folder / "2024" / "Spring café" / "a b%20c#?.JPG").write_bytes(picture(6, "jpeg"))
    (folder / "_under.webp").write_bytes(picture(7, "webp"))
    (folder / "really-a-png.jpg").write_bytes(picture(8))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.png").write_bytes(picture(9)[:-60])
    (folder / "page.jpg").write_bytes(b"<!doctype html><title>404</title>")
    (folder / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (folder / "notes.txt").write_text("no image")
    (folder / "._6.jpg").write_bytes(b"resource fork")
    return folder


def config(bundle: Path, **sections: dict[str, Any]) -> JobConfig:
    sections.setdefault("model", {})["bundle"] = str(bundle)
    sections.setdefault("output", {}).setdefault("max_reject_rate", 1.0)
    sections.setdefault("workers", {}).setdefault("model_actors", 1)
    return JobConfig.model_validate(sections)


def run_job(
    source: object, output: object, settings: JobConfig, progress: Progress | None = None, **policy: Any
) -> Record:
    with prepare([str(source)], str(output), settings, Policy(**policy), print) as job:
        return run(job, progress or Progress(0, 10), Stopper(10, print))


def tables(output: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    both = []
    for name in ("captions", "rejects"):
        both.append(
            pd.read_parquet(output / name) if (output / name).is_dir() else pd.DataFrame({"path": []})
        )
    return both[0], both[1]


def names(table: pd.DataFrame) -> list[str]:
    return sorted(Path(path).name for path in table["path"])


def test_one_run_from_pictures_to_tables(cluster: None, bundle: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = run_job(photos, out, config(bundle))
    captions, rejects = tables(out)

    # Every candidate ends as exactly one row.
    assert dict(zip(rejects["path"].map(lambda path: Path(path).name), rejects["error"], strict=True)) == {
        "cut.png": "truncated",
        "empty.jpg": "empty",
        "gone.jpg": "missing",
        "page.jpg": "unsupported",
    }
    listed = {
        str(p) for p in photos.rglob("*") if p.suffix != ".txt" and not p.is_dir() and p.name[:2] != "._"
    }
    assert len(captions) == 9
    assert sorted([*captions["path"], *rejects["path"]]) == sorted(listed)
    assert record.counts.rejected == {"empty": 1, "missing": 1, "truncated": 1, "unsupported": 1}

    # The captions are those of the model itself, one image at a time.
    captioner = read_folder(bundle).captioner().prepare(torch.device("cpu"))
    for row in captions.itertuples():
        image = load(Path(row.path).read_bytes(), Limits(), tiny.SIDE, tiny.SIDE)
        expected = captioner.caption([image.pixels])[0]
        assert row.caption == expected.text
        assert row.confidence == pytest.approx(expected.confidence, abs=1e-4)
        assert (row.width, row.height) == (image.width, image.height)

    # The tables keep their contract and are read without help.
    assert list(captions.columns) == CAPTIONS.names
    assert ds.dataset(out / "captions").schema.remove_metadata() == CAPTIONS
    assert ds.dataset(out / "rejects").schema.remove_metadata() == REJECTS
    query = "select count(*), min(confidence), max(confidence) from read_parquet(?)"
    found = duckdb.connect().execute(query, [f"{out}/captions/*.parquet"]).fetchone()
    assert found is not None
    assert found[0] == 9
    assert 0 < found[1] <= found[2] <= 1

    # The run file says what happened.
    stored = json.loads((out / "runs" / f"{record.run_id}.json").read_text())
    assert stored["counts"]["listed"] == 13
    assert stored["outcome"] == "done"
    assert stored["model"]["id"].startswith("tiny@")
    assert stored["software"]["ray"] == ray.__version__
    assert stored["left_out"]["hidden"]["count"] == 1


def test_a_second_run_captions_only_what_changed(
    cluster: None, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_job(photos, out, config(bundle))
    before = {p: p.stat().st_mtime_ns for p in (out / "captions").iterdir()}
    again = run_job(photos, out, config(bundle))
    assert (again.counts.captioned, again.counts.skipped) == (0, 12)
    assert again.plan == {
        "to_caption": {"rejected before": 1},  # the link that leads nowhere: it may be there again
        "skipped": {"done": 9, "rejected": 3},
    }
    assert {p: p.stat().st_mtime_ns for p in (out / "captions").iterdir()} == before

    (photos / "3.png").write_bytes(picture(30))
    (photos / "new.png").write_bytes(picture(31))
    third = run_job(photos, out, config(bundle))
    assert (third.counts.captioned, third.counts.skipped) == (2, 11)
    captions, rejects = tables(out)
    assert len(captions) == captions["path"].nunique() == 10
    assert names(captions[captions["run_id"] == third.run_id]) == ["3.png", "new.png"]
    assert len(rejects) == rejects["path"].nunique() == 4


def test_a_row_moves_when_its_image_breaks_or_is_repaired(
    cluster: None, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_job(photos, out, config(bundle))
    (photos / "0.png").write_bytes(b"")
    (photos / "cut.png").write_bytes(picture(9))
    run_job(photos, out, config(bundle))
    captions, rejects = tables(out)
    assert "0.png" in names(rejects)
    assert "0.png" not in names(captions)
    assert "cut.png" in names(captions)
    assert "cut.png" not in names(rejects)
    assert len(captions) + len(rejects) == 13


def test_an_image_that_can_no_longer_be_read_keeps_its_caption(
    cluster: None, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    manifest, out = tmp_path / "list.csv", tmp_path / "out"
    manifest.write_text(f"id,path\n1,{photos}/0.png\n2,photos/1.png\n3,photos/never.png\n")
    run_job(manifest, out, config(bundle))
    (photos / "1.png").unlink()
    record = run_job(manifest, out, config(bundle))
    captions, rejects = tables(out)
    assert names(captions) == ["0.png", "1.png"]
    assert names(rejects) == ["never.png"]
    assert (record.counts.kept, record.counts.rejected) == (1, {"missing": 1})


def test_other_decoding_settings_are_another_model(
    cluster: None, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_job(photos, out, config(bundle))
    record = run_job(photos, out, config(bundle, model={"beam_width": 1}))
    captions, _ = tables(out)
    assert record.counts.captioned == len(captions) == 9
    assert captions["model_id"].nunique() == 1


def test_limit_leaves_the_rest_for_the_next_run(
    cluster: None, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = run_job(photos, out, config(bundle), limit=4)
    assert first.counts.captioned + sum(first.counts.rejected.values()) == 4
    assert first.counts.deferred == 9
    run_job(photos, out, config(bundle))
    captions, rejects = tables(out)
    assert (len(captions), len(rejects)) == (9, 4)


def test_blocks_smaller_and_larger_than_a_batch(
    cluster: None, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    settings = config(
        bundle, model={"batch_size": 2}, workers={"rows_per_block": 3}, output={"rows_per_file": 4}
    )
    run_job(photos, tmp_path / "out", settings)
    captions, rejects = tables(tmp_path / "out")
    assert (len(captions), len(rejects)) == (9, 4)
    assert len(list((tmp_path / "out" / "captions").iterdir())) <= 4


def test_s3_to_s3(cluster: None, s3_server: str, bundle: Path, photos: Path) -> None:
    store = Store(S3Options(endpoint_url=s3_server))
    for bucket in ("photos-in", "captions-out"):
        store.s3("create_bucket", f"s3://{bucket}")
    for path in photos.rglob("*"):
        if path.is_file():
            key = path.relative_to(photos).as_posix()
            store.s3("put_object", f"s3://photos-in/shop/{key}", Body=path.read_bytes())
    for name in ("config.json", "weights.safetensors", "vocabulary.json"):
        store.s3("put_object", f"s3://photos-in/model/{name}", Body=(bundle / name).read_bytes())
    settings = config(Path("unused"), s3={"endpoint_url": s3_server}, model={})
    settings = settings.model_copy(
        update={"model": settings.model.model_copy(update={"bundle": "s3://photos-in/model"})}
    )
    first = run_job("s3://photos-in/shop", "s3://captions-out/night", settings)
    assert (first.counts.captioned, sum(first.counts.rejected.values())) == (9, 3)
    store.s3("put_object", "s3://photos-in/shop/1.png", Body=picture(40))
    second = run_job("s3://photos-in/shop", "s3://captions-out/night", settings)
    assert (second.counts.captioned, second.counts.skipped) == (1, 11)
    options = {"client_kwargs": {"endpoint_url": s3_server}}
    captions = pd.read_parquet("s3://captions-out/night/captions", storage_options=options)
    assert len(captions) == captions["path"].nunique() == 9
    assert captions["path"].str.startswith("s3://photos-in/shop/").all()
    etags = {item["Key"]: item["ETag"].strip('"') for item in _contents(store, "photos-in")}
    for row in captions.itertuples():
        assert row.content_tag == etags[row.path.removeprefix("s3://photos-in/")]


def _contents(store: Store, bucket: str) -> list[dict[str, Any]]:
    return list(store.s3("list_objects_v2", f"s3://{bucket}")["Contents"])


def test_the_command_exits_3_and_keeps_the_output_when_too_many_are_rejected(
    cluster: None, bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["run", str(photos), "--output", str(out), "--model", str(bundle)]
    assert main([*arguments, "--set", "output.max_reject_rate=0.2"]) == 3
    shown = capsys.readouterr()
    assert "4/13 images could not be captioned, limit 20.0%" in shown.err
    assert "captioned 9, rejected 4" in shown.out
    captions, _ = tables(out)
    assert len(captions) == 9
    (run_file,) = (out / "runs").iterdir()
    assert json.loads(run_file.read_text())["outcome"] == "too_many_rejects"
    assert main([*arguments, "--set", "output.max_reject_rate=0.5"]) == 0


def test_nothing_new_is_a_success_that_says_so(
    cluster: None, bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("empty.jpg", "cut.png", "page.jpg", "gone.jpg"):
        (photos / name).unlink()
    arguments = ["run", str(photos), "--output", str(tmp_path / "out"), "--model", str(bundle)]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(arguments) == 0
    assert "nothing new: all 9 images are done already" in capsys.readouterr().out


def test_dry_run_says_why_and_touches_nothing(
    cluster: None, bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(photos), "--output", str(tmp_path / "out"), "--model", str(bundle)]
    assert main([*arguments, "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    assert "to caption 13" in capsys.readouterr().out
    assert main([*arguments, "--set", "output.max_reject_rate=1"]) == 0
    shutil.copy(photos / "1.png", photos / "2.png")
    capsys.readouterr()
    before = sorted(str(p) for p in (tmp_path / "out").rglob("*"))
    assert main([*arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "1 changed" in shown
    assert "1 rejected before" in shown
    assert "skipped 11" in shown
    assert "8 done: same content, same model" in shown
    assert sorted(str(p) for p in (tmp_path / "out").rglob("*")) == before


class Interrupting(Progress):
    """Ctrl-C as soon as something is finished; twice for those in a hurry."""

    def __init__(self, times: int) -> None:
        super().__init__(0, 10)
        self.times = times

    def update(self, done: int, rejected: int) -> None:
        for _ in range(self.times):
            signal.raise_signal(signal.SIGINT)
        self.times = 0


@pytest.mark.parametrize("times", [1, 2])
def test_what_was_finished_is_published_when_the_job_is_interrupted(
    cluster: None, bundle: Path, photos: Path, tmp_path: Path, times: int
) -> None:
    for i in range(60):
        (photos / f"more-{i}.png").write_bytes(picture(i))
    settings = config(bundle, model={"batch_size": 1}, workers={"rows_per_block": 1})
    with pytest.raises(Interrupted, match="of 73 images to go; run it again"):
        run_job(photos, tmp_path / "out", settings, Interrupting(times))
    captions, rejects = tables(tmp_path / "out")
    assert 0 < len(captions) + len(rejects) < 73
    (run_file,) = (tmp_path / "out" / "runs").iterdir()
    stored = json.loads(run_file.read_text())
    assert stored["outcome"] == "interrupted"
    assert stored["counts"]["unfinished"] == 73 - len(captions) - len(rejects) > 0
    run_job(photos, tmp_path / "out", config(bundle))
    captions, rejects = tables(tmp_path / "out")
    assert (len(captions), len(rejects)) == (69, 4)
    assert captions["path"].nunique() == 69


def test_poison_is_isolated(cluster: None, bundle: Path, photos: Path, tmp_path: Path) -> None:
    for kind in ("crash", "memory", "endless"):
        (photos / f"{kind}.jpg").write_bytes(f"nightcap fault: {kind}".encode())
    record = run_job(
        photos, tmp_path / "out", config(bundle, input={"decode_seconds": 2, "decode_memory": 2**30})
    )
    captions, rejects = tables(tmp_path / "out")
    assert record.counts.captioned == len(captions) == 9
    poison = rejects[rejects["error"] == "poison"]
    assert dict(zip(poison["path"].map(lambda path: Path(path).stem), poison["detail"], strict=True)) == {
        "crash": "decoding it kills the process: SIGSEGV, 2 times of 2",
        "memory": "decoding it needs more memory than input.decode_memory allows",
        "endless": "decoding it took longer than 2 s (input.decode_seconds)",
    }
    again = run_job(photos, tmp_path / "out", config(bundle))
    assert again.plan["skipped"]["rejected"] == 6  # not tried again until its content changes


def test_the_same_content_is_read_once(cluster: None, s3_server: str, bundle: Path) -> None:
    store = Store(S3Options(endpoint_url=s3_server))
    store.s3("create_bucket", "s3://twins")
    for name, seed in (("a", 1), ("b", 1), ("c", 2), ("d", 1)):
        store.s3("put_object", f"s3://twins/in/{name}.png", Body=picture(seed))
    settings = config(bundle, s3={"endpoint_url": s3_server})
    record = run_job("s3://twins/in", "s3://twins/out", settings, dedupe=True)
    assert record.counts.captioned == record.counts.listed == 4
    options = {"client_kwargs": {"endpoint_url": s3_server}}
    rows = pd.read_parquet("s3://twins/out/captions", storage_options=options).set_index("path")
    found = [
        (row["caption"], row["confidence"]) for row in (rows.loc[f"s3://twins/in/{n}.png"] for n in "abcd")
    ]
    assert found[0] == found[1] == found[3] != found[2]


def test_a_store_that_is_down_ends_the_job(cluster: None, bundle: Path, photos: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "list.txt"
    manifest.write_text("".join(f"http://127.0.0.1:9/{i}.png\n" for i in range(12)))
    with pytest.raises(StoreDownError, match="images in a row could not be read"):
        run_job(manifest, tmp_path / "out", config(bundle, input={"max_unavailable": 4}))
    (run_file,) = (tmp_path / "out" / "runs").iterdir()
    assert json.loads(run_file.read_text())["outcome"] == "store_down"


def test_a_bundle_is_the_same_after_its_trip_to_the_actor(bundle: Path) -> None:
    loaded: Bundle = read_folder(bundle)
    assert ray.cloudpickle.loads(ray.cloudpickle.dumps(loaded)) == loaded

"""The whole job on Ray: small images, a small bundle with random weights, local disk and S3."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import openvino
import pandas as pd
import pyarrow.dataset as ds
import pytest
import ray
import torch

from conf.errors import BundleError, Interrupted, JobError
from conf.job import ImageLimits, S3Settings
from faults.photos import INJECT
from model.bundle import Bundle, read_folder
from model.image.decode import decode_resized
from pipeline.caption import run
from pipeline.engines.stopping import Stopper
from pipeline.plan.policy import Policy
from pipeline.prepare import prepare
from pipeline.progress import Progress
from pipeline.rows import CAPTIONS, REJECTS
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores
from tests import tiny
from tests.whole import config, image_file, make_photos, run_job, tables


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path)


def test_a_run_writes_one_row_per_image(engine: str, bundle: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = run_job(photos, out, config(bundle, engine))
    captions, rejects = tables(out)

    # Every candidate has exactly one row.
    assert dict(
        zip(rejects["path"].map(lambda path: Path(path).name), rejects["error_class"], strict=True)
    ) == {
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

    # The captions equal those of the model for single images.
    captioner = read_folder(bundle).captioner().prepare(torch.device("cpu"))
    for row in captions.to_dict("records"):
        image = decode_resized(Path(row["path"]).read_bytes(), ImageLimits(), tiny.SIDE, tiny.SIDE)
        expected = captioner.caption([image.pixels])[0]
        assert row["caption"] == expected.text
        assert row["confidence"] == pytest.approx(expected.confidence, abs=1e-4)
        assert (row["width"], row["height"]) == (image.width, image.height)

    # The tables have the documented schema and are read by common tools.
    assert list(captions.columns) == CAPTIONS.names
    assert ds.dataset(out / "captions").schema.remove_metadata() == CAPTIONS
    assert ds.dataset(out / "rejects").schema.remove_metadata() == REJECTS
    query = "select count(*), min(confidence), max(confidence) from read_parquet(?)"
    aggregates = duckdb.connect().execute(query, [f"{out}/captions/*.parquet"]).fetchone()
    assert aggregates is not None
    assert aggregates[0] == 9
    assert 0 < aggregates[1] <= aggregates[2] <= 1

    # The run file has counts, outcome, model and versions.
    stored = json.loads((out / "runs" / f"{record.run_id}.json").read_text())
    assert stored["counts"]["listed"] == 13
    assert stored["outcome"] == "done"
    assert stored["model"]["id"].startswith("tiny@")
    assert stored["software"]["ray"] == ray.__version__
    assert stored["left_out"]["hidden"]["count"] == 1
    assert stored["time"] == record.time
    assert (stored["engine"], stored["precision"]) == (engine, "fp32")
    assert stored["software"]["openvino"] == openvino.__version__.partition("-")[0]


def test_the_run_file_says_where_time_went(engine: str, bundle: Path, photos: Path, tmp_path: Path) -> None:
    spent = run_job(photos, tmp_path / "out", config(bundle, engine)).time
    assert spent is not None
    driver, workers = spent["driver_seconds"], spent["worker_seconds"]
    for phase in ("listing", "comparing", "start_up", "writing"):
        assert driver[phase] > 0, phase
    assert workers["decoding"] > 0
    assert workers["inference"] > 0
    assert workers["reading"] >= 0
    assert spent["workers"]["decode"] >= 1
    assert spent["workers"]["model"] == 1
    assert (spent["shares"], spent["images_per_second"]) == ({}, None)  # too short to tell


def test_blocks_may_be_smaller_or_larger_than_batches(
    engine: str, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    settings = config(
        bundle, engine, model={"batch_size": 2}, workers={"rows_per_block": 3}, output={"rows_per_file": 4}
    )
    run_job(photos, tmp_path / "out", settings)
    captions, rejects = tables(tmp_path / "out")
    assert (len(captions), len(rejects)) == (9, 4)
    assert len(list((tmp_path / "out" / "captions").iterdir())) <= 4


def test_a_run_from_s3_to_s3_is_incremental(engine: str, s3_server: str, bundle: Path, photos: Path) -> None:
    store = Stores(S3Settings(endpoint_url=s3_server)).of("s3://")
    assert isinstance(store, S3Store)
    source, target = f"photos-{engine}", f"captions-{engine}"
    for bucket in (source, target):
        store.call("create_bucket", f"s3://{bucket}")
    for path in photos.rglob("*"):
        if path.is_file():
            key = path.relative_to(photos).as_posix()
            store.call("put_object", f"s3://{source}/shop/{key}", Body=path.read_bytes())
    for name in ("config.json", "weights.safetensors", "vocabulary.json"):
        store.call("put_object", f"s3://{source}/model/{name}", Body=(bundle / name).read_bytes())
    settings = config(Path("unused"), engine, s3={"endpoint_url": s3_server}, model={})
    settings = settings.model_copy(
        update={"model": settings.model.model_copy(update={"bundle": f"s3://{source}/model"})}
    )
    first = run_job(f"s3://{source}/shop", f"s3://{target}/night", settings)
    assert (first.counts.captioned, sum(first.counts.rejected.values())) == (9, 3)
    store.call("put_object", f"s3://{source}/shop/1.png", Body=image_file(40))
    second = run_job(f"s3://{source}/shop", f"s3://{target}/night", settings)
    assert (second.counts.captioned, second.counts.skipped) == (1, 11)
    options = {"client_kwargs": {"endpoint_url": s3_server}}
    captions = pd.read_parquet(f"s3://{target}/night/captions", storage_options=options)
    assert len(captions) == captions["path"].nunique() == 9
    assert captions["path"].str.startswith(f"s3://{source}/shop/").all()
    etags = {item["Key"]: item["ETag"].strip('"') for item in _contents(store, source)}
    for row in captions.to_dict("records"):
        assert row["content_tag"] == etags[row["path"].removeprefix(f"s3://{source}/")]


def _contents(store: S3Store, bucket: str) -> list[dict[str, Any]]:
    return list(store.call("list_objects_v2", f"s3://{bucket}")["Contents"])


class Interrupting(Progress):
    """Sends SIGINT `times` times after the first results."""

    def __init__(self, times: int) -> None:
        super().__init__(0, 10)
        self.times = times

    def update(self, done: int, rejected: int) -> None:
        for _ in range(self.times):
            signal.raise_signal(signal.SIGINT)
        self.times = 0


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupted_job_publishes_finished_images(
    engine: str, bundle: Path, photos: Path, tmp_path: Path, times: int
) -> None:
    for i in range(60):
        (photos / f"more-{i}.png").write_bytes(image_file(i))
    settings = config(bundle, engine, model={"batch_size": 1}, workers={"rows_per_block": 1})
    with pytest.raises(Interrupted, match="of 73 images left; run it again to continue"):
        run_job(photos, tmp_path / "out", settings, Interrupting(times))
    captions, rejects = tables(tmp_path / "out")
    assert 0 < len(captions) + len(rejects) < 73
    (run_file,) = (tmp_path / "out" / "runs").iterdir()
    stored = json.loads(run_file.read_text())
    assert stored["outcome"] == "interrupted"
    assert stored["counts"]["unfinished"] == 73 - len(captions) - len(rejects) > 0
    run_job(photos, tmp_path / "out", config(bundle, engine))
    captions, rejects = tables(tmp_path / "out")
    assert (len(captions), len(rejects)) == (69, 4)
    assert captions["path"].nunique() == 69


def test_a_model_that_can_not_be_loaded_fails_the_job_with_its_reason(
    engine: str, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    with prepare([str(photos)], str(tmp_path / "out"), config(bundle, engine), Policy()) as job:
        broken = replace(job, bundle=replace(job.bundle, weights=b"no weights"))
        # On Ray, the model is loaded by a worker after the run has started.
        error_type, outcome = (JobError, ["failed"]) if engine == "ray" else (BundleError, [])
        with pytest.raises(error_type, match="header too large"):
            run(broken, Progress(0, 10), Stopper(10))
    latest = (tmp_path / "out").glob("latest.json")
    assert [json.loads(file.read_text())["outcome"] for file in latest] == outcome


@pytest.mark.slow
def test_poisoned_images_are_rejected_and_all_others_captioned(
    engine: str, bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(INJECT)
    for kind in ("crash", "memory", "endless", "killed"):
        (photos / f"{kind}.jpg").write_bytes(f"nightcap fault: {kind}".encode())
    record = run_job(
        photos,
        tmp_path / "out",
        config(bundle, engine, input={"decode_timeout_seconds": 8, "decode_memory_bytes": 2**29}),
    )
    captions, rejects = tables(tmp_path / "out")
    assert record.counts.captioned == len(captions) == 9
    poison = rejects[rejects["error_class"] == "poison"]
    assert dict(zip(poison["path"].map(lambda path: Path(path).stem), poison["detail"], strict=True)) == {
        "crash": "decoding crashed the process in all 3 attempts: SIGSEGV",
        "memory": "decoding needs more memory than input.decode_memory_bytes allows",
        "endless": "decoding took longer than 8 s (input.decode_timeout_seconds)",
    }
    short = rejects[rejects["error_class"] == "out_of_memory"]
    assert [Path(path).stem for path in short["path"]] == ["killed"]
    again = run_job(photos, tmp_path / "out", config(bundle, engine))
    assert again.plan["skipped"]["rejected"] == 6  # not tried again until the content changes
    assert again.plan["to_caption"] == {"rejected before": 2}  # the missing and the out_of_memory image


def test_bundles_can_be_pickled(bundle: Path) -> None:
    loaded: Bundle = read_folder(bundle)
    assert ray.cloudpickle.loads(ray.cloudpickle.dumps(loaded)) == loaded

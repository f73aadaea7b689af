"""Files written by version 0.1 are read: nothing is refused, lost, or captioned again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from conf.errors import OutputError
from conf.job import ImageLimits, JobConfig
from model.bundle import CONFIG, Bundle, read_bundle, read_folder
from model.image.decode import decode_resized
from pipeline.output.catalog import Catalog
from pipeline.output.folder import OutputFolder
from pipeline.output.journal import leftover_segments
from pipeline.output.record import counts_of, read_last_success, read_runs
from pipeline.output.tables import known_rows, read_rows, upgrade
from pipeline.output.verify import verify
from pipeline.parquet import to_parquet
from pipeline.rows import FORMAT, FORMAT_KEY, STAMPED
from pipeline.store.lock import locked_error, run_id_of
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores
from tests.whole import config, run_job

STORED = Path(__file__).resolve().parent / "stored" / "0.1"
RUN = "20261121T145831Z-1f6fd1"
KILLED = "20261121T145857Z-145fe7"


@pytest.fixture
def output(tmp_path: Path) -> OutputFolder:
    shutil.copytree(STORED / "output", tmp_path / "out")
    return OutputFolder(Stores(), str(tmp_path / "out"))


@pytest.fixture(scope="module")
def settings(s3_server: str) -> JobConfig:
    """Settings with the bundle of the stored run; its photos are uploaded to the S3 server."""
    job_config = config(STORED / "bundle", s3={"endpoint_url": s3_server})
    store = Stores(job_config.s3).of("s3://nightcap-samples")
    assert isinstance(store, S3Store)
    store.call("create_bucket", "s3://nightcap-samples")
    for file in (STORED / "photos").iterdir():
        store.write(f"s3://nightcap-samples/photos/{file.name}", file.read_bytes())
    return job_config


def model_id_of_0_1(stored: dict[str, Any]) -> str:
    """The model id as version 0.1 computed it: from the values in the file."""
    identity = {key: stored[key] for key in ("architecture", "preprocessing", "decoding", "sha256")}
    identity |= {"image_policy": 1} | {k: stored[k] for k in ("calibration",) if k in stored}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"{stored['name']}@{digest[:12]}"


def bundle_with(change: Callable[[dict[str, Any]], object]) -> tuple[Bundle, dict[str, Any]]:
    files = {path.name: path.read_bytes() for path in (STORED / "bundle").iterdir()}
    stored = json.loads(files[CONFIG])
    change(stored)
    return read_bundle({**files, CONFIG: json.dumps(stored).encode()}, "stored"), stored


def test_a_bundle_keeps_its_model_id_and_its_captions() -> None:
    bundle = read_folder(STORED / "bundle")
    assert bundle.model_id == "tiny@091553c58a00"
    assert bundle.config.nightcap == "0.1"
    captions = pd.read_parquet(STORED / "output" / "captions").set_index("path")["caption"]
    captioner = bundle.captioner().prepare(torch.device("cpu"))
    for i in range(6):
        data = (STORED / "photos" / f"{i}.png").read_bytes()
        pixels = decode_resized(
            data, ImageLimits(), bundle.preprocessing.width, bundle.preprocessing.height
        ).pixels
        assert captioner.caption([pixels])[0].text == captions[f"s3://nightcap-samples/photos/{i}.png"]


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: None,
        lambda stored: stored["architecture"]["encoder"].pop("pooled"),
        lambda stored: stored["architecture"]["decoder"].pop("layers"),
        lambda stored: stored["architecture"]["decoder"].update(dropout=0.25),
        lambda stored: stored["decoding"].update(length_penalty=1.0, beam_width=1),
        lambda stored: stored["preprocessing"].update(mean=[0.5, 0.5, 0.1]),
        lambda stored: stored.update(scores={}, training={"config": {"name": "x"}}),
    ],
)
def test_keys_missing_in_a_bundle_get_defaults_and_keep_the_model_id(
    change: Callable[[dict[str, Any]], object],
) -> None:
    bundle, stored = bundle_with(change)
    assert bundle.model_id == model_id_of_0_1(stored)
    assert bundle.captioner().caption([torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()])
    again = read_bundle(bundle.files("card"), "written again")
    assert again.model_id == bundle.model_id


def test_overriding_a_setting_with_its_default_keeps_the_model_id() -> None:
    bundle = read_folder(STORED / "bundle")
    assert bundle.with_decoding(min_length=0, block_ngram=0, consensus=False).model_id == bundle.model_id
    assert bundle.with_decoding(min_length=1).model_id != bundle.model_id


def test_an_old_output_is_not_captioned_again(output: OutputFolder, settings: JobConfig) -> None:
    captions = (Path(output.uri) / "captions").iterdir()
    before = {path: path.read_bytes() for path in captions}
    record = run_job("s3://nightcap-samples/photos", output.uri, settings)
    assert record.plan == {"to_caption": {}, "skipped": {"done": 6, "rejected": 3}}
    assert (record.counts.captioned, record.counts.skipped) == (0, 9)
    assert {path: path.read_bytes() for path in before} == before
    assert verify(output).problems == []
    assert read_last_success(output) == record.ended.isoformat()
    rejects = pd.read_parquet(Path(output.uri) / "rejects")
    assert sorted(rejects["error_class"]) == ["empty", "truncated", "unsupported"]
    assert "error" not in rejects.columns


def test_old_rejects_are_rewritten_once(output: OutputFolder) -> None:
    known = {file: rows["error_class"].to_pylist() for file, rows in known_rows(Catalog(output))}
    assert upgrade(Catalog(output)) == 1
    assert upgrade(Catalog(output)) == 0
    assert {file: rows["error_class"].to_pylist() for file, rows in known_rows(Catalog(output))} == known
    rows = read_rows(output, f"rejects/{RUN}-00000.parquet")
    assert rows is not None
    assert sorted(rows["error_class"].to_pylist()) == ["empty", "truncated", "unsupported"]


def test_an_old_output_is_verified_and_its_runs_are_listed(output: OutputFolder) -> None:
    result = verify(output)
    assert (result.captions, result.rejects, result.runs, result.problems) == (6, 3, 1, [])
    (run,) = read_runs(output)
    assert run["run_id"] == RUN
    assert counts_of(run).captioned == 6
    assert read_last_success(output) == "2026-11-21T14:58:55.680078+00:00"


def test_the_journal_of_an_old_killed_run_is_published(tmp_path: Path, settings: JobConfig) -> None:
    shutil.copytree(STORED / "killed", tmp_path / "out")
    out = OutputFolder(Stores(), str(tmp_path / "out"))
    segments = [rows for _, rows in leftover_segments(out)]
    assert all(rows.schema.equals(STAMPED) for rows in segments)
    waiting = {row["path"]: row for rows in segments for row in rows.to_pylist()}
    assert {row["run_id"] for row in waiting.values()} == {KILLED}

    record = run_job("s3://nightcap-samples/photos", out.uri, settings)
    assert record.recovered == len(waiting) == 8
    assert list(out.list_files("journal")) == []
    captions = pd.read_parquet(tmp_path / "out" / "captions").set_index("path")
    rejects = pd.read_parquet(tmp_path / "out" / "rejects").set_index("path")
    for path, row in waiting.items():
        stored = (rejects if row["error_class"] else captions).loc[path]
        assert stored["run_id"] == KILLED
        assert stored["content_tag"] == row["content_tag"]
    assert verify(out).problems == []


def test_the_holder_of_an_old_lock_is_read() -> None:
    body = (STORED / "run.lock").read_bytes()
    assert run_id_of(body) == RUN
    assert f"run {RUN} on host vm (process 11251)" in str(locked_error("/out", body))


def test_a_later_table_format_is_refused_with_its_number(output: OutputFolder) -> None:
    file = f"captions/{RUN}-00000.parquet"
    rows = read_rows(output, file)
    assert rows is not None
    written = to_parquet(rows)
    later = str(FORMAT + 1).encode()
    output.write(
        file,
        written.replace(FORMAT_KEY + b"\x18\x01" + str(FORMAT).encode(), FORMAT_KEY + b"\x18\x01" + later),
    )
    with pytest.raises(
        OutputError, match=rf"later version of Nightcap \(format {FORMAT + 1}, this one reads up to"
    ):
        list(known_rows(Catalog(output)))

"""Repeated runs over the same store: which images are done, which are done again, and why.

These tests run the stages in one process, without Ray. test_pipeline.py tests with Ray.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from conf.errors import StoreDownError
from conf.job import S3Settings
from jobs.cli import main
from pipeline.caption import run
from pipeline.engines.stopping import Stopper
from pipeline.plan.policy import Policy
from pipeline.prepare import prepare
from pipeline.progress import Progress
from pipeline.sources.content_hash import digest
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores
from tests.whole import (
    config,
    image_file,
    make_photos,
    names,
    run_job,
    tables,
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path)


def test_a_second_run_captions_only_new_and_changed_images(
    bundle: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_job(photos, out, config(bundle))
    before = {p: p.stat().st_mtime_ns for p in (out / "captions").iterdir()}
    again = run_job(photos, out, config(bundle))
    assert (again.counts.captioned, again.counts.skipped) == (0, 12)
    assert again.plan == {
        "to_caption": {"rejected before": 1},  # the dangling link: its target may exist by the next run
        "skipped": {"done": 9, "rejected": 3},
    }
    assert {p: p.stat().st_mtime_ns for p in (out / "captions").iterdir()} == before

    (photos / "3.png").write_bytes(image_file(30))
    (photos / "new.png").write_bytes(image_file(31))
    third = run_job(photos, out, config(bundle))
    assert (third.counts.captioned, third.counts.skipped) == (2, 11)
    captions, rejects = tables(out)
    assert len(captions) == captions["path"].nunique() == 10
    assert names(captions[captions["run_id"] == third.run_id]) == ["3.png", "new.png"]
    assert len(rejects) == rejects["path"].nunique() == 4


def test_rows_move_between_tables_when_an_image_breaks_or_is_repaired(
    bundle: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_job(photos, out, config(bundle))
    (photos / "0.png").write_bytes(b"")
    (photos / "cut.png").write_bytes(image_file(9))
    run_job(photos, out, config(bundle))
    captions, rejects = tables(out)
    assert "0.png" in names(rejects)
    assert "0.png" not in names(captions)
    assert "cut.png" in names(captions)
    assert "cut.png" not in names(rejects)
    assert len(captions) + len(rejects) == 13


def test_an_unreadable_image_keeps_its_earlier_caption(bundle: Path, photos: Path, tmp_path: Path) -> None:
    manifest, out = tmp_path / "list.csv", tmp_path / "out"
    manifest.write_text(f"id,path\n1,{photos}/0.png\n2,photos/1.png\n3,photos/never.png\n")
    run_job(manifest, out, config(bundle))
    (photos / "1.png").unlink()
    record = run_job(manifest, out, config(bundle))
    captions, rejects = tables(out)
    assert names(captions) == ["0.png", "1.png"]
    assert names(rejects) == ["never.png"]
    assert record.counts.rejected == {"missing": 1}
    assert record.plan["skipped"] == {"done": 1, "gone": 1}

    # An image that disappears between listing and reading.
    settings = config(bundle, model={"beam_width": 1})
    with prepare([str(manifest)], str(out), settings, Policy()) as job:
        (photos / "0.png").unlink()
        record = run(job, Progress(0, 10), Stopper(10))
    assert (record.counts.kept, record.counts.rejected) == (1, {"missing": 1})
    assert names(tables(out)[0]) == ["0.png", "1.png"]


def test_changed_decoding_settings_recaption_all_images(bundle: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_job(photos, out, config(bundle))
    record = run_job(photos, out, config(bundle, model={"beam_width": 1}))
    captions, _ = tables(out)
    assert record.counts.captioned == len(captions) == 9
    assert captions["model_id"].nunique() == 1


def test_limit_leaves_the_rest_for_the_next_run(bundle: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run_job(photos, out, config(bundle), limit=4)
    assert first.counts.captioned + sum(first.counts.rejected.values()) == 4
    assert first.counts.deferred == 9
    run_job(photos, out, config(bundle))
    captions, rejects = tables(out)
    assert (len(captions), len(rejects)) == (9, 4)


def test_a_run_with_nothing_new_succeeds(
    bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("empty.jpg", "cut.png", "page.jpg", "gone.jpg"):
        (photos / name).unlink()
    arguments = ["run", str(photos), "--output", str(tmp_path / "out"), "--model", str(bundle)]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(arguments) == 0
    assert "nothing new: all 9 images are already done" in capsys.readouterr().out


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    output = capsys.readouterr().out
    assert "1 changed" in output
    assert "1 rejected before" in output
    assert "skipped 11" in output
    assert "8 done: same content, same model" in output
    assert sorted(str(p) for p in (tmp_path / "out").rglob("*")) == before


def test_a_dry_run_estimates_the_time_from_an_earlier_run(
    bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, settings = tmp_path / "out", config(bundle)
    record = run_job(photos, out, settings)
    (photos / "new.png").write_bytes(image_file(31))
    arguments = ["run", str(photos), "--output", str(out), "--model", str(bundle), "--dry-run"]
    arguments += ["--set", f"model.precision={record.precision}"]
    assert main(arguments) == 0
    assert "estimated" not in capsys.readouterr().out  # nine images say little about the speed
    stored = json.loads(json.dumps(record.to_json()))
    stored["counts"] |= {"listed": 1013, "captioned": 1009}
    stored["time"] |= {"images_per_second": 0.5}
    stored["time"]["driver_seconds"]["start_up"] = 6.0
    (out / "runs" / f"{record.run_id}.json").write_text(json.dumps(stored))
    assert main(arguments) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"estimated time 00:10, at 0.5 images/s as in run {record.run_id}"
    assert main([*arguments, "--retry", "none", "--recaption", "none", "--since", "2999-01-01"]) == 0
    assert "estimated" not in capsys.readouterr().out  # there is nothing to do
    assert main(["runs", str(out), "--verbose"]) == 0
    assert "    time: start-up 00:06" in capsys.readouterr().out


def test_dedupe_captions_equal_content_once(s3_server: str, bundle: Path) -> None:
    store = Stores(S3Settings(endpoint_url=s3_server)).of("s3://twins")
    assert isinstance(store, S3Store)
    store.call("create_bucket", "s3://twins")
    for name, seed in (("a", 1), ("b", 1), ("c", 2), ("d", 1)):
        store.call("put_object", f"s3://twins/in/{name}.png", Body=image_file(seed))
    settings = config(bundle, s3={"endpoint_url": s3_server})
    record = run_job("s3://twins/in", "s3://twins/out", settings, dedupe=True)
    assert record.counts.captioned == record.counts.listed == 4
    options = {"client_kwargs": {"endpoint_url": s3_server}}
    rows = pd.read_parquet("s3://twins/out/captions", storage_options=options).set_index("path")
    results = [
        (row["caption"], row["confidence"]) for row in (rows.loc[f"s3://twins/in/{n}.png"] for n in "abcd")
    ]
    assert results[0] == results[1] == results[3] != results[2]


def test_too_many_rejects_exit_with_3_and_keep_the_output(
    bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["run", str(photos), "--output", str(out), "--model", str(bundle)]
    assert main([*arguments, "--set", "output.max_reject_rate=0.2", "--set", "output.min_tried=13"]) == 3
    output = capsys.readouterr()
    assert "4/13 images could not be captioned, limit 20.0%" in output.err
    assert "captioned 9, rejected 4" in output.out
    captions, _ = tables(out)
    assert len(captions) == 9
    (run_file,) = (out / "runs").iterdir()
    assert json.loads(run_file.read_text())["outcome"] == "too_many_rejects"
    assert main([*arguments, "--set", "output.max_reject_rate=0.5", "--set", "output.min_tried=13"]) == 0


def test_too_many_unavailable_images_in_a_row_stop_the_job(
    bundle: Path, photos: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "list.txt"
    manifest.write_text("".join(f"http://127.0.0.1:9/{i}.png\n" for i in range(12)))
    with pytest.raises(StoreDownError, match="images in a row could not be read"):
        run_job(manifest, tmp_path / "out", config(bundle, input={"max_unavailable": 4}))
    (run_file,) = (tmp_path / "out" / "runs").iterdir()
    assert json.loads(run_file.read_text())["outcome"] == "store_down"


def test_permanent_faults_are_neither_tried_again_nor_counted_as_a_store_that_is_down(
    bundle: Path, photos: Path, tmp_path: Path
) -> None:
    requests: list[str] = []
    looping: set[str] = {"/loop"}

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            here = self.path not in (*looping, "/410")
            body = (photos / self.path[1:]).read_bytes() if here else b""
            self.send_response(200 if here else 410 if self.path == "/410" else 302)
            self.send_header("Location", self.path)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if self.command == "GET" else b"")

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    web, manifest, out = f"http://127.0.0.1:{server.server_port}", tmp_path / "list.txt", tmp_path / "out"
    try:
        urls = [*(f"nosuch://a/{i}.png" for i in range(5)), f"{web}/loop", f"{web}/0.png"]
        urls += [f"{web}/410", "http://a..b/x.png", "http://[", "http:///a", "s3:///x", "nul\0l.png"]
        manifest.write_text("\n".join(urls))
        settings = config(bundle, input={"max_unavailable": 3})
        first = run_job(manifest, out, settings)
        assert (first.counts.captioned, first.counts.rejected) == (1, {"unsupported": 12})
        again = run_job(manifest, out, settings)
        assert again.plan == {"to_caption": {}, "skipped": {"done": 1, "rejected": 12}}

        # An image that was captioned keeps its caption while its address leads nowhere.
        looping.add("/0.png")
        requests.clear()
        third = run_job(manifest, out, settings)
        assert third.plan["skipped"] == {"gone": 1, "rejected": 12}
        assert len([path for path in requests if path in looping]) <= 20
        assert [Path(path).name for path in tables(out)[0]["path"]] == ["0.png"]
    finally:
        server.shutdown()
        server.server_close()


def test_content_hash_ignores_modification_times(bundle: Path, photos: Path, tmp_path: Path) -> None:
    out, settings = tmp_path / "out", config(bundle, input={"content_hash": True})
    (photos / "twin.png").write_bytes((photos / "0.png").read_bytes())
    run_job(photos, out, settings)
    before, _ = tables(out)
    tags = {Path(row["path"]).name: row["content_tag"] for row in before.to_dict("records")}
    assert tags["0.png"] == tags["twin.png"] == digest((photos / "0.png").read_bytes())

    for file in photos.iterdir():  # as after a restore from a backup
        if file.is_file() and not file.is_symlink():
            os.utime(file, (1e9, 1e9))
    (photos / "1.png").write_bytes(image_file(40))
    os.utime(photos / "1.png", (1e9, 1e9))
    again = run_job(photos, out, settings)
    assert again.plan["to_caption"] == {"changed": 1, "rejected before": 1}
    assert again.counts.captioned == 1
    assert tables(out)[0].set_index("path").loc[str(photos / "1.png"), "run_id"] == again.run_id

    # Equal files on local disk are recognized by their hash too.
    with prepare([str(photos)], str(tmp_path / "other"), settings, Policy(dedupe=True), dry=True) as job:
        assert job.plan.copies == 1

"""What is left to read when a run is over: run file, latest.json, figures for Prometheus."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from conf.errors import StoreDownError
from conf.job import JobConfig, MetricsSettings
from model.bundle import make_bundle
from model.image.decode import ImageError
from pipeline import prometheus as metrics
from pipeline.finish import Began, conclude, last_success
from pipeline.output.writer import Writer
from pipeline.plan.ledger import Ledger
from pipeline.plan.policy import Plan
from pipeline.prepare import Job
from pipeline.record import EXIT_CODES, Counts, Outcome, Record
from pipeline.sources.candidates import Tally
from pipeline.store.filesystems import S3Options
from pipeline.store.holder import Lock
from pipeline.store.store import Store
from tests import tiny

STORE = Store(S3Options())
BEFORE = "2026-01-30T02:00:00+00:00"
WHEN = datetime(2026, 1, 31, 2, tzinfo=timezone.utc)


def record(**fields: Any) -> Record:
    """A run of 7 images: 3 captioned, 2 + 1 rejected, 1 skipped."""
    counts = Counts(7, 3, {"corrupt": 2, "empty": 1}, 0, 0, 1, 0, 0)
    plain = dict.fromkeys(("detail", "sources", "left_out", "plan", "recovered", "model", "config"))
    given = {"run_id": "r1", "output": "s3://shop/out", "outcome": "done", "counts": counts, "started": WHEN}
    more = {"ended": WHEN, "seconds": 75.5, "images_per_second": 12.5}
    return Record(**{**plain, **given, **more, **fields})  # type: ignore[arg-type]


def figures(run: Record, success: str | None) -> dict[str, dict[str, float]]:
    """Name -> its last label's value ("" where `output` is the only label) -> figure."""
    return collected(metrics.figures(run, success))


def collected(registry: CollectorRegistry) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for family in registry.collect():
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("output") == "s3://shop/out"
            found.setdefault(sample.name, {})["".join(labels.values())] = sample.value
    return found


def test_the_figures_are_those_of_the_record() -> None:
    found = figures(record(outcome="too_many_rejects"), "2026-01-30T02:00:00+00:00")
    assert found["nightcap_images"] == {
        "captioned": 3, "rejected": 3, "kept": 0, "skipped": 1, "deferred": 0, "unfinished": 0
    }  # fmt: skip
    assert found["nightcap_rejected"] == {"corrupt": 2, "empty": 1}
    assert found["nightcap_run_exit_code"] == {"": 3}
    assert found["nightcap_run_seconds"] == {"": 75.5}
    assert found["nightcap_last_run_timestamp_seconds"] == {"": WHEN.timestamp()}
    assert found["nightcap_last_success_timestamp_seconds"] == {"": WHEN.timestamp() - 86400}
    assert "nightcap_last_success_timestamp_seconds" not in figures(record(), None)


def test_a_textfile_that_prometheus_reads(tmp_path: Path) -> None:
    file = tmp_path / "nightcap.prom"
    assert metrics.publish(MetricsSettings(textfile=str(file)), record(), None) == []
    families = {family.name: family for family in text_string_to_metric_families(file.read_text())}
    assert families["nightcap_run_seconds"].samples[0].value == 75.5
    assert families["nightcap_run_seconds"].type == "gauge"
    assert list(tmp_path.iterdir()) == [file]  # written whole, under another name first


@contextmanager
def gateway(status: int) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """A Pushgateway as far as we use it: takes one POST."""
    taken: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", taken
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_figures_are_pushed_under_the_name_of_the_output() -> None:
    with gateway(202) as (url, taken):
        assert metrics.publish(MetricsSettings(pushgateway=url), record(), None) == []
    ((path, body),) = taken
    assert path.startswith("/metrics/job/nightcap/output@base64/")
    assert b'nightcap_images{output="s3://shop/out",state="captioned"} 3.0' in body


def test_figures_that_cannot_be_published_are_said_and_no_more(tmp_path: Path) -> None:
    options = MetricsSettings(textfile=str(tmp_path / "none" / "x.prom"), pushgateway="http://127.0.0.1:9")
    first, second = metrics.publish(options, record(), None)
    assert first.startswith(f"can't write metrics.textfile '{tmp_path}/none/x.prom': No such file")
    assert second.startswith("can't push to metrics.pushgateway 'http://127.0.0.1:9': ")
    with gateway(500) as (url, _):
        (problem,) = metrics.publish(MetricsSettings(pushgateway=url), record(), None)
    assert "500" in problem


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    """A run that had three images to do and did none."""
    writer = Writer(STORE, str(tmp_path), "r1", "m@1", 10, 1e6, 1e6)
    bundle = make_bundle(tiny.captioner(max_length=5), "tiny", {})
    plan = Plan(5, 3, 0, 0, Counter(new=3), Counter(done=2))
    said: list[str] = []
    config = JobConfig(metrics=MetricsSettings(textfile=str(tmp_path / "none" / "x.prom")))
    with Ledger() as ledger:
        yield Job(
            config,
            STORE,
            ["/photos"],
            str(tmp_path),
            bundle,
            plan,
            Tally(),
            ledger,
            writer,
            Lock(),
            0,
            BEFORE,
            said.append,
        )
    assert len(said) > 0
    assert all("metrics.textfile" in line for line in said)


def latest(job: Job) -> SimpleNamespace:
    return SimpleNamespace(**json.loads((Path(job.output) / "latest.json").read_text()))


@pytest.mark.parametrize(("outcome", "code"), EXIT_CODES.items())
def test_each_outcome_is_left_in_two_files(job: Job, outcome: Outcome, code: int) -> None:
    made = conclude(job, Began(), outcome, "Zoë's café")
    text = (Path(job.output) / "runs" / "r1.json").read_text(encoding="utf-8")
    assert json.loads(text) == json.loads(json.dumps(made.to_json()))
    assert "Zoë" in text
    assert made.counts == Counts(5, 0, {}, 0, 0, 2, 0, unfinished=3)
    left = latest(job)
    assert (left.run_id, left.outcome, left.exit_code, left.detail) == ("r1", outcome, code, "Zoë's café")
    assert left.last_success == (left.ended if code == 0 else BEFORE)


def test_the_last_success_is_read_from_what_is_there(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    assert last_success(STORE, job.output) is None
    conclude(job, Began(), "done", "")
    assert last_success(STORE, job.output) == latest(job).ended
    for broken in ("{", "[]", '{"last_success": "soon"}', '{"last_success": 3}', '{"last_success": null}'):
        (Path(job.output) / "latest.json").write_text(broken)
        assert last_success(STORE, job.output) is None

    def down(*_: object) -> bytes:
        raise ImageError("unavailable", "no answer")

    monkeypatch.setattr(STORE, "read", down)
    with pytest.raises(StoreDownError, match=r"latest.json': no answer"):
        last_success(STORE, job.output)  # not known is not never

"""Metrics of a run for Prometheus: the textfile, and the push to a Pushgateway."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from conf.job import MetricsSettings
from pipeline import prometheus
from pipeline.timing import Stopwatch
from tests.records import WHEN, record


def collected(registry: CollectorRegistry) -> dict[str, dict[str, float]]:
    metrics: dict[str, dict[str, float]] = {}
    for family in registry.collect():
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("output") == "s3://shop/out"
            metrics.setdefault(sample.name, {})["".join(labels.values())] = sample.value
    return metrics


def test_metrics_equal_the_record() -> None:
    metrics = collected(prometheus.figures(record(outcome="too_many_rejects"), "2026-01-30T02:00:00+00:00"))
    assert metrics["nightcap_images"] == {
        "captioned": 3, "rejected": 3, "kept": 0, "skipped": 1, "deferred": 0, "unfinished": 0
    }  # fmt: skip
    assert metrics["nightcap_rejected"] == {"corrupt": 2, "empty": 1}
    assert metrics["nightcap_run_exit_code"] == {"": 3}
    assert metrics["nightcap_run_seconds"] == {"": 75.5}
    assert metrics["nightcap_last_run_timestamp_seconds"] == {"": WHEN.timestamp()}
    assert metrics["nightcap_last_success_timestamp_seconds"] == {"": WHEN.timestamp() - 86400}
    assert "nightcap_last_success_timestamp_seconds" not in collected(prometheus.figures(record(), None))


def test_metrics_say_where_time_went() -> None:
    assert "nightcap_driver_seconds" not in collected(prometheus.figures(record(), None))
    time = Stopwatch().time_spent()
    time["driver_seconds"]["writing"], time["worker_seconds"]["decoding"] = 1.5, 2.5
    metrics = collected(prometheus.figures(record(time=time), None))
    assert metrics["nightcap_driver_seconds"] == time["driver_seconds"]
    assert metrics["nightcap_worker_seconds"] == {"reading": 0, "decoding": 2.5, "inference": 0}


def test_the_textfile_can_be_parsed_by_prometheus(tmp_path: Path) -> None:
    file = tmp_path / "nightcap.prom"
    assert prometheus.publish(MetricsSettings(textfile=str(file)), record(), None) == []
    families = {family.name: family for family in text_string_to_metric_families(file.read_text())}
    assert families["nightcap_run_seconds"].samples[0].value == 75.5
    assert families["nightcap_run_seconds"].type == "gauge"
    assert list(tmp_path.iterdir()) == [file]  # no temporary file remains


@contextmanager
def gateway(status: int) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """A minimal Pushgateway that records POST requests and answers with `status`."""
    requests: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_metrics_are_pushed_with_the_output_as_grouping_key() -> None:
    with gateway(202) as (url, requests):
        assert prometheus.publish(MetricsSettings(pushgateway=url), record(), None) == []
    ((path, body),) = requests
    assert path.startswith("/metrics/job/nightcap/output@base64/")
    assert b'nightcap_images{output="s3://shop/out",state="captioned"} 3.0' in body


def test_failures_to_publish_metrics_are_returned_not_raised(tmp_path: Path) -> None:
    options = MetricsSettings(textfile=str(tmp_path / "none" / "x.prom"), pushgateway="http://127.0.0.1:9")
    first, second = prometheus.publish(options, record(), None)
    assert first.startswith(f"can't write metrics.textfile '{tmp_path}/none/x.prom': No such file")
    assert second.startswith("can't push to metrics.pushgateway 'http://127.0.0.1:9': ")
    with gateway(500) as (url, _):
        (problem,) = prometheus.publish(MetricsSettings(pushgateway=url), record(), None)
    assert "500" in problem

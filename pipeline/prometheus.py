"""Metrics of a run for Prometheus: a file for node_exporter's textfile collector, or a push to a Pushgateway.

A run may last only minutes, so scraping would miss it. All metrics are gauges with the output as a label.
"""

from __future__ import annotations

from datetime import datetime

from prometheus_client import CollectorRegistry, Gauge, pushadd_to_gateway, write_to_textfile

from conf.job import MetricsSettings
from pipeline.output.record import RunRecord
from pipeline.store.uri import redact

JOB = "nightcap"
PUSH_S = 10.0


def publish(options: MetricsSettings, record: RunRecord, last_success: str | None) -> list[str]:
    """Write and push the metrics as configured. Returns error messages: metrics never fail a run."""
    problems = []
    registry = figures(record, last_success)
    if options.textfile is not None:
        try:
            write_to_textfile(options.textfile, registry)
        except OSError as error:
            problems.append(f"can't write metrics.textfile '{options.textfile}': {error.strerror or error}")
    if options.pushgateway is not None:
        try:
            key = {"output": record.output}
            pushadd_to_gateway(
                options.pushgateway, job=JOB, registry=registry, grouping_key=key, timeout=PUSH_S
            )
        except (OSError, ValueError) as error:
            problems.append(f"can't push to metrics.pushgateway '{redact(options.pushgateway)}': {error}")
    return problems


def figures(record: RunRecord, last_success: str | None) -> CollectorRegistry:
    """The metrics of a run; `last_success` is when a run last succeeded, ISO 8601."""
    registry, counts = CollectorRegistry(), record.counts

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"nightcap_{name}", text, ["output", *labels], registry=registry)

    images = gauge("images", "Images of the last run, by state", "state")
    for state in ("captioned", "kept", "skipped", "deferred", "unfinished"):
        images.labels(record.output, state).set(getattr(counts, state))
    images.labels(record.output, "rejected").set(sum(counts.rejected.values()))
    rejected = gauge("rejected", "Images rejected by the last run, by error class", "error")
    for error, count in counts.rejected.items():
        rejected.labels(record.output, error).set(count)
    values = {
        "run_seconds": ("Duration of the last run", record.seconds),
        "images_per_second": ("Images per second of the last run", record.images_per_second),
        "run_exit_code": ("Exit code of the last run", record.exit_code),
        "last_run_timestamp_seconds": ("When the last run ended", record.ended.timestamp()),
    }
    if last_success is not None:
        at = datetime.fromisoformat(last_success).timestamp()
        values["last_success_timestamp_seconds"] = ("When a run last succeeded", at)
    for name, (text, value) in values.items():
        gauge(name, text).labels(record.output).set(value)
    if record.time is not None:
        phases = gauge("driver_seconds", "Duration of the last run, by what the driver did", "phase")
        for phase, seconds in record.time["driver_seconds"].items():
            phases.labels(record.output, phase).set(seconds)
        work = gauge("worker_seconds", "Time of all workers of the last run, by what they did", "work")
        for kind, seconds in record.time["worker_seconds"].items():
            work.labels(record.output, kind).set(seconds)
    return registry

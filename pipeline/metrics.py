"""The figures of a run for Prometheus: as a file for node_exporter's textfile collector, or pushed to a gateway.

A run of minutes would be missed by scraping. All are gauges, labelled with the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, pushadd_to_gateway, write_to_textfile

from conf.schema import Metrics
from pipeline.uri import redact

JOB = "nightcap"
PUSH_S = 10.0


def publish(options: Metrics, record: Mapping[str, Any], latest: Mapping[str, Any]) -> list[str]:
    """Write and push as configured; returns what could not be done, in words. Never raises for it."""
    problems = []
    registry = figures(record, latest)
    if options.textfile is not None:
        try:
            write_to_textfile(options.textfile, registry)
        except OSError as error:
            problems.append(f"can't write metrics.textfile '{options.textfile}': {error.strerror or error}")
    if options.pushgateway is not None:
        try:
            pushadd_to_gateway(
                options.pushgateway, job=JOB, registry=registry, grouping_key={"output": record["output"]}, timeout=PUSH_S
            )
        except (OSError, ValueError) as error:
            problems.append(f"can't push to metrics.pushgateway '{redact(options.pushgateway)}': {error}")
    return problems


def figures(record: Mapping[str, Any], latest: Mapping[str, Any]) -> CollectorRegistry:
    """A run record and the content of `latest.json` as gauges."""
    registry, output, counts = CollectorRegistry(), record["output"], record["counts"]

    def gauge(name: str, text: str, value: float, **labels: str) -> None:
        made = made_before.get(name)
        if made is None:
            made = made_before[name] = Gauge(f"nightcap_{name}", text, ["output", *labels], registry=registry)
        made.labels(output, *labels.values()).set(value)

    made_before: dict[str, Gauge] = {}
    for state in ("captioned", "kept", "skipped", "deferred", "unfinished"):
        gauge("images", "Images of the last run, by what became of them", counts[state], state=state)
    gauge("images", "", sum(counts["rejected"].values()), state="rejected")
    for error, count in counts["rejected"].items():
        gauge("rejected", "Images rejected by the last run, by class", count, error=error)
    gauge("run_seconds", "Duration of the last run", record["seconds"])
    gauge("images_per_second", "Images finished a second by the last run", record["images_per_second"])
    gauge("run_exit_code", "How the last run ended, see the exit codes", latest["exit_code"])
    gauge("last_run_timestamp_seconds", "When the last run ended", latest["ended"])
    if latest["last_success"] is not None:
        gauge("last_success_timestamp_seconds", "When a run last ended well", latest["last_success"])
    return registry

"""Metrics of the service, which Prometheus scrapes. Those of a run are in `pipeline.prometheus`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "nightcap_serve_requests", "Requests, by route and status", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "nightcap_serve_request_seconds",
            "Time from the head of a request to the end of its answer",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.batches = Histogram(
            "nightcap_serve_batch_images", "Images in a batch of the model", buckets=IMAGES, registry=registry
        )
        self.captioned = Counter("nightcap_serve_captioned_images", "Images captioned", registry=registry)
        self.rejected = Counter(
            "nightcap_serve_rejected_images", "Images rejected, by error class", ["error"], registry=registry
        )
        self.waiting = Gauge(
            "nightcap_serve_waiting_images",
            "Images that wait, or are being decoded or captioned",
            registry=registry,
        )
        self.held = Gauge("nightcap_serve_held_bytes", "Bytes of requests in memory", registry=registry)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

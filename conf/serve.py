"""The settings of `nightcap serve`. It also uses the sections `model`, `input` and `workers` of conf/job.py."""

from __future__ import annotations

from pydantic import Field

from conf.base import Bytes, Seconds, Section


class ServeSettings(Section):
    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on; 0.0.0.0 = all of this machine. There is no login: see docs/serving.md.",
    )
    port: int = Field(default=8000, ge=0, le=65_535, description="Port to listen on; 0 = any free one.")
    max_files: int = Field(default=16, ge=1, le=1000, description="Images in one request.")
    max_request_bytes: Bytes = Field(
        default=64 * 2**20, description="Bytes of one request with all its images."
    )
    max_held_bytes: Bytes = Field(
        default=512 * 2**20, description="Bytes of all requests in memory; beyond it, status 503."
    )
    max_waiting: int = Field(
        default=256,
        ge=1,
        le=1_000_000,
        description="Images that wait or are being captioned; beyond it, status 503.",
    )
    max_connections: int = Field(
        default=400,
        ge=1,
        le=100_000,
        description="Connections at a time; a request on a further one is told to come again.",
    )
    batch_size: int = Field(
        default=16,
        ge=1,
        le=4096,
        description="Maximum number of images per batch of the model; smaller batches are answered sooner.",
    )
    max_alternatives: int = Field(
        default=20, ge=0, le=100, description="Maximum of ?n=, the alternatives of one caption."
    )
    max_beam_width: int = Field(default=10, ge=1, le=50, description="Maximum of ?beam_width=.")
    upload_seconds: Seconds = Field(
        default=60.0, description="Seconds for a request to arrive; beyond it, status 408."
    )
    answer_seconds: Seconds = Field(
        default=60.0, description="Seconds to answer a request that has arrived; beyond it, status 503."
    )
    grace_seconds: float = Field(
        default=30.0, gt=0, le=3600, description="Seconds to answer the requests in flight after SIGTERM."
    )

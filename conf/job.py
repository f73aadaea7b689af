"""The settings of a job, each with type, range, default and description. conf/train.py has those of training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from conf.base import Bytes, Location, Seconds, Section, with_overrides
from conf.captioner import Decoding
from conf.precision import Precision
from conf.serve import ServeSettings

# fmt: off
EXTENSIONS = (
    "jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif", "hif",
    "jp2", "j2k", "jpf", "jpx", "jxl", "pbm", "pgm", "ppm", "pnm",
)
# fmt: on


def _extensions(value: object) -> object:
    """[".JPG", "png"] -> ("jpg", "png"), without duplicates. "any" is returned unchanged."""
    if value == "any":
        return value
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("must be any, or a non-empty list such as [jpg, png]")
    normalized = [item.removeprefix(".").lower() if isinstance(item, str) else "" for item in value]
    for item, extension in zip(value, normalized, strict=True):
        if not re.fullmatch("[a-z0-9]+", extension):
            raise ValueError(f"{item!r} is not an extension: use letters and digits, such as jpg")
    return tuple(dict.fromkeys(normalized))


def _video(value: str) -> str:
    _, every, seconds = value.partition("every_seconds=")
    number = re.fullmatch(r"\d+(\.\d+)?", seconds)
    if value not in ("off", "keyframes") and not (
        value == every + seconds and number and 0.1 <= float(seconds) <= 86_400
    ):
        raise ValueError("must be off, keyframes, or every_seconds=N with N from 0.1 to 86400")
    return value


def _endpoint(value: str) -> str:
    url = urlsplit(value)
    if url.scheme not in ("http", "https") or not url.hostname or "@" in value or url.query or url.fragment:
        raise ValueError("must be http(s)://host[:port] without user name, password or query")
    _ = url.port  # raises ValueError if the port is not a number
    return value


def _whole_above_one(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError("must be a whole number above 1; only one GPU can be shared")
    return value


Extensions = Annotated[tuple[str, ...] | Literal["any"], BeforeValidator(_extensions)]
EngineName = Literal["auto", "local", "ray"]
VideoMode = Annotated[str, AfterValidator(_video)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
Gpus = Annotated[float, AfterValidator(_whole_above_one)]


class ImageLimits(Section):
    """How one image is decoded: limits, and which frame. Training and evaluation use the defaults."""

    max_bytes: Bytes = Field(default=64 * 2**20, description="Bytes; larger files are rejected.")
    # Pillow's own limit, which can't be raised for WebP and TIFF.
    max_pixels: int = Field(
        default=100_000_000, ge=1, le=178_956_970, description="Pixels; larger images are rejected."
    )
    decode_timeout_seconds: int = Field(
        default=60, ge=1, le=86_400, description="Maximum CPU time for decoding one image, in seconds."
    )
    decode_memory_bytes: int = Field(
        default=4 * 2**30,
        ge=2**29,
        le=2**40,
        description="Maximum address space for decoding one image, in bytes.",
    )
    frame: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Frame of an animation or page of a file, from 0; the last one if there are fewer.",
    )


class InputSettings(ImageLimits):
    extensions: Extensions = Field(
        default=EXTENSIONS, description="Extensions of image files; any = every file."
    )
    archives: bool = Field(
        default=True,
        description="Caption the images in archives of a folder; false = only in those that a source names.",
    )
    video: VideoMode = Field(
        default="off", description="Frames of videos to caption: off, keyframes, or every_seconds=N."
    )
    video_max_seconds: int = Field(
        default=14_400, ge=1, le=604_800, description="Seconds; later frames of a video are left out."
    )
    video_max_frames: int = Field(
        default=10_000, ge=1, le=1_000_000, description="Frames of a video; further ones are left out."
    )
    content_hash: bool = Field(
        default=False,
        description="Detect changed local files by a hash of their bytes instead of size and time.",
    )
    read_ahead: int = Field(
        default=32,
        ge=1,
        le=1024,
        description="Images of a remote store that a decode worker reads ahead; each takes up to max_bytes.",
    )
    max_unavailable: int = Field(
        default=1000,
        ge=1,
        le=2**31,
        description="Stop the job after this many consecutive images that can't be read.",
    )

    @property
    def video_interval(self) -> float | None:
        """Seconds between the frames of a video; None for its keyframes."""
        _, every, seconds = self.video.partition("every_seconds=")
        return float(seconds) if every else None


@with_overrides(Decoding)
class ModelSettings(Section):
    bundle: Location = Field(
        default="everyday-mobilenetv2", description="Name of a shipped bundle, or path or URI of one."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto = cuda if there is a GPU, else cpu."
    )
    precision: Precision = Field(
        default="auto", description="Precision of the model; auto = the fastest one, by device and bundle."
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Images per batch of the model; null = 32 on a CPU, 128 on a GPU.",
    )

    def batch_size_on(self, device: str) -> int:
        """The images per batch on a device: `cpu`, `cuda` or `cuda:N`."""
        return self.batch_size or (32 if device == "cpu" else 128)


class WorkerSettings(Section):
    decode_cpus: float | None = Field(
        default=None,
        gt=0,
        le=1024,
        description="On Ray: CPUs of one decode task; null = chosen to fit the cluster.",
    )
    model_cpus: float | None = Field(
        default=None,
        gt=0,
        le=1024,
        description="CPUs of one model worker; null = 1 with engine local, chosen to fit the cluster on Ray.",
    )
    model_gpus: Gpus = Field(
        default=1.0,
        gt=0,
        le=64,
        description="On Ray: GPUs of one model actor; 0.5 = two share one GPU, as always with engine local.",
    )
    model_actors: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Model workers; null = chosen to fit. With engine local on GPUs, the number of GPUs to use.",
    )
    rows_per_block: int = Field(
        default=128,
        ge=1,
        le=1_000_000,
        description="On Ray: images per decode task at most, in whole batches; one batch with engine local.",
    )


class OutputSettings(Section):
    rows_per_file: int = Field(
        default=100_000, ge=1, le=100_000_000, description="Maximum number of rows per Parquet file."
    )
    flush_seconds: Seconds = Field(
        default=300.0, description="Maximum time between publications of finished captions, in seconds."
    )
    max_reject_rate: float = Field(
        default=0.1, ge=0, le=1, description="Maximum fraction of rejected images; above it, the job fails."
    )
    min_confidence: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Captions below this confidence are marked in the column `uncertain`; null = none are marked, "
        "and earlier marks stay.",
    )
    min_tried: int = Field(
        default=20, ge=1, le=2**31, description="max_reject_rate applies once this many images were tried."
    )
    journal_seconds: float = Field(
        default=5.0, gt=0, le=3600, description="Seconds of finished work that a killed run may lose."
    )
    grace_seconds: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="Seconds to finish the images in flight after SIGTERM or Ctrl-C.",
    )
    history: bool = Field(
        default=True, description="Keep captions in history/ when another text replaces them."
    )
    report: Location | None = Field(
        default=None, description="HTML file to write at the end of every run, see `nightcap report`."
    )


class S3Settings(Section):
    """Address of S3. Contains no secrets: each machine gets its credentials from the standard AWS chain."""

    endpoint_url: Endpoint | None = Field(
        default=None,
        description="http(s)://host[:port] of an S3-compatible store; null = AWS_ENDPOINT_URL, else AWS.",
    )
    region: str | None = Field(
        default=None, min_length=1, description="Region, such as eu-west-1; null = AWS_REGION."
    )
    anonymous: bool = Field(default=False, description="Read public buckets without credentials.")


class RaySettings(Section):
    address: Location | None = Field(
        default=None, description="Address of the cluster; null = RAY_ADDRESS, else this machine."
    )


class ProgressSettings(Section):
    interval_seconds: Seconds = Field(
        default=10.0, description="Seconds between progress lines if stderr is not a terminal."
    )


class MetricsSettings(Section):
    textfile: Location | None = Field(
        default=None, description="File for node_exporter's textfile collector, ending in .prom."
    )
    pushgateway: Endpoint | None = Field(default=None, description="http(s)://host[:port] of a Pushgateway.")


class JobConfig(Section):
    """Settings of `nightcap run`, `caption`, `serve`, and of all commands on an output."""

    renamed: ClassVar[Mapping[str, str]] = {
        "input.decode_seconds": "input.decode_timeout_seconds",
        "input.decode_memory": "input.decode_memory_bytes",
    }
    engine: EngineName = Field(
        default="auto",
        description="local = this machine without Ray; auto = ray for a cluster or several GPUs, else local.",
    )
    input: InputSettings = Field(
        default=InputSettings(), description="Image files: extensions and size limits."
    )
    model: ModelSettings = Field(
        default=ModelSettings(), description="The captioner, and its search for captions."
    )
    workers: WorkerSettings = Field(
        default=WorkerSettings(), description="Distribution of the work over the machine or the cluster."
    )
    output: OutputSettings = Field(
        default=OutputSettings(), description="Output: file sizes, intervals and the limit of rejects."
    )
    s3: S3Settings = Field(
        default=S3Settings(), description="S3. Credentials are read from the environment only."
    )
    ray: RaySettings = Field(default=RaySettings(), description="The Ray cluster.")
    progress: ProgressSettings = Field(
        default=ProgressSettings(), description="Progress shown while the job runs."
    )
    metrics: MetricsSettings = Field(
        default=MetricsSettings(), description="Destinations of the metrics of a run, for Prometheus."
    )
    serve: ServeSettings = Field(
        default=ServeSettings(), description="`nightcap serve`: address and limits of the HTTP service."
    )


class StoreConfig(Section):
    """Settings of commands that read or write bundles and data: `nightcap evaluate`, `quantize` and others."""

    s3: S3Settings = Field(
        default=S3Settings(), description="S3. Credentials are read from the environment only."
    )

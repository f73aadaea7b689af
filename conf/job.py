"""Every setting of a job: its type, range, default and one line of description. Those of training: conf/train.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from conf.base import Location, Section, with_overrides
from conf.captioner import Decoding

EXTENSIONS = ("jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")


def _extensions(value: object) -> object:
    """[".JPG", "png"] -> ("jpg", "png"), without repeats; "any" stays."""
    if value == "any":
        return value
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("must be any, or a list such as [jpg, png] that is not empty")
    found = [item.removeprefix(".").lower() if isinstance(item, str) else "" for item in value]
    for item, extension in zip(value, found, strict=True):
        if not re.fullmatch("[a-z0-9]+", extension):
            raise ValueError(f"{item!r} is no extension: use letters and digits, such as jpg")
    return tuple(dict.fromkeys(found))


def _endpoint(value: str) -> str:
    url = urlsplit(value)
    if url.scheme not in ("http", "https") or not url.hostname or "@" in value or url.query or url.fragment:
        raise ValueError("must be http(s)://host[:port] without user name, password or query")
    _ = url.port  # raises ValueError where the port is not a number
    return value


def _whole_if_many(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError("must be whole above 1; only one GPU can be shared")
    return value


Extensions = Annotated[tuple[str, ...] | Literal["any"], BeforeValidator(_extensions)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
Gpus = Annotated[float, AfterValidator(_whole_if_many)]


class ImageLimits(Section):
    """What decoding one image may cost. The defaults apply wherever no job says otherwise."""

    max_bytes: int = Field(
        default=64 * 2**20, ge=1, le=2**40, description="Bytes; a larger file is rejected."
    )
    # Not above Pillow's own limit, which holds for WebP and TIFF whatever is asked for here.
    max_pixels: int = Field(
        default=100_000_000, ge=1, le=178_956_970, description="Pixels; a larger image is rejected."
    )
    decode_timeout_seconds: int = Field(
        default=60, ge=1, le=86_400, description="Seconds that decoding one image may take."
    )
    decode_memory_bytes: int = Field(
        default=4 * 2**30,
        ge=2**29,
        le=2**40,
        description="Bytes of address space that decoding one image may take.",
    )


class InputSettings(ImageLimits):
    extensions: Extensions = Field(
        default=EXTENSIONS, description="Extensions taken as images; any = every object."
    )
    content_hash: bool = Field(
        default=False, description="Tell changed local files by a digest of all bytes, not by size and time."
    )
    max_unavailable: int = Field(
        default=1000,
        ge=1,
        le=2**31,
        description="Consecutive images that can't be read before the store counts as down.",
    )


@with_overrides(Decoding)
class ModelSettings(Section):
    bundle: Location = Field(
        default="flickr8k-mobilenetv2", description="Name of a shipped bundle, or path to one."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto = cuda where there is a GPU."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto = by device."
    )
    batch_size: int = Field(
        default=32, ge=1, le=4096, description="Images captioned at once by one model actor."
    )


class WorkerSettings(Section):
    decode_cpus: float | None = Field(
        default=None,
        gt=0,
        le=1024,
        description="CPUs that one decode task reserves; null = decided from the cluster.",
    )
    model_cpus: float | None = Field(
        default=None, gt=0, le=1024, description="CPUs of one model actor; null = decided from the machine."
    )
    model_gpus: Gpus = Field(
        default=1.0, gt=0, le=64, description="GPUs of one model actor on cuda; 0.5 = two actors share one."
    )
    model_actors: int | None = Field(
        default=None, ge=1, le=10_000, description="Number of model actors; null = decided from the cluster."
    )
    rows_per_block: int = Field(default=128, ge=1, le=1_000_000, description="Images listed per decode task.")


class OutputSettings(Section):
    rows_per_file: int = Field(
        default=100_000, ge=1, le=100_000_000, description="Captions per Parquet file, at most."
    )
    flush_seconds: float = Field(
        default=300.0,
        gt=0,
        le=86_400,
        description="Seconds; finished captions are published at least this often.",
    )
    max_reject_rate: float = Field(
        default=0.1, ge=0, le=1, description="Share of images; more rejects fail the job."
    )
    min_tried: int = Field(
        default=20, ge=1, le=2**31, description="Images tried before max_reject_rate applies."
    )
    journal_seconds: float = Field(
        default=5.0, gt=0, le=3600, description="Seconds of finished work that a killed run may lose."
    )
    grace_seconds: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="Seconds to finish what is in flight after SIGTERM or Ctrl-C.",
    )


class S3Settings(Section):
    """Where S3 is. Holds no secret: credentials come from the standard AWS chain of each machine."""

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
        default=None, description="Cluster to join; null = RAY_ADDRESS, else this machine."
    )


class ProgressSettings(Section):
    interval_seconds: float = Field(
        default=10.0, gt=0, le=86_400, description="Seconds between progress lines when not on a terminal."
    )


class MetricsSettings(Section):
    textfile: Location | None = Field(
        default=None, description="File for node_exporter's textfile collector, ending in .prom."
    )
    pushgateway: Endpoint | None = Field(default=None, description="http(s)://host[:port] of a Pushgateway.")


class JobConfig(Section):
    """`nightcap run`, `caption`, and the commands that look after an output."""

    renamed: ClassVar[Mapping[str, str]] = {
        "input.decode_seconds": "input.decode_timeout_seconds",
        "input.decode_memory": "input.decode_memory_bytes",
    }
    input: InputSettings = Field(
        default=InputSettings(), description="Which objects are images, and how large one may be."
    )
    model: ModelSettings = Field(
        default=ModelSettings(), description="The captioner, and how it searches for captions."
    )
    workers: WorkerSettings = Field(
        default=WorkerSettings(), description="How the work is spread over the cluster."
    )
    output: OutputSettings = Field(default=OutputSettings(), description="What is written, and when.")
    s3: S3Settings = Field(
        default=S3Settings(), description="Object store; credentials are taken from the environment only."
    )
    ray: RaySettings = Field(default=RaySettings(), description="The Ray cluster.")
    progress: ProgressSettings = Field(
        default=ProgressSettings(), description="What is shown while the job runs."
    )
    metrics: MetricsSettings = Field(
        default=MetricsSettings(), description="Where Prometheus finds the figures of a run."
    )


class StoreConfig(Section):
    """The commands that only read and write files: `evaluate`, `compare`, `calibrate`, `ensemble`, `bundle`."""

    s3: S3Settings = Field(
        default=S3Settings(), description="Object store; credentials are taken from the environment only."
    )

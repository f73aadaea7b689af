"""Every knob: its type, range, default and one line of description.

Two trees, `JobConfig` (`nightcap run`, `caption`) and `TrainConfig` (`nightcap train`). Values are taken
strictly: "3" is no integer, true is no number, nan is no float; only an integer may stand for a float.
Unknown keys are refused, and a configuration never changes once it is made.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

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


def _no_credentials(value: str) -> str:
    """What is configured is printed and recorded, so no URL in it may hold a user name or password."""
    if "://" in value and "@" in urlsplit(value).netloc:
        raise ValueError("must hold no user name or password; credentials belong in the environment")
    return value


def _endpoint(value: str) -> str:
    url = urlsplit(value)
    if url.scheme not in ("http", "https") or not url.hostname or "@" in value or url.query or url.fragment:
        raise ValueError("must be http(s)://host[:port] without user name, password or query")
    _ = url.port  # raises ValueError where the port is no number
    return value


def _whole_if_many(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError("must be whole above 1; only one GPU can be shared")
    return value


def _not_empty(value: tuple[Stage, ...]) -> tuple[Stage, ...]:
    if not value:
        raise ValueError("must hold at least one stage")
    return value


Extensions = Annotated[tuple[str, ...] | Literal["any"], BeforeValidator(_extensions)]
Location = Annotated[str, Field(min_length=1), AfterValidator(_no_credentials)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
Gpus = Annotated[float, AfterValidator(_whole_if_many)]
Mean = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class Input(Section):
    extensions: Extensions = Field(
        default=EXTENSIONS, description="Extensions taken as images; any = every object."
    )
    max_bytes: int = Field(
        default=64 * 2**20, ge=1, le=2**40, description="Bytes; a larger file is rejected."
    )
    max_pixels: int = Field(
        default=100_000_000, ge=1, le=2**40, description="Pixels; a larger image is rejected."
    )


class Model(Section):
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
    beam_width: int | None = Field(
        default=None, ge=1, le=50, description="Beams per image; null = the bundle's own."
    )
    max_length: int | None = Field(
        default=None, ge=1, le=100, description="Words per caption; null = the bundle's own."
    )
    length_penalty: float | None = Field(
        default=None, ge=0, le=5, description="0 favours short captions; null = the bundle's own."
    )


class Workers(Section):
    decode_cpus: float = Field(default=1.0, gt=0, le=1024, description="CPUs that one decode task reserves.")
    model_cpus: float | None = Field(
        default=None, gt=0, le=1024, description="CPUs of one model actor; null = decided from the machine."
    )
    model_gpus: Gpus = Field(
        default=1.0, gt=0, le=64, description="GPUs of one model actor on cuda; 0.5 = two actors share one."
    )
    model_actors: int | None = Field(
        default=None, ge=1, le=10_000, description="Number of model actors; null = decided from the cluster."
    )
    rows_per_block: int = Field(default=256, ge=1, le=1_000_000, description="Images listed per decode task.")


class Output(Section):
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


class S3(Section):
    endpoint_url: Endpoint | None = Field(
        default=None, description="http(s)://host[:port] of an S3-compatible store; null = AWS."
    )
    region: str | None = Field(
        default=None, min_length=1, description="Region, such as eu-west-1; null = environment's."
    )
    anonymous: bool = Field(default=False, description="Read public buckets without credentials.")


class Ray(Section):
    address: Location | None = Field(
        default=None, description="Cluster to join; null = RAY_ADDRESS, else local."
    )


class Progress(Section):
    interval_seconds: float = Field(
        default=10.0, gt=0, le=86_400, description="Seconds between progress lines when not on a terminal."
    )


class JobConfig(Section):
    """`nightcap run` and `nightcap caption`; `conf/job.yaml` spells out these very defaults."""

    input: Input = Field(default=Input(), description="Which objects are images, and how large one may be.")
    model: Model = Field(default=Model(), description="The captioner and how it decodes.")
    workers: Workers = Field(default=Workers(), description="How the work is spread over the cluster.")
    output: Output = Field(default=Output(), description="What is written, and when.")
    s3: S3 = Field(default=S3(), description="Object store; credentials are taken from the environment only.")
    ray: Ray = Field(default=Ray(), description="The Ray cluster.")
    progress: Progress = Field(default=Progress(), description="What is told while the job runs.")


class Data(Section):
    train: Location | None = Field(default=None, description="Training captions, JSONL; has to be given.")
    dev: Location | None = Field(
        default=None, description="Captions to choose the best epoch by, JSONL; to be given."
    )
    min_freq: int = Field(
        default=5, ge=1, le=1_000_000, description="Times a word must occur to enter the vocabulary."
    )
    max_length: int = Field(default=22, ge=1, le=100, description="Words kept of a caption.")


class Preprocessing(Section):
    width: int = Field(default=224, ge=32, le=1024, description="Pixels.")
    height: int = Field(default=224, ge=32, le=1024, description="Pixels.")
    resize: Literal["squash"] = Field(
        default="squash", description="squash = to width × height, whatever the shape."
    )
    interpolation: Literal["bilinear"] = Field(default="bilinear", description="How pixels are resampled.")
    mean: tuple[Mean, Mean, Mean] = Field(
        default=(0.485, 0.456, 0.406), strict=False, description="Red, green, blue; subtracted (ImageNet's)."
    )
    std: tuple[Deviation, Deviation, Deviation] = Field(
        default=(0.229, 0.224, 0.225), strict=False, description="Red, green, blue; divided by (ImageNet's)."
    )


class Encoder(Section):
    name: Literal["mobilenet_v2"] = Field(
        default="mobilenet_v2", description="Architecture of the image encoder."
    )
    weights: Location | None = Field(
        default=None, description="Local .pth or .safetensors; null = random weights."
    )


class Decoder(Section):
    name: Literal["attention"] = Field(default="attention", description="LSTM that attends to image regions.")
    embed_size: int = Field(default=256, ge=1, le=8192, description="Width of a word's embedding.")
    hidden_size: int = Field(default=512, ge=1, le=8192, description="Width of the LSTM's state.")
    attention_size: int = Field(default=256, ge=1, le=8192, description="Width of the attention layer.")
    dropout: float = Field(default=0.4, ge=0, lt=1, description="Share of units dropped while training.")


class Stage(Section):
    epochs: int = Field(ge=1, le=10_000, description="Passes over the training captions.")
    lr: float = Field(gt=0, le=1, description="Peak learning rate of the decoder.")
    encoder_lr: float = Field(
        default=0.0, ge=0, le=1, description="Peak learning rate of the encoder; 0 = frozen."
    )
    batch_images: int = Field(
        default=32, ge=1, le=65_536, description="Images per step, each with all its captions."
    )
    warmup_steps: int = Field(
        default=0, ge=0, le=1_000_000, description="Steps over which the rates rise from 0."
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Probability spread over the other words."
    )
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="Decoupled weight decay.")
    clip_norm: float = Field(default=5.0, gt=0, le=1000, description="Largest norm of a step's gradient.")
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="Decay of the weights' moving average; null = none."
    )
    augment: bool = Field(default=False, description="Flip and crop images; needs encoder_lr above 0.")

    @model_validator(mode="after")
    def _augment_needs_pixels(self) -> Stage:
        if self.augment and self.encoder_lr == 0:
            raise ValueError("augment needs encoder_lr above 0: a frozen encoder's features are cached")
        return self


class Decoding(Section):
    beam_width: int = Field(default=3, ge=1, le=50, description="Beams per image; 1 = greedy.")
    max_length: int = Field(default=20, ge=1, le=100, description="Words per caption.")
    length_penalty: float = Field(default=0.7, ge=0, le=5, description="0 favours short captions.")


class TrainConfig(Section):
    """`nightcap train`; preprocessing and decoding travel with the weights in the bundle."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9._-]*$", description="Name of the bundle that is made.")
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="Seed of every random choice.")
    data: Data = Field(default=Data(), description="Captions to learn from.")
    preprocessing: Preprocessing = Field(default=Preprocessing(), description="From file to tensor.")
    encoder: Encoder = Field(default=Encoder(), description="Image -> features.")
    decoder: Decoder = Field(default=Decoder(), description="Features -> words.")
    stages: Annotated[tuple[Stage, ...], AfterValidator(_not_empty)] = Field(
        strict=False, description="Run one after the other."
    )
    decoding: Decoding = Field(default=Decoding(), description="How the trained model writes captions.")

"""Every knob of training: its type, range, default and one line of description."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from conf.base import Location, Section

Mean = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(gt=0, le=1)]


class Data(Section):
    train: Location | None = Field(
        default=None, description="Training captions, FILE or FILE#SPLIT, see docs/data.md; has to be given."
    )
    dev: Location | None = Field(
        default=None, description="Captions to choose the best epoch by, FILE or FILE#SPLIT; to be given."
    )
    images: Location | None = Field(
        default=None, description="Folder of the pictures; null = where those of the format usually lie."
    )
    min_freq: int = Field(
        default=5, ge=1, le=1_000_000, description="Times a word must occur to enter the vocabulary."
    )
    max_length: int = Field(default=22, ge=1, le=100, description="Words kept of a caption.")


class Preprocessing(Section):
    width: int = Field(default=224, ge=32, le=1024, description="Pixels.")
    height: int = Field(default=224, ge=32, le=1024, description="Pixels.")
    mean: tuple[Mean, Mean, Mean] = Field(
        default=(0.485, 0.456, 0.406), strict=False, description="Red, green, blue; subtracted (ImageNet's)."
    )
    std: tuple[Deviation, Deviation, Deviation] = Field(
        default=(0.229, 0.224, 0.225), strict=False, description="Red, green, blue; divided by (ImageNet's)."
    )


class Encoder(Section):
    name: str = Field(
        default="mobilenet_v2",
        pattern="^[a-z][a-z0-9_]{0,49}$",
        description="mobilenet_v2, resnet34, resnet50, densenet201, xception, or any other that torchvision has.",
    )
    pooled: bool = Field(default=False, description="One vector an image instead of a grid of them.")
    weights: Location | None = Field(
        default=None,
        description="A .pth or .safetensors file or URL, a name such as IMAGENET1K_V2 to download, or null = random.",
    )


class Decoder(Section):
    name: Literal["attention", "inject", "merge"] = Field(
        default="attention",
        description="attention looks at the grid; inject starts from the image; merge adds it to the text.",
    )
    embed_size: int = Field(default=256, ge=1, le=8192, description="Width of a word's embedding.")
    hidden_size: int = Field(default=512, ge=1, le=8192, description="Width of the LSTM's state.")
    layers: int | None = Field(
        default=None,
        ge=1,
        le=4,
        description="LSTM layers, attention (1 or 2; null = 2) and inject (null = 1).",
    )
    attention_size: int | None = Field(
        default=None, ge=1, le=8192, description="Width of the attention layer, attention only; null = 256."
    )
    batch_norm: bool | None = Field(
        default=None, description="Normalise the image's embedding over the batch, inject only; null = false."
    )
    dropout: float = Field(default=0.4, ge=0, lt=1, description="Share of units dropped while training.")

    @model_validator(mode="after")
    def _only_what_it_has(self) -> Decoder:
        for knob in ("layers", "attention_size", "batch_norm"):
            if getattr(self, knob) is not None and knob not in _KNOBS[self.name]:
                has = (
                    f"has {', '.join(sorted(_KNOBS[self.name]))}"
                    if _KNOBS[self.name]
                    else "has no such knobs"
                )
                raise ValueError(f"the {self.name} decoder has no {knob}, it {has}; leave it null")
        return self


_KNOBS = {"attention": {"layers", "attention_size"}, "inject": {"layers", "batch_norm"}, "merge": set[str]()}


class Features(Section):
    views: int = Field(
        default=2,
        ge=1,
        le=20,
        description="Views of each image cached for a frozen encoder: plain, mirrored, then augmented.",
    )
    cache: str | None = Field(
        default=None, min_length=1, description="Folder of the cached features; null = below the output."
    )


class Stage(Section):
    objective: Literal["cross_entropy", "self_critical"] = Field(
        default="cross_entropy", description="The next word, or the CIDEr-D of sampled captions."
    )
    epochs: int = Field(ge=1, le=10_000, description="Passes over the training captions.")
    patience: int | None = Field(
        default=None, ge=1, le=10_000, description="Epochs without a better dev CIDEr before the stage ends."
    )
    lr: float = Field(gt=0, le=1, description="Peak learning rate of the decoder.")
    encoder_lr: float = Field(
        default=0.0, ge=0, le=1, description="Peak learning rate of the encoder; 0 = frozen."
    )
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="How the rates go on after the warm-up."
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
    scheduled_sampling: float = Field(
        default=0.0, ge=0, lt=1, description="Share of its own words read at the stage's end, from 0 on."
    )
    samples: int = Field(
        default=5, ge=2, le=100, description="Captions drawn of an image, self_critical only."
    )
    cross_entropy: float = Field(
        default=0.2, ge=0, le=100, description="Weight of the cross-entropy mixed in, self_critical only."
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
    min_length: int = Field(default=0, ge=0, le=100, description="Least words per caption.")
    block_ngram: int = Field(
        default=0, ge=0, le=10, description="No run of so many words twice in a caption; 0 = no such rule."
    )
    consensus: bool = Field(
        default=False, description="Of the beam, the caption most like the others; wants 10 beams or so."
    )


def _not_empty(value: tuple[Stage, ...]) -> tuple[Stage, ...]:
    if not value:
        raise ValueError("must hold at least one stage")
    return value


class Card(Section):
    data: str = Field(
        default="not recorded", max_length=2000, description="What it was trained on, whose it is."
    )
    encoder: str = Field(default="not recorded", max_length=2000, description="Where the encoder came from.")
    licence: str = Field(default="not recorded", max_length=2000, description="Terms of the weights.")


class TrainConfig(Section):
    """`nightcap train`; preprocessing and decoding travel with the weights in the bundle."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9._-]*$", description="Name of the bundle that is made.")
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="Seed of every random choice.")
    card: Card = Field(default=Card(), description="Texts for the model card.")
    data: Data = Field(default=Data(), description="Captions to learn from.")
    preprocessing: Preprocessing = Field(default=Preprocessing(), description="From file to tensor.")
    encoder: Encoder = Field(default=Encoder(), description="Image -> features.")
    decoder: Decoder = Field(default=Decoder(), description="Features -> words.")
    features: Features = Field(default=Features(), description="The cache of a frozen encoder's features.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto = bf16 on GPUs that compute in it, else fp32."
    )
    stages: Annotated[tuple[Stage, ...], AfterValidator(_not_empty)] = Field(
        strict=False, description="Run one after the other."
    )
    decoding: Decoding = Field(default=Decoding(), description="How the trained model writes captions.")

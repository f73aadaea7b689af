"""The settings of training, each with type, range, default and description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from conf.base import ContradictionError, Location, Section
from conf.captioner import (
    ENGLISH,
    AttentionSettings,
    DecoderSettings,
    Decoding,
    EncoderSettings,
    InjectSettings,
    LanguageTag,
    Preprocessing,
    check_decoding,
)
from conf.job import S3Settings


class SetSettings(Section):
    """One data set of several that are trained on together."""

    name: str = Field(
        pattern="^[a-z0-9][a-z0-9._-]*$", description="Name of the set, in scores and messages."
    )
    train: Location | None = Field(
        default=None, description="Training captions, FILE or FILE#SPLIT, see docs/data.md; required."
    )
    dev: Location | None = Field(
        default=None, description="Captions for choosing the best epoch, FILE or FILE#SPLIT; required."
    )
    images: Location | None = Field(
        default=None, description="Folder of the images; null = the usual folder of the format."
    )
    weight: float = Field(
        default=1.0, gt=0, le=1_000_000, description="Share of each batch, relative to the other sets."
    )
    card: str = Field(
        default="not recorded",
        max_length=2000,
        description="Text for the model card: who wrote the captions, such as people or a template.",
    )


class DataSettings(Section):
    train: Location | None = Field(
        default=None, description="Training captions, FILE or FILE#SPLIT, see docs/data.md; required."
    )
    dev: Location | None = Field(
        default=None,
        description="Captions for choosing the best epoch, FILE or FILE#SPLIT; required.",
    )
    images: Location | None = Field(
        default=None, description="Folder of the images; null = the usual folder of the format."
    )
    sets: tuple[SetSettings, ...] = Field(
        default=(), strict=False, description="Several data sets, instead of train, dev and images."
    )
    language: LanguageTag = Field(
        default=ENGLISH,
        description="Language of the captions by BCP 47, such as en, zh or ar; see docs/languages.md.",
    )
    min_freq: int = Field(
        default=5,
        ge=1,
        le=1_000_000,
        description="Words that occur less often, in all sets together, are not in the vocabulary.",
    )
    new_words: bool = Field(
        default=False,
        description="With --start: add the frequent words of the training captions that the bundle lacks.",
    )
    max_length: int = Field(
        default=22,
        ge=1,
        le=100,
        description="Words per caption, or characters in languages without spaces; the rest is cut off.",
    )

    @property
    def parts(self) -> tuple[SetSettings, ...]:
        """The data sets. The only one has an empty name if it is not in `sets`."""
        single = SetSettings.model_construct(name="", train=self.train, dev=self.dev, images=self.images)
        return self.sets or (single,)

    @model_validator(mode="after")
    def _one_or_several(self) -> DataSettings:
        for key in ("train", "dev", "images"):
            if self.sets and getattr(self, key) is not None:
                raise ContradictionError([key], getattr(self, key), "can't be given together with data.sets")
        names = [part.name for part in self.sets]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise ContradictionError(
                    ["sets", number, "name"], name, "must differ from those of other sets"
                )
        return self


class TrainedEncoder(EncoderSettings):
    weights: Location | None = Field(
        default=None,
        description="A .pth or .safetensors file or URL, a bundle, or torchvision's name such as IMAGENET1K_V2; "
        "null = random.",
    )


class FeatureSettings(Section):
    views: int = Field(
        default=2,
        ge=1,
        le=20,
        description="Cached views per image for a frozen encoder: the first is plain, the second mirrored, "
        "the others augmented.",
    )
    cache: str | None = Field(
        default=None, min_length=1, description="Folder of the cached features; null = in the output folder."
    )


class StageSettings(Section):
    objective: Literal["cross_entropy", "self_critical"] = Field(
        default="cross_entropy",
        description="Cross-entropy of the next word, or CIDEr-D of sampled captions.",
    )
    epochs: int = Field(
        ge=1, le=10_000, description="Passes over the training images; of several sets, over as many images."
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="End the stage after this many epochs without a better dev CIDEr.",
    )
    decoder_lr: float = Field(gt=0, le=1, description="Peak learning rate of the decoder.")
    encoder_lr: float = Field(
        default=0.0, ge=0, le=1, description="Peak learning rate of the encoder; 0 = frozen."
    )
    frozen_layers: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="Layers of the encoder that stay frozen, counted from the image; needs encoder_lr above 0. "
        "A layer is a child module of the trunk, see docs/recipes.md.",
    )
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="Schedule of the learning rates after the warm-up."
    )
    batch_images: int = Field(
        default=32, ge=1, le=65_536, description="Images per step, each with 5 captions."
    )
    warmup_steps: int = Field(
        default=0, ge=0, le=1_000_000, description="Steps in which the learning rates rise linearly from 0."
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Target probability spread evenly over all words."
    )
    scheduled_sampling: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Fraction of input words sampled from the model; rises from 0 to this value over the stage.",
    )
    samples: int = Field(
        default=5, ge=2, le=100, description="Captions sampled per image; self_critical only."
    )
    cross_entropy: float = Field(
        default=0.2, ge=0, le=100, description="Weight of an added cross-entropy loss; self_critical only."
    )
    bleu: float = Field(
        default=0.0, ge=0, le=100, description="Weight of BLEU-4 added to the reward; self_critical only."
    )
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="Decoupled weight decay.")
    clip_norm: float = Field(
        default=5.0,
        gt=0,
        le=1000,
        description="Maximum norm of the gradient; larger gradients are scaled down.",
    )
    ema_decay: float | None = Field(
        default=None, gt=0, lt=1, description="Decay of the moving average of the weights; null = no average."
    )
    augment: bool = Field(default=False, description="Flip and crop images; needs encoder_lr above 0.")

    @model_validator(mode="after")
    def _settings_of_a_trained_encoder(self) -> StageSettings:
        if self.augment and self.encoder_lr == 0:
            reason = "needs encoder_lr above 0: a frozen encoder's features are cached"
            raise ContradictionError(["augment"], True, reason)
        if self.frozen_layers and self.encoder_lr == 0:
            reason = "needs encoder_lr above 0: otherwise the whole encoder is frozen"
            raise ContradictionError(["frozen_layers"], self.frozen_layers, reason)
        return self


def _not_empty(value: tuple[StageSettings, ...]) -> tuple[StageSettings, ...]:
    if not value:
        raise ValueError("must contain at least one stage")
    return value


class CardSettings(Section):
    data: str = Field(
        default="not recorded",
        max_length=2000,
        description="Training data and who owns it.",
    )
    encoder: str = Field(
        default="not recorded", max_length=2000, description="Where the encoder's weights come from."
    )
    licence: str = Field(default="not recorded", max_length=2000, description="Licence of the weights.")


class TrainConfig(Section):
    """Settings of `nightcap train`. Preprocessing, architecture and decoding are written to the bundle."""

    renamed: ClassVar[Mapping[str, str]] = {
        "stages.#.lr": "stages.#.decoder_lr",
        "stages.#.ema": "stages.#.ema_decay",
        "card.language": "data.language",
    }
    name: str = Field(
        default="captioner",
        pattern="^[a-z0-9][a-z0-9._-]*$",
        max_length=100,
        description="Name of the new bundle; without one, and with a shipped recipe, that of its folder.",
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="Seed of all random numbers.")
    card: CardSettings = Field(
        default=CardSettings(), description="Texts for the model card: what Nightcap can't know."
    )
    data: DataSettings = Field(default=DataSettings(), description="Training and dev captions.")
    preprocessing: Preprocessing = Field(
        default=Preprocessing(), description="From an image to the encoder's input."
    )
    encoder: TrainedEncoder = Field(default=TrainedEncoder(), description="From the input to features.")
    decoder: DecoderSettings = Field(
        default=AttentionSettings(), description="From features to words: attention, inject or merge."
    )
    features: FeatureSettings = Field(
        default=FeatureSettings(), description="The cache of a frozen encoder's features."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto = bf16 on GPUs that support it, else fp32."
    )
    stages: Annotated[tuple[StageSettings, ...], AfterValidator(_not_empty)] = Field(
        strict=False, description="Training stages, in order."
    )
    decoding: Annotated[Decoding, AfterValidator(check_decoding)] = Field(
        default=Decoding(), description="The trained model's search for captions."
    )
    s3: S3Settings = Field(
        default=S3Settings(), description="S3. Credentials are read from the environment only."
    )

    @model_validator(mode="after")
    def _batch_norm_needs_batches(self) -> TrainConfig:
        if isinstance(self.decoder, InjectSettings) and self.decoder.batch_norm:
            for number, stage in enumerate(self.stages):
                if stage.batch_images == 1:
                    keys: list[str | int] = ["stages", number, "batch_images"]
                    raise ContradictionError(keys, 1, "must be at least 2 with decoder.batch_norm")
        return self

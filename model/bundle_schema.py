"""The schema of a bundle's `config.json`, which is validated before anything uses it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from conf.base import Section
from conf.captioner import ENGLISH, Architecture, Decoding, LanguageTag, Preprocessing

EVIDENCE = (
    "mean_logprob",
    "min_logprob",
    "unsure_share",  # share of tokens with a probability below 0.2
    "opening_logprob",  # sum over the first four tokens, divided by four; tokens that a caption lacks count 0
    "margin",  # score of the best hypothesis minus that of the second
    "spread",  # score of the best hypothesis minus that of the last
    "beam_entropy",  # of the posterior over the hypotheses, nats
    "agreement",  # share of tokens that the other hypotheses have in common with the best
    "log_length",
    "entropy",  # mean over the tokens of the entropy of their distribution, nats
    "rarity",  # mean logarithm of the place of the words in the vocabulary: by frequency, then those added later
)
"""The features of a calibrated confidence, in the order of the numbers in a bundle."""

SQUARED = ("mean_logprob", "entropy")
"""Features whose squares are features too."""

MIN_FAMILIAR = 1e-3
"""The smallest `familiar` of a calibration. Below it, images differ from the centres by rounding only."""

NAME = "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""The pattern of a bundle's name."""

Number = Annotated[float, Field(ge=-1e6, le=1e6)]


class Calibration(Section):
    """A logistic model of the confidence: p = sigmoid(bias + weights · [z, z²]), see `model.search.confidence`.

    z is the evidence, standardized by `mean` and `deviation`; z² are the squares of the features `SQUARED`. The model
    is valid for the `decoding` settings it was fitted with. It was fitted on `images` images, where a caption counted
    as agreeing with people's captions if its CIDEr-D was at least `threshold`.

    In a bundle with centres of the training images, p is lowered for images whose novelty is above `familiar`, and is
    0 from a novelty of `unfamiliar` · `familiar` on.
    """

    evidence: tuple[str, ...] = Field(strict=False)
    mean: tuple[Number, ...] = Field(strict=False)
    deviation: tuple[Annotated[float, Field(gt=1e-12, le=1e6)], ...] = Field(strict=False)
    weights: tuple[Number, ...] = Field(strict=False)
    bias: Number
    threshold: Annotated[float, Field(gt=0, le=10)]
    decoding: Decoding
    images: Annotated[int, Field(ge=1)]
    familiar: Annotated[float, Field(ge=MIN_FAMILIAR, le=2)] | None = None
    # This default must never change: it holds for the bundles that were written before there was this key.
    unfamiliar: Annotated[float, Field(ge=1.01, le=100)] = 1.3

    @model_validator(mode="after")
    def _sizes_fit(self) -> Calibration:
        count = len(EVIDENCE)
        sizes = [len(part) for part in (self.mean, self.deviation, self.weights)]
        if self.evidence != EVIDENCE or sizes != [count, count, count + len(SQUARED)]:
            raise ValueError(
                f"calibration must be for the evidence {', '.join(EVIDENCE)}; its sizes are {sizes}"
            )
        return self


class NoveltyConfig(Section):
    """The centres of the training images: the hash of their file, and the number of images they were found from."""

    images: Annotated[int, Field(ge=1)]
    sha256: str


class Scores(Section):
    """Figures by name: `dev` for the captions, `confidence` for the calibration (by cross-validation).

    `dev_by` is the command that measured `dev`: `train` on the data that the best epoch was chosen on, `calibrate` on
    the data given to it. `precision` has the figures of each precision, see `model.evaluation.precision`.
    """

    dev: dict[str, float] = Field(default_factory=dict)
    dev_by: Literal["train", "calibrate"] = "train"
    confidence: dict[str, float] = Field(default_factory=dict)
    precision: dict[str, dict[str, float]] = Field(default_factory=dict)


class Int8Config(Section):
    """The quantized encoder: hashes of its files by name, and the number of images that gave the ranges of values."""

    images: Annotated[int, Field(ge=1)]
    sha256: dict[str, str]


FORMAT_1 = {
    "preprocessing": {"width", "height", "mean", "std"},
    "decoding": {
        *("beam_width", "max_length", "length_penalty", "min_length", "block_ngram", "consensus"),
    },
}
"""Keys that every version has written. A file without one of them is damaged."""


class BundleConfig(Section):
    """The content of `config.json`. A key that an older version did not write takes its default.

    `nightcap` is the version that wrote the file, `training` the provenance of the weights, and `sha256` the hashes
    of the other files by name.
    """

    format: int
    nightcap: str = "0.1"
    name: str = Field(pattern=NAME)
    language: LanguageTag = ENGLISH
    architecture: Architecture
    preprocessing: Preprocessing
    decoding: Decoding
    calibration: Calibration | None = None
    novelty: NoveltyConfig | None = None
    int8: Int8Config | None = None
    scores: Scores = Scores()
    training: dict[str, Any] = Field(default_factory=dict)
    sha256: dict[str, str]

    @model_validator(mode="after")
    def _states_format_1(self) -> BundleConfig:
        stated: dict[str, Section] = {"preprocessing": self.preprocessing, "decoding": self.decoding}
        if self.calibration is not None:
            stated["calibration.decoding"] = self.calibration.decoding
        for name, section in stated.items():
            missing = FORMAT_1[name.rpartition(".")[2]] - section.model_fields_set
            if missing:
                raise ValueError(f"{name} lacks {', '.join(sorted(missing))}")
        return self

    @model_validator(mode="after")
    def _novelty_has_centres(self) -> BundleConfig:
        familiar = None if self.calibration is None else self.calibration.familiar
        if familiar is not None and self.novelty is None:
            raise ValueError("the calibration reads the novelty of images, but the bundle has no centres")
        return self

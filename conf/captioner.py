"""Settings of a captioner, shared by recipes (conf/train.py), bundles (their config.json) and jobs (conf/job.py).

`Preprocessing` is the input of the network, `Architecture` its layers, and `Decoding` the search for captions. Each
setting is declared once, here. A bundle written before a setting existed gets its default.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from conf.base import ContradictionError, Section

ENGLISH = "en"
"""The language of bundles that don't state one: version 0.1 knew no other."""

# RFC 5646, section 2.1, without names of four to eight letters for languages: none is registered.
_LANGUAGE_TAG = re.compile(
    r"""
    [a-z]{2,3} (-[a-z]{3}){0,3}             # language: zh, zh-yue
    (-[a-z]{4})?                            # script: Hans
    (-([a-z]{2}|\d{3}))?                    # region: CN, 419
    (-([a-z\d]{5,8}|\d[a-z\d]{3}))*         # variants
    (-[a-wyz\d](-[a-z\d]{2,8})+)*           # extensions
    (-x(-[a-z\d]{1,8})+)?                   # private use
    """,
    re.VERBOSE | re.ASCII,
)


def language_tag(value: str) -> str:
    """The tag in the usual case: `ZH-hans-cn` -> `zh-Hans-CN`. Raises ValueError for what is no tag."""
    if not _LANGUAGE_TAG.fullmatch(value.lower()):
        raise ValueError("must be a language tag by BCP 47, such as en, pt-BR, ar or zh-Hans")
    first, *others = value.lower().split("-")
    singleton = next((i for i, part in enumerate(others) if len(part) == 1), len(others))
    cased = [{2: str.upper, 4: str.title}.get(len(part), str)(part) for part in others[:singleton]]
    return "-".join([first, *cased, *others[singleton:]])


LanguageTag = Annotated[str, Field(max_length=100), AfterValidator(language_tag)]
"""A language by BCP 47, see `model.text.language`."""

Mean = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(gt=0, le=1)]


class Preprocessing(Section):
    """From the pixels of an image to the input of the encoder; see docs/image-policy.md.

    Images are resized to `width` × `height` pixels without keeping their aspect ratio (bilinear, with antialiasing),
    scaled to 0…1, and normalized per RGB channel.
    """

    width: int = Field(default=224, ge=32, le=1024, description="Pixels.")
    height: int = Field(default=224, ge=32, le=1024, description="Pixels.")
    mean: tuple[Mean, Mean, Mean] = Field(
        default=(0.485, 0.456, 0.406),
        strict=False,
        description="Subtracted from red, green and blue; default: ImageNet's.",
    )
    std: tuple[Deviation, Deviation, Deviation] = Field(
        default=(0.229, 0.224, 0.225),
        strict=False,
        description="Divisors of red, green and blue; default: ImageNet's.",
    )


class EncoderSettings(Section):
    name: str = Field(
        default="mobilenet_v2",
        pattern="^[a-z][a-z0-9_]{0,49}$",
        description="mobilenet_v2, resnet34, resnet50, densenet201, xception, or another torchvision model.",
    )
    pooled: bool = Field(default=False, description="One vector per image instead of a grid of vectors.")


class _Decoder(Section):
    embed_size: int = Field(default=256, ge=1, le=8192, description="Size of a word's embedding.")
    hidden_size: int = Field(default=512, ge=1, le=8192, description="Size of the LSTM's state.")
    dropout: float = Field(default=0.4, ge=0, lt=1, description="Dropout rate in training.")


class AttentionSettings(_Decoder):
    """A decoder that attends to the grid of vectors for each word."""

    name: Literal["attention"] = Field(default="attention", description="Attends to the grid for each word.")
    layers: int = Field(default=2, ge=1, le=2, description="LSTM layers.")
    attention_size: int = Field(default=256, ge=1, le=8192, description="Size of the attention layer.")


class InjectSettings(_Decoder):
    """A decoder whose LSTM reads the image before the first word."""

    name: Literal["inject"] = Field(default="inject", description="Reads the image before the first word.")
    layers: int = Field(default=1, ge=1, le=4, description="LSTM layers.")
    batch_norm: bool = Field(default=False, description="Normalize the image's embedding over the batch.")


class MergeSettings(_Decoder):
    """A decoder that adds the image to the output of the LSTM."""

    name: Literal["merge"] = Field(default="merge", description="Adds the image to the output of the LSTM.")


def _decoder_kind(value: Any) -> str:
    return str(value.get("name", "attention") if isinstance(value, dict) else getattr(value, "name", ""))


def _without_nulls(value: object) -> object:
    """Drop nulls: version 0.1 wrote them for settings that a decoder doesn't have."""
    if not isinstance(value, dict | _Decoder):
        raise ValueError("must be a section (a mapping of keys)")
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


UNKNOWN_DECODER = "unknown_decoder"
DecoderSettings = Annotated[
    Annotated[AttentionSettings, Tag("attention")]
    | Annotated[InjectSettings, Tag("inject")]
    | Annotated[MergeSettings, Tag("merge")],
    Discriminator(
        _decoder_kind,
        custom_error_type=UNKNOWN_DECODER,
        custom_error_message="must be 'attention', 'inject' or 'merge'",
    ),
    BeforeValidator(_without_nulls),
]
"""Settings of one decoder; `name` selects the class."""


class SingleArchitecture(Section):
    """One encoder and one decoder."""

    encoder: EncoderSettings
    decoder: DecoderSettings

    @property
    def attends(self) -> bool:
        """Whether the decoder attends to a grid for each word, so that its attention can be shown."""
        return self.decoder.name == "attention" and not self.encoder.pooled


class EnsembleArchitecture(Section):
    """Two or more captioners whose word probabilities are averaged."""

    members: Annotated[tuple[SingleArchitecture, ...], Field(min_length=2, max_length=20, strict=False)]

    @property
    def attends(self) -> bool:
        """False: the members may attend to different places, in grids of different sizes."""
        return False


def _architecture_kind(value: Any) -> str:
    has_members = "members" in value if isinstance(value, dict) else hasattr(value, "members")
    return "ensemble" if has_members else "single"


Architecture = Annotated[
    Annotated[SingleArchitecture, Tag("single")] | Annotated[EnsembleArchitecture, Tag("ensemble")],
    Discriminator(_architecture_kind),
]


class Decoding(Section):
    """The search for captions. Hypotheses are ranked by Σ log p / lengthᵅ with α = `length_penalty`."""

    beam_width: int = Field(default=3, ge=1, le=50, description="Beams per image; 1 = greedy.")
    max_length: int = Field(default=20, ge=1, le=100, description="Maximum number of words per caption.")
    length_penalty: float = Field(default=0.7, ge=0, le=5, description="0 favours short captions.")
    min_length: int = Field(default=0, ge=0, le=100, description="Minimum number of words per caption.")
    block_ngram: int = Field(
        default=0,
        ge=0,
        le=10,
        description="Length in words of sequences that must not repeat in a caption; 0 = no limit.",
    )
    consensus: bool = Field(
        default=False, description="Choose the hypothesis most like the others; works best with 10 beams."
    )


def check_decoding(decoding: Decoding) -> Decoding:
    """The same settings. Raises ContradictionError, a ValueError, when they can't be met together.

    This is not part of `Decoding`, because a bundle that was written before this check must stay readable.
    """
    if decoding.min_length > decoding.max_length:
        allowed = f"must be at most max_length, which is {decoding.max_length}"
        raise ContradictionError(["min_length"], decoding.min_length, allowed)
    if decoding.consensus and decoding.beam_width == 1:
        raise ContradictionError(["consensus"], True, "needs beam_width above 1: it chooses among beams")
    return decoding

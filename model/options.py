"""What a bundle says about preprocessing and decoding: plain values, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

IMAGE_POLICY = 1  # to be raised when docs/image-policy.md changes what a model sees


@dataclass(frozen=True)
class Preprocessing:
    """Stored in the bundle, so that training, batch and single images go through the same steps.

    Images are squashed to `width` × `height` pixels (bilinear with antialias, aspect ratio not kept; see
    docs/image-policy.md), scaled to 0…1 and normalised per RGB channel.
    """

    width: int = 224
    height: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Preprocessing:
        """What `asdict` gave, read back from JSON, where tuples are lists."""
        return cls(stored["width"], stored["height"], tuple(stored["mean"]), tuple(stored["std"]))


@dataclass(frozen=True)
class DecodingOptions:
    """`beam_width` 1 is greedy; lengths in words; `length_penalty` is the α of Σ log p / lengthᵅ.

    `block_ngram` n lets no run of n words occur twice in a caption; 0 blocks nothing. `consensus` chooses from the
    beam the caption that the others agree with most (`model.search.consensus`).
    """

    beam_width: int = 3
    max_length: int = 20
    length_penalty: float = 0.7
    min_length: int = 0
    block_ngram: int = 0
    consensus: bool = False


EVIDENCE = (
    "mean_logprob",
    "min_logprob",
    "unsure_share",  # tokens below UNSURE
    "opening_logprob",  # mean of the first words
    "margin",  # score of the best over that of the second
    "spread",  # … over that of the last
    "beam_entropy",  # of the beam's own posterior, nats
    "agreement",  # share of words that the others have in common with the best
    "log_length",
    "entropy",  # mean over the tokens of the entropy of their choice, nats
    "rarity",  # mean log rank of the words: a vocabulary is ordered by frequency
)
"""What a calibrated confidence is computed from, in the order of a bundle's numbers."""

SQUARED = ("mean_logprob", "entropy")
"""Evidence whose square counts too: confidence bends with these."""

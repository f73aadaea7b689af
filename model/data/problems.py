"""Problems found while reading a data set: how many of each kind, and the first few by name."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

KINDS = {
    "malformed row": "a line or an entry that is not of the format",
    "empty caption": "a caption without a letter or digit",
    "long caption": "a caption of more than 2,000 characters",
    "no captions": "a picture that is listed but has no usable caption",
    "no such picture": "captions whose picture is not in the image folder",
    "outside the folder": "a picture path that leads out of the image folder; never opened",
    "listed twice": "a picture listed again; only captions that it didn't have yet are added to the first",
    "broken picture": "a picture that can't be decoded, with its error class of docs/image-policy.md",
}
"""Every kind of problem and its meaning. None of them stops the reading."""

EXAMPLES = 3  # kept of each kind


@dataclass
class Problems:
    """`counts`: how often each kind of `KINDS` occurred; `examples`: the first few of each, as printable lines."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, what: str) -> None:
        self.counts[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES:
            examples.append("".join(c if c.isprintable() else " " for c in what)[:200])

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        """One line: each kind that occurred, how often, and its first example."""
        return "; ".join(f"{self.counts[k]} × {k} ({self.examples[k][0]})" for k in KINDS if self.counts[k])

"""The reasons to caption or to skip an image, and the options that select them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

REASONS = {
    "new": "not in the output yet",
    "changed": "the content has changed, or neither ETag nor time can tell",
    "other model": "captioned by another model or with other settings",
    "asked": "done before, captioned again (--recaption all)",
    "restored": "marked as vanished, but in the store again",
    "rejected before": "rejected by an earlier run, tried again (--retry)",
}
"""Reasons to caption an image."""
SKIPPED = {
    "done": "same content, same model",
    "rejected": "rejected by an earlier run, and the content has not changed",
    "changed": "the content has changed, but --recaption excludes it",
    "other model": "captioned by another model or with other settings, but --recaption excludes it",
    "older": "modified before --since",
    "gone": "in a manifest, but missing or unreadable now; keeps its caption until pruned",
}
"""Reasons to skip an image."""
Recaption = Literal["none", "changed", "model", "all"]
RECAPTION: dict[Recaption, tuple[str, ...]] = {
    "none": ("new", "restored", "rejected before"),
    "changed": ("new", "restored", "rejected before", "changed"),
    "model": ("new", "restored", "rejected before", "changed", "other model"),
    "all": tuple(REASONS),
}
"""`--recaption` -> the reasons for which images are captioned."""
TRANSIENT = ("missing", "forbidden", "unavailable", "out_of_memory")
"""Error classes that are caused by a store or a machine, not by the image.

Such images are tried again by every run, unless `--retry` is given, and keep the caption of an earlier run.
"""


@dataclass(frozen=True)
class Policy:
    """Which images to caption again. `retry` are error classes, `since` is in seconds since 1970, UTC."""

    recaption: Recaption = "model"
    retry: tuple[str, ...] = TRANSIENT
    since: float | None = None
    limit: int | None = None
    dedupe: bool = False


@dataclass(frozen=True)
class Plan:
    """The number of images by what is done with them: `listed` = `todo` + `copies` + `deferred` + `done`."""

    listed: int
    todo: int
    copies: int  # images that get the caption of one in `todo` with the same content (--dedupe)
    deferred: int  # left for a later run by --limit
    reasons: Counter[str] = field(default_factory=Counter)  # by REASONS, of todo and copies
    skipped: Counter[str] = field(default_factory=Counter)  # by SKIPPED
    bytes: int = 0  # to read, without files of unknown size

    @property
    def done(self) -> int:
        """The number of images that are skipped."""
        return self.skipped.total()

    @property
    def complete(self) -> bool:
        """True if no image that should be captioned is left out by --limit or --since."""
        return not self.deferred and not self.skipped["older"]

    @property
    def to_caption(self) -> int:
        """The number of images that get a new row."""
        return self.todo + self.copies

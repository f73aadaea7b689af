"""Why an image is captioned or left as it is, and what an operator can ask for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

REASONS = {
    "new": "not seen before",
    "changed": "its content changed",
    "other model": "captioned by another model or with other settings",
    "asked": "done, and to be done again (--recaption all)",
    "restored": "marked as vanished, and there again",
    "rejected before": "rejected by an earlier run, to be tried again (--retry)",
}
"""Why an image is to be captioned."""
SKIPPED = {
    "done": "same content, same model",
    "rejected": "rejected by an earlier run, and its content has not changed",
    "changed": "its content changed, but --recaption leaves it",
    "other model": "captioned by another model or with other settings, but --recaption leaves it",
    "older": "modified before --since",
    "gone": "named by a manifest and no longer there; keeps its caption until pruned",
}
"""Why an image is left as it is."""
Recaption = Literal["none", "changed", "model", "all"]
RECAPTION: dict[Recaption, tuple[str, ...]] = {
    "none": ("new", "restored", "rejected before"),
    "changed": ("new", "restored", "rejected before", "changed"),
    "model": ("new", "restored", "rejected before", "changed", "other model"),
    "all": tuple(REASONS),
}
"""`--recaption` -> the reasons that count."""
TRANSIENT = ("missing", "forbidden", "unavailable", "out_of_memory")
"""Error classes that are the fault of a store or a machine, not of the image.

Such rejects are tried again by every run unless `--retry` says otherwise, and they don't replace a caption that an
earlier run made.
"""


@dataclass(frozen=True)
class Policy:
    """Which images to do again. `retry`: error classes; `since`: seconds since 1970, UTC; `limit`: images."""

    recaption: Recaption = "model"
    retry: tuple[str, ...] = TRANSIENT
    since: float | None = None
    limit: int | None = None
    dedupe: bool = False


@dataclass(frozen=True)
class Plan:
    """Where every listed image goes; `listed` is the sum of `todo`, `copies`, `deferred` and `done`."""

    listed: int
    todo: int
    copies: int  # images with the content of one in `todo`, which get its caption (--dedupe)
    deferred: int  # left for a later run by --limit
    reasons: Counter[str] = field(default_factory=Counter)  # of REASONS, over todo and copies
    skipped: Counter[str] = field(default_factory=Counter)  # of SKIPPED
    bytes: int = 0  # to read, as far as the listing knows sizes

    @property
    def done(self) -> int:
        """Images that are left as they are."""
        return self.skipped.total()

    @property
    def to_caption(self) -> int:
        """Images that get a new row."""
        return self.todo + self.copies

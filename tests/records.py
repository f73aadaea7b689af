"""A `RunRecord` for tests."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from pipeline.output.record import Counts, RunRecord

WHEN = datetime(2026, 1, 31, 2, tzinfo=timezone.utc)


def record(**fields: Any) -> RunRecord:
    """A run of 7 images: 3 captioned, 2 + 1 rejected, 1 skipped."""
    counts = Counts(7, 3, {"corrupt": 2, "empty": 1}, 0, 0, 1, 0, 0)
    defaults = {"detail": "", "sources": [], "left_out": {}, "plan": {}, "recovered": 0, "config": {}}
    required = {
        "run_id": "r1",
        "output": "s3://shop/out",
        "outcome": "done",
        "counts": counts,
        "started": WHEN,
        "model": {"id": "m@1"},
    }
    times = {"ended": WHEN, "seconds": 75.5, "images_per_second": 12.5}
    return RunRecord(**{**defaults, **required, **times, **fields})

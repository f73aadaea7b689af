"""The printed summaries of a run and of a plan."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from model.image.decode import ERROR_CLASSES
from pipeline.output.record import Counts, RunRecord
from pipeline.plan.policy import REASONS, Plan
from pipeline.summary import plan_summary, run_summary
from tests import records

NONE = Counts(
    listed=0, captioned=0, rejected={}, rejected_again=0, kept=0, skipped=0, deferred=0, unfinished=0
)


def record(counts: Counts, **changes: object) -> RunRecord:
    plain = {"plan": {"to_caption": {}, "skipped": {}}, "recovered": 0, "model": {"id": "tiny@0123"}}
    more = {"output": "s3://b/out", "seconds": 75.2, "images_per_second": 12.34}
    return records.record(**{**plain, **more, "counts": counts, **changes})


def test_the_summary_of_a_run() -> None:
    rejected = {"truncated": 2, "empty": 1}
    counts = replace(NONE, listed=27, captioned=8, rejected=rejected, kept=4, skipped=5, deferred=7)
    assert run_summary(record(counts)).splitlines() == [
        "captioned 8, rejected 3, skipped 5",
        "4 could not be read and keep the caption of an earlier run",
        "7 left for a later run by --limit",
        f"  rejected      1 empty            {ERROR_CLASSES['empty']}",
        f"  rejected      2 truncated        {ERROR_CLASSES['truncated']}",
        "in 01:15, 12.3 images/s, model tiny@0123",
        "output s3://b/out",
    ]
    assert run_summary(record(replace(NONE, listed=2, captioned=2))).splitlines() == [
        "captioned 2, rejected 0, skipped 0",
        "in 01:15, 12.3 images/s, model tiny@0123",
        "output s3://b/out",
    ]


def test_the_summary_of_a_run_with_nothing_new() -> None:
    first, *_ = run_summary(record(replace(NONE, listed=9, skipped=9))).splitlines()
    assert first == "nothing new: all 9 images are already done by tiny@0123"


def test_the_summary_mentions_unchanged_rejects_and_recovered_images() -> None:
    run = record(replace(NONE, listed=9, skipped=5, unfinished=4), recovered=3)
    summary = run_summary(replace(run, plan={"to_caption": {}, "skipped": {"done": 3, "rejected": 2}}))
    assert "2 of the skipped were rejected before and have not changed (see --retry)" in summary
    assert "3 more were finished by an earlier run that ended early" in summary
    assert "4 not done; run it again to continue" in summary


def test_the_summary_has_a_line_for_every_error_class() -> None:
    lines = run_summary(record(replace(NONE, rejected=dict.fromkeys(ERROR_CLASSES, 1)))).splitlines()
    assert len([line for line in lines if line.startswith("  rejected")]) == len(ERROR_CLASSES)


def test_the_summary_of_a_dry_run() -> None:
    plan = Plan(10, 3, 1, 1, Counter(new=3, changed=1), Counter(done=3, older=2), 1_500_000)
    assert plan_summary(plan).splitlines() == [
        "listed 10",
        "to caption 4 (1.50MB to read)",
        f"         3 new: {REASONS['new']}",
        f"         1 changed: {REASONS['changed']}",
        "         1 of these have the content of another image and get its caption",
        "skipped 5",
        "         3 done: same content, same model",
        "         2 older: modified before --since",
        "left for later by --limit 1",
    ]

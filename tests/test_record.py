"""Counts of a run, the reject rate, and the run record."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from conf.errors import JobError, TooManyRejects
from conf.job import JobConfig
from pipeline.output.folder import OutputFolder
from pipeline.output.record import (
    Counts,
    RunRecord,
    counts_of,
    new_run_id,
    read_run,
    read_runs,
    software,
    utc_now,
)
from pipeline.store.stores import Stores

NOON = datetime(2026, 1, 31, 12, 0, 5, tzinfo=timezone.utc)
NONE = Counts(
    listed=0, captioned=0, rejected={}, rejected_again=0, kept=0, skipped=0, deferred=0, unfinished=0
)


def record(counts: Counts, **changes: Any) -> RunRecord:
    run = RunRecord(
        run_id="r1",
        output="s3://b/out",
        outcome="done",
        detail="",
        sources=["photos"],
        left_out={},
        plan={"to_caption": {}, "skipped": {}},
        recovered=0,
        counts=counts,
        started=NOON,
        ended=NOON + timedelta(seconds=75),
        seconds=75.2,
        images_per_second=12.34,
        model={"id": "tiny@0123", "name": "tiny", "decoding": {"beam_width": 3}},
        config=JobConfig().model_dump(mode="json"),
        software=software(),
    )
    return replace(run, **changes)


def test_counts_must_add_up_to_the_listed_images() -> None:
    rejected = {"empty": 2, "missing": 3}
    whole = replace(
        NONE, listed=28, captioned=1, rejected=rejected, kept=4, skipped=5, deferred=6, unfinished=7
    )
    whole.check()
    for name in ("listed", "captioned", "kept", "skipped", "deferred", "unfinished"):
        for off in (-1, 1):
            with pytest.raises(JobError, match=r"images were listed, but .* run it again"):
                replace(whole, **{name: getattr(whole, name) + off}).check()
    with pytest.raises(JobError, match="28 images were listed, but 25 are accounted for"):
        replace(whole, rejected={"empty": 2}).check()


def test_a_reject_rate_at_the_limit_is_allowed() -> None:
    assert replace(NONE, listed=10, captioned=9, rejected={"empty": 1}).judge(0.1) is None
    assert replace(NONE, listed=10, captioned=8, rejected={"empty": 2}).judge(0.1) is not None
    assert replace(NONE, listed=10, rejected={"empty": 10}).judge(1.0) is None
    assert replace(NONE, listed=1000, captioned=999, rejected={"empty": 1}).judge(0.0) is not None
    assert NONE.judge(0.0) is None


def test_the_reject_rate_excludes_skipped_and_repeatedly_rejected_images() -> None:
    """Neither earlier captions nor earlier rejects change the reject rate of a run."""
    failed = replace(NONE, listed=10, captioned=5, rejected={"empty": 5})
    assert failed.judge(0.5) is None
    assert replace(failed, listed=1010, skipped=1000).judge(0.4) is not None
    assert replace(failed, listed=20, deferred=10).judge(0.5) is None
    assert replace(failed, captioned=4, kept=1).judge(0.5) is not None
    assert replace(failed, rejected_again=5).judge(0.0) is None
    assert replace(failed, rejected_again=4).judge(0.1) is not None
    assert replace(NONE, listed=5, rejected={"empty": 5}, rejected_again=5).judge(0.0) is None
    assert replace(NONE, listed=3, deferred=3).judge(0.0) is None


def test_the_reject_message_has_counts_limit_and_most_common_errors() -> None:
    rejected = {"empty": 1, "missing": 2, "truncated": 40, "unsupported": 3}
    assert replace(NONE, listed=5000, captioned=4954, rejected=rejected).judge(0.005) == (
        "46/5000 images could not be captioned, limit 0.5% (output.max_reject_rate); "
        "most common: 40 truncated, 3 unsupported, 2 missing"
    )
    kept = replace(NONE, listed=2, kept=2).judge(0.5)
    assert kept is not None
    assert kept.endswith("most common: unreadable")


def test_a_record_is_plain_json() -> None:
    run = record(replace(NONE, listed=3, captioned=2, rejected={"empty": 1}))
    stored = json.loads(json.dumps(run.to_json()))
    assert stored == run.to_json()
    assert stored["started"] == "2026-01-31T12:00:05+00:00"
    assert stored["counts"] == {**vars(NONE), "listed": 3, "captioned": 2, "rejected": {"empty": 1}}
    assert JobConfig.model_validate(stored["config"]) == JobConfig()
    assert list(stored) == list(RunRecord.__dataclass_fields__)


def test_raise_for_outcome_raises_only_for_too_many_rejects() -> None:
    record(NONE).raise_for_outcome()
    with pytest.raises(TooManyRejects, match=r"^1/1 images$") as caught:
        record(NONE, outcome="too_many_rejects", detail="1/1 images").raise_for_outcome()
    assert caught.value.exit_code == 3


def test_run_ids_sort_by_time_and_are_unique() -> None:
    times = [NOON + timedelta(seconds=3601 * i) for i in range(50)]
    ids = [new_run_id(at) for at in times]
    assert ids == sorted(ids)
    assert ids[0].startswith("20260131T120005Z-")
    assert len({new_run_id(NOON) for _ in range(200)}) == 200
    assert utc_now().utcoffset() == timedelta(0)


def test_software_lists_the_versions_that_affect_captions() -> None:
    import PIL
    import torch

    versions = software()
    assert list(versions)[:2] == ["python", "nightcap"]
    assert (versions["torch"], versions["pillow"]) == (torch.__version__.partition("+")[0], PIL.__version__)


def test_the_reject_rate_needs_min_tried_images() -> None:
    counts = replace(NONE, listed=4, captioned=1, rejected={"corrupt": 3})
    assert counts.judge(0.1, min_tried=5) is None
    assert counts.judge(0.1, min_tried=4) is not None


@pytest.mark.parametrize(
    "damage",
    [
        {"outcome": None},
        {"counts": {"listed": 3}},
        {"counts": {**vars(NONE), "rejected": {"empty": "many"}}},
        {"model": {}},
        {"plan": None},
        {"sources": "photos"},
        {"seconds": float("nan")},
        {"started": 20260131},
        {"time": {"shares": {}}},
    ],
)
def test_a_run_file_that_is_incomplete_has_only_its_run_id(tmp_path: Path, damage: dict[str, object]) -> None:
    out = OutputFolder(Stores(), str(tmp_path))
    run = record(NONE).to_json()
    out.write_json("runs/r7.json", {**run, "run_id": "another"})
    assert read_run(out, "runs/r7.json") == {**run, "run_id": "r7"}  # the name of the file counts
    out.write_json("runs/r7.json", {**run, **damage})
    assert read_run(out, "runs/r7.json") == {"run_id": "r7"}
    (name,) = damage
    out.write_json("runs/r7.json", {key: value for key, value in run.items() if key != name or key == "time"})
    assert (len(read_run(out, "runs/r7.json")) == 1) == (name != "time")
    out.write("runs/r7.json", b"[1]")
    assert list(read_runs(out)) == [{"run_id": "r7"}]


def test_counts_are_read_back_from_a_run_file() -> None:
    run = record(replace(NONE, listed=3, captioned=2, rejected={"empty": 1}))
    assert counts_of(json.loads(json.dumps(run.to_json()))) == run.counts
    for broken in ({}, {"counts": None}, {"counts": {"listed": 3}}):
        with pytest.raises(JobError, match="its run file has no counts"):
            counts_of(broken)

"""The printed summaries of a run and of a plan."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from conf.captioner import Decoding
from conf.job import JobConfig
from model.image.decode import ERROR_CLASSES
from pipeline.output.estimate import Estimate
from pipeline.output.record import Counts, RunRecord
from pipeline.plan.policy import REASONS, Plan
from pipeline.summary import CURES, plan_summary, run_summary, runs_table
from pipeline.timing import PHASES, WORK, TimeSpent
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


def spent(bottleneck: str | None, **seconds: float) -> TimeSpent:
    return TimeSpent(
        driver_seconds={**dict.fromkeys(PHASES, 0.0), **seconds},
        worker_seconds=dict.fromkeys(WORK, 1.0),
        workers={"decode": 2, "model": 2},
        shares={
            "decode": {"reading": 0.05, "decoding": 0.4, "waiting": 0.55},
            "model": {"inference": 0.973, "waiting": 0.027},
            "driver": {"writing": 0.01, "waiting": 0.99},
        },
        images_per_second=12.0,
        bottleneck=bottleneck,
    )


def test_the_summary_says_where_time_went_and_what_widens_the_bottleneck() -> None:
    time = spent("inference", listing=12.9, start_up=4.0, captioning=70.0, writing=1.2, shut_down=0.4)
    lines = run_summary(record(replace(NONE, listed=2, captioned=2), time=time)).splitlines()
    assert lines[2:4] == [
        "time: listing 00:12, start-up 00:04, captioning 01:10, writing 00:01; "
        "busy: reading 5%, decoding 40%, inference 97%, writing 1%",
        f"bottleneck: inference; {CURES['inference']}",
    ]
    assert "model.beam_width" in lines[3]
    assert lines[4] == "output s3://b/out"


def test_the_summary_of_a_short_run_names_no_bottleneck() -> None:
    time = {**spent(None, start_up=3.0, captioning=0.2), "shares": {}}
    lines = run_summary(record(replace(NONE, listed=2, captioned=2), time=time)).splitlines()
    assert lines[2:] == ["time: start-up 00:03", "output s3://b/out"]
    time = {**spent(None), "shares": {}}
    assert len(run_summary(record(replace(NONE, listed=2, captioned=2), time=time)).splitlines()) == 3


def test_every_bottleneck_has_a_cure_and_settings_in_it_exist() -> None:
    assert set(CURES) == {*WORK, "writing", "listing", "comparing", "start_up"}
    fields = {
        name: set(section) for name, section in JobConfig().model_dump().items() if isinstance(section, dict)
    }
    fields["model"] |= set(Decoding.model_fields)
    for cure in CURES.values():
        for section, name in re.findall(r"(\w+)\.(\w+)", cure):
            assert name in fields[section]


def test_the_list_of_runs_shows_the_bottleneck() -> None:
    runs = [
        record(replace(NONE, listed=9, captioned=8), time=spent("start_up", start_up=9.0)).to_json(),
        record(replace(NONE, listed=9, captioned=8)).to_json(),  # written by an older version
        {"run_id": "20260131T020000Z-1a2b3c"},
    ]
    assert runs_table(runs).splitlines() == [
        "started (UTC)         took  captioned  rejected    skipped   img/s  bottleneck  outcome",
        "2026-01-31 02:00     01:15          8         0          0    12.3  start-up    done",
        "2026-01-31 02:00     01:15          8         0          0    12.3  -           done",
        "20260131 020000Z     00:00          0         0          0     0.0  -           unreadable",
    ]
    detailed = runs_table(runs, details=True).splitlines()
    assert len(detailed) == 6
    assert detailed[2].startswith("    time: start-up 00:09; busy: reading 5%")
    assert detailed[3].startswith("    bottleneck: start-up; ")


def test_the_summary_of_a_dry_run_has_an_estimate_if_there_is_one() -> None:
    plan = Plan(10, 3, 0, 0, Counter(new=3), Counter())
    assert "estimated" not in plan_summary(plan)
    last = plan_summary(plan, Estimate(3725.0, 181.26, "r7")).splitlines()[-1]
    assert last == "estimated time 1:02:05, at 181.3 images/s as in run r7"

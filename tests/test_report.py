"""What a run tells: counts that add up, a verdict, words for people, and progress on and off a terminal."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import termios
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from conf.errors import JobError, TooManyRejects
from conf.job import JobConfig
from model.image.decode import ERROR_CLASSES
from pipeline.plan.policy import REASONS, SKIPPED
from pipeline.record import (
    Counts,
    Progress,
    Record,
    duration,
    new_run_id,
    plan_summary,
    size,
    software,
    summary,
    utc_now,
)

NOON = datetime(2026, 1, 31, 12, 0, 5, tzinfo=timezone.utc)
NONE = Counts(
    listed=0, captioned=0, rejected={}, rejected_again=0, kept=0, skipped=0, deferred=0, unfinished=0
)


def record(counts: Counts, **changes: Any) -> Record:
    made = Record(
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
    return replace(made, **changes)


def test_every_listed_image_is_accounted_for() -> None:
    rejected = {"empty": 2, "missing": 3}
    whole = replace(
        NONE, listed=28, captioned=1, rejected=rejected, kept=4, skipped=5, deferred=6, unfinished=7
    )
    whole.check()
    for name in ("listed", "captioned", "kept", "skipped", "deferred", "unfinished"):
        for off in (-1, 1):
            with pytest.raises(JobError, match=r"images were listed, but .* run again"):
                replace(whole, **{name: getattr(whole, name) + off}).check()
    with pytest.raises(JobError, match="28 images were listed, but 25 are accounted for"):
        replace(whole, rejected={"empty": 2}).check()


def test_at_the_limit_is_not_over_it() -> None:
    assert replace(NONE, listed=10, captioned=9, rejected={"empty": 1}).judge(0.1) is None
    assert replace(NONE, listed=10, captioned=8, rejected={"empty": 2}).judge(0.1) is not None
    assert replace(NONE, listed=10, rejected={"empty": 10}).judge(1.0) is None
    assert replace(NONE, listed=1000, captioned=999, rejected={"empty": 1}).judge(0.0) is not None
    assert NONE.judge(0.0) is None


def test_the_rate_is_of_the_images_tried_for_the_first_time_or_anew() -> None:
    """However many were done before, a bad night is one; however many were bad before, a good night is one."""
    failed = replace(NONE, listed=10, captioned=5, rejected={"empty": 5})
    assert failed.judge(0.5) is None
    assert replace(failed, listed=1010, skipped=1000).judge(0.4) is not None
    assert replace(failed, listed=20, deferred=10).judge(0.5) is None
    assert replace(failed, captioned=4, kept=1).judge(0.5) is not None
    assert replace(failed, rejected_again=5).judge(0.0) is None
    assert replace(failed, rejected_again=4).judge(0.1) is not None
    assert replace(NONE, listed=5, rejected={"empty": 5}, rejected_again=5).judge(0.0) is None
    assert replace(NONE, listed=3, deferred=3).judge(0.0) is None


def test_the_complaint_names_numbers_limit_and_most_common() -> None:
    rejected = {"empty": 1, "missing": 2, "truncated": 40, "unsupported": 3}
    assert replace(NONE, listed=5000, captioned=4954, rejected=rejected).judge(0.005) == (
        "46/5000 images could not be captioned, limit 0.5% (output.max_reject_rate); "
        "most common: 40 truncated, 3 unsupported, 2 missing"
    )
    kept = replace(NONE, listed=2, kept=2).judge(0.5)
    assert kept is not None
    assert kept.endswith("most common: unreadable")


def test_a_record_is_plain_json() -> None:
    made = record(replace(NONE, listed=3, captioned=2, rejected={"empty": 1}))
    stored = json.loads(json.dumps(made.to_json()))
    assert stored == made.to_json()
    assert stored["started"] == "2026-01-31T12:00:05+00:00"
    assert stored["counts"] == {**vars(NONE), "listed": 3, "captioned": 2, "rejected": {"empty": 1}}
    assert JobConfig.model_validate(stored["config"]) == JobConfig()
    assert list(stored) == list(Record.__dataclass_fields__)


def test_only_too_many_rejects_raise() -> None:
    record(NONE).raise_for_outcome()
    with pytest.raises(TooManyRejects, match=r"^1/1 images$") as caught:
        record(NONE, outcome="too_many_rejects", detail="1/1 images").raise_for_outcome()
    assert caught.value.exit_code == 3


def test_run_ids_sort_by_time_and_never_repeat() -> None:
    times = [NOON + timedelta(seconds=3601 * i) for i in range(50)]
    ids = [new_run_id(at) for at in times]
    assert ids == sorted(ids)
    assert ids[0].startswith("20260131T120005Z-")
    assert len({new_run_id(NOON) for _ in range(200)}) == 200
    assert utc_now().utcoffset() == timedelta(0)


def test_software_names_what_has_a_say() -> None:
    import PIL
    import torch

    found = software()
    assert list(found)[:2] == ["python", "nightcap"]
    assert (found["torch"], found["pillow"]) == (torch.__version__.partition("+")[0], PIL.__version__)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0:00"),
        (0.6, "0:01"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (75, "1:15"),
        (3599.7, "1:00:00"),
        (4000, "1:06:40"),
        (360_000, "100:00:00"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_234_567, "1.2 MB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_sizes(count: int, shown: str) -> None:
    assert size(count) == shown


def test_the_summary_in_words() -> None:
    rejected = {"truncated": 2, "empty": 1}
    counts = replace(NONE, listed=27, captioned=8, rejected=rejected, kept=4, skipped=5, deferred=7)
    assert summary(record(counts)).splitlines() == [
        "captioned 8, rejected 3, skipped 5",
        "4 could not be read and keep the caption of an earlier run",
        "7 left for a later run by --limit",
        f"  rejected      1 empty            {ERROR_CLASSES['empty']}",
        f"  rejected      2 truncated        {ERROR_CLASSES['truncated']}",
        "in 1:15, 12.3 images/s, model tiny@0123",
        "output s3://b/out",
    ]
    assert summary(record(replace(NONE, listed=2, captioned=2))).splitlines() == [
        "captioned 2, rejected 0, skipped 0",
        "in 1:15, 12.3 images/s, model tiny@0123",
        "output s3://b/out",
    ]


def test_nothing_new_is_said() -> None:
    first, *_ = summary(record(replace(NONE, listed=9, skipped=9))).splitlines()
    assert first == "nothing new: all 9 images are done already by tiny@0123"


def test_what_was_left_as_it_is_or_finished_by_a_dead_run_is_said() -> None:
    made = record(replace(NONE, listed=9, skipped=5, unfinished=4), recovered=3)
    told = summary(replace(made, plan={"to_caption": {}, "skipped": {"done": 3, "rejected": 2}}))
    assert "2 of the skipped were rejected before and have not changed (--retry CLASS)" in told
    assert "3 more were finished by an earlier run that was cut short" in told
    assert "4 not done, run it again to go on" in told


def test_every_error_class_has_its_line() -> None:
    lines = summary(record(replace(NONE, rejected=dict.fromkeys(ERROR_CLASSES, 1)))).splitlines()
    assert len([line for line in lines if line.startswith("  rejected")]) == len(ERROR_CLASSES)


def test_a_few_images_say_nothing_about_the_rate_of_rejects() -> None:
    counts = replace(NONE, listed=4, captioned=1, rejected={"corrupt": 3})
    assert counts.judge(0.1, min_tried=5) is None
    assert counts.judge(0.1, min_tried=4) is not None


def test_a_dry_run_in_words() -> None:
    totals = {"listed": 10, "todo": 3, "copies": 1, "bytes": 1_500_000, "deferred": 1}
    told = plan_summary({"new": 3, "changed": 1}, REASONS, {"done": 3, "older": 2}, SKIPPED, **totals)
    assert told.splitlines() == [
        "listed 10",
        "to caption 4 (1.5 MB to read)",
        f"         3 new: {REASONS['new']}",
        f"         1 changed: {REASONS['changed']}",
        "         1 of these have the content of another and take its caption",
        "skipped 5",
        "         3 done: same content, same model",
        "         2 older: modified before --since",
        "left for later by --limit 1",
    ]


def test_off_a_terminal_a_line_an_interval_also_while_nothing_happens() -> None:
    stream = io.StringIO()
    progress = Progress(100, 0.01, stream)
    while stream.getvalue().count("\n") < 2:
        time.sleep(0.01)
    assert set(stream.getvalue().splitlines()) == {"0/100 images, 0.0/s, time left unknown, 0 rejected"}
    progress.update(50, 2)
    told = stream.getvalue().count("\n")
    while stream.getvalue().count("\n") < told + 2:
        time.sleep(0.01)
    progress.close()
    last = stream.getvalue().splitlines()[-1]
    assert re.fullmatch(r"50/100 images, \d+\.\d/s, \d+:\d\d left, 2 rejected", last)


def test_off_a_terminal_nothing_is_told_before_the_interval_is_over() -> None:
    stream = io.StringIO()
    progress = Progress(100, 1e6, stream)
    progress.update(100, 4)
    progress.close()
    assert stream.getvalue() == ""


def test_nothing_to_do_has_no_progress() -> None:
    stream = io.StringIO()
    progress = Progress(0, 10, stream)
    progress.close()
    assert stream.getvalue() == ""


def test_on_a_terminal_a_live_bar() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        progress = Progress(8, 10, terminal)
        progress.update(4, 1)
        progress.update(8, 2)
        progress.close()
        terminal.flush()
        shown = ""
        while not shown.endswith("\n"):  # a terminal hands it over in pieces
            shown += os.read(ours, 65536).decode()
    os.close(ours)
    assert "starting" not in shown
    assert "8/8" in shown
    assert "rejected=2" in shown

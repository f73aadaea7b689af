"""The report of a run: one HTML file that says what the night brought. It contains all it shows, and no scripts.

Its size does not depend on that of the output: captions and rejects are sampled.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

from conf.errors import JobError, UsageError
from conf.job import InputSettings
from model.bundle import own_version
from model.image.decode import ERROR_CLASSES
from pages.advice import OUTCOMES, REASON_WORDS, REJECTS, WITHOUT_FILE
from pages.charts import confidence_svg, rates_svg
from pages.rendering import render
from pages.thumbnails import Thumbnail, Thumbnails
from pipeline.output.folder import JOURNAL, RUNS, OutputFolder
from pipeline.output.query import Row, Tables
from pipeline.output.record import (
    EXIT_CODES,
    counts_of,
    read_latest_runs,
    read_run,
    run_files,
    run_id_of,
    utc_now,
)
from pipeline.plan import policy
from pipeline.rows import TABLES
from pipeline.store.stores import Stores
from pipeline.summary import CURES
from pipeline.timing import PHASES

SAMPLES = 12  # images in a group
REJECTS_SHOWN = 5  # per error class
SIDE = 256  # pixels of the longer side of a thumbnail
BINS = 20
RUNS_SHOWN = 60
SOURCES_SHOWN = 20
SECONDS = 30.0  # to read the images

# Ordered by hash: a random sample that stays the same while the rows do.
_CAPTIONS = "select * from captions where run_id in $runs or $all"
_LEAST = f"{_CAPTIONS} order by confidence, path limit $n"
_RANDOM = f"{_CAPTIONS} order by hash(path, 1), path limit $n"
_HISTOGRAM = """
    select
        least(floor(confidence * $bins)::integer, $bins - 1) as bin,
        calibrated,
        coalesce(uncertain, false) as uncertain,
        count(*) as count
    from captions where run_id in $runs or $all group by all
"""
_REJECTS = """
    select error_class, count(*) filter (run_id in $runs) as new, count(*) as total from rejects
    group by error_class order by new desc, total desc, error_class
"""
_REJECT_EXAMPLES = """
    select path, detail from rejects where error_class = $class
    order by run_id in $runs desc, hash(path), path limit $n
"""
_CHANGES = "select reason, count(distinct path) as count from history where replaced_by in $runs group by all"
_CHANGED = """
    select path, arg_min(caption, replaced_at) as caption, arg_min(language, replaced_at) as language,
    arg_min(reason, replaced_at) as reason
    from history where replaced_by in $runs group by path order by hash(path, 2), path limit $n
"""
_AFTER = """
    select path, caption, language, confidence, uncertain, null as error_class, captioned_at as made
    from captions where run_id in $runs and path in $paths
    union all
    select path, caption, language, confidence, null, null, captioned_at
    from history where run_id in $runs and path in $paths
    union all
    select path, null, null, null, null, error_class, rejected_at
    from rejects where run_id in $runs and path in $paths
    order by made
"""
_LEFT = """
    select (select count(*) from captions where run_id in $runs) as captions,
    (select count(*) from rejects where run_id in $runs) as rejects
"""


@dataclass(frozen=True)
class Picture:
    """One image of the report. `jpeg` is in base64; without one, `problem` says why."""

    path: str
    caption: str | None
    language: str | None
    confidence: float | None
    uncertain: bool | None
    jpeg: str = ""
    problem: str = ""
    before: str = ""
    before_language: str | None = None
    reason: str = ""


def write_report(
    output: OutputFolder,
    stores: Stores,
    limits: InputSettings,
    run_id: str | None = None,
    samples: int = SAMPLES,
    seconds: float = SECONDS,
) -> str:
    """The HTML text of the report of a run (the last one by default), with `samples` images in each group.

    Runs that were killed just before it are part of it: they have rows in the tables, but wrote no run file. Images
    are read for at most `seconds`. Raises UsageError for an unknown run, OutputError if there is no output or it
    can't be read.
    """
    output.check_exists((*TABLES, JOURNAL, RUNS))
    runs = read_latest_runs(output, RUNS_SHOWN)
    with Tables(output) as tables:
        tables.refresh()
        chosen = _choose(output, tables.run_ids(), run_id)
        found = _Findings(tables, chosen, samples)
    run = chosen.run
    with Thumbnails(stores, limits, SIDE) as thumbnails:
        pictures = thumbnails.many(found.paths, seconds)
    return render(
        "report.html",
        title=f"Captions of the run of {_started(run)}" if run else "Captions",
        made=utc_now().isoformat(),
        version=own_version(),
        output=output.uri,
        run=run,
        counts=_counts(run),
        verdict=_verdict(chosen),
        reasons=_reasons(run),
        time=_time(run),
        found=found,
        least=[_picture(row, pictures) for row in found.least],
        random=[_picture(row, pictures) for row in found.random],
        changed=[_changed(row, found.after, pictures) for row in found.changed],
        reason_words=REASON_WORDS,
        advice=REJECTS,
        meaning=ERROR_CLASSES,
        histogram=confidence_svg(found.bins) if any(found.bins) else "",
        rates=_rates(runs),
        runs=runs[::-1][:10],
        max_sources=SOURCES_SHOWN,
        outcomes=OUTCOMES,
    )


class _Chosen(NamedTuple):
    """The runs of a report."""

    run: Row  # the run file; only `run_id` if there is none or it can't be read; empty if the output has no runs
    ids: list[str]  # of the run, and of those between the run before and it that have no run file
    without_file: list[str]  # of `ids`: killed, or not at their end


class _Findings:
    """What the tables say about the chosen runs. If these captioned nothing, the captions are those of all runs."""

    def __init__(self, tables: Tables, chosen: _Chosen, samples: int) -> None:
        this: Row = {"runs": chosen.ids}
        of_run = {**this, "all": False}
        self.without_file = chosen.without_file
        self.left = tables.rows(_LEFT, {"runs": chosen.without_file})[0] if chosen.without_file else {}
        histogram = tables.rows(_HISTOGRAM, {**of_run, "bins": BINS})
        self.all_runs = not histogram
        if self.all_runs:
            of_run["all"] = True
            histogram = tables.rows(_HISTOGRAM, {**of_run, "bins": BINS})
        self.bins = [sum(row["count"] for row in histogram if row["bin"] == i) for i in range(BINS)]
        self.shown = sum(self.bins)
        self.uncalibrated = sum(row["count"] for row in histogram if not row["calibrated"])
        self.uncertain = sum(row["count"] for row in histogram if row["uncertain"])
        self.least = tables.rows(_LEAST, {**of_run, "n": samples})
        # They would be the same images again if all fit into the group before.
        self.random = tables.rows(_RANDOM, {**of_run, "n": samples}) if self.shown > samples else []
        self.rejects = tables.rows(_REJECTS, this)
        for row in self.rejects:
            of_class = {**this, "class": row["error_class"], "n": REJECTS_SHOWN}
            row["examples"] = tables.rows(_REJECT_EXAMPLES, of_class)
        self.changes = {row["reason"]: row["count"] for row in tables.rows(_CHANGES, this)}
        self.changed = tables.rows(_CHANGED, {**this, "n": samples}) if self.changes else []
        paths = [row["path"] for row in self.changed]
        after = tables.rows(_AFTER, {**this, "paths": paths}) if paths else []
        self.after = {row["path"]: row for row in after}  # the last one of a path
        self.kept = bool(tables.rows("select 1 from history limit 1"))

    @property
    def paths(self) -> list[str]:
        """The images to show."""
        return list(dict.fromkeys(row["path"] for row in (*self.least, *self.random, *self.changed)))


def _choose(output: OutputFolder, written: set[str], run_id: str | None) -> _Chosen:
    """A run, the last one if `run_id` is None. `written` are the runs of the tables' rows."""
    files = {run_id_of(name): name for name in run_files(output)}
    known = sorted({*files, *written})
    if run_id is None:
        if not known:
            return _Chosen({}, [], [])
        run_id = known[-1]
    elif run_id not in known:
        raise UsageError(
            f"no run {run_id!r} in this output; `nightcap runs` lists them; the last ones: "
            f"{', '.join(known[-3:]) or 'none'}"
        )
    before = max((other for other in files if other < run_id), default="")
    ids = [run for run in known if before < run <= run_id]
    run = read_run(output, files[run_id]) if run_id in files else {"run_id": run_id}
    return _Chosen(run, ids, [each for each in ids if each not in files])


def _started(run: Row) -> str:
    if "started" in run:
        return str(run["started"])[:16].replace("T", " ")
    try:
        at = datetime.strptime(run["run_id"][:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
        return f"{at:%Y-%m-%d %H:%M}"
    except ValueError:
        return str(run["run_id"])


def _counts(run: Row) -> dict[str, Any] | None:
    try:
        return vars(counts_of(run))
    except JobError:
        return None


def _verdict(chosen: _Chosen) -> tuple[str, str, str]:
    """Kind (good, warn, bad), one sentence, and what to do."""
    run = chosen.run
    if not run:
        return "warn", "No run of this output has ended yet.", "What follows is what the tables hold now."
    if run["run_id"] in chosen.without_file:
        return "warn", "This run has no run file.", WITHOUT_FILE
    if run.get("outcome") not in OUTCOMES:
        return "bad", "The run file can't be read.", "What follows is what the tables hold."
    return OUTCOMES[run["outcome"]]


def _reasons(run: Row) -> dict[str, list[tuple[str, str, int]]]:
    """Why images were captioned, and why they were skipped: reason, meaning, number."""
    plan = run.get("plan") or {}
    known = {"to_caption": policy.REASONS, "skipped": policy.SKIPPED}
    return {
        part: sorted(
            ((name, meanings.get(name, ""), count) for name, count in (plan.get(part) or {}).items()),
            key=lambda row: -row[2],
        )
        for part, meanings in known.items()
    }


def _time(run: Row) -> dict[str, Any] | None:
    """Where the time went: (name, seconds, share) of the driver's phases, shares of the workers, bottleneck, cure."""
    spent = run.get("time")
    if not spent or not (total := sum(spent["driver_seconds"].values())):
        return None
    seconds = spent["driver_seconds"]
    return {
        "phases": [(name, seconds[name], seconds[name] / total) for name in PHASES if seconds.get(name)],
        "shares": [
            (who, name, share)
            for who, shares in spent.get("shares", {}).items()
            for name, share in shares.items()
        ],
        "bottleneck": spent.get("bottleneck"),
        "cure": CURES.get(spent.get("bottleneck") or "", ""),
    }


def _picture(row: Row, pictures: dict[str, Thumbnail], **more: Any) -> Picture:
    thumbnail = pictures[row["path"]]
    jpeg = base64.b64encode(thumbnail.jpeg).decode()
    shown = {name: row[name] for name in ("path", "caption", "language", "confidence", "uncertain")}
    return Picture(**shown, jpeg=jpeg, problem=thumbnail.problem, **more)


def _changed(row: Row, after: dict[str, Row], pictures: dict[str, Thumbnail]) -> Picture:
    """A replaced caption, with what the run put in its place."""
    nothing = dict.fromkeys(("caption", "language", "confidence", "uncertain", "error_class"))
    now = {**nothing, **after.get(row["path"], {}), "path": row["path"]}
    if now["caption"] is None:
        error_class = now["error_class"]
        now |= {
            "caption": f"(rejected: {error_class})" if error_class else "(removed since)",
            "language": "en",
        }
    before = {"before": row["caption"], "before_language": row["language"]}
    return _picture(now, pictures, **before, reason=REASON_WORDS.get(row["reason"], ""))


def _rates(runs: Sequence[Row]) -> str:
    """The chart of the runs that captioned something; empty if there are less than two."""
    shown = [run for run in runs if run.get("images_per_second") and (_counts(run) or {}).get("captioned")]
    if len(shown) < 2:
        return ""
    return rates_svg(
        [_started(run) for run in shown],
        [
            float((run.get("time") or {}).get("images_per_second") or run["images_per_second"])
            for run in shown
        ],
        [EXIT_CODES.get(run.get("outcome", "failed"), 1) == 0 for run in shown],
    )

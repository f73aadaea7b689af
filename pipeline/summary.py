"""Summaries of a run, a plan and a list of runs, as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from model.image.decode import ERROR_CLASSES
from pipeline.output.estimate import Estimate
from pipeline.output.record import RunRecord
from pipeline.plan.policy import REASONS, SKIPPED, Plan
from pipeline.timing import PHASES

CURES = {
    "listing": "an S3 Inventory or another manifest is faster to list; input.content_hash=true reads all local files",
    "comparing": "it grows with the listing and with the output",
    "start_up": "caption more images per run; start-up takes the same time for any number",
    "reading": "raise input.read_ahead if the store is remote",
    "decoding": "use more cores; on Ray, lower workers.decode_cpus",
    "inference": "use a GPU or more of them, more cores, another model.precision, or a lower model.beam_width",
    "writing": "raise output.rows_per_file, output.flush_seconds or output.journal_seconds",
}
"""Bottleneck of a run -> what changes it."""


def run_summary(record: RunRecord) -> str:
    """Counts, duration, model and output of a run."""
    counts = record.counts
    lines = [
        f"captioned {counts.captioned}, rejected {sum(counts.rejected.values())}, skipped {counts.skipped}"
    ]
    if counts.skipped == counts.listed:
        lines[0] = f"nothing new: all {counts.listed} images are already done by {record.model['id']}"
    if counts.kept:
        lines.append(f"{counts.kept} could not be read and keep the caption of an earlier run")
    if counts.deferred:
        lines.append(f"{counts.deferred} left for a later run by --limit")
    rejected = record.plan["skipped"].get("rejected", 0)
    if rejected:
        lines.append(f"{rejected} of the skipped were rejected before and have not changed (see --retry)")
    if record.recovered:
        lines.append(f"{record.recovered} more were finished by an earlier run that ended early")
    if counts.unfinished:
        lines.append(f"{counts.unfinished} not done; run it again to continue")
    lines += [
        f"  rejected {n:>6} {name:<16} {ERROR_CLASSES[name]}" for name, n in sorted(counts.rejected.items())
    ]
    duration = tqdm.format_interval(record.seconds)
    lines.append(f"in {duration}, {record.images_per_second:.1f} images/s, model {record.model['id']}")
    lines += time_summary(record.time or {})
    lines.append(f"output {record.output}")
    return "\n".join(lines)


def time_summary(spent: Mapping[str, Any]) -> list[str]:
    """Where the time of a run went and what limited it, from section `time` of its run file. Empty without one."""
    seconds, shares = spent.get("driver_seconds", {}), spent.get("shares", {})
    phases = ((name, seconds.get(name, 0)) for name in PHASES)
    took = ", ".join(f"{_words(name)} {tqdm.format_interval(each)}" for name, each in phases if each >= 1)
    busy = (item for who in shares.values() for item in who.items() if item[0] != "waiting")
    parts = [
        f"time: {took}" if took else "",
        f"busy: {', '.join(f'{name} {share:.0%}' for name, share in busy)}" if shares else "",
    ]
    lines = ["; ".join(filter(None, parts))]
    bottleneck = spent.get("bottleneck")
    if bottleneck in CURES:
        lines.append(f"bottleneck: {_words(bottleneck)}; {CURES[bottleneck]}")
    return list(filter(None, lines))


def _words(name: str) -> str:
    return name.replace("_", "-")


def plan_summary(plan: Plan, estimate: Estimate | None = None) -> str:
    """A plan: the images to caption and to skip, by reason, the bytes to read, and the estimated time."""
    lines = [
        f"listed {plan.listed}",
        f"to caption {plan.to_caption} ({tqdm.format_sizeof(plan.bytes, 'B')} to read)",
    ]
    lines += [f"  {count:>8} {name}: {REASONS[name]}" for name, count in plan.reasons.items()]
    if plan.copies:
        lines.append(f"  {plan.copies:>8} of these have the content of another image and get its caption")
    lines.append(f"skipped {plan.done}")
    lines += [f"  {count:>8} {name}: {SKIPPED[name]}" for name, count in plan.skipped.items()]
    if plan.deferred:
        lines.append(f"left for later by --limit {plan.deferred}")
    if estimate is not None:
        lines.append(
            f"estimated time {tqdm.format_interval(estimate.seconds)}, at {estimate.images_per_second:.1f} images/s "
            f"as in run {estimate.run_id}"
        )
    return "\n".join(lines)


def runs_table(runs: Sequence[dict[str, Any]], *, details: bool = False) -> str:
    """A table with one line per run file. A file that can't be read shows only its run id.

    With `details`, the lines of `time_summary` follow each run.
    """
    lines = [
        f"{'started (UTC)':<17} {'took':>8} {'captioned':>10} {'rejected':>9} {'skipped':>10} {'img/s':>7}  "
        f"{'bottleneck':<10}  outcome"
    ]
    for run in runs:
        counts, outcome, spent = (
            run.get("counts", {}),
            run.get("outcome", "unreadable"),
            run.get("time") or {},
        )
        rejected = sum(counts.get("rejected", {}).values())
        lines.append(
            f"{str(run.get('started', run.get('run_id')))[:16].replace('T', ' '):<17} "
            f"{tqdm.format_interval(run.get('seconds', 0)):>8} {counts.get('captioned', 0):>10} {rejected:>9} "
            f"{counts.get('skipped', 0):>10} {run.get('images_per_second', 0):>7.1f}  "
            f"{_words(spent.get('bottleneck') or '-'):<10}  {outcome}"
        )
        if details:
            lines += [f"    {line}" for line in time_summary(spent)]
    return "\n".join(lines)

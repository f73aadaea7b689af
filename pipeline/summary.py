"""Summaries of a run, a plan and a list of runs, as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from model.image.decode import ERROR_CLASSES
from pipeline.output.record import RunRecord
from pipeline.plan.policy import REASONS, SKIPPED, Plan


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
    lines.append(f"output {record.output}")
    return "\n".join(lines)


def plan_summary(plan: Plan) -> str:
    """A plan: the images to caption and to skip, by reason, and the bytes to read."""
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
    return "\n".join(lines)


def runs_table(runs: Sequence[dict[str, Any]]) -> str:
    """A table with one line per run file. A file that can't be read shows only its run id."""
    lines = [
        f"{'started (UTC)':<17} {'took':>8} {'captioned':>10} {'rejected':>9} {'skipped':>10} {'img/s':>7}  outcome"
    ]
    for run in runs:
        counts, outcome = run.get("counts", {}), run.get("outcome", "unreadable")
        rejected = sum(counts.get("rejected", {}).values())
        lines.append(
            f"{str(run.get('started', run.get('run_id')))[:16].replace('T', ' '):<17} "
            f"{tqdm.format_interval(run.get('seconds', 0)):>8} {counts.get('captioned', 0):>10} {rejected:>9} "
            f"{counts.get('skipped', 0):>10} {run.get('images_per_second', 0):>7.1f}  {outcome}"
        )
    return "\n".join(lines)

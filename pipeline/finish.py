"""The end of a run, whatever it was: written down where people, schedulers and monitors look for it.

OUT/runs/RUN.json    everything about this run
OUT/latest.json      of the last run that began: run id, outcome, exit code, detail, and when one last ended well
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from conf.errors import StoreDownError
from model.image.decode import ImageError
from pipeline.prometheus import publish
from pipeline.record import Outcome, Record, software, utc_now
from pipeline.store.store import Store
from pipeline.store.uri import join, redact
from pipeline.store.writing import write_bytes_atomic

if TYPE_CHECKING:
    from pipeline.prepare import Job

LATEST, RUNS = "latest.json", "runs"
_SMALL = 1 << 20  # bytes; ours has some hundred


class Began:
    """The moment a run began, by the clock on the wall and by one that never jumps."""

    def __init__(self) -> None:
        self.at, self._monotonic = utc_now(), time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._monotonic


def conclude(job: Job, began: Began, outcome: Outcome, detail: str) -> Record:
    """Write down how the run ended and tell the monitors. Raises OutputError."""
    seconds, writer = began.seconds, job.writer
    record = Record(
        run_id=writer.run_id,
        output=job.output,
        outcome=outcome,
        detail=detail,
        sources=job.sources,
        left_out=job.tally.as_dict(),
        plan={"to_caption": dict(job.plan.reasons), "skipped": dict(job.plan.skipped)},
        recovered=job.recovered,
        counts=job.counts(unfinished=job.unfinished),
        started=began.at,
        ended=utc_now(),
        seconds=round(seconds, 3),
        images_per_second=round(writer.finished / seconds, 2),
        model={
            "id": job.bundle.model_id,
            "name": job.bundle.name,
            "decoding": job.bundle.decoding.model_dump(mode="json"),
        },
        config=job.config.model_dump(mode="json"),
        software=software(),
    )
    write_json(job.store, join(job.output, RUNS, f"{writer.run_id}.json"), record.to_json())
    latest = {
        **{name: getattr(record, name) for name in ("run_id", "outcome", "exit_code", "detail")},
        "ended": record.ended.isoformat(),
        "last_success": job.last_success,
    }
    if record.exit_code == 0:
        latest["last_success"] = latest["ended"]
    write_json(job.store, join(job.output, LATEST), latest)
    for problem in publish(job.config.metrics, record, latest["last_success"]):
        job.say(problem)
    return record


def last_success(store: Store, output: str) -> str | None:
    """When a run over the output last ended well (ISO 8601), as far as `latest.json` knows.

    Raises StoreDownError when it can't be read: what is not known must not be forgotten.
    """
    try:
        found = json.loads(store.read(join(output, LATEST), _SMALL))
        return datetime.fromisoformat(found["last_success"]).isoformat()
    except ImageError as error:
        if error.error == "unavailable":
            raise StoreDownError(f"can't read '{redact(join(output, LATEST))}': {error.detail}") from error
    except (ValueError, KeyError, TypeError):  # none yet, or not ours
        pass
    return None


def write_json(store: Store, uri: str, content: dict[str, Any]) -> None:
    """Write one JSON file, whole or not at all. Raises OutputError."""
    write_bytes_atomic(store, uri, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

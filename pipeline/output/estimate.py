"""How long a run will take, by the speed of an earlier one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from conf.errors import JobError
from pipeline.output.folder import OutputFolder
from pipeline.output.record import counts_of, read_run, run_files

MIN_CAPTIONED = 500  # an earlier run with fewer says little about the speed
MAX_FILES = 100  # run files to read at most


@dataclass(frozen=True)
class Estimate:
    """The duration of a run in seconds, start-up included, and the run whose speed it is based on."""

    seconds: float
    images_per_second: float
    run_id: str


def estimate(
    output: OutputFolder, model_id: str, images: int, computation: Callable[[], tuple[str, str | None]]
) -> Estimate | None:
    """The time that `images` take, by the newest run of this output with the model and enough captions.

    The run also had the engine and the precision that `computation` returns, as far as they are known: None is
    unknown, and so are those of runs of older versions. `computation` is called only if it matters. The result is
    None if there is no such run. Raises OutputError.
    """
    expected: tuple[str, str | None] | None = None
    for file in run_files(output)[: -MAX_FILES - 1 : -1]:
        run = read_run(output, file)
        try:
            if run["model"]["id"] != model_id or counts_of(run).captioned < MIN_CAPTIONED:
                continue
            had = run.get("engine"), run.get("precision")
            if any(had):
                expected = expected or computation()
                if any(a and b and a != b for a, b in zip(had, expected, strict=True)):
                    continue
            spent = run.get("time") or {}  # older versions measured only the rate of the whole run
            rate = float(spent.get("images_per_second") or run["images_per_second"])
            start_up = float(spent["driver_seconds"]["start_up"]) if spent.get("images_per_second") else 0.0
            return Estimate(start_up + images / rate, rate, run["run_id"])
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError, JobError):
            continue  # unreadable, or not a run file of ours
    return None

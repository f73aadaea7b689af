"""The estimated duration of a run, from the run files of an output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from pipeline.output import estimate as module
from pipeline.output.estimate import MIN_CAPTIONED, Estimate
from pipeline.output.folder import OutputFolder
from pipeline.output.record import Counts, write_record
from pipeline.store.stores import Stores
from pipeline.timing import PHASES, TimeSpent
from tests.records import record
from tests.whole import config, make_photos, run_job

MODEL = {"id": "m@1"}


@pytest.fixture
def output(tmp_path: Path) -> OutputFolder:
    return OutputFolder(Stores(), str(tmp_path / "out"))


def estimate(
    output: OutputFolder, model_id: str, images: int, engine: str = "local", precision: str | None = None
) -> Estimate | None:
    return module.estimate(output, model_id, images, lambda: (engine, precision))


def spent(rate: float | None, start_up: float = 5.0) -> TimeSpent:
    seconds = {**dict.fromkeys(PHASES, 0.0), "start_up": start_up}
    return TimeSpent(
        driver_seconds=seconds,
        worker_seconds={},
        workers={},
        shares={},
        images_per_second=rate,
        bottleneck=None,
    )


def write(output: OutputFolder, run_id: str, captioned: int, rate: float | None, **changes: Any) -> None:
    counts = Counts(captioned, captioned, {}, 0, 0, 0, 0, 0)
    fields = {"model": MODEL, "time": spent(rate), "images_per_second": 2.0, **changes}
    write_record(output, record(run_id=run_id, counts=counts, **fields), None)


def test_there_is_no_estimate_without_a_run(output: OutputFolder) -> None:
    assert estimate(output, "m@1", 1000) is None
    assert not Path(output.uri).exists()


def test_the_newest_run_of_the_model_with_enough_captions_is_taken(output: OutputFolder) -> None:
    write(output, "r1", 9000, 50.0)
    write(output, "r2", MIN_CAPTIONED, 100.0)
    write(output, "r3", 9000, 200.0, model={"id": "other@2"})
    write(output, "r4", MIN_CAPTIONED - 1, 400.0)
    assert estimate(output, "m@1", 1000) == Estimate(15.0, 100.0, "r2")
    assert estimate(output, "other@2", 1000) == Estimate(10.0, 200.0, "r3")
    assert estimate(output, "none@3", 1000) is None


def test_a_run_of_an_older_version_gives_the_rate_of_the_whole_run(output: OutputFolder) -> None:
    write(output, "r1", 1000, None, time=None)
    assert estimate(output, "m@1", 1000) == Estimate(500.0, 2.0, "r1")


def test_a_run_that_was_too_short_to_measure_gives_the_rate_of_the_whole_run(output: OutputFolder) -> None:
    write(output, "r1", 1000, None)
    assert estimate(output, "m@1", 1000) == Estimate(500.0, 2.0, "r1")


def test_the_run_had_the_same_engine_and_precision_as_far_as_they_are_known(output: OutputFolder) -> None:
    write(output, "r1", 9000, 50.0)  # by an older version
    write(output, "r2", 9000, 60.0, engine="local", precision="int8")
    write(output, "r3", 9000, 70.0, engine="local", precision="fp32")
    write(output, "r4", 9000, 80.0, engine="ray", precision="bf16")

    def run_of(engine: str, precision: str | None) -> str:
        result = estimate(output, "m@1", 1000, engine, precision)
        assert result is not None
        return result.run_id

    assert run_of("local", "int8") == "r2"
    assert run_of("local", "fp32") == "r3"
    assert run_of("local", "bf16") == "r1"
    assert run_of("ray", None) == "r4"
    assert run_of("ray", "fp32") == "r1"


def test_what_a_run_would_compute_with_is_not_looked_up_in_vain(output: OutputFolder) -> None:
    """It imports PyTorch."""

    def never() -> tuple[str, str | None]:
        raise AssertionError

    write(output, "r1", MIN_CAPTIONED - 1, 50.0, engine="local", precision="int8")
    assert module.estimate(output, "m@1", 1000, never) is None
    write(output, "r2", 9000, 50.0)
    assert module.estimate(output, "m@1", 1000, never) is not None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_dry_run_estimates_only_from_a_run_that_computed_alike(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    precision: str,
) -> None:
    monkeypatch.setattr(module, "MIN_CAPTIONED", 1)
    photos, out = make_photos(tmp_path), tmp_path / "out"
    assert run_job(photos, out, config(bundle)).precision == "fp32"
    options = ["--model", str(bundle), "--engine", "local", "--set", f"model.precision={precision}"]
    assert main(["run", str(photos), "--output", str(out), *options, "--recaption", "all", "--dry-run"]) == 0
    assert ("estimated time" in capsys.readouterr().out) == (precision == "fp32")


@pytest.mark.parametrize(
    "damaged",
    [
        "{",
        "[]",
        "{}",
        '{"model": null}',
        '{"model": {"id": "m@1"}, "counts": {"captioned": 9000}}',
    ],
)
def test_run_files_that_are_damaged_are_left_out(output: OutputFolder, damaged: str) -> None:
    write(output, "r1", 9000, 50.0)
    write(output, "r2", 9000, 0.0, images_per_second=0.0)
    write(output, "r3", 9000, 70.0, time={"images_per_second": 70.0})
    output.write("runs/r4.json", damaged.encode())
    result = estimate(output, "m@1", 1000)
    assert result is not None
    assert result.run_id == "r1"

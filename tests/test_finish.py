"""The files written at the end of a run: run file and latest.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from conf.errors import OutputError, StoreDownError
from conf.job import JobConfig, MetricsSettings, OutputSettings
from model.bundle import make_bundle
from pipeline.finish import Stopwatch, finish
from pipeline.job import Job
from pipeline.output.folder import OutputFolder
from pipeline.output.record import EXIT_CODES, Counts, Outcome, read_last_success
from pipeline.output.writer import Writer
from pipeline.plan.ledger import Ledger
from pipeline.plan.policy import Plan
from pipeline.sources.candidates import Tally
from pipeline.store.errors import StoreError
from pipeline.store.local import LocalStore
from pipeline.store.stores import Stores
from tests import tiny

BEFORE = "2026-01-30T02:00:00+00:00"


@pytest.fixture
def job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Job]:
    """A job that planned three images and captioned none."""
    stores = Stores()
    output, config = OutputFolder(stores, str(tmp_path)), JobConfig()
    with Ledger() as ledger:
        yield Job(
            run_id="r1",
            stores=stores,
            sources=["/photos"],
            tally=Tally(),
            output=output,
            bundle=make_bundle(tiny.captioner(max_length=5), "tiny", {}),
            plan=Plan(5, 3, 0, 0, Counter(new=3), Counter(done=2)),
            ledger=ledger,
            writer=Writer(output, "r1", "m@1", OutputSettings()),
            recovered=0,
            last_success=BEFORE,
            limits=config.input,
            model=config.model,
            workers=config.workers,
            rules=config.output,
            engine="local",
            ray_address=None,
            metrics=MetricsSettings(textfile=str(tmp_path / "none" / "x.prom")),
            config=config.model_dump(mode="json"),
        )
    warned = [r.getMessage() for r in caplog.get_records("call") if r.name == "nightcap.pipeline.finish"]
    assert len(warned) > 0
    assert all("metrics.textfile" in line for line in warned)


def latest(job: Job) -> SimpleNamespace:
    return SimpleNamespace(**json.loads((Path(job.output.uri) / "latest.json").read_text()))


@pytest.mark.parametrize(("outcome", "code"), EXIT_CODES.items())
def test_each_outcome_is_written_to_the_run_file_and_latest_json(
    job: Job, outcome: Outcome, code: int
) -> None:
    record = finish(job, Stopwatch(), outcome, "Zoë's café")
    text = (Path(job.output.uri) / "runs" / "r1.json").read_text(encoding="utf-8")
    assert json.loads(text) == json.loads(json.dumps(record.to_json()))
    assert "Zoë" in text
    assert record.counts == Counts(5, 0, {}, 0, 0, 2, 0, unfinished=3)
    left = latest(job)
    assert (left.run_id, left.outcome, left.exit_code, left.detail) == ("r1", outcome, code, "Zoë's café")
    assert left.last_success == (left.ended if code == 0 else BEFORE)
    assert (left.format, json.loads(text)["format"]) == (2, 2)


def test_the_last_success_is_read_from_latest_json(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_last_success(job.output) is None
    finish(job, Stopwatch(), "done")
    assert read_last_success(job.output) == latest(job).ended
    for broken in ("{", "[]", '{"last_success": "soon"}', '{"last_success": 3}', '{"last_success": null}'):
        (Path(job.output.uri) / "latest.json").write_text(broken)
        assert read_last_success(job.output) is None

    def fail(error: StoreError) -> None:
        def read(*_: object) -> bytes:
            raise error

        monkeypatch.setattr(LocalStore, "read", read)

    fail(StoreError("unavailable", "no answer", "can't read it", busy=True))
    with pytest.raises(StoreDownError, match="can't read it"):
        read_last_success(job.output)  # an unknown last success must not be reported as none
    fail(StoreError("forbidden", "not allowed"))
    with pytest.raises(OutputError, match="not allowed"):
        read_last_success(job.output)

"""A job that is checked and ready to run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from conf.job import EngineName, InputSettings, MetricsSettings, ModelSettings, OutputSettings, WorkerSettings
from model.bundle import Bundle
from pipeline.output.folder import OutputFolder
from pipeline.output.writer import Writer
from pipeline.plan.ledger import Ledger
from pipeline.plan.policy import Plan
from pipeline.sources.candidates import Tally
from pipeline.store.stores import Stores
from pipeline.timing import Phases


@dataclass(frozen=True)
class Job:
    """All that a run needs: sources, output and bundle are checked, the output is locked, and the plan is made.

    It has the sections of the configuration that a run uses. `config` is the whole configuration as plain values, for
    the run file.
    """

    run_id: str
    stores: Stores
    sources: list[str]  # see `uri.source_name`
    tally: Tally  # files of the sources that were left out
    output: OutputFolder
    bundle: Bundle
    plan: Plan
    ledger: Ledger  # the images to caption
    planning: Phases  # the time that it took to make the plan
    writer: Writer
    recovered: int  # images that an earlier run finished and this one published
    last_success: str | None  # when a run last succeeded, ISO 8601
    limits: InputSettings
    model: ModelSettings
    workers: WorkerSettings
    rules: OutputSettings
    engine: EngineName
    ray_address: str | None
    metrics: MetricsSettings
    config: dict[str, Any]

    @property
    def unfinished(self) -> int:
        """The number of planned images without an outcome."""
        return self.plan.to_caption - self.writer.finished

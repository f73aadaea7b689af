"""A run that was checked and is ready to start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from conf.job import InputSettings, MetricsSettings, ModelSettings, OutputSettings, WorkerSettings
from model.bundle import Bundle
from pipeline.output.folder import OutputFolder
from pipeline.output.writer import Writer
from pipeline.plan.ledger import Ledger
from pipeline.plan.policy import Plan
from pipeline.sources.candidates import Tally
from pipeline.store.stores import Stores


@dataclass(frozen=True)
class Job:
    """Sources, output and bundle exist and fit together; the output is locked, and the plan is made.

    Of the configuration it has the sections that are used from here on, and `config`, all of it as plain values for
    the run file.
    """

    run_id: str
    stores: Stores
    sources: list[str]  # as the user named them, without secrets
    tally: Tally  # what of the sources was left out
    output: OutputFolder
    bundle: Bundle
    plan: Plan
    ledger: Ledger  # what is to do
    writer: Writer
    recovered: int  # images that an earlier run had finished and this one published
    last_success: str | None  # when an earlier run ended well
    limits: InputSettings
    model: ModelSettings
    workers: WorkerSettings
    rules: OutputSettings
    ray_address: str | None
    metrics: MetricsSettings
    config: dict[str, Any]

    @property
    def unfinished(self) -> int:
        """Images of the plan that have no outcome yet."""
        return self.plan.to_caption - self.writer.finished

"""`nightcap report`, and the report at the end of a run. Heavy imports are inside the functions."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jobs.settings import load_job

if TYPE_CHECKING:
    from conf.job import JobConfig
    from pipeline.job import Job
    from pipeline.output.folder import OutputFile, OutputFolder
    from pipeline.store.stores import Stores

logger = logging.getLogger(f"nightcap.{__name__}")
SECONDS_IF_STOPPED = 5.0  # to read images after a run that was stopped, or whose store is down


def report(args: argparse.Namespace) -> int:
    config = load_job(args).config

    from pages.report import write_report
    from pipeline.prepare import output_folder
    from pipeline.store.stores import Stores

    with Stores(config.s3, config.input) as stores:
        output = output_folder(stores, args.output)
        target = report_file(stores, output, args.target)
        html = write_report(output, stores, config.input, args.run, args.samples)
        target.write(html.encode())
    print(f"{args.target}, {len(html) / 1000:.0f} kB")
    return 0


def report_file(stores: Stores, output: OutputFolder, name: str) -> OutputFile:
    """The file of a report. Raises OutputError if it can't be written, or could be one of the output's own files.

    Inside the output, it must be a `.html` file that is in no folder of it.
    """
    from conf.errors import OutputError
    from pipeline.output.folder import OutputFile
    from pipeline.store.uri import folder_of, redact

    file = OutputFile(stores, name)
    store, folder = stores.of(file.uri), folder_of(file.uri)
    # The output may not exist yet: then no link leads to it, and the names tell.
    inside = file.uri.startswith(output.full_name("")) or store.contains(output.uri, file.uri)
    at_top = folder == output.uri.rstrip("/") or store.contains(folder, output.uri)
    if inside and not (at_top and file.uri.endswith(".html")):
        raise OutputError(
            f"'{name}' is among the files of the output; write the report outside of it, or to "
            f"'{redact(output.full_name('report.html'))}'"
        )
    return file


def check_report(config: JobConfig, output: str) -> None:
    """Check `output.report` before a run starts. Raises OutputError."""
    from pipeline.prepare import output_folder
    from pipeline.store.stores import Stores

    if config.output.report is not None:
        with Stores(config.s3) as stores:
            report_file(stores, output_folder(stores, output), config.output.report)


@contextmanager
def report_at_end(job: Job) -> Iterator[None]:
    """Write `output.report` at the end of the block, however it ends, if the run has written its run file.

    A report that can't be written is an error in the log. The captions are the result of the run, and its exit code
    is theirs.
    """
    try:
        yield
    finally:
        if job.rules.report is not None:
            from pages.report import SECONDS, write_report
            from pipeline.output.folder import RUNS
            from pipeline.store.uri import one_line

            try:
                run = job.output.read_json(f"{RUNS}/{job.run_id}.json")
                if run is not None:
                    ended = run["outcome"] in ("done", "too_many_rejects")
                    seconds = SECONDS if ended else SECONDS_IF_STOPPED
                    html = write_report(job.output, job.stores, job.limits, job.run_id, seconds=seconds)
                    report_file(job.stores, job.output, job.rules.report).write(html.encode())
            except KeyboardInterrupt:
                logger.error("interrupted: the report was not written; `nightcap report` writes it")
            except Exception as failure:  # whatever it is, the run has its own outcome
                logger.error(
                    "the report was not written: %s; nothing else is affected, and `nightcap report` writes it later",
                    one_line(str(failure)),
                    exc_info=logger.isEnabledFor(logging.DEBUG),
                )

"""Results of images, and writers that publish them in an output."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pyarrow as pa

from conf.job import OutputSettings
from pipeline.output.catalog import Catalog
from pipeline.output.folder import OutputFolder
from pipeline.output.tables import known_rows, read_rows
from pipeline.output.writer import Copies, Writer
from pipeline.rows import RESULT

NOTHING: dict[str, Any] = {
    "content_tag": "",
    "previous_file": "",
    "width": 0,
    "height": 0,
    "error_class": "",
    "detail": "",
    "caption": "",
    "confidence": 0.0,
    "avg_logprob": 0.0,
    "calibrated": False,
    "read_seconds": 0.0,
    "decode_seconds": 0.0,
    "caption_seconds": 0.0,
    "precision": "",
}


def good(*paths: str, caption: str = "a dog", tag: str = "t") -> pa.Table:
    """Results of captioned images."""
    row = {**NOTHING, "content_tag": tag, "width": 4, "height": 3, "caption": caption, "confidence": 0.5}
    return pa.Table.from_pylist([{**row, "path": path} for path in paths], RESULT)


def bad(*paths: str, error: str = "truncated") -> pa.Table:
    return pa.Table.from_pylist(
        [{**NOTHING, "path": path, "error_class": error, "detail": "why"} for path in paths], RESULT
    )


def planned(out: OutputFolder, results: pa.Table) -> pa.Table:
    """The results, with `previous_file` filled in as the plan does."""
    where = {path: file for file, rows in known_rows(Catalog(out)) for path in rows["path"].to_pylist()}
    files = pa.array([where.get(path, "") for path in results["path"].to_pylist()], pa.string())
    return results.set_column(RESULT.get_field_index("previous_file"), "previous_file", files)


def make_writer(
    out: OutputFolder,
    run: str,
    rows: int = 100,
    seconds: float = 86_400,
    journal: float = 3600,
    copies: Copies | None = None,
    language: str = "en",
) -> Writer:
    settings = OutputSettings.model_construct(
        rows_per_file=rows, flush_seconds=seconds, journal_seconds=journal
    )
    return Writer(out, run, "m@1", settings, copies=copies, language=language)


def write(out: OutputFolder, run: str, *blocks: pa.Table, rows: int = 100, language: str = "en") -> Writer:
    writer = make_writer(out, run, rows, language=language)
    for block in [planned(out, block) for block in blocks]:
        writer.add(block)
    writer.close()
    return writer


def paths(out: OutputFolder, table: str) -> dict[str, list[str]]:
    """File name -> the paths in it."""
    result = {}
    for file in out.list_files(table):
        if not file.endswith(".parquet"):
            continue
        rows = read_rows(out, file)
        assert rows is not None
        result[file.partition("/")[2]] = rows["path"].to_pylist()
    return result


def everything(out: OutputFolder) -> dict[str, list[str]]:
    return {name: sorted(chain(*paths(out, name).values())) for name in ("captions", "rejects")}

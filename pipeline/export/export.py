"""The captions of an output, written for other programs: the formats, and what holds for all of them."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from conf.errors import OutputError, UsageError
from conf.job import InputSettings
from pipeline.export.filter import Filter, define_alt
from pipeline.export.formats import SIDECARS
from pipeline.export.lines import LINES
from pipeline.export.result import Exported
from pipeline.export.shards import PER_SHARD, export_shards
from pipeline.export.sidecars import export_sidecars
from pipeline.export.state import State
from pipeline.output.folder import OutputFile, OutputFolder
from pipeline.output.query import Tables
from pipeline.output.record import read_sources
from pipeline.rows import TABLES
from pipeline.sources.resolve import check_output_outside
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores
from pipeline.store.uri import redact

FORMATS = (*LINES, *SIDECARS, "webdataset")
"""The formats: those of one file, those of a file for each image or video, and shards."""

_EXPORTED = {"csv": rb"path,caption,confidence,", "jsonl": rb'\{"path":".*","caption":.*,"confidence":'}
"""What an exported file of lines begins with."""
_FIRST_LINE = 1 << 16  # bytes; longer than a path and a caption


def export(
    stores: Stores,
    output: OutputFolder,
    target: OutputFolder,
    kind: str,
    chosen: Filter,
    limits: InputSettings,
    *,
    root: str | None = None,
    delete: bool = False,
    per_shard: int = PER_SHARD,
) -> Exported:
    """Write the captions of an output to `target`, a file for `LINES` and else a folder, in one of `FORMATS`.

    Only what is new or changed is written, and every file appears whole. `root` is for sidecar files, `per_shard` and
    `limits` are for shards, see `export_sidecars` and `export_shards`. Raises UsageError before anything is written.
    """
    if delete and chosen.since is not None:
        raise UsageError(
            "--delete with --since would delete what was captioned before; leave one of them out"
        )
    output.check_exists(tuple(TABLES))
    _check_outside(stores, output, target, kind)
    file = OutputFile(stores, target.uri) if kind in LINES else None
    with Tables(output) as tables:
        tables.refresh()
        if chosen.alt:
            define_alt(tables)
        if file is not None:
            return _export_lines(tables, chosen, kind, file)
        target.check_kind()
        target.check_writable()
        state = State(stores, target)
        with state.locked():
            state.check(kind)
            if kind in SIDECARS:
                return export_sidecars(
                    tables, chosen, SIDECARS[kind], target, state, root=root, delete=delete
                )
            return export_shards(
                tables, chosen, stores, limits, target, state, per_shard=per_shard, delete=delete
            )


def _export_lines(tables: Tables, chosen: Filter, kind: str, target: OutputFile) -> Exported:
    """Write one file of CSV or JSON lines, by path, unless it has the same content already."""
    header, line, end = LINES[kind]("captions", {"alt": chosen.text} if chosen.alt else None)
    first = target.beginning(_FIRST_LINE)
    if first and not re.match(_EXPORTED[kind], first):
        raise OutputError(
            f"'{redact(target.uri)}' is not an earlier export as {kind}, and would be replaced; delete it, or "
            "give another name"
        )
    result = Exported()
    with tempfile.TemporaryDirectory(prefix="nightcap-export-") as folder:
        file = Path(folder) / "lines"
        with (
            file.open("w", encoding="utf-8", newline="") as lines,
            tables.stream("captions", *chosen.query(line)) as stream,
        ):
            lines.write(header)
            while rows := stream.fetch():
                lines.write("".join(text + end for (text,) in rows))
                result.files += len(rows)
        if target.equals(file):
            result.unchanged = result.files
        else:
            target.upload(file)
            result.written = result.files
    return result


def _check_outside(stores: Stores, output: OutputFolder, target: OutputFolder, kind: str) -> None:
    """Raises OutputError if the target is in the output, or if a later run would caption its shards."""
    try:
        if stores.of(target.uri).contains(output.uri, target.uri):
            raise OutputError(
                f"'{redact(target.uri)}' is in the output '{redact(output.uri)}'; export to another place"
            )
        if kind == "webdataset":
            check_output_outside(stores, sorted(read_sources(output) or ()), target.uri)
    except StoreError as error:
        raise error.as_usage(OutputError) from error

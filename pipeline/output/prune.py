"""Mark (`vanished_at`) or remove the rows of images that are no longer in the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import pyarrow as pa
import pyarrow.compute as pc

from conf.errors import SourceError
from pipeline.output.catalog import Catalog
from pipeline.output.folder import OutputFolder
from pipeline.output.record import new_run_id, utc_now
from pipeline.output.tables import known_rows, read_rows, replace_rows
from pipeline.plan.ledger import Ledger
from pipeline.rows import COLUMNS
from pipeline.sources.candidates import Tally, list_candidates
from pipeline.sources.resolve import resolve
from pipeline.store.stores import Stores
from pipeline.store.uri import join, redact

EXAMPLES = 5


@dataclass(frozen=True)
class Pruned:
    """The number of rows of vanished images, and a few of their paths."""

    rows: int
    examples: list[str]


def prune(
    stores: Stores, sources: Sequence[str], output: OutputFolder, *, remove: bool = False, dry: bool = False
) -> Pruned:
    """Mark or remove the rows of images that vanished from these folders; with `dry`, only count them.

    Rows of images outside these folders are kept. If a folder can't be listed completely, nothing is changed. Raises
    SourceError, OutputError, LockedError.
    """
    prefixes = [_prefix(stores, source) for source in sources]
    output.check_writable()
    tally = Tally()
    with output.locked(new_run_id(utc_now())), Ledger() as ledger:
        ledger.add(list_candidates(sources, None, stores, tally))
        for reason in ("unreadable folder", "source without images"):  # it may be unmounted
            if reason in tally.left_out:
                raise SourceError(
                    f"{tally.left_out[reason]} {reason}, such as '{tally.examples[reason][0]}': its images would "
                    "count as vanished; make it readable, or leave it out"
                )
        catalog = Catalog(output, read_only=dry)
        for file, rows in known_rows(catalog):
            ledger.add_known(file, rows)
        count, examples = 0, list[str]()
        for file, missing in ledger.vanished(prefixes, marked=remove):
            # Listings leave out hidden files, but these may have been captioned from a manifest.
            paths = [path for path in missing if not _hidden(path, prefixes)]
            if not paths:
                continue
            count += len(paths)
            examples += paths[: EXAMPLES - len(examples)]
            if not dry:
                vanished = pa.array(paths, pa.string())
                replace_rows(catalog, file, vanished, None if remove else _marked(output, file, vanished))
        catalog.save()
    return Pruned(count, examples)


def _prefix(stores: Stores, source: str) -> str:
    resolved = resolve(stores, source)
    if resolved.kind != "folder" or resolved.pattern is not None:
        raise SourceError(
            f"'{redact(source)}' is not a folder: give the folders or prefixes that were captioned, to prune only "
            "the rows of their images"
        )
    return join(resolved.uri, "")


def _marked(output: OutputFolder, file: str, paths: pa.Array) -> pa.Table | None:
    """The rows of these paths in a file, with the current time as `vanished_at`."""
    rows = read_rows(output, file)
    if rows is None:
        return None
    rows = rows.filter(pc.is_in(rows["path"], value_set=paths))
    now = pa.scalar(datetime.now(timezone.utc), COLUMNS["vanished_at"][0])
    index = rows.schema.get_field_index("vanished_at")
    return rows.set_column(index, rows.schema.field(index), pa.repeat(now, len(rows)))


def _hidden(path: str, prefixes: Sequence[str]) -> bool:
    return any("/." in f"/{path[len(prefix) :]}" for prefix in prefixes if path.startswith(prefix))

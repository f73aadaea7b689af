"""Rows of images that are no longer in the store: marked (`vanished_at`) or removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import pyarrow as pa
import pyarrow.compute as pc

from conf.errors import SourceError
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
    """How many rows are of images that are no longer there, and a few of their paths."""

    rows: int
    examples: list[str]


def prune(
    stores: Stores, sources: Sequence[str], output: OutputFolder, *, remove: bool = False, dry: bool = False
) -> Pruned:
    """Mark the rows of images that vanished from these folders, or remove them.

    Rows of other places are left alone, and so is everything when a folder could not be listed whole. Raises
    SourceError, OutputError, LockedError.
    """
    prefixes = [_prefix(stores, source) for source in sources]
    output.check_writable()
    tally = Tally()
    with output.locked(new_run_id(utc_now())), Ledger() as ledger:
        ledger.add(list_candidates(sources, None, stores, tally))
        for reason in ("unreadable folder", "source without images"):  # perhaps not mounted
            if reason in tally.left_out:
                raise SourceError(
                    f"{tally.left_out[reason]} {reason}, such as '{tally.examples[reason][0]}': what was in it could "
                    "be taken for vanished; leave it out, or make it readable"
                )
        for file, rows in known_rows(output):
            ledger.add_known(file, rows)
        count, examples = 0, list[str]()
        for file, missing in ledger.vanished(prefixes, marked=remove):
            # A listing leaves out hidden files, but a manifest may have named them.
            paths = [path for path in missing if not _hidden(path, prefixes)]
            if not paths:
                continue
            count += len(paths)
            examples += paths[: EXAMPLES - len(examples)]
            if not dry:
                gone = pa.array(paths, pa.string())
                replace_rows(output, file, gone, None if remove else _marked(output, file, gone))
    return Pruned(count, examples)


def _prefix(stores: Stores, source: str) -> str:
    found = resolve(stores, source)
    if found.kind != "folder" or found.pattern is not None:
        raise SourceError(
            f"'{redact(source)}' is no folder: name the folders or prefixes that were captioned, so that it is "
            "known which rows belong to them"
        )
    return join(found.uri, "")


def _marked(output: OutputFolder, file: str, paths: pa.Array) -> pa.Table | None:
    """The rows of these paths in a file, marked as vanished now."""
    rows = read_rows(output, file)
    if rows is None:
        return None
    rows = rows.filter(pc.is_in(rows["path"], value_set=paths))
    now = pa.scalar(datetime.now(timezone.utc), COLUMNS["vanished_at"][0])
    place = rows.schema.get_field_index("vanished_at")
    return rows.set_column(place, rows.schema.field(place), pa.repeat(now, len(rows)))


def _hidden(path: str, prefixes: Sequence[str]) -> bool:
    return any("/." in f"/{path[len(prefix) :]}" for prefix in prefixes if path.startswith(prefix))

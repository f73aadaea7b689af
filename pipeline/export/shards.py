"""Export as a WebDataset: tar archives of images with their captions, as training programs read them.

    DEST/00000.tar    KEY.jpg, KEY.txt, KEY.json of each image; KEY is a digest of its path

Images are read again from their stores, as they are now. A shard is written whole or not at all. The next export
writes those with changed rows again, and puts new rows into new shards.
"""

from __future__ import annotations

import io
import json
import logging
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import IO

from conf.errors import StoreDownError
from conf.job import InputSettings
from model.image.detect import detect_format
from pipeline.export.comparison import Change, Comparison, Wanted
from pipeline.export.filter import Filter
from pipeline.export.lines import json_lines
from pipeline.export.result import Exported
from pipeline.export.sidecars import add_earlier, join_if_long
from pipeline.export.state import UNREADABLE, Entry, State
from pipeline.output.folder import OutputFolder
from pipeline.output.query import Tables
from pipeline.stages.read import Reader
from pipeline.store.base import Body
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores
from pipeline.store.uri import one_line

logger = logging.getLogger(f"nightcap.{__name__}")
PER_SHARD = 1000
_EXTENSIONS = {
    "JPEG": "jpg",
    "JPEG2000": "jp2",
    "TIFF": "tif",
    "HEIF": "heic",
    **{name: name.lower() for name in ("PNG", "GIF", "WEBP", "AVIF", "BMP", "JXL", "PPM")},
}


def export_shards(
    tables: Tables,
    chosen: Filter,
    stores: Stores,
    limits: InputSettings,
    target: OutputFolder,
    state: State,
    *,
    per_shard: int = PER_SHARD,
    delete: bool = False,
) -> Exported:
    """Write new shards, and those with changed rows again. The caller holds the lock of `state`.

    With `delete`, shards are also written again to leave out rows that are not exported any more; otherwise that
    happens when they are written for another reason. Images that can't be read are left out, counted, and listed in
    `UNREADABLE`. Raises OutputError, and StoreDownError if a store does not answer.
    """
    with ExitStack() as stack:
        comparison = stack.enter_context(Comparison("path"))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nightcap-export-")))
        reader = stack.enter_context(Reader(stores, limits.max_bytes, limits.read_ahead))
        add_earlier(comparison, state, target)
        comparison.add_wanted(_wanted(tables, chosen))
        comparison.compare()
        result = Exported(files=comparison.count_wanted())
        with (folder / UNREADABLE).open("w", encoding="utf-8") as unreadable:
            writer = _Shards(reader, target, state, result, folder / "shard.tar", unreadable, chosen.alt)
            for shard in comparison.stale_shards(delete=delete):
                writer.write(shard, *comparison.shard(shard))
            number = comparison.last_shard() + 1
            for rows in comparison.new_rows(per_shard):
                number += writer.write(f"{number:05d}.tar", rows, [])
        result.unchanged = result.files - result.written - result.unreadable.total()
        result.leftovers = comparison.count_left() - writer.left_out
        if result.unreadable:
            state.folder.upload(UNREADABLE, folder / UNREADABLE)
        else:
            state.folder.delete(UNREADABLE)
        join_if_long(comparison, state)
    return result


class _Shards:
    """Writes shards, one after the other."""

    def __init__(
        self,
        reader: Reader,
        target: OutputFolder,
        state: State,
        result: Exported,
        temporary: Path,
        unreadable: IO[str],
        alt: bool,
    ) -> None:
        self._reader, self._target, self._state, self._result = reader, target, state, result
        self._temporary, self._unreadable, self._alt = temporary, unreadable, alt
        self.left_out = 0  # rows of earlier exports

    def write(self, shard: str, rows: Sequence[Change], lost: Sequence[Entry]) -> bool:
        """Write a shard with the images of `rows` that can be read; without `rows`, delete it.

        If none can be read, perhaps because a disk is not mounted, the shard stays as it is. Returns whether it was
        written.
        """
        exported = []
        with tarfile.open(self._temporary, "w") as archive:
            bodies = self._reader.read([row.path for row in rows])
            for row, body in zip(rows, bodies, strict=True):
                if self._add(archive, row, body):
                    exported.append(Entry(row.path, shard, row.digest))
        if rows and not exported:
            return False
        paths = {entry.path for entry in exported}
        missing = [Entry(row.path, shard, None) for row in rows if row.path not in paths and row.before]
        entries = [*exported, *missing, *lost]
        part = self._state.begin(entries)
        if exported:
            self._target.upload(shard, self._temporary)
            self._result.shards += 1
        else:
            self._target.delete(shard)
            self._result.deleted += 1
        self._state.end(part, entries)
        self._result.written += len(exported)
        self.left_out += len(lost)
        logger.info("%s: %d images", shard, len(exported))
        return bool(exported)

    def _add(self, archive: tarfile.TarFile, row: Change, body: Body | StoreError) -> bool:
        """Add an image with its caption. Returns False if it can't be read."""
        extension = "" if isinstance(body, StoreError) else _EXTENSIONS.get(detect_format(body.data), "")
        if isinstance(body, StoreError) or not extension:
            error = (
                body if isinstance(body, StoreError) else StoreError("unsupported", "not an image any more")
            )
            if error.down:
                raise StoreDownError(
                    f"can't read '{one_line(row.path)}' ({error.detail}); finished shards are kept, run it again"
                ) from error
            self._result.cannot_read(row.path, error.error_class)
            line = {"path": row.path, "error_class": error.error_class, "detail": error.detail}
            self._unreadable.write(json.dumps(line, ensure_ascii=False) + "\n")
            return False
        fields = json.loads(row.content)
        text = fields["alt" if self._alt else "caption"]
        key = blake2b(row.path.encode(), digest_size=12).hexdigest()
        for ending, data in ((extension, body.data), ("txt", text.encode()), ("json", row.content.encode())):
            info = tarfile.TarInfo(f"{key}.{ending}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        return True


def _wanted(tables: Tables, chosen: Filter) -> Iterator[Wanted]:
    line = json_lines("captions", {"alt": chosen.text} if chosen.alt else None).sql
    with tables.stream("captions", *chosen.query(f"path, {line}")) as stream:
        while rows := stream.fetch():
            for path, content in rows:
                yield Wanted(path, path, path, content)

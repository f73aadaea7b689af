"""An output of six captions, and what happens to its files outside of Nightcap."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from pipeline.output.folder import OutputFolder
from pipeline.output.verify import verify
from pipeline.store.stores import Stores
from tests.whole import config, image_file, run_job


def seven_photos(folder: Path) -> Path:
    """A folder with six images, and an empty file."""
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.png").write_bytes(image_file(i))
    (folder / "empty.png").write_bytes(b"")
    return folder


def captioned(photos: Path, out: Path, bundle: Path) -> Path:
    """The output of a run over `seven_photos`, with six captions in two files, and one reject."""
    run_job(photos, out, config(bundle, output={"rows_per_file": 4}))
    assert len(list((out / "captions").iterdir())) == 2
    return out


def problems(out: object) -> list[str]:
    return verify(OutputFolder(Stores(), str(out))).problems


def drop_rows(file: Path, count: int) -> None:
    rows = pq.read_table(file)
    pq.write_table(rows.slice(count), file)


def lose_captions(out: Path) -> list[str]:
    """Delete all files of captions. Returns their names."""
    lost = sorted((out / "captions").iterdir())
    for file in lost:
        file.unlink()
    return [file.name for file in lost]


def more_photos(folder: Path) -> Path:
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes(image_file(i + 50))
    return folder


def alter(file: Path) -> None:
    """Change all captions of a file."""
    rows = pq.read_table(file)
    pq.write_table(rows.set_column(1, rows.schema.field("caption"), [["mine"] * len(rows)]), file)

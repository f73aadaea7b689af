"""Helpers to write archives and Parquet files with images, and to list what is in them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.candidates import Candidate, Tally, list_candidates
from pipeline.store.stores import Stores

KINDS = ("tar", "tar.gz", "tgz", "zip", "parquet")


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_zip(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_parquet(path: Path, files: Mapping[str, bytes], rows_per_group: int = 4) -> Path:
    """A Parquet file as Hugging Face's datasets write it, with the images of `files` in order."""
    images = [{"bytes": data, "path": name} for name, data in files.items()]
    table = pa.table({"label": list(range(len(images))), "image": images})
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


def write_archive(path: Path, files: Mapping[str, bytes]) -> Path:
    """An archive of the kind that the name of `path` states."""
    if path.suffix == ".zip":
        return write_zip(path, files)
    if path.suffix == ".parquet":
        return write_parquet(path, files)
    return write_tar(path, files, "w" if path.suffix == ".tar" else "w:gz")


def candidates(
    stores: Stores, *sources: str, tally: Tally | None = None, archives: bool = True
) -> list[Candidate]:
    return list(list_candidates(sources, ("png",), stores, tally or Tally(), archives=archives))

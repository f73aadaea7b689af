"""Helpers to make folders of files and manifests, and to compare listed names."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.candidates import Candidate

IMAGES = ("jpg", "png")


def names(candidates: Iterable[Candidate], root: Path | str | None = None) -> list[str]:
    """The paths of the candidates, relative to `root` if given."""
    return [c.path if root is None else c.path.removeprefix(f"{root}/") for c in candidates]


def make_files(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"123")
    return root


def write_manifest(path: Path, rows: list[str]) -> Path:
    """Write a manifest of these paths; the extension gives the format: txt, csv, jsonl or parquet, and gz."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    plain = path.with_name(f"plain.{kind}")
    if kind == "txt":
        plain.write_text("\n".join(rows), encoding="utf-8-sig")
    elif kind == "csv":
        with plain.open("w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file).writerows([["id", "path"], *([i, row] for i, row in enumerate(rows))])
    elif kind == "jsonl":
        plain.write_text("".join(json.dumps({"id": 1, "path": row}) + "\n\n" for row in rows))
    else:
        pq.write_table(pa.table({"id": range(len(rows)), "path": rows}), plain)
    data = plain.read_bytes()
    plain.unlink()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path

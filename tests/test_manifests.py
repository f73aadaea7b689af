"""Manifests: all formats are read line by line, and errors name file and line."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import SourceError
from pipeline.sources import manifest as manifest_module
from pipeline.sources.candidates import Tally, list_candidates
from pipeline.store.stores import Stores
from tests.sources import IMAGES, make_files, names, write_manifest


@pytest.fixture
def stores() -> Stores:
    return Stores()


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl", "parquet"])
def test_every_manifest_format_is_read(tmp_path: Path, stores: Stores, kind: str, gz: str) -> None:
    make_files(tmp_path, "x/a b.jpg", "x/#é,1.odd", "x/~.jpg")
    rows = ["x/#é,1.odd", "x/a b.jpg", str(tmp_path / "x/a b.jpg"), "x/gone.jpg", "x", "x/~.jpg"]
    listed = write_manifest(tmp_path / f"list.{kind}{gz}", rows)
    candidates = list(list_candidates([str(listed)], IMAGES, stores, Tally()))
    assert names(candidates, tmp_path) == ["x/#é,1.odd", "x/a b.jpg", "x/gone.jpg", "x", "x/~.jpg"]
    assert [c.error_class for c in candidates] == [None, None, "missing", "unsupported", None]
    assert candidates[1].size == 3
    assert candidates[1].content_tag


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", b"id,file\n1,a.jpg\n", r"l\.csv' has no `path` column; its columns are: id, file"),
        ("l.csv", b"path,id\na.jpg,1\n\n,2\n", "line 4: `path` is empty"),
        ("l.csv", b"id,path\n1,a.jpg\n2\n", "line 3: only 1 columns"),
        ("l.csv", b'path\n"a"b.jpg\n', "line 2: .*check its quotes"),
        ("l.jsonl", b'{"file": "a.jpg"}\n', r"line 1 has no `path` column; its columns are: file"),
        ("l.jsonl", b'{"path": "a.jpg"}\n{"path"\n', "line 2: not JSON"),
        ("l.jsonl", b"[" * 100_000 + b"\n", "line 1: not JSON"),
        ("l.jsonl", b'["a.jpg"]\n', "line 1: not an object"),
        ("l.jsonl", b'{"path": 5}\n', "line 1: `path` is empty"),
        ("l.txt", b"a.jpg\ncaf\xe9.jpg\n", "line 2: not UTF-8"),
        ("l.txt", b"a" * 9000, "line 1: `path` is longer"),
        ("l.txt", b"a" * (2 << 20), "line 1: longer than"),
        ("l.txt.gz", b"plain text", r"can't read manifest .* is it a complete \.txt\.gz file"),
        ("l.txt.gz", gzip.compress(os.urandom(5000))[:3000], "can't read manifest|not UTF-8"),
        ("l.parquet", b"no parquet", r"can't read '.*' .* is it a complete \.parquet file"),
    ],
)
def test_bad_manifests_name_file_and_line(
    tmp_path: Path, stores: Stores, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        list(list_candidates([str(tmp_path / name)], IMAGES, stores, Tally()))
    assert name in str(caught.value)


def test_a_gzipped_parquet_manifest_is_unpacked_up_to_a_limit(
    tmp_path: Path, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_module, "_MAX_UNPACKED", 1000)
    (tmp_path / "l.parquet.gz").write_bytes(gzip.compress(bytes(5000)))
    with pytest.raises(SourceError, match=r"unpacks to more than 1000 bytes; store it without \.gz"):
        list(list_candidates([str(tmp_path / "l.parquet.gz")], IMAGES, stores, Tally()))


def test_bad_parquet_columns_are_refused(tmp_path: Path, stores: Stores) -> None:
    for table, message in (
        (pa.table({"file": ["a"]}), "its columns are: file"),
        (pa.table({"path": [1]}), "int64, not string"),
        (pa.table({"path": ["a.jpg", None]}), "row 2: `path` is empty"),
    ):
        pq.write_table(table, tmp_path / "l.parquet")
        with pytest.raises(SourceError, match=message):
            list(list_candidates([str(tmp_path / "l.parquet")], IMAGES, stores, Tally()))
    words = pa.array(["a.jpg", "a.jpg"]).dictionary_encode()
    pq.write_table(pa.table({"path": words}), tmp_path / "l.parquet")
    assert len(list(list_candidates([str(tmp_path / "l.parquet")], IMAGES, stores, Tally()))) == 1


def test_an_impossible_name_is_a_reject(tmp_path: Path, stores: Stores) -> None:
    rows = ['{"path": "a\\u0000.jpg"}', '{"path": "b\\ud800.jpg"}', '{"path": "s3://b/\\ud800.jpg"}']
    (tmp_path / "l.jsonl").write_text("\n".join(rows))
    candidates = list(list_candidates([str(tmp_path / "l.jsonl")], IMAGES, stores, Tally()))
    assert [c.error_class for c in candidates] == ["unsupported"] * 3
    assert candidates[1].path.endswith("b\\ud800.jpg")


def test_a_manifest_is_streamed(tmp_path: Path, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "l.csv").write_text("path\n" + "".join(f"{n}.jpg\n" for n in range(5000)) + '"bad"x\n')
    monkeypatch.setattr(manifest_module, "MAX_LINE", 100)
    candidates = list_candidates([str(tmp_path / "l.csv")], IMAGES, stores, Tally())
    assert next(candidates).path.endswith("/0.jpg")
    with pytest.raises(SourceError, match="line 5002"):
        list(candidates)


def test_file_uris_are_the_rows_of_their_paths(tmp_path: Path, stores: Stores) -> None:
    """As `Path.as_uri` writes them, so that an image has the same row whether its folder or a manifest is given."""
    for name in ("a b.jpg", "literal%20.jpg"):
        (tmp_path / name).touch()
    entries = [(tmp_path / "a b.jpg").as_uri(), f"file://{tmp_path}/literal%20.jpg", "FILE:///gone/a%20b.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(entries))
    full = list(manifest_module.read_manifest(stores, str(tmp_path / "list.txt")))
    assert full == [str(tmp_path / "a b.jpg"), str(tmp_path / "literal%20.jpg"), "/gone/a b.jpg"]

"""The export of `nightcap browse`: exact, whole or recognizably broken off, and limited."""

from __future__ import annotations

import csv
import http.client
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from conf.errors import OutputError
from pipeline.output.folder import OutputFolder
from pipeline.output.query import CHUNK, Stream
from pipeline.parquet import to_parquet
from pipeline.rows import CAPTIONS, REJECTS
from pipeline.store.stores import Stores
from tests.browsing import Site, site
from tests.tables import fill
from tests.web import Reply
from tests.whole import config

FORMULAS = ["=1+1", "+1", "-1", "@sum(a1)", "\t=1", "\r=1", "\n=1", "＝1"]
TEXTS = ["a dog", "", "1-2=3", 'he said "hi", twice', "two\nlines", "كلب أسود", "'quoted'"]


@pytest.fixture
def out(tmp_path: Path) -> OutputFolder:
    return OutputFolder(Stores(), str(tmp_path / "out"))


@pytest.fixture
def pages(out: OutputFolder, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The pages of `out`, whose files a test writes after that."""
    monkeypatch.setattr("pages.browsing.app.FRESH_SECONDS", 0.0)
    out.write_json("files.json", {})
    with Stores() as stores, site(out, config(bundle), stores) as opened:
        yield opened


def captions(*texts: str, name: str = "") -> bytes:
    rows = [{"path": f"/{name}{i}", "caption": text, "confidence": 0.25} for i, text in enumerate(texts)]
    return to_parquet(fill(CAPTIONS, rows))


def large(out: OutputFolder) -> None:
    """Captions of 80 MB, more than all buffers on the way to a client."""
    for i in range(10):
        out.write(f"captions/{i}.parquet", captions(*["a dog " * 700] * 2000, name=f"{i}/"))


def rows_of(answer: Reply) -> list[dict[str, object]]:
    """The rows of an export, by path."""
    assert answer.status == 200
    if answer.headers["content-type"].startswith("text/csv"):
        rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    else:
        rows = [json.loads(line) for line in answer.body.splitlines()]
    return sorted(rows, key=lambda row: str(row["path"]))


def test_all_texts_arrive_as_they_are(out: OutputFolder, pages: Site) -> None:
    out.write("captions/a.parquet", captions(*TEXTS, *FORMULAS))
    (first, *_) = rows = rows_of(pages("export", format="jsonl"))
    assert sorted(str(row["caption"]) for row in rows) == sorted([*TEXTS, *FORMULAS])
    assert list(first) == CAPTIONS.names
    assert (first["confidence"], first["calibrated"], first["width"]) == (0.25, False, 0)
    assert (first["vanished_at"], first["captioned_at"]) == (None, "1970-01-01T00:00:00.000000+00:00")
    table = rows_of(pages("export", format="csv"))
    assert list(table[0]) == CAPTIONS.names
    assert {row["caption"] for row in table} >= set(TEXTS)
    assert [row["confidence"] for row in table] == ["0.25"] * len(rows)


def test_no_cell_of_a_csv_file_is_a_formula(out: OutputFolder, pages: Site) -> None:
    rejects: list[dict[str, object]] = [
        {"path": "=a", "error_class": "empty", "detail": "@b", "run_id": "+c"}
    ]
    out.write("captions/a.parquet", captions(*FORMULAS))
    out.write("rejects/a.parquet", to_parquet(fill(REJECTS, rejects)))
    found = {str(row["caption"]) for row in rows_of(pages("export", format="csv"))}
    assert found == {f"'{text}" for text in FORMULAS}
    (reject,) = rows_of(pages("export", format="csv", table="rejects"))
    assert (reject["path"], reject["detail"], reject["run_id"]) == ("'=a", "'@b", "'+c")


def test_more_rows_than_a_chunk(out: OutputFolder, pages: Site) -> None:
    out.write("captions/a.parquet", captions(*(f"dog {i}" for i in range(2 * CHUNK + 1))))
    for kind in ("csv", "jsonl"):
        rows = rows_of(pages("export", format=kind))
        assert {row["caption"] for row in rows} == {f"dog {i}" for i in range(2 * CHUNK + 1)}
        assert len(rows) == 2 * CHUNK + 1
        assert rows_of(pages("export", format=kind, text="cat")) == []


def test_a_damaged_file_is_said_before_the_answer_begins(out: OutputFolder, pages: Site) -> None:
    out.write("captions/a.parquet", captions("a dog", "a cat"))
    file = Path(out.uri) / "captions" / "a.parquet"
    column = pq.read_metadata(file).row_group(0).column(CAPTIONS.names.index("caption"))
    data = bytearray(file.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 20] = bytes(20)
    file.write_bytes(data)
    for kind in ("csv", "jsonl"):
        answer = pages("export", format=kind)
        assert answer.status == 503
        assert "The output can&#39;t be read now" in answer.text
        assert "content-disposition" not in answer.headers


def test_an_error_after_the_beginning_breaks_the_file_off(
    out: OutputFolder, pages: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out.write("captions/a.parquet", captions(*["a dog"] * 3 * CHUNK))
    fetch, fetched = Stream.fetch, 0

    def failing(self: Stream) -> list[tuple[object, ...]]:
        nonlocal fetched
        fetched += 1
        if fetched == 2:
            raise OutputError("the disk is gone")
        return fetch(self)

    monkeypatch.setattr(Stream, "fetch", failing)
    with pytest.raises(http.client.IncompleteRead):
        pages("export")
    assert "an export was aborted: the disk is gone" in caplog.text
    assert "Traceback" not in caplog.text


def test_the_number_of_exports_and_the_time_of_their_clients_are_limited(
    out: OutputFolder, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large(out)
    monkeypatch.setattr("pages.browsing.app.EXPORTS", 1)
    monkeypatch.setattr("pages.browsing.export.SEND_SECONDS", 3.0)
    with Stores() as stores, site(out, config(bundle), stores) as pages:
        slow = http.client.HTTPConnection("127.0.0.1", pages.port, timeout=60)
        slow.request("GET", "/export")
        assert slow.getresponse().status == 200
        answer = pages("export", format="jsonl", path="/0/7")
        assert answer.status == 503
        assert "1 exports are running already" in answer.text
        assert pages().status == 200  # pages are not affected
        end = time.monotonic() + 30
        while pages("export", path="/0/77").status == 503 and time.monotonic() < end:
            time.sleep(0.2)
        assert len(rows_of(pages("export", path="/0/77"))) == 11
        slow.close()

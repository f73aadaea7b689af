"""`output.min_confidence`: the column `uncertain`, and where people see it."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from conf.job import InputSettings, OutputSettings
from jobs.cli import main
from pages.report import write_report
from pipeline.output.catalog import Catalog
from pipeline.output.folder import OutputFolder
from pipeline.output.tables import in_current_format, mark_uncertain
from pipeline.output.verify import verify
from pipeline.output.writer import Writer
from pipeline.store.stores import Stores
from tests import tiny
from tests.browsing import site
from tests.whole import config, run_job
from tests.writing import bad, good


@pytest.fixture
def out(tmp_path: Path) -> OutputFolder:
    return OutputFolder(Stores(), str(tmp_path / "out"))


def write(out: OutputFolder, run: str, *paths: str, threshold: float | None, language: str = "en") -> None:
    """Captions with a confidence of 0.5, and a reject."""
    writer = Writer(out, run, "m@1", OutputSettings(min_confidence=threshold), language=language)
    writer.add(good(*paths))
    writer.add(bad(f"bad-{run}"))
    writer.close()


def marks(out: OutputFolder) -> dict[str, bool | None]:
    table = pd.read_parquet(Path(out.uri) / "captions")
    return {
        path: None if pd.isna(mark) else bool(mark)
        for path, mark in zip(table["path"], table["uncertain"], strict=True)
    }


def test_captions_below_the_threshold_are_marked(out: OutputFolder) -> None:
    write(out, "r0", "none", threshold=None)
    write(out, "r1", "below", threshold=0.6)
    write(out, "r2", "equal", threshold=0.5)
    assert marks(out) == {"none": None, "below": True, "equal": False}
    assert verify(out).problems == []


def test_a_change_of_the_threshold_marks_again_and_changes_nothing_else(out: OutputFolder) -> None:
    write(out, "r0", "a", threshold=None)
    write(out, "r1", "b", threshold=0.6)
    before = pd.read_parquet(Path(out.uri) / "captions").drop(columns="uncertain")
    assert mark_uncertain(Catalog(out), 0.6) == 1
    assert marks(out) == {"a": True, "b": True}
    assert mark_uncertain(Catalog(out), 0.6) == 0
    assert mark_uncertain(Catalog(out), 0.0) == 2
    assert marks(out) == {"a": False, "b": False}
    pd.testing.assert_frame_equal(
        pd.read_parquet(Path(out.uri) / "captions").drop(columns="uncertain"), before
    )
    assert verify(out).problems == []


def test_a_file_of_an_older_version_gets_the_mark(out: OutputFolder) -> None:
    write(out, "r0", "a", threshold=None)
    (file,) = (Path(out.uri) / "captions").iterdir()
    rows = pq.read_table(file)
    pq.write_table(rows.drop_columns(["uncertain", "language"]), file)
    catalog = Catalog(out)
    read = out.read_table(f"captions/{file.name}")
    assert read is not None
    read = in_current_format(out, f"captions/{file.name}", read)
    assert (read["uncertain"].to_pylist(), read["language"].to_pylist()) == ([None], [None])
    assert mark_uncertain(catalog, 0.6) == 1
    assert marks(out) == {"a": True}


@pytest.mark.slow
def test_a_run_with_another_threshold_captions_nothing_again(bundle: Path, tmp_path: Path) -> None:
    tiny.write_images(tmp_path / "photos", "a.png", "b.png")
    out = tmp_path / "out"
    counts = []
    for threshold in (None, 1.0, 0.0, None):
        record = run_job(tmp_path / "photos", out, config(bundle, output={"min_confidence": threshold}))
        counts.append(record.counts.captioned)
        table = pd.read_parquet(out / "captions")
        expected = {None: {False} if len(counts) == 4 else {None}, 1.0: {True}, 0.0: {False}}[threshold]
        assert {None if pd.isna(mark) else bool(mark) for mark in table["uncertain"]} == expected
    assert counts == [2, 0, 0, 0]


def test_caption_prints_the_mark(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_images(tmp_path, "a.png")
    command = ["caption", str(tmp_path / "a.png"), "--model", str(bundle), "--set", "output.min_confidence="]
    for threshold, marked in (("1", True), ("0", False)):
        assert main([*command[:-1], f"output.min_confidence={threshold}"]) == 0
        assert capsys.readouterr().out.endswith("\tuncertain\n") == marked
        assert main([*command[:-1], f"output.min_confidence={threshold}", "--json"]) == 0
        assert f'"uncertain": {str(marked).lower()}' in capsys.readouterr().out
    assert main([*command[:-1], "output.min_confidence=1.5"]) == 2
    assert "output.min_confidence = 1.5" in capsys.readouterr().err


@pytest.fixture
def pages_out(out: OutputFolder) -> OutputFolder:
    write(out, "r0", "/in/english.jpg", threshold=0.2)
    write(out, "r1", "/in/arabic.jpg", threshold=0.6, language="ar")
    return out


def test_the_report_shows_language_and_mark(pages_out: OutputFolder) -> None:
    html = write_report(pages_out, Stores(), InputSettings())
    assert html.count('<p class="caption" lang="ar" dir="rtl">a dog</p>') == 1
    assert html.count('<p class="caption" lang="en" dir="ltr">a dog</p>') == 1
    assert "1 of them is uncertain" in " ".join(html.split())
    assert html.count("confidence 0.500, uncertain") == 1


def test_the_pages_of_browse_show_language_and_mark(pages_out: OutputFolder, bundle: Path) -> None:
    with Stores() as stores, site(pages_out, config(bundle), stores) as pages:
        listed = pages().text
        assert '<p class="caption" lang="ar" dir="rtl">a dog</p>' in listed
        assert listed.count("confidence 0.500, uncertain") == 1
        single = pages("image", path="/in/arabic.jpg").text
        assert '<p class="caption" lang="ar" dir="rtl">a dog</p>' in single
        rows = [json.loads(line) for line in pages("export", format="jsonl").text.splitlines()]
        assert {(row["language"], row["uncertain"]) for row in rows} == {("en", False), ("ar", True)}

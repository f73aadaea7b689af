"""The history: captions that were replaced, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from conf.errors import OutputError
from pipeline.output.folder import OutputFolder
from pipeline.output.prune import prune
from pipeline.output.verify import verify
from pipeline.output.writer import Writer
from pipeline.rows import HISTORY
from pipeline.store.stores import Stores
from tests import tiny
from tests.whole import config, run_job
from tests.writing import bad, everything, good, make_writer, planned, write


@pytest.fixture
def out(tmp_path: Path) -> OutputFolder:
    return OutputFolder(Stores(), str(tmp_path))


def replaced(folder: Path) -> list[tuple[Any, ...]]:
    """Path, caption, run, reason and replacing run of each row of the history."""
    names = ("path", "caption", "run_id", "reason", "replaced_by")
    rows = [
        row for file in sorted(folder.glob("history/*.parquet")) for row in pq.read_table(file).to_pylist()
    ]
    return sorted(tuple(row[name] for name in names) for row in rows)


def test_replaced_captions_are_kept_with_the_reason(out: OutputFolder, tmp_path: Path) -> None:
    write(out, "r0", good("asked", "changed", "broken", "same", "untouched"), bad("reject"))
    assert replaced(tmp_path) == []
    write(
        out,
        "r1",
        good("asked", caption="a cat"),
        good("changed", caption="a cow", tag="new"),
        good("same", tag="new"),
        good("reject", "new"),
        bad("broken"),
    )
    assert replaced(tmp_path) == [
        ("asked", "a dog", "r0", "asked", "r1"),
        ("broken", "a dog", "r0", "changed", "r1"),
        ("changed", "a dog", "r0", "changed", "r1"),
    ]
    (file,) = (tmp_path / "history").iterdir()
    assert pq.read_schema(file).remove_metadata() == HISTORY
    assert verify(out).problems == []

    other_model = Writer(out, "r2", "m@2", make_writer(out, "r2").settings)
    other_model.add(planned(out, good("asked", caption="two cats")))
    other_model.close()
    assert ("asked", "a cat", "r1", "other model", "r2") in replaced(tmp_path)


def test_files_of_the_history_are_filled_and_bounded(out: OutputFolder, tmp_path: Path) -> None:
    write(out, "r0", good("a", "b", "c", "d", "e"), rows=2)
    assert len(list((tmp_path / "captions").iterdir())) == 3
    write(out, "r1", good("a", "b", "c", "d", "e", caption="a cat"), rows=3)
    sizes = [pq.read_metadata(file).num_rows for file in sorted((tmp_path / "history").iterdir())]
    assert sizes == [3, 2]
    assert [path for path, *_ in replaced(tmp_path)] == ["a", "b", "c", "d", "e"]


def test_the_history_can_be_turned_off_and_removed(out: OutputFolder, tmp_path: Path) -> None:
    write(out, "r0", good("a"))
    writer = make_writer(out, "r1")
    settings = writer.settings.model_copy(update={"history": False})
    silent = Writer(out, "r1", "m@1", settings)
    silent.add(planned(out, good("a", caption="a cat")))
    silent.close()
    assert not (tmp_path / "history").exists()
    write(out, "r2", good("a", caption="a cow"))
    (file,) = (tmp_path / "history").iterdir()
    file.unlink()
    assert verify(out).problems == []
    write(out, "r3", good("a"))
    assert replaced(tmp_path) == [("a", "a cow", "r2", "asked", "r3")]
    assert everything(out)["captions"] == ["a"]


@pytest.mark.slow
def test_removed_images_leave_the_history_too(bundle: Path, tmp_path: Path) -> None:
    photos, output = tmp_path / "photos", tmp_path / "out"
    tiny.write_images(photos, "a.png", "b.png")
    run_job(photos, output, config(bundle))
    run_job(photos, output, config(bundle, model={"max_length": 1}))
    before = replaced(output)
    assert {(Path(row[0]).name, row[3]) for row in before} == {
        ("a.png", "other model"),
        ("b.png", "other model"),
    }
    (photos / "a.png").unlink()
    out = OutputFolder(Stores(), str(output))
    prune(out_stores := Stores(), [str(photos)], out)
    assert replaced(output) == before  # marked rows are kept
    prune(out_stores, [str(photos)], out, remove=True)
    assert [Path(row[0]).name for row in replaced(output)] == ["b.png"]


def test_a_removal_that_fails_half_way_is_completed_by_the_next_one(
    out: OutputFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write_images(tmp_path / "photos", "kept.png")
    paths = [str(tmp_path / "photos" / name) for name in ("gone.png", "kept.png")]
    write(out, "r0", good(*paths))
    write(out, "r1", good(*paths, caption="a cat"))

    def fail(*_: object) -> None:
        raise OutputError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.output.prune.forget", fail)
        with pytest.raises(OutputError):
            prune(Stores(), [str(tmp_path / "photos")], out, remove=True)
    prune(Stores(), [str(tmp_path / "photos")], out, remove=True)
    assert [row[0] for row in replaced(tmp_path)] == paths[1:]
    assert everything(out)["captions"] == paths[1:]

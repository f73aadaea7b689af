"""Results files: scores are computed from them, old formats are read, and folders do not matter."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import DataError
from jobs.cli import main
from model.bundle import make_bundle, own_version, write_folder
from model.captioner import Caption
from model.data.dataset import Example
from model.evaluation.compare import compare
from model.metrics.coco import evaluate, image_scores
from pipeline.parquet import to_parquet
from pipeline.score_table import RESULTS, read_results, results_table
from pipeline.store.stores import Stores
from tests import tiny
from tests.sentences import CAPTIONS, REFERENCES


def table(captions: list[str] = CAPTIONS) -> pa.Table:
    predictions = [Caption(text, 0.25, -1.4, False) for text in captions]
    examples = [Example(Path(f"/x/{i}.jpg"), tuple(group), f"{i}.jpg") for i, group in enumerate(REFERENCES)]
    return results_table(predictions, examples, image_scores(captions, REFERENCES), "tiny@1")


def write(folder: Path, rows: pa.Table) -> str:
    path = folder / "results.parquet"
    path.write_bytes(to_parquet(rows))
    return str(path)


def test_scores_can_be_computed_from_a_results_file(tmp_path: Path) -> None:
    path = write(tmp_path, table())
    assert pq.read_schema(path).equals(RESULTS)
    results = read_results(Stores(), path)
    assert (results.model_id, results.format) == ("tiny@1", 2)
    assert results.images == sorted(f"{i}.jpg" for i in range(12))
    assert results.references[1] == REFERENCES[1]
    again = {name: difference.a for name, difference in compare(results, results).items()}
    assert again == pytest.approx(evaluate(CAPTIONS, REFERENCES))
    query = "avg(cider), sum(bleu_matched[1]) / sum(bleu_possible[1]), sum(closest_words) / sum(words)"
    ((cider, precision, longer),) = duckdb.connect().read_parquet(path).aggregate(query).fetchall()
    assert cider == pytest.approx(again["CIDEr"])
    assert precision * np.exp(min(0, 1 - longer)) == pytest.approx(again["BLEU-1"])


def test_a_results_file_has_its_format_and_writer(tmp_path: Path) -> None:
    metadata = pq.read_schema(write(tmp_path, table())).metadata
    assert metadata[b"nightcap.format"] == b"2"
    assert metadata[b"nightcap.version"] == own_version().encode()


def test_a_results_file_without_format_is_read_as_version_1(tmp_path: Path) -> None:
    path = str(tmp_path / "results.parquet")
    pq.write_table(table().replace_schema_metadata(None), path)
    results = read_results(Stores(), path)
    assert results.format == 1
    assert len(results.images) == 12


@pytest.mark.parametrize(("stated", "writer"), [(b"3", b"9.1.0"), (b"\xff", b"9.1.0"), (b"0", b"9.1.0")])
def test_a_newer_results_format_is_refused_with_its_writer(
    tmp_path: Path, stated: bytes, writer: bytes
) -> None:
    metadata = {b"nightcap.format": stated, b"nightcap.version": writer}
    path = write(tmp_path, pa.table({"new": [1]}).replace_schema_metadata(metadata))
    with pytest.raises(
        DataError, match=r"has results format '.', written by Nightcap 9.1.0; .* reads 1 to 2"
    ):
        read_results(Stores(), path)


def test_results_of_the_same_data_in_other_folders_compare_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once as a whole file, once through a split file, with the images in another folder."""
    write_folder(make_bundle(tiny.captioner(max_length=6), "tiny", {}), tmp_path / "tiny", "card")
    captions = [["a dog runs .", "the dog runs in snow"], ["two cats sit"], ["a red cat sits in snow ."]]
    (tmp_path / "here").mkdir()
    (tmp_path / "there" / "lists").mkdir(parents=True)
    data = [tiny.data_set(tmp_path / place, captions) for place in ("here", "there")]
    (tmp_path / "there" / "lists" / "all.txt").write_text("0.png\n1.png\n2.png\n")
    (tmp_path / "pictures").mkdir()
    for name in ("0.png", "1.png", "2.png"):
        (tmp_path / "there" / name).rename(tmp_path / "pictures" / name)
    files = [str(tmp_path / f"{name}.parquet") for name in "ab"]
    specs = [[str(data[0])], [f"{data[1]}#lists/all.txt", "--images", str(tmp_path / "pictures")]]
    for spec, file in zip(specs, files, strict=True):
        assert main(["evaluate", str(tmp_path / "tiny"), *spec, "--no-meteor", "--results", file]) == 0
    assert pq.read_table(files[0]).equals(pq.read_table(files[1]))
    capsys.readouterr()
    assert main(["compare", *files, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 3
    assert (result["CIDEr"]["a"], result["CIDEr"]["interval"]) == (result["CIDEr"]["b"], [0.0, 0.0])


def test_files_that_are_not_results_files_are_refused(tmp_path: Path) -> None:
    store = Stores()
    with pytest.raises(DataError, match=r"no such results file.*nowhere\.parquet.*evaluate --results"):
        read_results(store, str(tmp_path / "nowhere.parquet"))
    (tmp_path / "text.parquet").write_text("image,caption\n")
    with pytest.raises(DataError, match=r"text\.parquet' is not a results file"):
        read_results(store, str(tmp_path / "text.parquet"))
    pq.write_table(pa.table({"path": ["a.jpg"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"other\.parquet' is a table, but not a results file"):
        read_results(store, str(tmp_path / "other.parquet"))
    with pytest.raises(DataError, match="not a results file"):
        read_results(store, write(tmp_path, RESULTS.empty_table()))

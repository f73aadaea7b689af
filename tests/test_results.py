"""Results image by image: the schema as written, figures regained from it, and comparisons that are fair."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import DataError
from model.captioner import Caption
from model.data.dataset import Example
from model.metrics.coco import evaluate, image_scores
from pipeline.output.writer import to_parquet
from pipeline.score_table import RESULTS, compare, read_results, results_table
from pipeline.store.filesystems import S3Options
from pipeline.store.store import Store
from tests.sentences import CAPTIONS, REFERENCES

WORSE = ["a dog", *CAPTIONS[1:7], "snow", *CAPTIONS[8:]]  # of the images, two have worse captions


def table(captions: list[str], references: list[list[str]] = REFERENCES, folder: str = "/data") -> pa.Table:
    said = [Caption(text, 0.25, -1.4, False) for text in captions]
    examples = [Example(Path(folder, f"{i}.jpg"), tuple(group)) for i, group in enumerate(references)]
    each = image_scores(captions, references)
    return results_table(said, examples, each, folder=Path(folder), model_id="tiny@1")


def write(folder: Path, rows: pa.Table) -> str:
    path = folder / "results.parquet"
    path.write_bytes(to_parquet(rows))
    return str(path)


def test_what_is_written_gives_the_figures_again(tmp_path: Path) -> None:
    path = write(tmp_path, table(CAPTIONS))
    rows = read_results(Store(S3Options()), path)
    assert rows.schema.equals(RESULTS)
    assert sorted(rows["image"].to_pylist()) == sorted(f"{i}.jpg" for i in range(12))
    again = {name: difference.a for name, difference in compare(rows, rows).items()}
    assert again == pytest.approx(evaluate(CAPTIONS, REFERENCES))
    wanted = "avg(cider), sum(bleu_matched[1]) / sum(bleu_possible[1]), sum(closest_words) / sum(words)"
    ((cider, precision, longer),) = duckdb.connect().read_parquet(path).aggregate(wanted).fetchall()
    assert cider == pytest.approx(again["CIDEr"])
    assert precision * np.exp(min(0, 1 - longer)) == pytest.approx(again["BLEU-1"])


def test_images_are_named_as_in_the_data_whatever_its_folder(tmp_path: Path) -> None:
    near, far = table(CAPTIONS, folder="/data"), table(CAPTIONS, folder="/elsewhere/data")
    assert near.equals(far)


def test_the_better_side_is_found_and_the_other_way_round_is_the_mirror_image() -> None:
    better, worse = table(CAPTIONS).sort_by("image"), table(WORSE).sort_by("image")
    forth, back = compare(worse, better), compare(better, worse)
    for name, found in forth.items():
        assert found.b > found.a, name
        assert found.b_better > 0.8, name
        low, high = found.interval
        assert low < found.b - found.a < high, name
        assert back[name].interval == pytest.approx((-high, -low)), name
        assert back[name].b_better <= 1 - found.b_better, name


def test_pairing_makes_the_interval_narrow() -> None:
    # Ten of twelve captions are the same: the difference varies less than either side does.
    from model.metrics.bootstrap import interval, resampled_means

    better, worse = table(CAPTIONS).sort_by("image"), table(WORSE).sort_by("image")
    low, high = compare(worse, better)["CIDEr"].interval
    alone = interval(resampled_means(np.array(better["cider"])[:, None])[:, 0])
    assert high - low < 0.7 * (alone[1] - alone[0])


def test_a_side_against_itself_differs_nowhere() -> None:
    same = table(CAPTIONS)
    for found in compare(same, same).values():
        assert found.interval == (0.0, 0.0)
        assert found.b_better == 0.0


def test_other_images_or_references_are_refused() -> None:
    whole, part = table(CAPTIONS), table(CAPTIONS[:10], REFERENCES[:10])
    with pytest.raises(
        DataError, match=r"A has 12 images and B 10, 2 only in A such as '10.jpg', 0 only in B"
    ):
        compare(whole, part)
    other = table(CAPTIONS, [*REFERENCES[:11], ["A boy."]])
    with pytest.raises(DataError, match=r"references of '11.jpg' differ"):
        compare(whole, other)


def test_what_is_no_results_file_is_named(tmp_path: Path) -> None:
    store = Store(S3Options())
    with pytest.raises(DataError, match=r"no such results file.*nowhere\.parquet.*evaluate --results"):
        read_results(store, str(tmp_path / "nowhere.parquet"))
    (tmp_path / "text.parquet").write_text("image,caption\n")
    with pytest.raises(DataError, match=r"text\.parquet' is no results file"):
        read_results(store, str(tmp_path / "text.parquet"))
    pq.write_table(pa.table({"path": ["a.jpg"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"other\.parquet' is a table, but no results file"):
        read_results(store, str(tmp_path / "other.parquet"))
    with pytest.raises(DataError, match="no results file"):
        read_results(store, write(tmp_path, RESULTS.empty_table()))

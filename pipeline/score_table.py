"""Results image by image: one Parquet file an evaluation, and what two of them say against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from conf.errors import DataError, OutputError
from model.captioner import Caption
from model.data.dataset import Example
from model.metrics.bootstrap import interval, resampled_means
from model.metrics.coco import MAX_N, ImageScores, Numbers, figures, sentence_bleu
from pipeline.output.tables import read_parquet
from pipeline.store.store import Store
from pipeline.store.uri import redact

RESULTS = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),  # relative to the data file where it lies below that
        pa.field("caption", pa.string(), nullable=False),
        pa.field("confidence", pa.float64(), nullable=False),
        pa.field("cider", pa.float64(), nullable=False),  # 0…10; its mean is the CIDEr of all
        pa.field("bleu_4", pa.float64(), nullable=False),  # smoothed by +1; its mean is not the BLEU-4 of all
        pa.field("rouge_1", pa.float64(), nullable=False),
        pa.field("rouge_2", pa.float64(), nullable=False),
        pa.field("rouge_l", pa.float64(), nullable=False),
        # The sums of these four columns over images give the corpus BLEU of those images.
        pa.field("bleu_matched", pa.list_(pa.int32()), nullable=False),  # n-grams, n = 1…4
        pa.field("bleu_possible", pa.list_(pa.int32()), nullable=False),
        pa.field("words", pa.int32(), nullable=False),
        pa.field("closest_words", pa.int32(), nullable=False),  # of the reference closest in length
        pa.field("references", pa.list_(pa.string()), nullable=False),
        pa.field("model_id", pa.string(), nullable=False),
    ]
)


def results_table(
    captions: Sequence[Caption],
    examples: Sequence[Example],
    each: ImageScores,
    *,
    folder: Path,
    model_id: str,
) -> pa.Table:
    """One row an image, in order, by the schema `RESULTS`. `folder`: that of the data file."""
    counts = each.counts.astype(np.int32)
    columns = {
        "image": [_name(example.image, folder) for example in examples],
        "caption": [caption.text for caption in captions],
        "confidence": [caption.confidence for caption in captions],
        "cider": each.cider,
        "bleu_4": sentence_bleu(each.counts),
        "rouge_1": each.rouge[:, 0],
        "rouge_2": each.rouge[:, 1],
        "rouge_l": each.rouge[:, 2],
        "bleu_matched": counts[:, :MAX_N].tolist(),
        "bleu_possible": counts[:, MAX_N : 2 * MAX_N].tolist(),
        "words": counts[:, 2 * MAX_N],
        "closest_words": counts[:, 2 * MAX_N + 1],
        "references": [list(example.captions) for example in examples],
        "model_id": [model_id] * len(examples),
    }
    return pa.table(columns, schema=RESULTS)


def read_results(store: Store, uri: str) -> pa.Table:
    """A results file, sorted by image. Raises DataError when it is none."""
    cure = "`nightcap evaluate --results FILE` writes one"
    try:
        table = read_parquet(store, uri)
    except FileNotFoundError as error:
        raise DataError(f"no such results file: '{redact(uri)}'; {cure}") from error
    except OutputError as error:
        if not isinstance(error.__cause__, pa.ArrowException):
            raise DataError(str(error)) from error
        raise DataError(f"'{redact(uri)}' is no results file; {cure}") from error
    if not table.schema.equals(RESULTS) or not len(table):
        raise DataError(f"'{redact(uri)}' is a table, but no results file; {cure}")
    return table.sort_by("image")


@dataclass(frozen=True)
class Difference:
    """One figure of two results. `interval`: 95 % of B − A; `b_better`: share of resamples where B is higher."""

    a: float
    b: float
    interval: tuple[float, float]
    b_better: float


def compare(a: pa.Table, b: pa.Table) -> dict[str, Difference]:
    """Each figure of two results on the same images, with a paired bootstrap: every draw is one for both.

    Raises DataError when the images or their references differ.
    """
    _check_same_images(a, b)
    statistics = [_scores(table).statistics for table in (a, b)]
    width = statistics[0].shape[1]
    drawn = resampled_means(np.hstack(statistics))
    found_a, found_b = (figures(s.mean(axis=0)) for s in statistics)
    spread_a, spread_b = figures(drawn[:, :width]), figures(drawn[:, width:])
    return {
        name: Difference(
            float(found_a[name]),
            float(found_b[name]),
            interval(spread_b[name] - spread_a[name]),
            float(np.mean(spread_b[name] > spread_a[name])),
        )
        for name in found_a
    }


def _check_same_images(a: pa.Table, b: pa.Table) -> None:
    images = [table["image"].to_pylist() for table in (a, b)]
    if images[0] != images[1]:
        only = [sorted({*images[i]} - {*images[1 - i]}) for i in (0, 1)]
        counts = ", ".join(
            f"{len(only[i])} only in {name}" + (f" such as {only[i][0]!r}" if only[i] else "")
            for i, name in enumerate("AB")
        )
        raise DataError(f"A has {len(a)} images and B {len(b)}, {counts}; compare results on the same data")
    for image, wanted, other in zip(
        images[0], a["references"].to_pylist(), b["references"].to_pylist(), strict=True
    ):
        if wanted != other:
            raise DataError(
                f"the references of {image!r} differ between A and B; compare results on the same data"
            )


def _scores(table: pa.Table) -> ImageScores:
    def column(name: str) -> Numbers:
        return np.array(table[name].to_pylist(), np.float64)

    counts = (column(name) for name in ("bleu_matched", "bleu_possible", "words", "closest_words"))
    rouge = [column(name) for name in ("rouge_1", "rouge_2", "rouge_l")]
    return ImageScores(np.column_stack(list(counts)), np.column_stack(rouge), column("cider"))


def _name(image: Path, folder: Path) -> str:
    """Relative names are the same wherever the data lie."""
    return str(image.relative_to(folder) if image.is_relative_to(folder) else image)

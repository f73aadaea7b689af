"""Results files: the captions and scores of an evaluation as a Parquet file, one row per image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from conf.errors import DataError
from model.bundle import own_version
from model.captioner import Caption
from model.data.dataset import Example
from model.evaluation.compare import Results
from model.metrics.coco import MAX_N, ImageScores, Numbers, sentence_bleu
from model.text.language import tokenization
from pipeline.parquet import read_parquet
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores
from pipeline.store.uri import redact

FORMAT = 2
"""Format version of the files. Since version 2, an image has its name in the data file. In version 1, which files do
not state, it has its path relative to the folder of the data file, or its absolute path if it is elsewhere."""
FORMAT_KEY, WRITER_KEY = b"nightcap.format", b"nightcap.version"  # in the schema's metadata
PROTOCOL_KEY = b"nightcap.protocol"
ENGLISH_PROTOCOL = tokenization().protocol
"""That of files which state none."""
RESULTS = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),  # its name in the data file: folder/name
        pa.field("caption", pa.string(), nullable=False),
        pa.field("confidence", pa.float64(), nullable=False),
        pa.field("cider", pa.float64(), nullable=False),  # 0…10; its mean is the CIDEr of all images
        pa.field("bleu_4", pa.float64(), nullable=False),  # smoothed by +1; its mean is not the corpus BLEU-4
        pa.field("rouge_1", pa.float64(), nullable=False),
        pa.field("rouge_2", pa.float64(), nullable=False),
        pa.field("rouge_l", pa.float64(), nullable=False),
        # The corpus BLEU of any set of images is computed from the sums of these four columns.
        pa.field("bleu_matched", pa.list_(pa.int32()), nullable=False),  # n-grams, n = 1…4
        pa.field("bleu_possible", pa.list_(pa.int32()), nullable=False),
        pa.field("words", pa.int32(), nullable=False),
        pa.field("closest_words", pa.int32(), nullable=False),  # length of the reference closest in length
        pa.field("references", pa.list_(pa.string()), nullable=False),
        pa.field("model_id", pa.string(), nullable=False),
    ]
)


def results_table(
    captions: Sequence[Caption],
    examples: Sequence[Example],
    scores: ImageScores,
    model_id: str,
    protocol: str = ENGLISH_PROTOCOL,
) -> pa.Table:
    """A table with the schema `RESULTS`, one row per image.

    Its metadata have the format, Nightcap's version, and the protocol of the scores.
    """
    counts = scores.counts.astype(np.int32)
    columns = {
        "image": [example.name for example in examples],
        "caption": [caption.text for caption in captions],
        "confidence": [caption.confidence for caption in captions],
        "cider": scores.cider,
        "bleu_4": sentence_bleu(scores.counts),
        "rouge_1": scores.rouge[:, 0],
        "rouge_2": scores.rouge[:, 1],
        "rouge_l": scores.rouge[:, 2],
        "bleu_matched": counts[:, :MAX_N].tolist(),
        "bleu_possible": counts[:, MAX_N : 2 * MAX_N].tolist(),
        "words": counts[:, 2 * MAX_N],
        "closest_words": counts[:, 2 * MAX_N + 1],
        "references": [list(example.captions) for example in examples],
        "model_id": [model_id] * len(examples),
    }
    metadata = {FORMAT_KEY: str(FORMAT), WRITER_KEY: own_version(), PROTOCOL_KEY: protocol}
    return pa.table(columns, schema=RESULTS.with_metadata(metadata))


def read_results(stores: Stores, uri: str) -> Results:
    """Read a results file of this or an older format, sorted by image.

    Raises DataError if the file is missing, is not a results file, or was written by a newer Nightcap.
    """
    hint = "`nightcap evaluate --results FILE` writes one"
    try:
        table = read_parquet(stores.of(uri), uri)
    except StoreError as error:
        if error.error_class == "missing":
            raise DataError(f"no such results file: '{redact(uri)}'; {hint}") from error
        raise error.as_usage(DataError) from error
    except pa.ArrowException as error:
        raise DataError(f"'{redact(uri)}' is not a results file; {hint}") from error
    metadata = table.schema.metadata or {}
    version = metadata.get(FORMAT_KEY, b"1").decode(errors="replace")
    if version not in map(str, range(1, FORMAT + 1)):
        writer = metadata.get(WRITER_KEY, b"an unknown version").decode(errors="replace")
        raise DataError(
            f"'{redact(uri)}' has results format {version!r}, written by Nightcap {writer}; "
            f"this Nightcap reads 1 to {FORMAT}"
        )
    if not table.schema.equals(RESULTS) or not len(table):
        raise DataError(f"'{redact(uri)}' is a table, but not a results file; {hint}")
    table = table.sort_by("image")
    return Results(
        images=table["image"].to_pylist(),
        references=table["references"].to_pylist(),
        scores=_scores(table),
        model_id=table["model_id"][0].as_py(),
        format=int(version),
        protocol=metadata.get(PROTOCOL_KEY, ENGLISH_PROTOCOL.encode()).decode(errors="replace"),
    )


def _scores(table: pa.Table) -> ImageScores:
    def column(name: str) -> Numbers:
        return np.array(table[name].to_pylist(), np.float64)

    counts = (column(name) for name in ("bleu_matched", "bleu_possible", "words", "closest_words"))
    rouge = [column(name) for name in ("rouge_1", "rouge_2", "rouge_l")]
    return ImageScores(np.column_stack(list(counts)), np.column_stack(rouge), column("cider"))

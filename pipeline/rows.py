"""Every table of the pipeline, in the order in which an image passes through them, and what each column means.

    LISTED    the plan: images found in the sources
    KNOWN     the plan: rows that the output has already
    TODO      into the pipeline: images to caption
    RESULT    out of the pipeline: a caption or the reason why there is none
    STAMPED   the journal: results with model, run and time
    CAPTIONS  the output: captioned images
    REJECTS   the output: images that could not be captioned

Inside the pipeline (TODO, RESULT, STAMPED) the empty string stands for "none": a column of nulls alone would lose its
type in Ray. In LISTED, KNOWN and the output it is null.
"""

from __future__ import annotations

import pyarrow as pa

TIME = pa.timestamp("us", tz="UTC")
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "path": (
        pa.string(),
        "What the row is known by: absolute path or URI, without credentials and signatures.",
    ),
    "url": (pa.string(), "Where the image is read from; differs from `path` for signed URLs."),
    "size": (pa.int64(), "Bytes of the file, as the listing has it."),
    "modified": (pa.float64(), "Modification time, seconds since 1970, UTC."),
    "content_tag": (pa.string(), "Tells changed content from unchanged, see `pipeline.store.base`."),
    "tag_is_digest": (pa.bool_(), "Equal tags mean equal bytes."),
    "previous_file": (pa.string(), "`TABLE/FILE` below the output that has the path's row so far."),
    "file": (pa.int32(), "Index of the output file that has the row, in `Ledger.files`."),
    "vanished": (pa.bool_(), "The row is marked as vanished."),
    "width": (pa.int32(), "Pixels of the full picture, after orientation; 0 for rejects."),
    "height": (pa.int32(), "Pixels of the full picture, after orientation; 0 for rejects."),
    "error_class": (pa.string(), "Why there is no caption: a key of `model.image.decode.ERROR_CLASSES`."),
    "detail": (pa.string(), "The reason in one line, at most 300 characters, without secrets."),
    "caption": (pa.string(), "What the captioner says of the image."),
    "confidence": (
        pa.float32(),
        "0…1; the probability that the caption agrees with people's if `calibrated`.",
    ),
    "avg_logprob": (pa.float32(), "Mean log-probability of the caption's tokens, nats."),
    "calibrated": (pa.bool_(), "`confidence` comes from a calibration for the decoding settings in use."),
    "model_id": (pa.string(), "Bundle, preprocessing and decoding settings: `name@hash`."),
    "run_id": (pa.string(), "The run that wrote the row."),
    "at": (TIME, "When the result was known, UTC."),
    "captioned_at": (TIME, "When the caption was made, UTC."),
    "rejected_at": (TIME, "When the image was rejected, UTC."),
    "vanished_at": (TIME, "When `nightcap prune` found the image gone, UTC."),
}
"""Every column: its type and its meaning with its unit."""


def _schema(*names: str, nullable: tuple[str, ...] | None = None) -> pa.Schema:
    """A schema of these columns; only those in `nullable` (default: all) may hold nulls."""
    allowed = names if nullable is None else nullable
    return pa.schema([pa.field(name, COLUMNS[name][0], nullable=name in allowed) for name in names])


LISTED = _schema("path", "size", "content_tag", "error_class", "detail", "url", "modified", "tag_is_digest")
KNOWN = _schema("path", "content_tag", "model_id", "error_class", "vanished", "file")
TODO = _schema("path", "url", "content_tag", "error_class", "detail", "previous_file")
RESULT = _schema(
    *("path", "content_tag", "previous_file", "width", "height", "error_class", "detail"),
    *("caption", "confidence", "avg_logprob", "calibrated"),
)
STAMPED = _schema(*RESULT.names, "model_id", "run_id", "at")
CAPTIONS = _schema(
    *("path", "caption", "confidence", "avg_logprob", "calibrated", "content_tag", "width", "height"),
    *("model_id", "run_id", "captioned_at", "vanished_at"),
    nullable=("content_tag", "vanished_at"),
)
REJECTS = _schema(
    *("path", "error_class", "detail", "content_tag", "model_id", "run_id", "rejected_at", "vanished_at"),
    nullable=("content_tag", "vanished_at"),
)
TABLES = {"captions": CAPTIONS, "rejects": REJECTS}
"""The tables of an output, by the name of their folder."""

INTERRUPTED = "interrupted"
"""An `error_class` inside the pipeline only, of images that a stopped run has not begun. They get no row."""

FORMAT = 2
"""Version of the journal and of the tables, kept in their files. Files without one are version 1."""
FORMAT_KEY = b"nightcap.format"
OLD_NAMES = {"content_tag": "tag", "previous_file": "before", "error_class": "error"}
"""Present name of a column -> its name in version 1, where that had it."""
ADDED = ("vanished_at",)
"""Columns that the first tables lacked: null where a file has none."""

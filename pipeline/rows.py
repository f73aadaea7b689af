"""The tables of the pipeline, in the order in which an image passes through them, and the meaning of their columns.

    LISTED    input of the plan: images in the sources
    KNOWN     input of the plan: rows that are already in the output
    TODO      input of the pipeline: images to caption
    RESULT    output of the pipeline: a caption, or the reason why there is none
    STAMPED   journal: results with model, run and time
    CAPTIONS  output of the job: captioned images
    REJECTS   output of the job: images that could not be captioned
    HISTORY   output of the job: captions that were replaced since

Inside the pipeline (TODO, RESULT, STAMPED), a missing text is the empty string, because a column that has only nulls
loses its type in Ray. In LISTED, KNOWN and the output, it is null.
"""

from __future__ import annotations

import pyarrow as pa

TIME = pa.timestamp("us", tz="UTC")
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "path": (
        pa.string(),
        "Identifies the row: absolute path or URI, without credentials and signatures.",
    ),
    "url": (pa.string(), "Address to read the image from; differs from `path` for signed URLs."),
    "part": (
        pa.string(),
        "Where a member of a container is, see `pipeline.store.containers.base`; empty for a file.",
    ),
    "size": (pa.int64(), "File size in bytes, from the listing."),
    "modified": (pa.float64(), "Modification time, seconds since 1970, UTC."),
    "content_tag": (pa.string(), "Changes when the content changes, see `pipeline.store.base`."),
    "tag_is_digest": (pa.bool_(), "The tag is a digest of the content: equal tags mean equal bytes."),
    "previous_file": (pa.string(), "`TABLE/FILE` in the output that has the previous row of the path."),
    "file": (pa.int32(), "Index in `Ledger.files` of the output file that has the row."),
    "vanished": (pa.bool_(), "The row is marked as vanished."),
    "width": (pa.int32(), "Width of the full image after orientation, in pixels; 0 for rejects."),
    "height": (pa.int32(), "Height of the full image after orientation, in pixels; 0 for rejects."),
    "error_class": (pa.string(), "Why there is no caption: a key of `model.image.decode.ERROR_CLASSES`."),
    "detail": (pa.string(), "The reason in one line of at most 300 characters, without secrets."),
    "caption": (pa.string(), "The caption of the image."),
    "language": (pa.string(), "Language of the caption by BCP 47; null in older rows, which are English."),
    "confidence": (
        pa.float32(),
        "0…1; if `calibrated`, the probability that the caption agrees with human captions.",
    ),
    "uncertain": (pa.bool_(), "`confidence` is below `output.min_confidence`; null where that was not set."),
    "avg_logprob": (pa.float32(), "Mean log-probability of the caption's tokens, in nats."),
    "calibrated": (pa.bool_(), "`confidence` comes from a calibration for the decoding settings of the run."),
    "read_seconds": (pa.float32(), "Seconds that the worker waited for the bytes of the image."),
    "decode_seconds": (pa.float32(), "Seconds that the worker decoded the image."),
    "caption_seconds": (pa.float32(), "Seconds in the model: the image's share of the time of its batch."),
    "precision": (pa.string(), "What the model computed in: int8, bf16, fp16 or fp32; empty for rejects."),
    "model_id": (pa.string(), "Identifies bundle, preprocessing and decoding settings: `name@hash`."),
    "run_id": (pa.string(), "The run that wrote the row."),
    "at": (TIME, "When the result was received, UTC."),
    "captioned_at": (TIME, "When the image was captioned, UTC."),
    "rejected_at": (TIME, "When the image was rejected, UTC."),
    "vanished_at": (TIME, "When `nightcap prune` no longer found the image, UTC."),
    "reason": (pa.string(), "Why the caption was replaced: a key of `pipeline.plan.policy.REASONS`."),
    "replaced_by": (pa.string(), "The run that replaced the caption."),
    "replaced_at": (TIME, "When the result that replaced the caption was received, UTC."),
}
"""Name of a column -> its type, and its meaning with the unit."""


def _schema(*names: str, nullable: tuple[str, ...] | None = None) -> pa.Schema:
    """A schema of these columns. Those in `nullable` (default: all) are nullable."""
    allowed = names if nullable is None else nullable
    return pa.schema([pa.field(name, COLUMNS[name][0], nullable=name in allowed) for name in names])


LISTED = _schema(
    *("path", "size", "content_tag", "error_class", "detail", "url", "part", "modified", "tag_is_digest")
)
KNOWN = _schema("path", "content_tag", "model_id", "error_class", "vanished", "file")
TODO = _schema("path", "url", "part", "content_tag", "error_class", "detail", "previous_file")
_OUTCOME = (
    *("path", "content_tag", "previous_file", "width", "height", "error_class", "detail"),
    *("caption", "confidence", "avg_logprob", "calibrated"),
)
SECONDS = ("read_seconds", "decode_seconds", "caption_seconds")
"""The columns of RESULT that `pipeline.timing` adds up."""
MEASURED = (*SECONDS, "precision")
"""The columns of RESULT that go into the run file, not into the tables."""
RESULT = _schema(*_OUTCOME, *MEASURED)
STAMPED = _schema(*_OUTCOME, "uncertain", "language", "model_id", "run_id", "at")
CAPTIONS = _schema(
    *("path", "caption", "confidence", "avg_logprob", "calibrated", "uncertain", "language"),
    *("content_tag", "width", "height", "model_id", "run_id", "captioned_at", "vanished_at"),
    nullable=("language", "uncertain", "content_tag", "vanished_at"),
)
REJECTS = _schema(
    *("path", "error_class", "detail", "content_tag", "model_id", "run_id", "rejected_at", "vanished_at"),
    nullable=("content_tag", "vanished_at"),
)
TABLES = {"captions": CAPTIONS, "rejects": REJECTS}
"""The tables of an output, by the name of their folder."""
HISTORY = _schema(
    *("path", "caption", "confidence", "calibrated", "language", "content_tag", "model_id", "run_id"),
    *("captioned_at", "reason", "replaced_by", "replaced_at"),
    nullable=("language", "content_tag"),
)
"""Captions that are no longer in a table, see `pipeline.output.history`."""

INTERRUPTED = "interrupted"
"""The `error_class`, inside the pipeline only, of images that a stopped run did not start. They get no row."""

FORMAT = 2
"""Format version of the journal and the tables, in the metadata of each file. Files without one are version 1."""
FORMAT_KEY = b"nightcap.format"
OLD_NAMES = {"content_tag": "tag", "previous_file": "before", "error_class": "error"}
"""Current name of a column -> its name in version 1."""
ADDED = ("vanished_at", "language", "uncertain")
"""Columns that older files may lack; they are read as null."""

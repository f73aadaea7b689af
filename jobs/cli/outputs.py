"""Commands on an output of `nightcap run`."""

from __future__ import annotations

from jobs import browse, export, outputs, report
from jobs.cli.options import (
    AddCommand,
    address_options,
    fraction,
    job_options,
    json_option,
    output_options,
    positive,
)


def add_output_commands(add: AddCommand) -> None:
    _add_runs(add)
    _add_report(add)
    _add_browse(add)
    _add_verify(add)
    _add_timeline(add)
    _add_export(add)
    _add_prune(add)


def _add_runs(add: AddCommand) -> None:
    command = add(
        "runs",
        help="list the runs of an output: start, duration, counts, bottleneck, outcome",
        description="List the runs of an output. --verbose adds where the time of each run went.",
    )
    output_options(command)
    json_option(command, "one run file per line")
    command.set_defaults(command=outputs.runs)


def _add_report(add: AddCommand) -> None:
    command = add(
        "report",
        help="write an HTML page that says what a run brought",
        description="Write one HTML file: how the run ended, counts and reasons, where the time went, samples of "
        "captions and rejects, and what changed. --set output.report=FILE writes it at the end of every run.",
    )
    output_options(command)
    command.add_argument("--run", metavar="RUN_ID", help="default: the last run; `nightcap runs` lists them")
    command.add_argument(
        "--output",
        dest="target",
        default="report.html",
        metavar="FILE",
        help="file or s3://bucket/key to write; default: %(default)s",
    )
    command.add_argument(
        "--samples",
        type=positive(int, 200),
        default=12,
        metavar="N",
        help="images in each group; default: %(default)s",
    )
    command.set_defaults(command=report.report)


def _add_browse(add: AddCommand) -> None:
    command = add(
        "browse",
        help="look at the captions of an output in a web browser",
        description="Serve pages over the tables of an output, for this machine only unless --host says otherwise: "
        "thumbnails, filters, the history of a caption, export. They only read. Ctrl-C ends it.",
    )
    output_options(command)
    address_options(command, port=8080)
    command.set_defaults(command=browse.browse)


def _add_verify(add: AddCommand) -> None:
    command = add("verify", help="check an output: one row per path, undamaged files, consistent counts")
    output_options(command)
    command.add_argument(
        "--accept-losses",
        action="store_true",
        help="no longer report files that were lost or altered: the output is what is there now",
    )
    command.set_defaults(command=outputs.verify)


def _add_timeline(add: AddCommand) -> None:
    command = add("timeline", help="print the captions of a video by time, as a table or WebVTT")
    output_options(command)
    command.add_argument("video", metavar="VIDEO", help="path or URI of the video, or the end of one")
    command.add_argument(
        "--format", choices=["table", "webvtt"], default="table", help="default: %(default)s"
    )
    command.set_defaults(command=outputs.timeline)


def _add_export(add: AddCommand) -> None:
    command = add(
        "export",
        help="write the captions for other programs: JSON lines, CSV, text, XMP, WebVTT, WebDataset",
        description="Write captions to DEST, a file (jsonl, csv) or a folder (txt, xmp, webvtt, webdataset). Only "
        "what is new or changed since the last export is written. See docs/export.md.",
    )
    output_options(command)
    command.add_argument("--to", required=True, metavar="DEST", help="file or folder, or s3://bucket/name")
    command.add_argument(
        "--format",
        required=True,
        choices=["jsonl", "csv", "txt", "webvtt", "xmp", "webdataset"],
        help="jsonl, csv: one file; txt, xmp: a file for each image; webvtt: for each video; webdataset: tar files",
    )
    command.add_argument(
        "--min-confidence",
        type=fraction,
        metavar="X",
        help="only captions with at least this confidence, 0…1",
    )
    command.add_argument(
        "--since", metavar="DATE", help="only images captioned at or after this time; without time zone: UTC"
    )
    command.add_argument(
        "--where",
        metavar="SQL",
        help="only rows that fulfil a condition: \"caption like '%%dog%%' and width > 640\"",
    )
    command.add_argument(
        "--alt",
        action="store_true",
        help="alternative text for HTML; then, --min-confidence leaves no image out, but makes its text empty",
    )
    command.add_argument(
        "--root",
        metavar="FOLDER",
        help="folder of the images that DEST stands for; default: the one that all have in common",
    )
    command.add_argument(
        "--per-shard",
        type=positive(int, 1_000_000),
        metavar="N",
        help="images in a shard of a webdataset; default: 1000",
    )
    command.add_argument(
        "--delete",
        action="store_true",
        help="also delete what earlier exports wrote and is not selected any more",
    )
    command.set_defaults(command=export.export)


def _add_prune(add: AddCommand) -> None:
    command = add(
        "prune",
        help="mark or remove the rows of images no longer in the store",
        description="Set the column vanished_at. If a marked image is back later, the next run captions it.",
    )
    command.add_argument("sources", nargs="+", metavar="FOLDER", help="captioned folders or s3:// prefixes")
    command.add_argument("--output", required=True, metavar="URI", help="output folder or s3://bucket/prefix")
    command.add_argument(
        "--remove", action="store_true", help="remove the rows, including those already marked"
    )
    command.add_argument(
        "--dry-run", action="store_true", help="only print the number of rows; write nothing, take no lock"
    )
    command.add_argument(
        "--yes",
        action="store_true",
        help="don't ask, even if many rows are concerned, or a folder is empty but not deleted",
    )
    job_options(command)
    command.set_defaults(command=outputs.prune)

"""Commands on an output of `nightcap run`."""

from __future__ import annotations

from jobs import browse, outputs, report
from jobs.cli.options import AddCommand, address_options, job_options, json_option, output_options, positive


def add_output_commands(add: AddCommand) -> None:
    _add_runs(add)
    _add_report(add)
    _add_browse(add)
    _add_verify(add)
    _add_timeline(add)
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

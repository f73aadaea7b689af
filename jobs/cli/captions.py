"""Commands that caption images, and `nightcap config`, which shows their settings."""

from __future__ import annotations

from jobs import files, run, serve, settings
from jobs.cli.options import AddCommand, address_options, fraction, job_options, json_option, positive

SOURCE_HELP = (
    "folder, file, glob, s3://bucket/prefix or fsspec URL; archive (.tar .tar.gz .zip .parquet), video, manifest "
    "(.txt .csv .jsonl .parquet, also .gz) or manifest.json of an S3 Inventory"
)


def add_caption_commands(add: AddCommand) -> None:
    _add_run(add)
    _add_caption(add)
    _add_serve(add)
    _add_config(add)


def _add_run(add: AddCommand) -> None:
    command = add(
        "run",
        help="caption all images of a store, and write Parquet",
        description="List images, caption the new and changed ones, and write Parquet to OUTPUT.",
        epilog="Videos: --set input.video=keyframes. Exit codes: see `nightcap --help`.",
    )
    command.add_argument("sources", nargs="+", metavar="SOURCE", help=SOURCE_HELP)
    command.add_argument("--output", required=True, metavar="URI", help="output folder or s3://bucket/prefix")
    job_options(command)
    command.add_argument(
        "--engine",
        choices=["auto", "local", "ray"],
        metavar="ENGINE",
        help="auto, local or ray; default: auto, ray on clusters",
    )
    command.add_argument(
        "--address", metavar="ADDRESS", help="Ray cluster; default: RAY_ADDRESS, else this machine"
    )
    command.add_argument("--limit", type=int, metavar="N", help="caption at most N images in this run")
    command.add_argument(
        "--recaption",
        choices=["none", "changed", "model", "all"],
        default="model",
        help="images to caption again: none, changed (new content), model (also those captioned by "
        "another model), or all; default: %(default)s",
    )
    command.add_argument(
        "--retry",
        default="transient",
        metavar="CLASS,…",
        help="unchanged rejects to try again: error classes, all, none, or transient "
        "(missing, forbidden, unavailable, out_of_memory); default: %(default)s",
    )
    command.add_argument(
        "--since", metavar="DATE", help="only images modified at or after this time; without time zone: UTC"
    )
    command.add_argument(
        "--dedupe",
        action="store_true",
        help="caption images with equal ETags only once; for local files, also set input.content_hash=true",
    )
    command.add_argument(
        "--dry-run", action="store_true", help="show what would be captioned, and why; write nothing"
    )
    command.set_defaults(command=run.run)


def _add_caption(add: AddCommand) -> None:
    command = add(
        "caption",
        help="caption a few images and print the captions",
        description="Caption images without Ray and print the captions.",
    )
    command.add_argument("files", nargs="+", metavar="FILE", help="image file or URL")
    job_options(command)
    json_option(command, "one JSON object per line")
    command.add_argument(
        "--alt",
        action="store_true",
        help="alternative text for HTML: no 'a picture of', short, with a full stop; empty if uncertain",
    )
    command.add_argument(
        "--min-confidence",
        type=fraction,
        metavar="X",
        help="captions with a lower confidence, 0…1, are uncertain; default: output.min_confidence",
    )
    command.add_argument(
        "--samples", type=positive(int, 100), metavar="N", help="also sample N captions per image"
    )
    command.add_argument(
        "--temperature",
        type=positive(float, 100),
        default=1.0,
        help="sampling temperature; below 1 prefers probable words; default: %(default)s",
    )
    command.add_argument(
        "--top-p",
        type=positive(float, 1),
        default=1.0,
        help="sample from the most probable words with this total probability; default: %(default)s",
    )
    command.add_argument(
        "--explain", metavar="PNG", help="also write a PNG with the attention map of each word; one FILE only"
    )
    command.set_defaults(command=files.caption)


def _add_serve(add: AddCommand) -> None:
    command = add(
        "serve",
        help="caption images that are sent over HTTP, and show an upload page",
        description="Caption images that are sent over HTTP. There is no login: see docs/serving.md.",
    )
    job_options(command)
    address_options(command, port=8000)
    command.set_defaults(command=serve.serve, host=None, port=None)  # None: the settings serve.host and .port


def _add_config(add: AddCommand) -> None:
    command = add("config", help="print the effective configuration and the origin of each value")
    job_options(command)
    command.set_defaults(command=settings.show)

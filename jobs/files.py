"""`nightcap caption`: caption a few images without Ray."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from typing import TYPE_CHECKING, Any

from jobs.settings import load_job

if TYPE_CHECKING:
    from pipeline.output.folder import OutputFile

logger = logging.getLogger(f"nightcap.{__name__}")


def caption(args: argparse.Namespace) -> int:
    config = load_job(args).config

    from conf.errors import UsageError
    from pipeline.caption_files import caption_files
    from pipeline.output.folder import OutputFile
    from pipeline.store.stores import Stores

    if args.explain is not None and len(args.files) != 1:
        raise UsageError(f"--explain draws one image, got {len(args.files)} files")
    failed, sampling = False, None
    if args.samples:
        sampling = {"count": args.samples, "temperature": args.temperature, "top_p": args.top_p}
    with Stores(config.s3, config.input) as stores:
        target = OutputFile(stores, args.explain) if args.explain is not None else None
        results = caption_files(
            args.files,
            stores,
            config.model,
            config.input,
            sampling,
            explain=target is not None,
            min_confidence=config.output.min_confidence,
            alt=args.alt,
        )
        for result in results:
            failed |= "error" in result
            _write_map(result, args.explain, target)
            _print(result, as_json=args.json)
    return 1 if failed else 0


def _write_map(result: dict[str, Any], name: str, target: OutputFile | None) -> None:
    """Write the attention map of a result, and put the name of the file in its place."""
    if target is not None and "attention_map" in result:
        target.write(result["attention_map"])
        result["attention_map"] = name
        logger.info("wrote %s", name)


def _print(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, ensure_ascii=False), flush=True)
        return
    # One line per image: a tab or a line break in a file name is printed as an escape.
    path = "".join(c if c >= " " else c.encode("unicode_escape").decode() for c in result["path"])
    if "error" in result:
        print(f"nightcap: {path}: {result['error']}: {result['detail']}", file=sys.stderr)
        return
    mark = "\tuncertain" if result["uncertain"] else ""
    print(f"{path}\t{result.get('alt', result['caption'])}\t{result['confidence']:.3f}{mark}", flush=True)
    for text in result.get("samples", ()):
        print(f"\t{text}", flush=True)

"""`nightcap caption`: caption a few images without Ray."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from jobs.settings import load_job

if TYPE_CHECKING:
    from conf.job import JobConfig


def caption(args: argparse.Namespace) -> int:
    config = load_job(args).config
    if args.explain:
        return _explain(args, config)

    from pipeline.caption_files import caption_files
    from pipeline.store.stores import Stores

    failed, sampling = False, None
    if args.samples:
        sampling = {"count": args.samples, "temperature": args.temperature, "top_p": args.top_p}
    with Stores(config.s3) as stores:
        for result in caption_files(args.files, stores, config.model, config.input, sampling):
            failed |= "error" in result
            if args.json:
                print(json.dumps(result, ensure_ascii=False), flush=True)
            elif "error" in result:
                print(f"nightcap: {result['path']}: {result['error']}: {result['detail']}", file=sys.stderr)
            else:
                print(f"{result['path']}\t{result['caption']}\t{result['confidence']:.3f}", flush=True)
                for text in result.get("samples", ()):
                    print(f"\t{text}", flush=True)
    return 1 if failed else 0


def _explain(args: argparse.Namespace, config: JobConfig) -> int:
    """Write the attention map of one image's caption as a PNG."""
    from conf.errors import UsageError
    from model.image.decode import ImageError
    from pipeline.caption_files import explain_file
    from pipeline.output.folder import OutputFile
    from pipeline.store.errors import StoreError
    from pipeline.store.stores import Stores
    from pipeline.store.uri import redact

    if len(args.files) != 1:
        raise UsageError(f"--explain draws one image, got {len(args.files)} files")
    file = args.files[0]
    with Stores(config.s3) as stores:
        target = OutputFile(stores, args.explain)
        try:
            target.write(explain_file(file, stores, config.model, config.input))
        except (ImageError, StoreError) as error:
            print(f"nightcap: {redact(file)}: {error.error_class}: {error.detail}", file=sys.stderr)
            return 1
    print(args.explain)
    return 0

"""`nightcap export`. Heavy imports are inside the functions."""

from __future__ import annotations

import argparse

from jobs.settings import load_job, moment


def export(args: argparse.Namespace) -> int:
    config = load_job(args).config

    from conf.errors import UsageError
    from pipeline.export.export import export
    from pipeline.export.filter import Filter
    from pipeline.export.formats import SIDECARS
    from pipeline.export.shards import PER_SHARD
    from pipeline.prepare import output_folder
    from pipeline.store.stores import Stores
    from pipeline.store.uri import join, redact

    if args.root is not None and args.format not in SIDECARS:
        raise UsageError(f"--root is for {', '.join(SIDECARS)}; {args.format} has no names of images")
    if args.per_shard is not None and args.format != "webdataset":
        raise UsageError(f"--per-shard is for webdataset, not for {args.format}")
    since = None if args.since is None else moment("--since", args.since)
    chosen = Filter(args.min_confidence, since, args.where, args.alt)
    with Stores(config.s3, config.input) as stores:
        root = None if args.root is None else join(stores.full_name(args.root).rstrip("/"), "")
        result = export(
            stores,
            output_folder(stores, args.output),
            output_folder(stores, args.to),
            args.format,
            chosen,
            config.input,
            root=root,
            delete=args.delete,
            per_shard=args.per_shard or PER_SHARD,
        )
    print(result.summary(args.format, redact(args.to)))
    return 0

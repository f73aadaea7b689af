"""`nightcap evaluate` and `nightcap compare`; heavy imports happen only when one runs."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from itertools import chain
from pathlib import Path


def evaluate(args: argparse.Namespace) -> int:
    from conf.errors import OutputError
    from conf.job import S3Settings
    from model.data.dataset import read, read_examples
    from model.device import keep_freed_memory, pick_device
    from model.evaluation.predict import caption_examples
    from model.evaluation.report import assess
    from model.metrics.coco import PROTOCOL, image_scores
    from pages.evaluation import render_evaluation
    from pipeline.bundles import find_bundle
    from pipeline.output.tables import to_parquet
    from pipeline.score_table import results_table
    from pipeline.store.store import open_store
    from pipeline.store.uri import folder_of, join
    from pipeline.store.writing import check_writable, write_bytes_atomic

    keep_freed_memory()
    store = open_store(S3Settings())
    bundle = find_bundle(args.model, store).with_decoding(beam_width=args.beam, consensus=args.consensus)
    examples = read_examples(args.data, args.images)
    training = chain(*(e.captions for e in read(args.train, args.images).examples)) if args.train else None
    if args.page and not args.page.endswith((".html", ".htm")):
        args.page = join(args.page, "index.html")
    for file in filter(None, (args.captions, args.results, args.page)):
        if Path(file).is_dir():
            raise OutputError(f"'{file}' is a folder; give the name of a file")
        check_writable(store, folder_of(file))

    if bundle.confidence_note():
        print(bundle.confidence_note(), file=sys.stderr)
    model = bundle.captioner().prepare(pick_device("auto"))
    captions = caption_examples(model, examples, progress=sys.stderr.isatty())
    each = image_scores([caption.text for caption in captions], [example.captions for example in examples])
    about = {"model": bundle.model_id, "images": len(examples), "protocol": PROTOCOL}
    found = assess(
        {**about, **bundle.decoding.model_dump()},
        captions,
        examples,
        each,
        training=training,
        with_meteor=not args.no_meteor,
    )
    if args.json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        blocks = (
            "\n".join(f"{name:<18} {value}" for name, value in block) for block in found.blocks() if block
        )
        print("\n\n".join(blocks))
    if args.captions:
        rows = ({"image": str(e.image), "caption": c.text} for e, c in zip(examples, captions, strict=True))
        write_bytes_atomic(store, args.captions, "".join(json.dumps(row) + "\n" for row in rows).encode())
    if args.results:
        table = results_table(captions, examples, each, bundle.model_id)
        write_bytes_atomic(store, args.results, to_parquet(table))
    if args.page:
        write_bytes_atomic(store, args.page, render_evaluation(found, captions, examples, each).encode())
    return 0


def calibrate(args: argparse.Namespace) -> int:
    from conf.job import S3Settings
    from model.bundle import write_folder
    from model.card import model_card
    from model.data.dataset import read_examples
    from model.device import keep_freed_memory
    from model.evaluation.calibrate import FOLDS, SHUFFLES, calibrate
    from pipeline.bundles import find_bundle
    from pipeline.store.store import open_store
    from pipeline.store.writing import check_writable

    keep_freed_memory()
    store = open_store(S3Settings())
    bundle = find_bundle(args.model, store).with_decoding(beam_width=args.beam, consensus=args.consensus)
    examples = read_examples(args.data, args.images)
    check_writable(store, args.output)
    made, report = calibrate(bundle, examples)
    write_folder(made, Path(args.output), model_card(made))
    print(f"confidence by {FOLDS}-fold cross-validation on {len(examples)} images, mean of {SHUFFLES}:")
    print("\n".join(f"{name:<18} {value:.4f}" for name, value in report.items()))
    print(f"{made.model_id} in {args.output}")
    return 0


def compare(args: argparse.Namespace) -> int:
    from conf.job import S3Settings
    from model.evaluation.compare import compare
    from model.evaluation.report import INTERVALS
    from pipeline.score_table import read_results
    from pipeline.store.store import open_store

    store = open_store(S3Settings())
    a, b = (read_results(store, uri) for uri in (args.a, args.b))
    found = compare(a, b)
    about = {"A": a.model_id, "B": b.model_id, "images": len(a.images)}
    if args.json:
        print(json.dumps({**about, **{name: asdict(value) for name, value in found.items()}}))
        return 0
    print("\n".join(f"{name:<8} {value}" for name, value in about.items()))
    print(f"\n{'':<8} {'A':>8} {'B':>8} {'B - A':>8}   {'interval':<19} B better")
    for name, value in found.items():
        low, high = value.interval
        difference = f"{value.b - value.a:>+8.4f}   {low:+.4f} … {high:+.4f} {value.b_better:>9.3f}"
        print(f"{name:<8} {value.a:>8.4f} {value.b:>8.4f} {difference}")
    print(f"\ninterval: {INTERVALS}, the same draws for A and B; B better: share of draws")
    return 0

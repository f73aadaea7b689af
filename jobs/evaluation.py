"""`nightcap evaluate`, `calibrate`, `quantize` and `compare`. Heavy imports are inside the functions."""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
from dataclasses import asdict
from itertools import chain

from jobs.settings import load_store

logger = logging.getLogger(f"nightcap.{__name__}")


def evaluate(args: argparse.Namespace) -> int:
    config = load_store(args)

    from model.data.checks import shared_pictures, unknown_words, unspaced_captions
    from model.data.dataset import read, read_examples
    from model.device import keep_freed_memory
    from model.evaluation.predict import caption_examples
    from model.evaluation.report import assess
    from model.inference import load_captioner
    from model.metrics.coco import image_scores
    from model.text.language import tokenization
    from pages.evaluation import render_evaluation
    from pipeline.bundles import find_bundle
    from pipeline.output.folder import OutputFile
    from pipeline.parquet import to_parquet
    from pipeline.score_table import results_table
    from pipeline.store.stores import Stores
    from pipeline.store.uri import join

    keep_freed_memory()
    if args.page and args.page.strip() and not args.page.endswith((".html", ".htm")):
        args.page = join(args.page, "index.html")
    with Stores(config.s3) as stores:
        files = {
            kind: OutputFile(stores, getattr(args, kind))
            for kind in ("captions", "results", "page")
            if getattr(args, kind) is not None
        }
        bundle = find_bundle(args.model, stores).with_decoding(beam_width=args.beam, consensus=args.consensus)
        examples = read_examples(args.data, args.images, args.attribute)
        trained = read(args.train, args.images).examples if args.train is not None else None
        training = chain(*(e.captions for e in trained)) if trained else None
        if trained and (shared := shared_pictures(trained, examples)):
            logger.warning("%s: %s", args.data, shared)
        if unspaced := unspaced_captions(examples, bundle.language):
            logger.warning("%s: %s", args.data, unspaced)
        elif unknown := unknown_words(examples, bundle.vocabulary):
            logger.warning("%s: %s", args.data, unknown)
        if bundle.confidence_note():
            logger.info(bundle.confidence_note())
        split_by = tokenization(bundle.language, by_words=args.words)
        model = load_captioner(bundle, precision=args.precision)
        captions = caption_examples(model, examples, progress=sys.stderr.isatty() and not args.quiet)
        scores = image_scores(
            [c.text for c in captions], [example.captions for example in examples], split_by.split
        )
        about = {"model": bundle.model_id, "images": len(examples), "protocol": split_by.protocol}
        assessment = assess(
            {**about, **bundle.decoding.model_dump()},
            captions,
            examples,
            scores,
            split=split_by.split,
            training=training,
            with_meteor=not args.no_meteor,
            attributes=args.attribute,
        )
        if args.json:
            print(json.dumps(assessment.to_dict(), ensure_ascii=False))
        else:
            blocks = (
                "\n".join(f"{name:<18} {value}" for name, value in block)
                for block in assessment.blocks()
                if block
            )
            print("\n\n".join(blocks))
        if "captions" in files:
            rows = zip(examples, captions, strict=True)
            lines = (json.dumps({"image": e.name, "caption": c.text}) + "\n" for e, c in rows)
            files["captions"].write("".join(lines).encode())
        if "results" in files:
            table = results_table(captions, examples, scores, bundle.model_id, split_by.protocol)
            files["results"].write(to_parquet(table))
        if "page" in files:
            page = render_evaluation(assessment, captions, examples, scores, bundle.language)
            files["page"].write(page.encode())
    return 0


def calibrate(args: argparse.Namespace) -> int:
    config = load_store(args)

    from model.data.dataset import read_examples
    from model.data.splits import short_names
    from model.device import keep_freed_memory
    from model.evaluation.calibrate import FOLDS, SHUFFLES, calibrate, set_names
    from pipeline.bundles import find_bundle, write_bundle
    from pipeline.output.record import new_run_id, utc_now
    from pipeline.prepare import output_folder
    from pipeline.store.stores import Stores

    keep_freed_memory()
    names = short_names(args.data)  # for the model card, which must not state private folders
    with Stores(config.s3) as stores:
        output = output_folder(stores, args.output)
        output.check_writable()
        with output.locked(new_run_id(utc_now())):
            stored = find_bundle(args.model, stores)
            bundle = stored.with_decoding(beam_width=args.beam, consensus=args.consensus)
            if bundle.decoding != stored.decoding:
                bundle = bundle.with_scores(dev={}, precision={})  # they are those of other captions
            names = set_names(names, bundle.config.training)
            sets = {
                name: read_examples(data, args.images) for name, data in zip(names, args.data, strict=True)
            }
            training = None
            if args.train is not None:
                training = [example for name in args.train for example in read_examples(name, args.images)]
            calibrated, report = calibrate(bundle, sets, training)
            write_bundle(calibrated, output)
    count = sum(map(len, sets.values()))
    print(f"confidence by {FOLDS}-fold cross-validation on {count} images, mean of {SHUFFLES} shuffles:")
    width = max(18, *map(len, report))
    print("\n".join(f"{name:<{width}} {value:.4f}" for name, value in report.items()))
    print(f"{calibrated.model_id} in {args.output}")
    return 0


def quantize(args: argparse.Namespace) -> int:
    settings = load_store(args)

    from model.data.dataset import read_examples
    from model.evaluation.precision import compare_precisions
    from model.evaluation.predict import pixel_batches
    from model.quantize import check_quantizable, quantize
    from pipeline.bundles import find_bundle, write_bundle
    from pipeline.output.record import new_run_id, utc_now
    from pipeline.prepare import output_folder
    from pipeline.store.stores import Stores

    with Stores(settings.s3) as stores:
        output = output_folder(stores, args.output)
        output.check_writable()
        with output.locked(new_run_id(utc_now())):
            bundle = find_bundle(args.model, stores)
            check_quantizable(bundle)  # before all pictures are decoded
            examples = [example for data in args.data for example in read_examples(data, args.images)]
            samples = random.Random(0).sample(examples, min(args.count, len(examples)))  # noqa: S311
            dev = read_examples(args.dev, args.images) if args.dev is not None else None
            quantized = quantize(bundle, pixel_batches(bundle.preprocessing, samples))
            if args.compact:
                quantized = quantized.compact()
            if dev is not None:
                figures = compare_precisions(quantized, dev, progress=sys.stderr.isatty() and not args.quiet)
                quantized = quantized.with_scores(precision=figures)
            write_bundle(quantized, output)
    size = sum(map(len, quantized.int8.values())) / 1e6
    print(f"{quantized.model_id} in {args.output}, with an int8 encoder of {size:.1f} MB")
    for precision, each in quantized.config.scores.precision.items():
        print(f"{precision} {' '.join(f'{name} {value:.4g}' for name, value in each.items())}")
    if dev is None:
        print(f"see what it costs: nightcap evaluate {args.output} DATA --precision int8")
    return 0


def compare(args: argparse.Namespace) -> int:
    config = load_store(args)

    from model.evaluation.compare import compare
    from model.evaluation.report import INTERVALS
    from pipeline.score_table import read_results
    from pipeline.store.stores import Stores

    with Stores(config.s3) as stores:
        a, b = (read_results(stores, uri) for uri in (args.a, args.b))
    comparison = compare(a, b)
    about = {"A": a.model_id, "B": b.model_id, "images": len(a.images)}
    if args.json:
        print(json.dumps({**about, **{name: asdict(value) for name, value in comparison.items()}}))
        return 0
    print("\n".join(f"{name:<8} {value}" for name, value in about.items()))
    print(f"\n{'':<8} {'A':>8} {'B':>8} {'B - A':>8}   {'interval':<19} B better")
    for name, value in comparison.items():
        low, high = value.interval
        difference = f"{value.b - value.a:>+8.4f}   {low:+.4f} … {high:+.4f} {value.b_better:>9.3f}"
        print(f"{name:<8} {value.a:>8.4f} {value.b:>8.4f} {difference}")
    print(
        f"\ninterval: {INTERVALS}, the same resamples for A and B; B better: share of resamples where B is higher"
    )
    return 0

"""Score the same captions by the COCO protocol and by others, to show why published figures differ.

    nightcap evaluate BUNDLE data.jsonl --captions captions.jsonl
    python -m bench.protocols captions.jsonl data.jsonl

docs/evaluation.md explains the rows. The last one, pycocoevalcap with its own tokenizer, needs Java.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from model.data.dataset import read
from model.metrics.coco import bleu, bleu_counts, bleu_of, cider_d, human_cider_d, sentence_bleu
from model.metrics.reliability import AGREES
from model.text.tokenizer import words

Words = list[str]
Tokenize = Callable[[str], Words]
Figures = tuple[float, float, float]  # BLEU-1, BLEU-4, CIDEr-D


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.protocols")
    parser.add_argument("captions", type=Path, help="file written by `nightcap evaluate --captions`")
    parser.add_argument("data", type=Path, help="data file of that evaluation")
    args = parser.parse_args()
    captions = [json.loads(line)["caption"] for line in args.captions.read_text("utf-8").splitlines()]
    references = [example.captions for example in read(str(args.data)).examples]
    if len(captions) != len(references):
        parser.error(
            f"{len(captions)} captions, but {len(references)} images; give the data file of that evaluation"
        )
    print(f"| {'protocol':<46} | BLEU-1 | BLEU-4 | CIDEr |\n|{'-' * 48}|-------:|-------:|------:|")
    for name, (one, four, cider) in rows(captions, references):
        print(f"| {name:<46} | {one:>6.3f} | {four:>6.3f} | {cider:>5.3f} |", flush=True)
    people = human_cider_d(references)
    reach = np.mean(people >= AGREES)
    print(f"\nreferences against each other: CIDEr {people.mean():.3f}, {reach:.1%} of them reach {AGREES}")


def rows(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Iterator[tuple[str, Figures]]:
    """Name and figures of each protocol, the official one first."""

    def score_with(tokenize: Tokenize, captions: Sequence[str] = captions) -> Figures:
        return score(
            [tokenize(text) for text in captions], [[tokenize(text) for text in g] for g in references]
        )

    stopped = [f"{caption} ." for caption in captions]  # like a model that learned the full stop as a word
    official = score_with(words)
    yield "official", official
    yield "final full stop kept", score_with(with_stop, stopped)
    yield "start and end tokens counted", score_with(framed(words))
    yield "full stop kept, start and end tokens counted", score_with(framed(with_stop), stopped)
    yield "split at spaces", score_with(lambda text: text.lower().split())
    yield (
        "words of one letter dropped",
        score_with(lambda text: [word for word in words(text) if len(word) > 1]),
    )
    candidates = [words(text) for text in captions]
    targets = [[words(text) for text in group] for group in references]
    yield "the first reference only", score(candidates, [group[:1] for group in targets])
    counts = bleu_counts(candidates, targets)
    yield (
        "mean of captions' own BLEU, smoothed by +1",
        (float(bleu_of(counts)[:, 0].mean()), float(sentence_bleu(counts).mean()), official[2]),
    )
    if shutil.which("java"):
        yield "pycocoevalcap", by_pycocoevalcap(captions, references)


def score(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> Figures:
    bleus = bleu(captions, references)
    return bleus[0], bleus[3], float(np.mean(cider_d(captions, references)))


def with_stop(text: str) -> Words:
    return [*words(text), "."] if text.rstrip().endswith(".") else words(text)


def framed(tokenize: Tokenize) -> Tokenize:
    return lambda text: ["<start>", *tokenize(text), "<end>"]


def by_pycocoevalcap(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Figures:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenize = PTBTokenizer().tokenize
    candidates = tokenize({i: [{"caption": text}] for i, text in enumerate(captions)})
    targets = tokenize({i: [{"caption": text} for text in group] for i, group in enumerate(references)})
    bleus, _ = Bleu(4).compute_score(targets, candidates, verbose=0)
    return bleus[0], bleus[3], float(Cider().compute_score(targets, candidates)[0])


if __name__ == "__main__":
    main()

"""The same captions scored by other protocols than the official one: why figures elsewhere differ.

    nightcap evaluate BUNDLE data.jsonl --captions captions.jsonl
    python -m bench.protocols captions.jsonl data.jsonl

docs/evaluation.md explains the rows. The last is pycocoevalcap itself with its Java tokeniser, where Java is.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from model.data.dataset import read
from model.metrics.coco import bleu, bleu_counts, bleu_of, cider_d, sentence_bleu
from model.metrics.reliability import AGREES
from model.text.tokenizer import words

Words = list[str]
Split = Callable[[str], Words]
Figures = tuple[float, float, float]  # BLEU-1, BLEU-4, CIDEr-D


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.protocols")
    parser.add_argument("captions", type=Path, help="as `nightcap evaluate --captions` writes it")
    parser.add_argument("data", type=Path, help="the data of that evaluation")
    args = parser.parse_args()
    captions = [json.loads(line)["caption"] for line in args.captions.read_text("utf-8").splitlines()]
    references = [example.captions for example in read(str(args.data)).examples]
    if len(captions) != len(references):
        parser.error(f"{len(captions)} captions, {len(references)} images; give the data they were made from")
    print(f"| {'protocol':<46} | BLEU-1 | BLEU-4 | CIDEr |\n|{'-' * 48}|-------:|-------:|------:|")
    for name, (one, four, cider) in rows(captions, references):
        print(f"| {name:<46} | {one:>6.3f} | {four:>6.3f} | {cider:>5.3f} |", flush=True)
    mean, agreeing = people(references)
    print(f"\npeople against each other: CIDEr {mean:.3f}, {agreeing:.1%} of their captions reach {AGREES}")


def people(references: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Mean CIDEr-D of people's own captions, each against the others of its image, and the share that agree."""
    groups = [[words(text) for text in group] for group in references if len(group) > 1]
    scores = [
        cider_d(
            [group[k % len(group)] for group in groups], [without(group, k % len(group)) for group in groups]
        )
        for k in range(max(map(len, groups)))
    ]
    return float(np.mean(scores)), float(np.mean(np.array(scores) >= AGREES))


def without(group: Sequence[Words], place: int) -> list[Words]:
    return [*group[:place], *group[place + 1 :]]


def rows(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Iterator[tuple[str, Figures]]:
    """Name and figures of each protocol, the official one first."""

    def by(split: Split, said: Sequence[str] = captions) -> Figures:
        return score(
            [split(text) for text in said], [[split(text) for text in group] for group in references]
        )

    stopped = [f"{caption} ." for caption in captions]  # as of a model that learnt the full stop as a word
    official = by(words)
    yield "official", official
    yield "final full stop kept", by(with_stop, stopped)
    yield "start and end tokens counted", by(framed(words))
    yield "full stop kept, start and end tokens counted", by(framed(with_stop), stopped)
    yield "split at spaces", by(lambda text: text.lower().split())
    yield "words of one letter dropped", by(lambda text: [word for word in words(text) if len(word) > 1])
    said, wanted = [words(text) for text in captions], [[words(text) for text in g] for g in references]
    yield "the first reference only", score(said, [group[:1] for group in wanted])
    each = bleu_counts(said, wanted)
    yield (
        "mean of captions' own BLEU, smoothed by +1",
        (float(bleu_of(each)[:, 0].mean()), float(sentence_bleu(each).mean()), official[2]),
    )
    if shutil.which("java"):
        yield "pycocoevalcap", by_pycocoevalcap(captions, references)


def score(said: Sequence[Words], wanted: Sequence[Sequence[Words]]) -> Figures:
    bleus = bleu(said, wanted)
    return bleus[0], bleus[3], float(np.mean(cider_d(said, wanted)))


def with_stop(text: str) -> Words:
    return [*words(text), "."] if text.rstrip().endswith(".") else words(text)


def framed(split: Split) -> Split:
    return lambda text: ["<start>", *split(text), "<end>"]


def by_pycocoevalcap(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Figures:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenise = PTBTokenizer().tokenize
    said = tokenise({i: [{"caption": text}] for i, text in enumerate(captions)})
    wanted = tokenise({i: [{"caption": text} for text in group] for i, group in enumerate(references)})
    bleus, _ = Bleu(4).compute_score(wanted, said, verbose=0)
    return bleus[0], bleus[3], float(Cider().compute_score(wanted, said)[0])


if __name__ == "__main__":
    main()

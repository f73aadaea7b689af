"""Figures about a caption data set, for `nightcap data check`."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from conf.captioner import ENGLISH
from model.data.checks import unspaced_captions
from model.data.dataset import DataSet
from model.data.problems import KINDS
from model.text.language import has_spaces, tokens

MIN_FREQS = (1, 3, 5)


def survey(data: DataSet, language: str = ENGLISH) -> dict[str, Any]:
    """Counts, lengths, vocabulary sizes, duplicates, warnings and problems of a data set, as plain values for JSON.

    Lengths and vocabularies are in words of `language`, or in its characters, as training counts them; `unit` says
    which. `coverage` is the share of all words that a vocabulary holds. A percentile is a length that occurs
    (inverted CDF), not an interpolated one.
    Pictures are read where file sizes are equal, to find duplicates.
    """
    groups = [example.captions for example in data.examples]
    captions = [caption for group in groups for caption in group]
    tokenized = [tokens(caption, language) for caption in captions]
    counts = Counter(word for words in tokenized for word in words)
    per_picture, lengths = [len(group) for group in groups], [len(words) for words in tokenized]
    p95, p99 = np.percentile(lengths, (95, 99), method="inverted_cdf")
    return {
        "data": data.spec,
        "format": data.format,
        "folder": str(data.folder),
        "pictures_listed": data.listed,
        "pictures": len(groups),
        "captions": len(captions),
        "captions_per_picture": _spread(per_picture),
        "unit": "words" if has_spaces(language) else "characters",
        "words": sum(lengths),
        "words_per_caption": {**_spread(lengths), "p95": int(p95), "p99": int(p99)},
        "vocabulary": {str(n): _vocabulary(counts, n) for n in MIN_FREQS},
        "duplicates": {
            "captions": len(captions) - len(set(captions)),
            "captions_of_one_picture": sum(len(group) - len(set(group)) for group in groups),
            "pictures": _same_files([example.image for example in data.examples]),
        },
        "warnings": [text for text in (unspaced_captions(data.examples, language),) if text],
        "problems": {
            kind: {"count": data.problems.counts[kind], "examples": data.problems.examples[kind]}
            for kind in KINDS
            if data.problems.counts[kind]
        },
    }


def as_text(figures: dict[str, Any]) -> str:
    """The figures of `survey` for a terminal, one per line; problems with their meaning and first examples."""
    pictures, length = figures["captions_per_picture"], figures["words_per_caption"]
    twice, unit = figures["duplicates"], figures["unit"]
    percentiles = f"p95 {length['p95']}, p99 {length['p99']}"
    lines = [
        ("data", f"{figures['data']}, {figures['format']}"),
        (
            "pictures",
            f"{figures['pictures']:,} usable of {figures['pictures_listed']:,} in {figures['folder']}",
        ),
        ("captions", f"{figures['captions']:,}; of a picture {_range(pictures)}"),
        (unit, f"{figures['words']:,}; of a caption {_range(length)}, {percentiles}"),
        *(
            (f"min_freq {n}", f"{kept['words']:,} {unit} in the vocabulary, {kept['coverage']:.1%} of all")
            for n, kept in figures["vocabulary"].items()
        ),
        ("captions twice", f"{twice['captions']:,}; for one picture {twice['captions_of_one_picture']:,}"),
        ("pictures twice", f"{twice['pictures']:,}, the same file under another name"),
        *(("warning", text) for text in figures["warnings"]),
        ("problems", "" if figures["problems"] else "none"),
    ]
    for kind, problem in figures["problems"].items():
        lines.append((f"  {kind}", f"{problem['count']:,}: {KINDS[kind]}"))
        lines += [("", f"  {example}") for example in problem["examples"]]
    return "\n".join(f"{name:<22}{text}".rstrip() for name, text in lines)


def _spread(values: list[int]) -> dict[str, float]:
    return {"min": min(values), "mean": round(sum(values) / len(values), 3), "max": max(values)}


def _range(spread: dict[str, float]) -> str:
    return f"{spread['min']} to {spread['max']}, mean {spread['mean']:.2f}"


def _vocabulary(counts: Counter[str], min_freq: int) -> dict[str, float]:
    kept = [count for count in counts.values() if count >= min_freq]
    return {"words": len(kept), "coverage": sum(kept) / max(1, counts.total())}


def _same_files(images: list[Path]) -> int:
    """How many pictures repeat the bytes of an earlier one. Only files of equal size are read."""
    sizes: dict[int, list[Path]] = {}
    for image in images:
        sizes.setdefault(image.stat().st_size, []).append(image)
    return sum(
        len(same) - len({hashlib.sha256(image.read_bytes()).digest() for image in same})
        for same in sizes.values()
        if len(same) > 1
    )

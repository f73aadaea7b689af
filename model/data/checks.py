"""Warnings about data sets that can be read but are probably not what was meant."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from conf.captioner import ENGLISH
from model.data.dataset import Example
from model.text.language import UNSPACED, has_spaces, tokens
from model.text.tokenizer import words
from model.text.vocabulary import Vocabulary

_LONG = 6  # characters of a word on average; segmented Chinese has about 2, segmented Thai about 5
_KNOWN = (
    0.5  # share of words in the vocabulary; those of a catalogue have .89 in that of flickr8k-mobilenetv2
)
_RARE = 0.05  # share of captions with such letters that is no reason to warn, such as signs in a photo


def unspaced_captions(examples: Iterable[Example], language: str = ENGLISH) -> str:
    """A warning if the captions have no spaces between words, but `language` has. Empty if not."""
    if not has_spaces(language):
        return ""
    captions = [words(caption) for example in examples for caption in example.captions]
    found = [[word for word in caption if UNSPACED.search(word)] for caption in captions]
    lengths = [len(word) for caption in found for word in caption]
    if sum(map(bool, found)) <= _RARE * len(captions) or sum(lengths) <= _LONG * len(lengths):
        return ""
    example = next(word for caption in found for word in caption)
    return (
        f"captions have no spaces between words: {sum(lengths) / len(lengths):.1f} characters per word, such as "
        f"{example[:40]!r}; every run of characters counts as one word, since the language is {language!r}: name it "
        "(data.language=zh, --language zh) to count characters, or put spaces between the words first"
    )


def unknown_words(examples: Iterable[Example], vocabulary: Vocabulary) -> str:
    """A warning if most words of the captions are not in the vocabulary, as in another language. Empty if not."""
    found = [
        token in vocabulary.ids
        for example in examples
        for caption in example.captions
        for token in tokens(caption, vocabulary.language)
    ]
    if sum(found) >= _KNOWN * len(found):
        return ""
    return (
        f"only {sum(found) / len(found):.0%} of the words of the captions are in the vocabulary of the captioner, "
        f"whose language is {vocabulary.language!r}; are the captions in another one?"
    )


def shared_pictures(training: Sequence[Example], other: Sequence[Example]) -> str:
    """A warning if pictures of `other` are training pictures too, by the bytes of their files. Empty if none are.

    Only files of equal size are read.
    """
    sizes: dict[int, list[Path]] = defaultdict(list)
    for example in training:
        sizes[example.image.stat().st_size].append(example.image)
    digests: dict[int, set[bytes]] = {}  # by size
    shared = []
    for example in other:
        size = example.image.stat().st_size
        same = sizes.get(size, [])
        if same and size not in digests:
            digests[size] = {_digest(image) for image in same}
        if same and (example.image in same or _digest(example.image) in digests[size]):
            shared.append(example.name)
    if not shared:
        return ""
    return (
        f"{len(shared):,} of {len(other):,} pictures are training pictures too, such as {shared[0]!r}: "
        "scores on them are too good"
    )


def _digest(image: Path) -> bytes:
    return hashlib.sha256(image.read_bytes()).digest()

"""Words to ids and back. Four special tokens come first: padding, start, end, unknown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from model.text.tokenizer import BRACKETS, words

PAD, START, END, UNK = range(4)
_CLITIC = re.compile(r"(?<=\S) (n't|'(?:s|m|d|re|ve|ll))(?= |$)")
SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")


@dataclass(frozen=True)
class Vocabulary:
    """An ordered list of distinct tokens; a token's id is its place in the list."""

    tokens: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.tokens[: len(SPECIALS)] != SPECIALS:
            raise ValueError(f"a vocabulary starts with {SPECIALS}, got {self.tokens[: len(SPECIALS)]}")
        odd = [t for t in self.tokens if not isinstance(t, str) or not t.isprintable() or not t.strip()]
        if odd:
            raise ValueError(f"tokens must be printable texts, got {odd[:5]!r}")
        if len(set(self.tokens)) != len(self.tokens):
            twice = [token for token, count in Counter(self.tokens).items() if count > 1]
            raise ValueError(f"tokens stand twice in the vocabulary: {twice[:5]}")

    @classmethod
    def build(cls, captions: Iterable[str], min_freq: int) -> Vocabulary:
        """The words that occur at least `min_freq` times, most frequent first, ties by spelling."""
        counts = Counter(word for caption in captions for word in caption_words(caption))
        kept = sorted((w for w, n in counts.items() if n >= min_freq), key=lambda w: (-counts[w], w))
        return cls(SPECIALS + tuple(kept))

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    def encode(self, caption: str, max_length: int) -> list[int]:
        """START, at most `max_length` word ids, END. A caption cut short gets no END."""
        ids = [self.ids.get(word, UNK) for word in caption_words(caption)]
        return [START, *ids, END] if len(ids) <= max_length else [START, *ids[:max_length]]

    def decode(self, ids: Sequence[int]) -> str:
        """The caption up to the first END, without special tokens; clitics rejoin their word."""
        out = []
        for i in ids:
            if i == END:
                break
            if i >= len(SPECIALS):
                out.append(self.tokens[i])
        return _CLITIC.sub(r"\1", " ".join(out))


def caption_words(caption: str) -> list[str]:
    """`words`, without the brackets that only the official evaluation counts as words."""
    brackets = set(BRACKETS.values())
    return [word for word in words(caption) if word not in brackets]

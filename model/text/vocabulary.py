"""The vocabulary: words to ids and back. Ids 0 to 3 are special: padding, start, end and unknown word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from conf.captioner import ENGLISH
from model.text import language as languages

PAD, START, END, UNK = range(4)
SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")


@dataclass(frozen=True)
class Vocabulary:
    """An ordered list of distinct tokens; the id of a token is its index. `language` says what a token is.

    Raises ValueError when the list does not begin with `SPECIALS`, or holds a token twice or one that isn't
    printable.
    """

    tokens: tuple[str, ...]
    language: str = ENGLISH

    def __post_init__(self) -> None:
        if self.tokens[: len(SPECIALS)] != SPECIALS:
            raise ValueError(f"a vocabulary starts with {SPECIALS}, got {self.tokens[: len(SPECIALS)]}")
        invalid = [t for t in self.tokens if not isinstance(t, str) or not t.isprintable() or not t.strip()]
        if invalid:
            raise ValueError(f"tokens must be printable texts, got {invalid[:5]!r}")
        if len(set(self.tokens)) != len(self.tokens):
            repeated = [token for token, count in Counter(self.tokens).items() if count > 1]
            raise ValueError(f"the vocabulary holds tokens more than once: {repeated[:5]}")

    @classmethod
    def build(cls, captions: Iterable[str], min_freq: int, language: str = ENGLISH) -> Vocabulary:
        """The tokens that occur at least `min_freq` times: the most frequent first, ties in alphabetical order."""
        counts = Counter(token for caption in captions for token in languages.tokens(caption, language))
        kept = sorted((t for t, n in counts.items() if n >= min_freq), key=lambda t: (-counts[t], t))
        return cls(SPECIALS + tuple(kept), language)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    def encode(self, caption: str, max_length: int) -> list[int]:
        """START, the ids of at most `max_length` tokens, END. A caption that is cut off gets no END."""
        ids = [self.ids.get(token, UNK) for token in languages.tokens(caption, self.language)]
        return [START, *ids, END] if len(ids) <= max_length else [START, *ids[:max_length]]

    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the first END, without special tokens, as `model.text.language.join` writes it."""
        out = []
        for i in ids:
            if i == END:
                break
            if i >= len(SPECIALS):
                out.append(self.tokens[i])
        return languages.join(out, self.language)

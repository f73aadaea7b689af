"""Whether a caption names an attribute of what it describes, such as the type or the colour of a product."""

from __future__ import annotations

import re

_ENDINGS = (
    (re.compile("(?<!s)s$"), ""),  # shirts -> shirt, dresses -> dresse, but glass
    (re.compile("(?<=[sxz])e$|(?<=[cs]h)e$"), ""),  # dresse -> dress, watche -> watch
    (re.compile("ie$"), "y"),  # berrie -> berry; so tie and ties are both ty
    (re.compile("[vf]e$"), "f"),  # scarve -> scarf; so glove and gloves are both glof
)


def names(caption: str, value: str) -> bool:
    """Whether all words of `value` are words of the caption, in any order, or `value` as one word is one of them.

    Words with hyphens in the caption are one word, and several in `value`. So "Navy Blue" is named by "a navy-blue
    shirt", and "Tshirts" and "T-Shirts" by "a red t-shirt", but "Shirts" is not. Upper case and regular English
    plurals make no difference: of both sides, the endings are replaced in the order of `_ENDINGS`. In `value` as one
    word, they are replaced at its end only, or of each of its words, so "Sports Shoes" is named by "sports-shoes" and
    by "sport-shoes". A value without words is never named.
    """
    wanted, found = _words(value.replace("-", " ")), set(_words(caption.replace("-", "")))
    joined = {*_words(re.sub(r"[\W_]+", "", value)), "".join(wanted)}
    return bool(wanted) and (found.issuperset(wanted) or not found.isdisjoint(joined))


def _words(text: str) -> list[str]:
    """The words of a text in lower case, without the endings of plurals."""
    found = []
    for word in re.findall(r"[^\W_]+", text.lower()):
        for ending, replacement in _ENDINGS:
            word = ending.sub(replacement, word)
        found += [word] if word else []  # of "men's", nothing is left of the s
    return found

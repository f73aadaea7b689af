"""Whether a caption names an attribute of what it describes, such as the type or the colour of a product."""

from __future__ import annotations

import re


def names(caption: str, value: str) -> bool:
    """Whether all words of `value` are words of the caption, in any order.

    Upper case, hyphens and English plurals make no difference: "Casual Shoes" is named by "a pair of casual shoes",
    and "Tshirts" by "a red t-shirt", but "Shirts" is not. A value without words is never named.
    """
    wanted = _words(value)
    return bool(wanted) and wanted <= _words(caption)


def _words(text: str) -> set[str]:
    return {_singular(word) for word in re.findall(r"[^\W_]+", text.lower().replace("-", ""))}


def _singular(word: str) -> str:
    for ending, replacement in (("ies", "y"), ("sses", "ss"), ("ches", "ch"), ("shes", "sh"), ("xes", "x")):
        if word.endswith(ending):
            return word.removesuffix(ending) + replacement
    return word if word.endswith("ss") else word.removesuffix("s")

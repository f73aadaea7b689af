"""Splits captions into words as the official COCO evaluation does, without Java.

The COCO caption evaluation tokenizes lower-cased text with Stanford's PTBTokenizer, then drops a fixed list of
punctuation tokens. A test compares `words` with the two of them on captions that exercise every rule below.
"""

from __future__ import annotations

import re

_CLITIC = re.compile(r"(?<=[a-z0-9])(n't|'(?:s|m|d|re|ve|ll))(?![a-z0-9])")
_SPLIT_IN_TWO = re.compile(
    r"\b(can)(not)\b|\b(gon)(na)\b|\b(got)(ta)\b|\b(wan)(na)\b|\b(lem)(me)\b|\b(gim)(me)\b|(?<!\w)('t)(is)\b"
)
_TOKEN = re.compile(
    r"""
      n't(?![a-z0-9])                                          # don't -> do n't
    | '(?:s|m|d|re|ve|ll|t|em)(?![a-z0-9])                     # dog's -> dog 's
    | '?n'(?=[\W])                                             # slip 'n' slide
    | (?:[a-z]\.){2,}                                          # u.s.
    | (?:mr|mrs|ms|dr|st|jr|sr|vs|lt|gen|sgt|col|prof|no)\.(?=\s+\w)  # keep the full stop of mr.
    | \b[a-z]\.(?=[\s"])(?!\s*$)(?<!\bi\.)(?<!\ba\.)           # keep that of an initial, as in Miami U.
    | \w+(?:\.\w+)*\.(?:com|org|net|edu)\b                     # a web address on a shirt
    | \d+(?:[.,:/]\d+)+                                        # 1,000  3.5  10:30  1/2
    | (?:[^\W_](?:[^\W_]|[-_&/](?=[^\W_])|'(?=[^\W_]))*)       # words; inside one: t-shirt, r&b, o'clock
    | @\w+
    | [#$%&@*+=<>/\\^|~_]                                      # symbols that count as words
    | [()\[\]{}]                                               # brackets, see BRACKETS
    """,
    re.VERBOSE,
)

# The official list of punctuation to drop has brackets in capitals (-LRB-), but the tokens are lower-case. So the
# official evaluation counts brackets as words, and `words` does the same to give comparable scores.
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def words(caption: str) -> list[str]:
    """The words of one caption: lower-cased, without punctuation, clitics separated (`dog's` -> `dog`, `'s`)."""
    text = caption.lower().replace("’", "'").replace("‘", "'")
    text = _CLITIC.sub(r" \1", text)
    text = _SPLIT_IN_TWO.sub(lambda match: " ".join(filter(None, match.groups())), text)
    return [BRACKETS.get(token, token) for token in _TOKEN.findall(text)]

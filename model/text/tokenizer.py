"""Caption text to words, the way the official COCO evaluation does it.

The COCO caption evaluation tokenises with Stanford's PTBTokenizer (lower-cased), then drops a fixed list
of punctuation tokens. `words` does the same for caption-like English without Java; a test compares the
two on captions that exercise every rule below.
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
    | (?:mr|mrs|ms|dr|st|jr|sr|vs|lt|gen|sgt|col|prof|no)\.(?=\s+\w)  # mr. keeps its full stop
    | \b[a-z]\.(?=[\s"])(?!\s*$)(?<!\bi\.)(?<!\ba\.)           # Miami U. keeps it too
    | \w+(?:\.\w+)*\.(?:com|org|net|edu)\b                     # a web address on a shirt
    | \d+(?:[.,:/]\d+)+                                        # 1,000  3.5  10:30  1/2
    | (?:[^\W_](?:[^\W_]|[-_&/](?=[^\W_])|'(?=[^\W_]))*)       # words; inside one: t-shirt, r&b, o'clock
    | @\w+
    | [#$%&@*+=<>/\\^|~_]                                      # symbols that count as words
    | [()\[\]{}]                                               # brackets, see BRACKETS
    """,
    re.VERBOSE,
)

# The official list of punctuation to drop names brackets in capitals (-LRB-) while the tokens are lower-case,
# so brackets count as words there. Scores are only comparable if they do here.
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def words(caption: str) -> list[str]:
    """The words of one caption: lower-cased, punctuation dropped, clitics cut off: `dog's` -> `dog 's`."""
    text = caption.lower().replace("’", "'").replace("‘", "'")
    text = _CLITIC.sub(r" \1", text)
    text = _SPLIT_IN_TWO.sub(lambda match: " ".join(filter(None, match.groups())), text)
    return [BRACKETS.get(token, token) for token in _TOKEN.findall(text)]

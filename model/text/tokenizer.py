"""Splits captions into words as the official COCO evaluation does, without Java.

The COCO caption evaluation tokenizes text with Stanford's PTBTokenizer, lower-cases the tokens, and drops a fixed
list of ASCII punctuation. A test compares `words` with the two of them on captions that exercise every rule below.
`words` differs from them on purpose in a few rare cases, see docs/evaluation.md.
"""

from __future__ import annotations

import re
import unicodedata

MARKS = "".join(
    chr(code) for code in range(0x300, 0x20000) if unicodedata.category(chr(code)) in ("Mn", "Mc", "Me")
)
"""Combining marks, such as the vowels of Arabic and Hindi: Python's \\w leaves them out."""
_DROPPED = "“”«»‹›‘’–—―…"  # the PTBTokenizer turns these into ASCII punctuation
# Other punctuation and symbols count as words, since the official list has only ASCII characters.
_SYMBOLS = "".join(
    re.escape(chr(code))
    for code in range(0x80, 0x10000)
    if unicodedata.category(chr(code))[0] in "PS" and chr(code) not in _DROPPED + "‐‑"
)
_A = rf"(?:[^\W_]|[{MARKS}])"  # letter, digit or mark
_L = rf"(?:[^\W\d_]|[{MARKS}])"  # letter or mark

_INVISIBLE = re.compile("[\u00ad\ufe00-\ufe0f]")  # soft hyphens and variation selectors
_CLITIC = re.compile(rf"(?<=[\w{MARKS}])(n't|'(?:s|m|d|re|ve|ll))(?!{_A})|(?<=\w)('n')(?={_A})", re.I)
_SPLIT_IN_TWO = re.compile(
    r"(?<![\w-])(?:(can)(not)|(gon)(na)|(got)(ta)|(wan)(na)|(lem)(me)|(gim)(me)|('t)(is|was)|(y')(all))(?![\w-])",
    re.I,
)
_MONTHS_AND_DAYS = "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri"
_STATES = (
    "ala|ariz|calif|colo|conn|ct|dak|fla|ga|ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla"
    "|penn|tenn|va|vt|wisc?|wyo"
)
_TITLES = (
    "mrs?|ms|messrs|mme|mlle|drs?|prof|gen|lt|maj|col|capt|cpl|sgt|adm|cmdr|brig|pvt|gov|sens?|reps?|rev|hon|pres"
    "|supts?|insp|atty|asst|treas|jr|sr|bros|esq"
)
_OTHERS = (
    "inc|cos?|corp|pty|ltd|plc|rt|bancorp|bhd|assn|univ|intl|sys|dept|est|blvd|rd|ave|st|bldg|sq|mt|ft|vs|etc|al|seq"
    "|cf|ph|tel|ext|alex|wm|jos|cie"
)
_TOKEN = re.compile(
    rf"""
      [^\W_]+(?!\S)\s*                                        # most words: this line only saves time
    | https?://\S+
    | [\w.+-]+@[\w-]+(?:\.[\w-]+)*                             # an e-mail address
    | n't(?!{_A})                                              # don't -> do n't
    | '(?:s|m|d|re|ve|ll|t|em|till?|cause|[2-9]0s)(?!{_A})     # dog's -> dog 's
    | '?n'(?=\W) | 'n(?!{_A})                                  # slip 'n' slide
    | y'(?!{_A})
    | (?:{_L}\.){{2,}}(?!{_L}) | (?:ph|ed)\.d\.                # u.s.
    | {_L}{_A}*(?:[.!?]{_L}{_A}*)+                             # no space: a stove.and cabinets; www.example.com
    | (?:{_MONTHS_AND_DAYS}|{_STATES}|{_TITLES}|{_OTHERS})\.   # keep the full stop of mr.
    | (?-i:Az|Ark|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash)\.
    | (?:nos?|prop|ca|figs?|art|pp|op)\.(?=\s+\d)
    | [a-z]\.(?=[\s"])(?!\s*$)                                 # keep that of an initial, as in Miami U.
    | {_L}{_A}*\.(?=[,;:])
    | (?<!\S)[-+]\d+(?:[.,:]\d+)*
    | \d*(?:[.,:]\d+)+ | \d+(?:[.,:/]\d+)+                     # 1,000  3.5  10:30  1/2
    | c\+\+ | [cf]\#(?!{_A})
    | (?-i:[A-Z]+(?:[+&][A-Z]+)+)                              # R&B, but r & b
    | {_A}(?:{_A}|[-_/‐‑\u200c\u200d](?={_A})|'(?={_L}))*      # words; inside one: t-shirt, o'clock
    | [@\#]{_L}+
    | \*+ | _+ | << | >> | [\#$%&@+=<>/\\^|~]                  # symbols that count as words
    | [!?]{{2,}}
    | [()\[\]{{}}]                                             # brackets, see BRACKETS
    | [{_SYMBOLS}]
    """,
    re.VERBOSE | re.I,
)

# The official list of punctuation to drop has brackets in capitals (-LRB-), but the tokens are lower-case. So the
# official evaluation counts brackets as words, and `words` does the same to give comparable scores.
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def words(caption: str) -> list[str]:
    """The words of one caption: lower-cased, without punctuation, clitics separated (`dog's` -> `dog`, `'s`).

    They are in Unicode's normal form C, so that it doesn't matter how an accented letter is encoded.
    """
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", caption)).replace("’", "'").replace("‘", "'")
    if "'" in text:
        text = _CLITIC.sub(lambda match: f" {match[0]} " if match[2] else f" {match[0]}", text)
    text = _SPLIT_IN_TWO.sub(lambda match: " ".join(filter(None, match.groups())), text)
    return [BRACKETS.get(token, token.lower().rstrip()) for token in _TOKEN.findall(text)]

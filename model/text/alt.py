"""A caption as alternative text: what a screen reader says in place of an image, the `alt` attribute of HTML.

Screen readers say themselves that it is an image, so the text doesn't. It is a short sentence with a capital letter
and a full stop, for which they pause.
"""

from __future__ import annotations

import re
import unicodedata

from conf.captioner import ENGLISH
from model.text.language import has_spaces

MAX_LENGTH = 125  # characters; some screen readers split longer texts
_ADJECTIVES = (
    "black and white|black-and-white|close-up|close up|blurry|blurred|old|vintage|colou?r|digital|beautiful"
)
_MEDIUM = r"(?:photographs?|photos?|pictures?|pics?|images?|snapshots?)"
_OPENINGS = {
    "en": [
        r"(?:(?:this|here|there)(?: is|'s) )?(?:(?:an?|the|this|some|two|several) )?"
        rf"(?:(?:{_ADJECTIVES}) )*{_MEDIUM} (?:of|showing|that shows?|which shows?|shows?|depicting|depicts?)[ :]+"
    ],
    "ar": [
        r"(?:هذه )?(?:صورة|لقطة)(?: فوتوغرافية)? (?:تُ?ظهر|من|عن) ",
        r"(?:هذه )?(?:صورة|لقطة)(?: فوتوغرافية)? (?=لل)",
        # The words after it are adjectives that begin with the same letter.
        r"(?:هذه )?(?:صورة|لقطة)(?: فوتوغرافية)? ل(?!يلي|طيف|امع)ـ? ?",
    ],
    "zh": [r"(?:这|那)?是?一?[张幅](?:照片|图片|图像)(?:中|里|上|显示了?|展示了?|是)?[，,:： ]*"],
}
"""Language -> how a caption names its own medium at the start. All of them that fit are removed."""
_CHINESE = re.compile(r"^(?:这是)?一?[张幅](.+?)的?(?:照片|图片|图像)$")
_ENDS = {
    **dict.fromkeys(("zh", "cmn", "yue", "wuu", "nan", "lzh", "ja"), "。"),
    **dict.fromkeys(("hi", "bn", "mr", "ne", "pa", "as", "or", "sa"), "।"),
    **dict.fromkeys(("th", "lo"), ""),
    **dict.fromkeys(("ur", "ks"), "۔"),
    **dict.fromkeys(("am", "ti"), "።"),
    **dict.fromkeys(("bo", "dz"), "།"),
    "my": "။",
    "km": "។",
    "hy": "։",
}
"""Language -> its full stop, if it is not a point; empty for languages that write none."""
_FINAL = ".!?…。！？।۔؟။។።։།"
_DOTTED = ("tr", "az")


def alt_text(caption: str, language: str | None = None, limit: int = MAX_LENGTH) -> str:
    """A caption as the value of an `alt` attribute, not escaped, of at most `limit` characters; empty without words.

    `language` is that of the caption by BCP 47, English by default. An opening such as "a picture of" is removed in
    English, Chinese and Arabic. The first letter is a capital where the script has capitals, and the text ends with
    the full stop of its language. A longer text is cut after a word, between characters where no spaces are written,
    and ends with an ellipsis.
    """
    language = language or ENGLISH
    primary = language.partition("-")[0]
    text = unicodedata.normalize("NFC", caption)
    text = " ".join(
        "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text).split()
    )
    text = _without_opening(text, primary)
    if not any(c.isalnum() for c in text):
        return ""
    first = "İ" if text[0] == "i" and primary in _DOTTED else text[0].upper()
    text = (first if len(first) == 1 else text[0]) + text[1:]  # ß has no capital of one letter
    if text[-1] not in _FINAL:
        text += _ENDS.get(primary, ".") if _own_script(language) else "."
    return text if len(text) <= limit else _cut(text, limit - 1, has_spaces(language)) + "…"


def _without_opening(text: str, primary: str) -> str:
    """The text without words that say that it is an image. Nothing is removed if nothing else would be left."""
    before = None
    while text != before:
        before = text
        for opening in _OPENINGS.get("zh" if primary in ("cmn", "yue") else primary, ()):
            rest = re.sub(f"^{opening}", "", text, flags=re.IGNORECASE)
            if primary == "ar" and rest != text and rest.startswith("لل"):
                rest = "ال" + rest[2:]  # li- and the article are written as one
            text = rest or text
        if primary in ("zh", "cmn", "yue") and (found := _CHINESE.match(text)):
            text = found.group(1)
    return text


def _own_script(language: str) -> bool:
    """Whether the language is written in its usual script, as far as the tag says."""
    return "Latn" not in language.split("-") and "Cyrl" not in language.split("-")


def _cut(text: str, length: int, spaces: bool) -> str:
    """At most `length` characters, without an incomplete word or character at the end, and without punctuation."""
    cut = text[:length]
    if spaces and not text[length].isspace() and " " in cut:
        cut = cut[: cut.rindex(" ")]
    while unicodedata.category(text[len(cut)]).startswith("M") and len(cut) > 1:
        cut = cut[:-1]
    return cut.rstrip(" ,;:-–—،、，；：")

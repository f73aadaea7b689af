"""What belongs to a language: how a caption is split into tokens, how tokens become a text again, and its direction.

A language is a tag by BCP 47, such as `en`, `ar` or `zh-Hans`. Tokens are words where a language puts spaces between
them, and characters where it doesn't, as in Chinese, Japanese and Thai.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from conf.captioner import ENGLISH
from conf.errors import ConfigError
from model.text.tokenizer import BRACKETS, MARKS, words

_UNSPACED_LANGUAGES = {"bo", "cmn", "dz", "ja", "km", "lo", "lzh", "my", "nan", "th", "wuu", "yue", "zh"}
_SPACED_SCRIPTS = {"Cyrl", "Hang", "Latn"}
_ARABIC_SCRIPT = {"apc", "ar", "arz", "ary", "ckb", "fa", "ks", "pnb", "ps", "sd", "skr", "ug", "ur"}
_RIGHT_TO_LEFT_LANGUAGES = _ARABIC_SCRIPT | {"arc", "dv", "he", "nqo", "syr", "yi"}
_RIGHT_TO_LEFT_SCRIPTS = {"Adlm", "Arab", "Hebr", "Mand", "Nkoo", "Rohg", "Syrc", "Thaa"}
# Letters of scripts that are written without spaces: Thai, Lao, Tibetan, Burmese, Khmer, kana, Han.
_LETTERS = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
UNSPACED = re.compile(f"[{_LETTERS}]")
"""A letter of a script that is written without spaces between words."""
_CHARACTER = re.compile(f"[{_LETTERS}][{MARKS}]*|[^{_LETTERS}]+")
_ARABIC_MARKS = re.compile("[\u064b-\u0652\u0670\u0640]")  # vowels, shadda, sukun, dagger alef; tatweel
_CLITIC = re.compile(r"(?<=\S) (n't|'(?:s|m|d|re|ve|ll))(?= |$)")
_BRACKETS = frozenset(BRACKETS.values())
_WORD = re.compile(r"[^\W_]|[#$%&@*+=<>/\\^|~_]")

Split = Callable[[str], list[str]]


@dataclass(frozen=True)
class Tokenization:
    """How captions are split for the metrics. `name` says it in words, for the protocol."""

    name: str
    split: Split

    @property
    def protocol(self) -> str:
        return f"COCO: lower-cased, {self.name}, punctuation removed, all references"


def tokens(caption: str, language: str = ENGLISH) -> list[str]:
    """The tokens of a caption as a vocabulary counts them: lower-cased, without punctuation and brackets.

    Of the symbols, only ASCII ones such as # and & count. Runs of Latin letters and digits are one token in every
    language. Chinese, Japanese and Arabic captions are brought into Unicode's normal form KC, so that full-width
    letters and the joined forms of Arabic ones are the same letters. Arabic loses vowel marks and tatweel, which
    people write or leave out as they like; its forms of alef are kept, since they are spelling.
    """
    primary = _primary(language)
    if primary in ("tr", "az"):
        caption = caption.replace("İ", "i").replace("I", "ı")
    if primary == "ar" or not has_spaces(language):
        caption = unicodedata.normalize("NFKC", caption)
    if primary == "ar":
        caption = _ARABIC_MARKS.sub("", caption)
    found = [word for word in words(caption) if word not in _BRACKETS and _WORD.search(word)]
    return found if has_spaces(language) else [char for word in found for char in _CHARACTER.findall(word)]


def join(found: Sequence[str], language: str = ENGLISH) -> str:
    """The text of tokens: `tokens(join(t)) == t`.

    Clitics are joined to the word before them (`dog`, `'s` -> `dog's`). Characters are put together without spaces,
    runs of Latin letters and digits with one between them; a single Latin letter is a capital, as in T恤 (T-shirt).
    """
    if has_spaces(language):
        return _CLITIC.sub(r"\1", " ".join(found))
    text = " ".join(token.upper() if len(token) == 1 and token.isascii() else token for token in found)
    return re.sub(f"(?<=[{_LETTERS}{MARKS}]) | (?=[{_LETTERS}])", "", text)


def tokenization(language: str = ENGLISH, *, by_words: bool = False) -> Tokenization:
    """How captions of a language are split for the metrics.

    English is split by the official COCO protocol, see `model.text.tokenizer`; other languages as by `tokens`.
    `by_words` splits Chinese into words, as jieba does. Raises ConfigError for `by_words` in another language, and
    when the package for it is missing.
    """
    if by_words:
        return Tokenization("words by jieba", _jieba(language))
    if _primary(language) == ENGLISH:
        return Tokenization("PTB tokens", words)
    name = "PTB tokens" if has_spaces(language) else "characters"
    return Tokenization(f"{name} ({language})", lambda caption: tokens(caption, language))


def has_spaces(language: str) -> bool:
    """Whether the language puts spaces between words."""
    return _primary(language) not in _UNSPACED_LANGUAGES or _script(language) in _SPACED_SCRIPTS


def direction(language: str | None) -> Literal["ltr", "rtl", "auto"]:
    """The value of HTML's attribute `dir`; `auto` for a language that is not known."""
    if not language:
        return "auto"
    if script := _script(language):
        right_to_left = script in _RIGHT_TO_LEFT_SCRIPTS
    else:
        right_to_left = _primary(language) in _RIGHT_TO_LEFT_LANGUAGES
    return "rtl" if right_to_left else "ltr"


def _jieba(language: str) -> Split:
    if _primary(language) not in ("zh", "cmn"):
        raise ConfigError(f"words by jieba are for Chinese, and the captions are in {language!r}")
    try:
        import rjieba
    except ImportError as error:
        raise ConfigError("words by jieba need rjieba: pip install 'nightcap[chinese]'") from error
    # Its dictionary has words such as T恤 with a capital.
    return lambda caption: [
        word.lower() for word in rjieba.cut(unicodedata.normalize("NFKC", caption)) if _WORD.search(word)
    ]


def _primary(language: str) -> str:
    return language.partition("-")[0]


def _script(language: str) -> str:
    return next((part for part in language.split("-")[1:] if len(part) == 4 and part.isalpha()), "")

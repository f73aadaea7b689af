"""Captions as alternative text: no words about the medium, one short sentence, in every language."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.cli import main
from model.text.alt import MAX_LENGTH, alt_text
from tests import tiny


@pytest.mark.parametrize(
    ("caption", "alt"),
    [
        ("a dog runs in snow", "A dog runs in snow."),
        ("a picture of a dog", "A dog."),
        ("A black and white photo of two men", "Two men."),
        ("this is an image showing a cat", "A cat."),
        ("the picture shows a cat", "A cat."),
        ("a photo of a picture of a cat", "A cat."),
        ("pictures of dogs!", "Dogs!"),
        ("a man taking a picture of a dog", "A man taking a picture of a dog."),
        ("a picture hanging on a wall", "A picture hanging on a wall."),
        ("a painting of a lake", "A painting of a lake."),
        ("a picture of", "A picture of."),
        ("two\n dogs\0play ", "Two dogs play."),
        ("3 dogs", "3 dogs."),
        ("is this a dog?", "Is this a dog?"),
        ("", ""),
        (" … ", ""),
    ],
)
def test_english(caption: str, alt: str) -> None:
    assert alt_text(caption) == alt_text(caption, "en-GB") == alt
    assert alt_text(alt) == alt  # nothing more to do


@pytest.mark.parametrize(
    ("language", "caption", "alt"),
    [
        ("zh", "一只黑狗在草地上奔跑", "一只黑狗在草地上奔跑。"),
        ("zh-Hans", "一张狗的照片", "狗。"),
        ("zh", "这张图片显示一只狗", "一只狗。"),
        ("ja", "犬が走っている", "犬が走っている。"),
        ("ar", "صورة لكلب أسود", "كلب أسود."),
        ("ar", "صورة للكلب الأسود", "الكلب الأسود."),
        ("ar", "صورة ليلية لمدينة", "صورة ليلية لمدينة."),
        ("fa", "یک سگ می‌دود", "یک سگ می‌دود."),
        ("hi", "एक कुत्ता दौड़ता है", "एक कुत्ता दौड़ता है।"),
        ("th", "สุนัขวิ่ง", "สุนัขวิ่ง"),
        ("tr", "istanbul", "İstanbul."),
        ("de", "ßen", "ßen."),
        ("zh-Latn", "yi zhi gou", "Yi zhi gou."),
    ],
)
def test_other_languages(language: str, caption: str, alt: str) -> None:
    assert alt_text(caption, language) == alt


def test_a_long_text_is_cut_after_a_word() -> None:
    assert alt_text("a dog " * 60).endswith(" a dog a…")
    assert len(alt_text("a dog, " * 60)) <= MAX_LENGTH
    assert alt_text("one two three four", limit=12) == "One two…"
    assert alt_text("one, two three", limit=6) == "One…"
    assert alt_text("one two three", limit=14) == "One two three."
    assert alt_text("x" * 300) == "X" + "x" * (MAX_LENGTH - 2) + "…"


def test_a_long_text_without_spaces_is_cut_between_characters() -> None:
    assert alt_text("狗" * 300, "zh") == "狗" * (MAX_LENGTH - 1) + "…"
    cut = alt_text("ที่" * 100, "th", limit=9)  # a letter with two marks, which stay together
    assert cut == "ที่ที่…"


def test_caption_prints_alternative_text(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_images(tmp_path, "a.png")
    command = ["caption", str(tmp_path / "a.png"), "--model", str(bundle)]
    assert main(command) == 0
    caption = capsys.readouterr().out.split("\t")[1]
    assert main([*command, "--alt"]) == 0
    assert capsys.readouterr().out.split("\t")[1] == alt_text(caption) != caption
    assert main([*command, "--alt", "--min-confidence", "1"]) == 0
    assert capsys.readouterr().out.rstrip("\n").split("\t")[1::2] == ["", "uncertain"]
    assert main([*command, "--alt", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["caption"], result["alt"]) == (caption, alt_text(caption))
    for value in ("1.5", "abc", "nan"):
        with pytest.raises(SystemExit):
            main([*command, "--alt", "--min-confidence", value])
        message = f"--min-confidence: must be a number between 0 and 1, got '{value}'"
        assert message in capsys.readouterr().err

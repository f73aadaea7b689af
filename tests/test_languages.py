"""The language of a bundle: tokens, text, direction, and where captions show it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load

from conf.captioner import language_tag
from conf.errors import ConfigError
from jobs.cli import main
from model.bundle import Bundle, make_bundle, read_bundle, read_folder, write_folder
from model.captioner import Captioner
from model.card import model_card
from model.text.language import direction, has_spaces, join, tokenization, tokens
from model.text.vocabulary import SPECIALS, UNK, Vocabulary
from pages.rendering import in_language
from tests import tiny
from tests.bundles import assert_refused, edited
from tests.whole import config, make_photos, run_job, tables

CHARACTERS = ("一", "只", "狗", "在", "跑", "t", "恤", "3", "d", "红", "色", "猫")


def bundle_in(language: str, words: tuple[str, ...] = tiny.WORDS) -> Bundle:
    """A bundle with random weights that captions in a language."""
    model = tiny.captioner(max_length=6)
    spoken = Captioner(
        model.architecture, Vocabulary(SPECIALS + words, language), model.preprocessing, model.decoding
    )
    spoken.load_state_dict(model.state_dict())
    return make_bundle(spoken.eval(), f"tiny-{language.lower()}", {})


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "zh"
    bundle = bundle_in("zh", CHARACTERS)
    write_folder(bundle, folder, model_card(bundle))
    return folder


# Tokens and text


@pytest.mark.parametrize(
    ("language", "caption", "expected", "text"),
    [
        ("zh", "穿着T恤的2个小孩。", "穿 着 t 恤 的 2 个 小 孩", "穿着T恤的2个小孩"),
        ("zh-Hant", "看３Ｄ，NBA 比賽！", "看 3d nba 比 賽", "看3d nba比賽"),  # full-width
        ("ja", "犬が道を走っている。", "犬 が 道 を 走 っ て い る", "犬が道を走っている"),
        ("th", "สุนัขวิ่ง", "สุ นั ข วิ่ ง", "สุนัขวิ่ง"),  # vowels and tones belong to their consonant
        ("zh-Latn", "Yī zhī gǒu", "yī zhī gǒu", "yī zhī gǒu"),  # pinyin has spaces
        ("ar", "طفلٌ يرتدي ثوباً، ورديّـــاً", "طفل يرتدي ثوبا ورديا", "طفل يرتدي ثوبا ورديا"),
        ("ar", "أحمر إلى آخر", "أحمر إلى آخر", "أحمر إلى آخر"),  # the forms of alef stay
        ("ar", "\ufefb", "لا", "لا"),  # a ligature is its letters
        ("tr", "Iğdır'da İki kedi", "ığdır'da iki kedi", "ığdır'da iki kedi"),
        ("de", "Ein Hund, läuft.", "ein hund läuft", "ein hund läuft"),
        ("en", "The dog's ball isn't here.", "the dog 's ball is n't here", "the dog's ball isn't here"),
    ],
)
def test_a_language_has_its_tokens_and_its_text(
    language: str, caption: str, expected: str, text: str
) -> None:
    found = tokens(caption, language)
    assert found == expected.split()
    assert join(found, language) == text
    assert tokens(text, language) == found


def test_a_vocabulary_encodes_and_decodes_characters() -> None:
    vocabulary = Vocabulary.build(["两只狗在跑。", "一只狗"], 1, "zh")
    assert set(vocabulary.tokens[len(SPECIALS) :]) == set("两只狗在跑一")
    ids = vocabulary.encode("一只猫在跑", 9)
    assert ids.count(UNK) == 1
    assert vocabulary.decode(ids[1:]) == "一只在跑"


@pytest.mark.parametrize(
    ("tag", "canonical"),
    [
        ("EN", "en"),
        ("zh-hans-cn", "zh-Hans-CN"),
        ("es-419", "es-419"),
        ("sl-rozaj", "sl-rozaj"),
        ("de-1996-x-AB", "de-1996-x-ab"),
        ("ar-u-nu-latn", "ar-u-nu-latn"),
    ],
)
def test_language_tags_are_written_in_one_way(tag: str, canonical: str) -> None:
    assert language_tag(tag) == canonical


@pytest.mark.parametrize("tag", ["", "e", "English", "en_US", "zh--Hans", "en-", "en US", "日本語", "en\n"])
def test_what_is_no_language_tag_is_refused(tag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="must be a language tag by BCP 47, such as en"):
        language_tag(tag)
    assert main(["train", "--output", "out", "--set", f"data.language={json.dumps(tag)}"]) == 2
    assert "data.language = " in capsys.readouterr().err


def test_direction_follows_script_and_language() -> None:
    right_to_left = {
        tag for tag in ("en", "ar", "he", "ur-PK", "az-Arab", "ar-Latn", "zh") if direction(tag) == "rtl"
    }
    assert right_to_left == {"ar", "he", "ur-PK", "az-Arab"}
    assert direction(None) == "auto"
    assert [tag for tag in ("zh", "ko", "ja", "th", "vi") if has_spaces(tag)] == ["ko", "vi"]


def test_the_attributes_of_an_element_are_escaped() -> None:
    assert in_language("ar") == 'lang="ar" dir="rtl"'
    assert in_language("zh-Hans") == 'lang="zh-Hans" dir="ltr"'
    assert in_language(None) == 'dir="auto"'
    assert in_language('"><script>') == 'lang="&#34;&gt;&lt;script&gt;" dir="ltr"'


# Bundles


def test_a_bundle_stores_its_language(chinese: Path) -> None:
    bundle = read_folder(chinese)
    assert json.loads((chinese / "config.json").read_text())["language"] == "zh"
    captions = [caption.text for caption in bundle.captioner().caption(tiny.pixels(3))]
    assert all(captions)
    assert not any(" " in caption for caption in captions)
    assert bundle.model_id != bundle_in("ja", CHARACTERS).model_id.replace("tiny-ja", "tiny-zh")
    card = (chinese / "README.md").read_text()
    assert "Captions photographs in Chinese (`zh`)." in card
    assert "- protocol: COCO: lower-cased, characters (zh), punctuation removed" in card
    assert "in the language `sw`." in model_card(bundle_in("sw"))


def test_a_bundle_without_a_language_is_english_and_a_malformed_one_is_refused(bundle: Path) -> None:
    files = {path.name: path.read_bytes() for path in bundle.iterdir()}
    stored = json.loads(files["config.json"])
    del stored["language"]
    older = read_bundle({**files, "config.json": json.dumps(stored).encode()}, "older")
    assert older.language == "en"
    assert older.files("")["config.json"] == json.dumps(stored, indent=1).encode() + b"\n"
    assert_refused(
        edited(files, "language", "Chinese"), "language: .*must be a language tag by BCP 47.*'Chinese'"
    )


# Evaluation


def test_chinese_is_scored_by_characters_or_by_words(
    chinese: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.data_set(tmp_path, [["一只狗在跑。", "红色猫"], ["两只狗", "狗在跑"]])
    command = ["evaluate", str(chinese), str(data), "--json"]
    assert main([*command, "--page", str(tmp_path / "page.html")]) == 0
    by_characters = json.loads(capsys.readouterr().out)
    assert (
        by_characters["protocol"] == "COCO: lower-cased, characters (zh), punctuation removed, all references"
    )
    assert by_characters["left_out"]["METEOR"] == "for English only"
    page = (tmp_path / "page.html").read_text()
    assert '<p class="caption" lang="zh" dir="ltr">' in page
    assert '<li lang="zh" dir="ltr">一只狗在跑。</li>' in page
    assert main([*command, "--words"]) == 0
    by_words = json.loads(capsys.readouterr().out)
    assert by_words["protocol"].startswith("COCO: lower-cased, words by jieba")
    assert by_words["language"]["length_mean"] < by_characters["language"]["length_mean"]


def test_results_by_characters_are_not_compared_with_those_by_words(
    chinese: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.data_set(tmp_path, [["一只狗在跑。"], ["两只狗"]])
    names = [str(tmp_path / name) for name in ("characters", "words")]
    for name, flags in zip(names, ([], ["--words"]), strict=True):
        assert main(["evaluate", str(chinese), str(data), "--json", "--results", name, *flags]) == 0
    assert main(["compare", *names]) == 2
    message = capsys.readouterr().err
    assert "characters (zh)" in message
    assert "both with or without --words" in message
    assert main(["compare", names[0], names[0]]) == 0


def test_a_caption_equal_to_a_reference_has_full_score_in_every_tokenization() -> None:
    from model.metrics.coco import evaluate

    pairs = [["一只狗在红色的路上跑。"], ["两个小孩在看书。"]]
    for split in (tokenization("zh"), tokenization("zh", by_words=True)):
        scores = evaluate(["一只狗在红色的路上跑", "两个小孩在看书"], pairs, split.split)
        assert scores["BLEU-4"] == pytest.approx(1)
        assert scores["CIDEr"] == pytest.approx(10)
    # As one word each, which is what the official tokenizer makes of them, they have no n-grams to match.
    assert evaluate(["一只狗在红色的路上跑", "两个小孩在看书"], pairs)["CIDEr"] < 3


def test_words_by_jieba_are_for_chinese() -> None:
    assert tokenization("zh", by_words=True).split("小孩站在河边挥手，T恤。") == [
        "小孩",
        "站",
        "在",
        "河边",
        "挥手",
        "t恤",
    ]
    with pytest.raises(ConfigError, match="words by jieba are for Chinese, and the captions are in 'ar'"):
        tokenization("ar", by_words=True)


def test_data_check_counts_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny.data_set(tmp_path, [["在水边观看风景的人。", "两只狗在路上打架。"]])
    assert main(["data", "check", str(data), "--language", "zh", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["unit"], figures["words"], figures["warnings"]) == ("characters", 17, [])
    assert main(["data", "check", str(data), "--language", "zh"]) == 0
    text = capsys.readouterr().out
    assert "\ncharacters            17; of a caption 8 to 9" in text
    assert " characters in the vocabulary, 100.0% of all" in text
    assert main(["data", "check", str(data), "--language", "Chinese"]) == 2
    assert "--language 'Chinese' must be a language tag" in capsys.readouterr().err


# Training


def recipe(folder: Path, *lines: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(
        "preprocessing: {width: 64, height: 64}\ndecoder: {embed_size: 16, hidden_size: 16}\n"
        "stages: [{epochs: 1, decoder_lr: 1.0e-3}]\n" + "\n".join(lines)
    )
    return str(path)


@pytest.mark.train
def test_a_decoder_is_trained_for_the_encoder_of_a_bundle(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = str(tiny.data_set(tmp_path, [["一只狗在跑。"], ["红色的猫"]])), tmp_path / "out"
    command = ["train", "--config", recipe(tmp_path, "data: {language: zh, min_freq: 1}"), "--train", data]
    command += ["--dev", data, "--output", str(out)]
    assert main([*command, "--weights", str(bundle)]) == 0
    assert "no spaces between words" not in capsys.readouterr().err
    made = read_folder(out)
    assert made.name == "out"  # the recipe has none
    assert made.language == "zh"
    assert set(made.vocabulary.tokens[len(SPECIALS) :]) == set("一只狗在跑红色的猫")
    before, after = (load(each.weights) for each in (read_folder(bundle), made))
    encoder = [name for name in before if name.startswith("encoder.")]
    assert encoder
    assert all(torch.equal(before[name], after[name]) for name in encoder)

    assert (
        main(
            [
                "train",
                "--config",
                recipe(tmp_path, "data: {language: ar}"),
                *command[3:-1],
                "x",
                "--start",
                str(out),
            ]
        )
        == 2
    )
    message = capsys.readouterr().err
    assert "data.language is 'ar', and --start out captions in 'zh'" in message
    assert (
        main(
            ["train", "--config", recipe(tmp_path), *command[3:-1], str(tmp_path / "y"), "--start", str(out)]
        )
        == 0
    )
    assert read_folder(tmp_path / "y").language == "zh"


# Where captions are shown


@pytest.mark.slow
def test_the_tables_say_the_language_of_each_caption(bundle: Path, chinese: Path, tmp_path: Path) -> None:
    photos, out = make_photos(tmp_path), tmp_path / "out"
    run_job(photos, out, config(bundle))
    captions, _ = tables(out)
    assert set(captions["language"]) == {"en"}
    run_job(photos, out, config(chinese))
    captions, _ = tables(out)
    assert set(captions["language"]) == {"zh"}
    assert set(pd.read_parquet(out / "history")["language"]) == {"en"}


def test_caption_prints_the_language(
    chinese: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_images(tmp_path, "a.png")
    assert main(["caption", str(tmp_path / "a.png"), "--model", str(chinese), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["language"], result["uncertain"]) == ("zh", None)
    assert re.fullmatch(r"[\u4e00-\u9fffTD3]+", result["caption"])


def test_one_model_is_given_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", str(tmp_path), "--output", str(tmp_path / "out"), "--model", "one", "--model", "two"]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert "--model takes one bundle, got one, two: an output has one row per path" in message
    assert message.count("\n") == 1

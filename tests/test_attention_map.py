"""The attention map: one tile per word, bright where the word attends."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conf.captioner import Architecture, Decoding, EnsembleArchitecture, Preprocessing
from conf.errors import ConfigError
from jobs.cli import main
from model.bundle import make_bundle, write_folder
from model.captioner import Captioner
from model.evaluation import attention_map
from model.evaluation.attention_map import LABEL, TILE, caption_attention, draw_attention
from model.text.vocabulary import SPECIALS, Vocabulary
from tests import tiny


@pytest.mark.slow
def test_each_word_of_the_caption_has_attention_weights_that_sum_to_one() -> None:
    model = tiny.captioner(beam_width=3, max_length=6)
    for pixels in tiny.pixels(4):
        words, attention = caption_attention(model, pixels)
        assert " ".join(words).replace(" 's", "'s") == model.caption(pixels[None])[0].text
        assert attention.shape == (len(words), 2, 2)
        assert attention.sum((1, 2)) == pytest.approx([1.0] * len(words), abs=1e-5)


@pytest.mark.parametrize(
    ("cells", "height", "width", "expected"),
    [(64, 256, 256, (8, 8)), (49, 224, 224, (7, 7)), (32, 256, 128, (8, 4)), (70, 224, 320, (7, 10))],
)
def test_the_grid_has_the_shape_of_the_image(
    cells: int, height: int, width: int, expected: tuple[int, int]
) -> None:
    assert attention_map._grid(cells, height / width) == expected


def test_a_tile_is_bright_where_the_attention_of_its_word_is_high() -> None:
    white = np.full((50, 80, 3), 255, np.uint8)
    attention = np.zeros((6, 2, 2), np.float32)
    attention[:, 0, 1] = 1.0  # top right
    sheet = np.asarray(Image.open(io.BytesIO(draw_attention(white, ["w"] * 6, attention))).convert("L"))
    assert sheet.shape == (2 * (TILE + LABEL), 5 * TILE)
    plain, second = sheet[LABEL:TILE, :TILE], sheet[LABEL : LABEL + TILE, TILE : 2 * TILE]
    assert plain.min() == 255
    assert second[10, -10] == 255
    assert second[-10, 10] == pytest.approx(255 * 0.25, abs=2)


ONE, POOLED, MERGE = tiny.architecture(), tiny.architecture(pooled=True), tiny.architecture(name="merge")


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [(MERGE, "merge"), (POOLED, "attention"), (EnsembleArchitecture(members=(ONE, ONE)), "ensemble")],
)
def test_a_captioner_without_attention_to_a_grid_raises_config_error(
    architecture: Architecture, kind: str
) -> None:
    model = Captioner(
        architecture,
        Vocabulary(SPECIALS + tiny.WORDS),
        Preprocessing(width=tiny.SIDE, height=tiny.SIDE),
        Decoding(),
    )
    assert not architecture.attends
    assert ONE.attends
    with pytest.raises(ConfigError, match=rf"{kind} decoder.* attends to no grid"):
        caption_attention(model.eval(), tiny.pixels(1)[0])


@pytest.mark.slow
def test_explain_writes_one_png_for_one_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(tiny.captioner(), "tiny", {})
    write_folder(bundle, tmp_path / "tiny", "card")
    tiny.data_set(tmp_path, [["a"], ["b"]])
    flags = ["--model", str(tmp_path / "tiny"), "--explain", str(tmp_path / "why.png")]
    assert main(["caption", str(tmp_path / "0.png"), *flags]) == 0
    with Image.open(tmp_path / "why.png") as image:
        assert image.format == "PNG"
    assert main(["caption", str(tmp_path / "0.png"), str(tmp_path / "1.png"), *flags]) == 2
    assert "--explain draws one image, got 2" in capsys.readouterr().err
    (tmp_path / "why.png").unlink()
    assert main(["caption", str(tmp_path / "absent.png"), *flags]) == 1
    assert "missing" in capsys.readouterr().err
    assert not (tmp_path / "why.png").exists()


@pytest.mark.slow
def test_explain_also_prints_the_caption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(make_bundle(tiny.captioner(), "tiny", {}), tmp_path / "tiny", "card")
    tiny.data_set(tmp_path, [["a"]])
    image, png = str(tmp_path / "0.png"), str(tmp_path / "why.png")
    command = ["caption", image, "--model", str(tmp_path / "tiny")]
    assert main(command) == 0
    plain = capsys.readouterr().out
    assert main([*command, "--explain", png]) == 0
    assert capsys.readouterr().out == plain
    assert main([*command, "--explain", png, "--json", "--samples", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["attention_map"] == png
    assert result["caption"] == plain.split("\t")[1]
    assert 1 <= len(result["samples"]) <= 2
    assert Path(png).read_bytes().startswith(b"\x89PNG")


def label_of(word: str) -> bytes:
    """The pixels of the label of a word."""
    attention = np.ones((1, 2, 2), np.float32)
    sheet = Image.open(io.BytesIO(draw_attention(np.full((9, 9, 3), 255, np.uint8), [word], attention)))
    return sheet.crop((TILE, 0, 2 * TILE, LABEL)).tobytes()


def test_words_of_other_scripts_are_not_drawn_as_boxes(caplog: pytest.LogCaptureFixture) -> None:
    arabic = {label_of(word) for word in ("كلب", "قطة", "بحر")}
    assert len(arabic) == 3  # boxes would be equal
    assert caplog.text == ""


def test_a_word_that_no_font_has_is_drawn_as_its_number(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = attention_map._font_files()[:1]
    attention_map._font_for.cache_clear()
    monkeypatch.setattr(attention_map, "_font_files", lambda: shipped)
    assert label_of("狗") == label_of("猫")  # both are the first word
    assert "no installed font has 狗; drawn as the number of the word; install a font with it" in caplog.text
    attention_map._font_for.cache_clear()

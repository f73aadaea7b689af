"""The attention map: one tile per word, bright where the word attends."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conf.captioner import Decoding, Preprocessing
from conf.errors import ConfigError
from jobs.cli import main
from model.bundle import make_bundle, write_folder
from model.captioner import Captioner
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


def test_a_decoder_without_attention_raises_config_error() -> None:
    model = Captioner(
        tiny.architecture(name="merge"),
        Vocabulary(SPECIALS + tiny.WORDS),
        Preprocessing(width=tiny.SIDE, height=tiny.SIDE),
        Decoding(),
    )
    with pytest.raises(ConfigError, match=r"merge decoder.* attends to no grid"):
        caption_attention(model.eval(), tiny.pixels(1)[0])


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

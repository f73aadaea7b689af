"""Whether captions name an attribute of the data, such as a product's colour."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.cli import main
from model.bundle import make_bundle, write_folder
from model.metrics.attributes import names
from tests import tiny


@pytest.mark.parametrize(
    ("caption", "value"),
    [
        ("a red t-shirt for men", "Tshirts"),
        ("men's navy blue t-shirts", "Navy Blue"),
        ("a pair of black casual shoes", "Casual Shoes"),
        ("a green sweat-shirt", "Sweatshirts"),
        ("a dress", "Dresses"),
        ("two watches", "Watch"),
        ("a glass", "Glass"),
        ("a grey scarf, folded", "Grey"),
        ("a navy-blue shirt", "Navy Blue"),
        ("a shirt in off white", "Off-White"),
        ("a white t-shirt", "T-Shirts"),
        ("black flip-flops", "Flip Flops"),
        ("black flipflops", "Flip Flops"),
        ("a tie", "Ties"),
        ("two ties", "Tie"),
        ("a hoodie", "Hoodies"),
        ("grey hoodies", "Hoodie"),
        ("a scarf", "Scarves"),
        ("scarves", "Scarf"),
        ("scarfs", "Scarves"),
        ("gloves", "Glove"),
        ("kitchen knives", "Knife"),
        ("a berry", "Berries"),
        ("purses", "Purse"),
        ("a box", "Boxes"),
        ("brushes", "Brush"),
        ("mens shirts", "Men's Shirt"),
        ("a pair of sports-shoes", "Sports Shoes"),
        ("a sport-shoe", "Sports Shoes"),
        ("a sports-sandals", "Sports Sandals"),
        ("a turquoise-blue shirt", "Turquoise Blue"),
    ],
)
def test_a_caption_names_a_value(caption: str, value: str) -> None:
    assert names(caption, value)


@pytest.mark.parametrize(
    ("caption", "value"),
    [
        ("a red t-shirt for men", "Shirts"),
        ("a blue shirt", "Navy Blue"),
        ("a pair of shoes", "Casual Shoes"),
        ("a shirt", ""),
        ("a shirt", "-"),
        ("a shirt, blue and navy", "Navy Bluetooth"),
        ("a navy-blue shirt", "Blue Jeans"),
        ("a cape", "Caps"),
        ("a glass", "Glas"),
        ("a t-shirt", "Shirts"),
        ("a sports-shoe-box", "Sports Shoes"),
        ("two mice", "Mouse"),
        ("", "Shirts"),
    ],
)
def test_a_caption_does_not_name_a_value(caption: str, value: str) -> None:
    assert not names(caption, value)


def test_evaluate_measures_what_captions_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.captioner(beam_width=2, max_length=6)
    data = tiny.data_set(tmp_path, [["a dog"], ["a cat"], ["a bird"]])
    texts = [caption.text for caption in model.caption(tiny.pixels(3))]
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    values = [texts[0].split()[0], "zebra"]  # the third line states no type
    for line, value in zip(lines, values, strict=False):
        line["type"] = value
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_folder(make_bundle(model, "tiny", {}), tmp_path / "bundle", "card")
    command = ["evaluate", str(tmp_path / "bundle"), str(data), "--no-meteor", "--json"]
    assert main([*command, "--attribute", "type"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["type named"] == 0.5
    assert report["intervals"]["type named"] == [0.0, 1.0]


def test_an_unknown_attribute_is_refused_before_pictures_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.data_set(tmp_path, [["a dog"], ["a cat"]])
    lines = [json.loads(line) | {"type": "pet", "size": "small"} for line in data.read_text().splitlines()]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_folder(make_bundle(tiny.captioner(max_length=6), "tiny", {}), tmp_path / "bundle", "card")
    for picture in tmp_path.glob("*.png"):
        picture.write_bytes(b"no picture")  # if these were read, the message would be about them
    command = ["evaluate", str(tmp_path / "bundle"), str(data), "--no-meteor"]
    assert main([*command, "--attribute", "type", "--attribute", "colour"]) == 2
    message = capsys.readouterr().err
    assert "no line of the data states 'colour' as a text" in message
    assert "give --attribute one of size, type" in message
    assert main([*command, "--attribute", "type"]) == 2
    assert "broken picture" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "bundle"), str(plain_data(tmp_path)), "--attribute", "type"]) == 2
    assert "the data have no attributes" in capsys.readouterr().err


def plain_data(folder: Path) -> Path:
    """A data file without attributes."""
    (folder / "plain").mkdir()
    return tiny.data_set(folder / "plain", [["a dog"]])

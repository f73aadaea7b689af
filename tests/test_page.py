"""The page: well-formed, complete in itself, everything escaped, the right images in the right places."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from conf.errors import DataError
from model.captioner import Caption
from model.data.dataset import Example, read
from model.evaluation.report import Assessment, assess
from model.metrics.coco import ImageScores, image_scores
from model.metrics.reliability import reliability_curve, risk_coverage
from pages.charts import reliability_svg, risk_coverage_svg
from pages.evaluation import THUMBNAIL, page
from tests import tiny
from tests.sentences import CAPTIONS, REFERENCES

EVIL = "<script>alert('x')</script> & \"co\""
VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Collects text and attributes; fails where tags don't close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def examples(tmp_path: Path) -> list[Example]:
    return read(str(tiny.data_set(tmp_path, REFERENCES))).examples


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)  # noqa: S314 - our own text


def assessed(
    captions: list[str], examples: list[Example]
) -> tuple[Assessment, list[Caption], list[Example], ImageScores]:
    said = [Caption(text, (i + 1) / 20, -1.0, True) for i, text in enumerate(captions)]
    each = image_scores(captions, [example.captions for example in examples])
    about = {"model": f"tiny {EVIL}", "images": len(said)}
    return assess(about, said, examples, each, with_meteor=False), said, examples, each


def test_best_median_and_worst_images_are_shown_in_order(examples: list[Example]) -> None:
    found = assessed(CAPTIONS, examples)
    said = re.findall(r'<p class="said">(.*?)</p>', page(*found))
    cider = found[3].cider
    assert len(said) == 12  # three groups of four
    places = [CAPTIONS.index("" if text == "(nothing)" else text) for text in said]
    assert sorted(places) == list(range(12))  # none stands twice
    scores = cider[places]
    assert list(scores[:8]) == sorted(scores[:8], reverse=True)
    assert list(scores[8:]) == sorted(scores[8:])
    assert scores[:4].min() >= scores[4:8].max()
    assert scores[4:8].min() >= scores[8:].max()


def test_the_page_holds_everything_and_fetches_nothing(examples: list[Example]) -> None:
    captions = [EVIL, *CAPTIONS[1:]]
    examples[0] = Example(examples[0].image, (EVIL, "a dog"))
    html = page(*assessed(captions, examples))
    read = Reader(html)
    assert "script" not in {tag for tag, _ in read.tags}
    for tag, attributes in read.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        assert {"href", "srcset", "action", "background"} & set(attributes) == set(), tag
        if "src" in attributes:
            assert tag == "img"
            assert str(attributes["src"]).startswith("data:image/jpeg;base64,")
    assert "http" not in re.sub(r"http-equiv", "", html)
    assert "url(" not in html
    assert "@import" not in html
    assert EVIL in read.texts  # as text, as it was written
    policy = next(str(a["content"]) for tag, a in read.tags if tag == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy
    for name in ("CIDEr", "BLEU-4", "AUROC", "METEOR: not asked for", "unseen_captions"):
        assert name in " ".join(read.texts)


def test_images_are_small_and_keep_their_shape(examples: list[Example]) -> None:
    Image.new("RGB", (900, 300), (200, 30, 30)).save(examples[0].image)
    html = page(*assessed(CAPTIONS, examples))
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", html)
    ]
    assert {picture.format for picture in pictures} == {"JPEG"}
    assert max(max(picture.size) for picture in pictures) == THUMBNAIL
    wide = [picture for picture in pictures if picture.size == (320, 107)]
    assert len(wide) == 1
    assert wide[0].getpixel((160, 50)) == pytest.approx((200, 30, 30), abs=6)


@pytest.mark.parametrize("images", [1, 2, 4])
def test_a_few_images_do(examples: list[Example], images: int) -> None:
    html = page(*assessed(CAPTIONS[:images], examples[:images]))
    assert Reader(html).texts.count("Median by CIDEr") == 1
    assert html.count("<figure>") == 3


def test_an_image_that_is_gone_is_named(examples: list[Example]) -> None:
    found = assessed(CAPTIONS, examples)
    examples[0].image.unlink()
    with pytest.raises(DataError, match=re.escape(str(examples[0].image))):
        page(*found)


def test_the_curves_show_what_they_are_given() -> None:
    confidence, correct = np.array([0.05, 0.5, 0.5, 0.97]), np.array([0.0, 0, 1, 1])
    drawn = parsed(reliability_svg(reliability_curve(confidence, correct)))
    discs = [
        (float(d.attrib["cx"]), float(d.attrib["cy"]), float(d.attrib["r"])) for d in drawn.iter("circle")
    ]
    assert [disc[0] for disc in discs] == sorted(disc[0] for disc in discs)
    assert discs[0][1] > discs[1][1] > discs[2][1]  # wrong at the bottom, right at the top
    assert discs[1][2] > discs[0][2] == discs[2][2]  # two captions against one each
    level, line = parsed(risk_coverage_svg(*risk_coverage(confidence, correct))).iter("polyline")
    heights = [float(point.split(",")[1]) for point in line.attrib["points"].split()]
    assert len(heights) == 4
    assert heights[0] > heights[-1] == float(level.attrib["points"].split(",")[-1])  # from risk 0 to 1/2
    many = np.linspace(0, 1, 5000)
    long = parsed(risk_coverage_svg(*risk_coverage(many, (many > 0.5).astype(np.float64))))
    assert len(list(long.iter("polyline"))[1].attrib["points"].split()) == 200

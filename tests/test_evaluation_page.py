"""The evaluation page: well-formed, self-contained, escaped, with the images in the right order."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
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
from pages.evaluation import THUMBNAIL, render_evaluation
from tests import tiny
from tests.markup import Reader
from tests.sentences import CAPTIONS, REFERENCES

EVIL = "<script>alert('x')</script> & \"co\""


@pytest.fixture
def examples(tmp_path: Path) -> list[Example]:
    return read(str(tiny.data_set(tmp_path, REFERENCES))).examples


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)  # noqa: S314 - written by our own code


def assessed(
    captions: list[str], examples: list[Example]
) -> tuple[Assessment, list[Caption], list[Example], ImageScores]:
    predictions = [Caption(text, (i + 1) / 20, -1.0, True) for i, text in enumerate(captions)]
    each = image_scores(captions, [example.captions for example in examples])
    about = {"model": f"tiny {EVIL}", "images": len(predictions)}
    return assess(about, predictions, examples, each, with_meteor=False), predictions, examples, each


def test_best_median_and_worst_images_are_shown_in_order(examples: list[Example]) -> None:
    result = assessed(CAPTIONS, examples)
    predictions = re.findall(
        r'<p class="caption" lang="en" dir="ltr">(.*?)</p>', render_evaluation(*result, "en")
    )
    cider = result[3].cider
    assert len(predictions) == 12  # three groups of four
    places = [CAPTIONS.index("" if text == "(empty caption)" else text) for text in predictions]
    assert sorted(places) == list(range(12))  # no image is shown twice
    scores = cider[places]
    assert list(scores[:8]) == sorted(scores[:8], reverse=True)
    assert list(scores[8:]) == sorted(scores[8:])
    assert scores[:4].min() >= scores[4:8].max()
    assert scores[4:8].min() >= scores[8:].max()


def test_the_page_is_self_contained_and_escapes_text(examples: list[Example]) -> None:
    captions = [EVIL, *CAPTIONS[1:]]
    examples[0] = Example(examples[0].image, (EVIL, "a dog"), EVIL)
    html = render_evaluation(*assessed(captions, examples))
    read = Reader(html)
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in read.tags}
    for tag, attributes in read.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        assert {"srcset", "action", "background"} & set(attributes) == set(), tag
        assert str(attributes.get("href", "#")).startswith("#"), tag  # markers within a chart
        if "src" in attributes:
            assert tag == "img"
            assert str(attributes["src"]).startswith("data:image/jpeg;base64,")
    assert "http" not in html.replace("http-equiv", "")
    assert "url(" not in html.replace("url(#", "")
    assert "@import" not in html
    assert EVIL in read.texts  # escaped, so that it is read as text
    policy = next(str(a["content"]) for tag, a in read.tags if tag == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    for name in ("CIDEr", "BLEU-4", "AUROC", "METEOR: not asked for", "unseen_captions"):
        assert name in " ".join(read.texts)


def test_element_ids_are_unique_and_all_references_resolve(examples: list[Example]) -> None:
    html = render_evaluation(*assessed(CAPTIONS, examples))
    attributes = [attributes for _, attributes in Reader(html).tags]
    ids = [a["id"] for a in attributes if "id" in a]
    assert len(ids) == len(set(ids)) > 20
    targets = {str(a["href"])[1:] for a in attributes if "href" in a} | set(
        re.findall(r"url\(#(.*?)\)", html)
    )
    for labels in (str(a["aria-labelledby"]) for a in attributes if "aria-labelledby" in a):
        targets |= set(labels.split())
    assert len(targets) > 5
    assert targets <= set(ids)


def test_the_page_follows_a_dark_color_scheme(examples: list[Example]) -> None:
    html = render_evaluation(*assessed(CAPTIONS, examples))
    assert '<meta name="color-scheme" content="light dark">' in html
    assert "@media (prefers-color-scheme: dark)" in html
    texts = re.findall(r"<text [^>]*>", html)
    assert len(texts) > 15
    assert not any("fill" in text for text in texts)  # they inherit the colour of the page


def test_thumbnails_are_small_and_keep_their_aspect_ratio(examples: list[Example]) -> None:
    Image.new("RGB", (900, 300), (200, 30, 30)).save(examples[0].image)
    html = render_evaluation(*assessed(CAPTIONS, examples))
    thumbnails = [
        Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", html)
    ]
    assert {thumbnail.format for thumbnail in thumbnails} == {"JPEG"}
    assert max(max(thumbnail.size) for thumbnail in thumbnails) == THUMBNAIL
    wide = [thumbnail for thumbnail in thumbnails if thumbnail.size == (320, 107)]
    assert len(wide) == 1
    assert wide[0].getpixel((160, 50)) == pytest.approx((200, 30, 30), abs=6)


@pytest.mark.parametrize("images", [1, 2, 4])
def test_a_page_of_very_few_images_is_rendered(examples: list[Example], images: int) -> None:
    html = render_evaluation(*assessed(CAPTIONS[:images], examples[:images]))
    assert Reader(html).texts.count("Median by CIDEr") == 1
    assert html.count("<figure>") == 3


def test_a_missing_image_is_named(examples: list[Example]) -> None:
    result = assessed(CAPTIONS, examples)
    examples[0].image.unlink()
    with pytest.raises(DataError, match=re.escape(str(examples[0].image))):
        render_evaluation(*result)


def boxes(svg: str, gid: str) -> list[tuple[float, float, float]]:
    """Center and width of each path in a group of a chart, in SVG units; y points down."""
    group = parsed(svg).find(f".//g[@id='{gid}']")
    assert group is not None
    result = []
    for path in group.iter("path"):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.attrib["d"])]
        x, y = numbers[::2], numbers[1::2]
        result.append(((min(x) + max(x)) / 2, (min(y) + max(y)) / 2, max(x) - min(x)))
    return result


def line(svg: str, gid: str) -> list[tuple[float, float]]:
    path = parsed(svg).find(f".//g[@id='{gid}']/path")
    assert path is not None
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.attrib["d"])]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


CONFIDENCE, CORRECT = np.array([0.05, 0.5, 0.5, 0.97]), np.array([0.0, 0, 1, 1])


def test_a_reliability_diagram_has_each_bin_at_its_coordinates() -> None:
    svg = reliability_svg(reliability_curve(CONFIDENCE, CORRECT))
    discs = boxes(svg, "reliability-bins")
    (left, bottom), (right, top) = line(svg, "reliability-diagonal")
    # Sorted by confidence; (0, 0) is the bottom left and (1, 1) the top right.
    places = [((x - left) / (right - left), (y - bottom) / (top - bottom)) for x, y, _ in discs]
    assert places == [pytest.approx(p, abs=1e-3) for p in ((0.05, 0), (0.5, 0.5), (0.97, 1))]
    assert discs[1][2] > discs[0][2] == pytest.approx(discs[2][2])  # 2 captions, and 1 in the others
    (description,) = parsed(svg).findall("desc")
    assert description.text == (
        "confidence 0.050: 0.000 correct of 1 captions; confidence 0.500: 0.500 correct of 2 captions; "
        "confidence 0.970: 1.000 correct of 1 captions"
    )


def test_the_risk_coverage_curve_ends_at_the_share_of_wrong_captions() -> None:
    svg = risk_coverage_svg(*risk_coverage(CONFIDENCE, CORRECT))
    points, level = line(svg, "risk-coverage-risk"), line(svg, "risk-coverage-all")
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert points[0][1] > points[-1][1] == level[0][1] == level[1][1]  # from risk 0 to 1/2; y points down
    many = np.linspace(0, 1, 5000)
    long = risk_coverage_svg(*risk_coverage(many, (many > 0.5).astype(np.float64)))
    assert len(line(long, "risk-coverage-risk")) <= 200
    assert "100% kept: 0.500 wrong" in (parsed(long).findtext("desc") or "")


@pytest.mark.parametrize("images", [1, 2])
def test_charts_of_very_few_captions_are_rendered(images: int) -> None:
    values = np.full(images, 0.5), np.ones(images)
    assert len(boxes(reliability_svg(reliability_curve(*values)), "reliability-bins")) == 1
    assert parsed(risk_coverage_svg(*risk_coverage(*values))).findtext("title") == "Risk-coverage curve"


def test_charts_are_reproducible_and_ignore_the_users_matplotlib_style(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import matplotlib

    def draw() -> list[str]:
        curve = reliability_curve(CONFIDENCE, CORRECT)
        return [reliability_svg(curve), risk_coverage_svg(*risk_coverage(CONFIDENCE, CORRECT))]

    first = draw()
    monkeypatch.setitem(matplotlib.rcParams, "lines.linewidth", 9.0)
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "path")
    assert draw() == first
    assert matplotlib.rcParams["svg.fonttype"] == "path"  # not changed by drawing


def test_charts_do_not_import_pyplot() -> None:
    code = (
        "import sys, numpy as np; from pages.charts import risk_coverage_svg;"
        "risk_coverage_svg(np.array([1.0]), np.array([0.5])); print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert (done.stdout, done.returncode) == ("False\n", 0), done.stderr

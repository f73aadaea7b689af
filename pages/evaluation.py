"""The page of an evaluation: one static HTML file with scores, charts, and the best, median and worst images.

The file contains all images (as small JPEGs) and charts (as SVG). It has no scripts and loads nothing, which a
content security policy enforces. The template escapes all text.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from conf.errors import DataError
from model.captioner import Caption
from model.data.dataset import Example
from model.evaluation.report import Assessment
from model.image.decode import ImageError
from model.metrics.coco import ImageScores, Numbers, sentence_bleu
from model.metrics.reliability import AGREES, reliability_curve, risk_coverage
from pages.charts import reliability_svg, risk_coverage_svg
from pages.rendering import render
from pages.thumbnails import thumbnail_of

IMAGES = 12  # in each of the three groups
THUMBNAIL = 320  # pixels of the longer side


@dataclass(frozen=True)
class Figure:
    """One image of the page, with its caption, scores and references. `jpeg` is a thumbnail in base64."""

    jpeg: str
    name: str
    caption: str
    references: Sequence[str]
    confidence: float
    cider: float
    bleu_4: float
    rouge_l: float


def render_evaluation(
    assessment: Assessment,
    captions: Sequence[Caption],
    examples: Sequence[Example],
    each: ImageScores,
    language: str | None = None,
) -> str:
    """The HTML file as text, for N captions of N examples, with the scores of each caption in `each`.

    `language` is that of the captions by BCP 47. Raises DataError, with the name of the image, if an image can't be
    decoded.
    """
    confidence = np.array([caption.confidence for caption in captions])
    correct = (each.cider >= AGREES).astype(np.float64)
    bleu_4 = sentence_bleu(each.counts)

    def figure(i: int) -> Figure:
        return Figure(
            jpeg=_thumbnail(examples[i]),
            name=examples[i].name,
            caption=captions[i].text,
            references=examples[i].captions,
            confidence=captions[i].confidence,
            cider=each.cider[i],
            bleu_4=bleu_4[i],
            rouge_l=each.rouge[i, 2],
        )

    return render(
        "evaluation.html",
        language=language,
        title=f"{assessment.about.get('model', 'Captions')}: {len(captions)} images",
        tables=[block for block in assessment.blocks() if block],
        charts=[
            reliability_svg(reliability_curve(confidence, correct)),
            risk_coverage_svg(*risk_coverage(confidence, correct)),
        ],
        groups={name: [figure(i) for i in indices] for name, indices in _groups(each.cider).items()},
    )


def _groups(cider: Numbers) -> dict[str, list[int]]:
    """Indices of the best, median and worst images, at most `IMAGES` each.

    With three images or more, no image is in two groups.
    """
    order = np.argsort(-cider, kind="stable").tolist()
    size = max(1, min(IMAGES, len(order) // 3))
    start = (len(order) - size) // 2
    return {"Best": order[:size], "Median": order[start : start + size], "Worst": order[::-1][:size]}


def _thumbnail(example: Example) -> str:
    """A JPEG in base64 whose longer side has `THUMBNAIL` pixels at most."""
    try:
        return base64.b64encode(thumbnail_of(example.image.read_bytes(), THUMBNAIL)).decode()
    except (ImageError, OSError) as error:
        raise DataError(f"{example.image}: {error}") from error

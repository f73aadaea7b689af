"""An evaluation as one static HTML file: figures, curves, and the best, median and worst images by CIDEr.

Everything is in the file: images as small JPEGs, curves as SVG. It holds no script and fetches nothing, and a
content security policy says so to the browser. All text from data is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from conf.errors import DataError
from conf.job import ImageLimits
from model.captioner import Caption
from model.data.dataset import Example
from model.evaluation.report import Assessment
from model.image.decode import ImageError, decode_resized
from model.metrics.coco import ImageScores, Numbers, sentence_bleu
from model.metrics.reliability import AGREES, reliability_curve, risk_coverage
from pages.charts import reliability_svg, risk_coverage_svg

IMAGES = 12  # in each of the three groups
THUMBNAIL = 320  # pixels of the longer side
STYLE = """
body { font: 15px/1.45 sans-serif; color: #222; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } th, td { text-align: left; padding: .1rem .8rem .1rem 0 }
th { font-weight: normal; color: #666 } .curves { display: flex; flex-wrap: wrap; gap: 1rem }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 1.5rem }
figure { margin: 0 } img { max-width: 100%; height: auto } .said { font-weight: bold; margin: .3rem 0 }
.figures, .name { color: #666; font-size: .85rem; overflow-wrap: anywhere }
ul { margin: .3rem 0; padding-left: 1.1rem }
"""


def page(
    assessment: Assessment, captions: Sequence[Caption], examples: Sequence[Example], each: ImageScores
) -> str:
    """The whole file as text. Raises DataError for an image that can't be decoded any more."""
    confidence = np.array([caption.confidence for caption in captions])
    correct = (each.cider >= AGREES).astype(np.float64)
    curves = reliability_svg(reliability_curve(confidence, correct))
    curves += risk_coverage_svg(*risk_coverage(confidence, correct))
    bleu_4 = sentence_bleu(each.counts)
    sections = []
    for name, places in _groups(each.cider).items():
        figures = [
            _figure(examples[i], captions[i], each.cider[i], bleu_4[i], each.rouge[i, 2]) for i in places
        ]
        sections.append(f'<h2>{name} by CIDEr</h2><div class="images">{"".join(figures)}</div>')
    tables = "".join(_table(block) for block in assessment.blocks() if block)
    title = escape(f"{assessment.about.get('model', 'Captions')}: {len(captions)} images")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>
<body><h1>{title}</h1>{tables}<div class="curves">{curves}</div>{"".join(sections)}
<p class="name">BLEU-4 of a single image is smoothed by +1; that of all images together is not.</p></body></html>
"""


def _groups(cider: Numbers) -> dict[str, list[int]]:
    """Places of the best, the median and the worst images, at most `IMAGES` each; without overlap from 3 on."""
    order = np.argsort(-cider, kind="stable").tolist()
    size = max(1, min(IMAGES, len(order) // 3))
    begin = (len(order) - size) // 2
    return {"Best": order[:size], "Median": order[begin : begin + size], "Worst": order[::-1][:size]}


def _figure(example: Example, caption: Caption, cider: float, bleu_4: float, rouge_l: float) -> str:
    scores = f"CIDEr {cider:.3f} · BLEU-4 {bleu_4:.3f} · ROUGE-L {rouge_l:.3f} · "
    scores += f"confidence {caption.confidence:.3f}"
    references = "".join(f"<li>{escape(reference)}</li>" for reference in example.captions)
    said = escape(caption.text) or "(nothing)"
    return (
        f'<figure><img alt="{said}" src="data:image/jpeg;base64,{_thumbnail(example)}"><figcaption>'
        f'<p class="said">{said}</p><div class="figures">{scores}</div><ul>{references}</ul>'
        f'<div class="name">{escape(example.image.name)}</div></figcaption></figure>\n'
    )


def _thumbnail(example: Example) -> str:
    """The picture by the one image policy, its longer side `THUMBNAIL`, as base64 of a JPEG."""
    try:
        picture = decode_resized(example.image.read_bytes(), ImageLimits(), THUMBNAIL, THUMBNAIL)
    except (ImageError, OSError) as error:
        raise DataError(f"{example.image}: {error}") from error
    scale = THUMBNAIL / max(picture.width, picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    buffer = io.BytesIO()
    Image.fromarray(picture.pixels).resize(size, Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{cells}</table>"

"""Charts as SVG elements for an HTML page, without scripts or external references.

The same data give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from model.metrics.reliability import Bins

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = NDArray[np.float64]
MAX_POINTS = 200  # of a line; more are not visible at this size
INCHES, WIDE_INCHES = 3.6, 5.4  # height of a chart, which is the width of a square one; width of the others
DATA, GUIDE = "#3d85c6", "#888888"  # colours that are visible on a light and on a dark background
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # keep text as text
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": GUIDE,
    "xtick.color": GUIDE,
    "ytick.color": GUIDE,
    # matplotlib writes black text without a colour, so the text has the colour of the page.
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
}


def reliability_svg(curve: Bins) -> str:
    """Reliability diagram: the share of correct captions over the confidence, one disc per bin.

    The area of a disc grows with the number of captions in the bin. A perfectly calibrated confidence lies on the
    dashed diagonal.
    """
    bins = zip(curve.confidence, curve.correct, curve.count, strict=True)
    description = "; ".join(f"confidence {x:.3f}: {y:.3f} correct of {n:.0f} captions" for x, y, n in bins)
    with _style("reliability"):
        figure, axes = _unit_square("Reliability diagram", "confidence", "share of correct captions")
        axes.plot([0, 1], [0, 1], color=GUIDE, linestyle="--", gid="diagonal")
        area = 10 + 300 * curve.count / curve.count.max()
        discs = axes.scatter(curve.confidence, curve.correct, area, color=DATA, alpha=0.6, clip_on=False)
        discs.set_gid("bins")
        return _svg(figure, "reliability", "Reliability diagram", description)


def risk_coverage_svg(coverage: Numbers, risk: Numbers) -> str:
    """Risk-coverage curve: the share of wrong captions among the most confident ones, over the share that is kept.

    The dashed line is the share of wrong captions among all captions.
    """
    tenths = np.unique(np.ceil(np.linspace(0.1, 1, 10) * len(coverage)).astype(np.int64) - 1)
    description = "; ".join(f"{coverage[i]:.0%} kept: {risk[i]:.3f} wrong" for i in tenths)
    shown = np.unique(np.linspace(0, len(coverage) - 1, min(len(coverage), MAX_POINTS)).astype(np.int64))
    with _style("risk-coverage"):
        figure, axes = _unit_square(
            "Risk-coverage curve", "share of captions kept", "share of wrong captions"
        )
        axes.plot([0, 1], risk[[-1, -1]], color=GUIDE, linestyle="--", gid="all")
        axes.plot(coverage[shown], risk[shown], color=DATA, linewidth=2, clip_on=False, gid="risk")
        return _svg(figure, "risk-coverage", "Risk-coverage curve", description)


def confidence_svg(counts: Sequence[int]) -> str:
    """Histogram of the confidence of captions: the number of captions in each of N equal bins of 0…1."""
    width = 1 / len(counts)
    bins = ((i * width, (i + 1) * width, n) for i, n in enumerate(counts) if n)
    description = "; ".join(f"{low:.2f} to {high:.2f}: {n:,} captions" for low, high, n in bins)
    with _style("confidence"):
        figure, axes = _axes("Confidence of the captions", "confidence", "captions")
        bars = axes.bar(
            [i * width for i in range(len(counts))], counts, 0.9 * width, align="edge", color=DATA
        )
        for i, bar in enumerate(bars):
            bar.set_gid(f"bin-{i}")
        axes.set_xlim(0, 1)
        axes.ticklabel_format(axis="y", style="plain", useOffset=False)
        axes.locator_params(axis="y", integer=True)
        return _svg(figure, "confidence", "Histogram of the confidence", description)


def rates_svg(days: Sequence[str], rates: Sequence[float], good: Sequence[bool]) -> str:
    """Images/s of the runs, oldest first: a disc for each, hollow if the run did not end well. `days` label them."""
    runs = zip(days, rates, good, strict=True)
    description = "; ".join(
        f"{day}: {rate:.1f} images/s" + ("" if fine else ", did not end well") for day, rate, fine in runs
    )
    with _style("rates"):
        figure, axes = _axes("Speed of the runs", "run", "images/s")
        places = range(len(rates))
        axes.plot(places, rates, color=GUIDE, linewidth=1, gid="line")
        for name, wanted in (("good", True), ("bad", False)):
            shown = [i for i in places if good[i] is wanted]
            faces = DATA if wanted else "none"
            axes.scatter(
                shown,
                [rates[i] for i in shown],
                30,
                faces,
                edgecolors=DATA,
                gid=name,
                zorder=3,
                clip_on=False,
            )
        labelled = [0, len(rates) - 1]
        axes.set_xticks(labelled, [days[i] for i in labelled])
        axes.set_ylim(0, max(rates) * 1.1 or 1)
        return _svg(figure, "rates", "Images per second of the runs", description)


def _style(name: str) -> AbstractContextManager[None]:
    """`STYLE` on top of matplotlib's default style, so that a user's matplotlibrc has no effect."""
    import matplotlib.style

    return matplotlib.style.context(["default", {**STYLE, "svg.hashsalt": name}])


def _unit_square(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure, axes = _axes(title, x_label, y_label, INCHES)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    return figure, axes


def _axes(title: str, x_label: str, y_label: str, width: float = WIDE_INCHES) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure  # instead of pyplot, which has global state

    figure = Figure(figsize=(width, INCHES), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot(title=title, xlabel=x_label, ylabel=y_label)


def _svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an SVG element, with a title and a description for screen readers.

    All ids start with `name` because they must be unique in a page.
    """
    file = io.BytesIO()
    # None omits an entry: date and matplotlib's version would change the bytes.
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    root = ElementTree.fromstring(file.getvalue())  # noqa: S314 - written by matplotlib above
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # SVG elements in HTML have no namespace prefix
        attributes = {key.rpartition("}")[2]: value for key, value in element.items()}
        if "id" in attributes:
            attributes["id"] = f"{name}-{attributes['id']}"
        if "href" in attributes:
            attributes["href"] = f"#{name}-{attributes['href'].removeprefix('#')}"
        if "clip-path" in attributes:
            attributes["clip-path"] = attributes["clip-path"].replace("#", f"#{name}-")
        element.attrib.clear()
        element.attrib.update(attributes)
    for part in root.findall("defs[style]"):  # matplotlib's style sheet would apply to the whole page
        root.remove(part)
    for tag, text in (("desc", description), ("title", title)):
        element = ElementTree.Element(tag, id=f"{name}-{tag}")
        element.text = text
        root.insert(0, element)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    return ElementTree.tostring(root, encoding="unicode")

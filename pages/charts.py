"""Curves as SVG text that stands by itself in a page: no script, no style sheet, nothing fetched."""

from __future__ import annotations

from html import escape

import numpy as np
from numpy.typing import NDArray

from model.metrics.reliability import Bins

Numbers = NDArray[np.float64]
SIDE, LEFT, BOTTOM, EDGE = 260, 48, 44, 30  # pixels: the unit square, and the room around it
MOST_POINTS = 200  # of a line; more can't be told apart


def reliability_svg(curve: Bins) -> str:
    """Share correct over confidence: a disc a bin, larger for more captions; the diagonal is honest."""
    largest = curve.count.max()
    discs = "".join(
        f'<circle cx="{_x(x)}" cy="{_y(y)}" r="{2 + 9 * np.sqrt(count / largest):.1f}" fill="#1769aa" '
        f'fill-opacity="0.6"><title>{x:.3f} said, {y:.3f} right, {count:.0f} captions</title></circle>'
        for x, y, count in zip(curve.confidence, curve.correct, curve.count, strict=True)
    )
    diagonal = _line(np.array([0.0, 1.0]), np.array([0.0, 1.0]), "#999", "4 4")
    return _chart("Reliability", "confidence", "share that is right", diagonal + discs)


def risk_coverage_svg(coverage: Numbers, risk: Numbers) -> str:
    """Share wrong among the most confident captions, over how many are kept; dashed: without a confidence."""
    shown = np.unique(np.linspace(0, len(coverage) - 1, min(len(coverage), MOST_POINTS)).astype(np.int64))
    level = _line(np.array([0.0, 1.0]), risk[[-1, -1]], "#999", "4 4")
    line = _line(coverage[shown], risk[shown], "#1769aa")
    return _chart("Risk and coverage", "share of captions kept", "share of those that is wrong", level + line)


def _chart(title: str, across: str, up: str, body: str) -> str:
    """The unit square with its axes, and in it `body`."""
    ticks = "".join(
        f'<text x="{_x(v)}" y="{EDGE + SIDE + 16}" text-anchor="middle">{v:g}</text>'
        f'<text x="{LEFT - 6}" y="{_y(v)}" dy="4" text-anchor="end">{v:g}</text>'
        for v in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    middle = EDGE + SIDE / 2
    width, height = LEFT + SIDE + EDGE, EDGE + SIDE + BOTTOM
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(title)}" font-family="sans-serif" font-size="11" fill="#333">'
        f'<text x="{LEFT}" y="{EDGE - 12}" font-size="13" font-weight="bold">{escape(title)}</text>'
        f'<rect x="{LEFT}" y="{EDGE}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#bbb"/>{ticks}'
        f'<text x="{LEFT + SIDE / 2}" y="{height - 8}" text-anchor="middle">{escape(across)}</text>'
        f'<text x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">{escape(up)}</text>'
        f"{body}</svg>"
    )


def _line(x: Numbers, y: Numbers, colour: str, dashes: str = "none") -> str:
    points = " ".join(f"{_x(a)},{_y(b)}" for a, b in zip(x, y, strict=True))
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>'


def _x(value: float) -> str:
    return f"{LEFT + SIDE * value:.1f}"


def _y(value: float) -> str:
    return f"{EDGE + SIDE * (1 - value):.1f}"

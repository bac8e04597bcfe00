"""Charts of a leaderboard as SVG text: accuracy against epsilon, and against seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 620, 330, 44, 34, 12, 14
_SHAPES = ("circle", "square", "triangle", "diamond")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One mark: where, how certain, and what it is called.

    Attributes:
        x: above 0; the axis is logarithmic.
        y: the score.
        low, high: its interval, or None below five seeds.
        shape: number of the mark's shape.
        title: shown when it is pointed at.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    shape: int = 0
    title: str = ""


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name: hues as far apart as they can be, light and dark in turn."""
    return {n: f"hsl({360 * i / max(1, len(names)):.0f} 70% {(42, 56)[i % 2]}%)" for i, n in enumerate(names)}


def chart(
    series: Mapping[str, Sequence[Point]],
    paint: Mapping[str, str],
    *,
    label: str,
    joined: bool,
    ticks: Sequence[float] | None = None,
    dashed: Sequence[str] = (),
    level: float | None = None,
) -> str:
    """An SVG of the series, or "" where there is nothing to draw.

    Args:
        series: points of each name.
        paint: colour of each name.
        label: of the horizontal axis.
        joined: connect the points of a series.
        ticks: marks of the horizontal axis; by default powers of ten, and 2 and 5 between them.
        dashed: names drawn thin and dashed: what is only to be compared with.
        level: score of real records, a dotted line across.
    """
    points = [p for ps in series.values() for p in ps]
    if not points:
        return ""
    x0, x1 = math.log10(min(p.x for p in points)), math.log10(max(p.x for p in points))
    pad = max(0.05, (x1 - x0) * 0.06)
    x0, x1 = x0 - pad, x1 + pad
    levels = [] if level is None else [level]
    bottom = min([*levels, *(p.y if p.low is None else p.low for p in points)])
    top = max([*levels, *(p.y if p.high is None else p.high for p in points)])
    step = next(s for s in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if (top - bottom) / s <= 7 or s == 0.5)
    y0, y1 = step * math.floor(bottom / step - 0.2), min(1.0, step * math.ceil(top / step + 0.2))

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(x) - x0) / (x1 - x0)
        return across, TOP + (HEIGHT - TOP - BOTTOM) * (1 - (y - y0) / ((y1 - y0) or 1))

    out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="score against {escape(label)}">']
    for i in range(round((y1 - y0) / step) + 1):
        value = y0 + i * step
        _, v = at(10**x0, value)
        out.append(f'<line class="g" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{v:.1f}" y2="{v:.1f}"/>')
        out.append(f'<text x="{LEFT - 6}" y="{v + 4:.1f}" text-anchor="end">{100 * value:.4g}</text>')
    for tick in ticks or _ticks(x0, x1):
        h, _ = at(tick, y0)
        out.append(f'<text x="{h:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    for value in levels:
        _, v = at(10**x0, value)
        out.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{v:.1f}" y2="{v:.1f}" class="real" stroke-dasharray="2 4">'
            f"<title>real records, not private: {100 * value:.2f} %</title></line>"
        )
    middle = (WIDTH + LEFT - RIGHT) / 2
    out.append(f'<text x="{middle:.0f}" y="{HEIGHT - 3}" text-anchor="middle">{escape(label)}</text>')
    for name, ps in series.items():
        out += _series(name, ps, at, paint[name], joined=joined, dashed=name in dashed)
    return "\n".join([*out, "</svg>"])


def _series(name: str, points: Sequence[Point], at: Any, colour: str, *, joined: bool, dashed: bool) -> list[str]:
    out: list[str] = []
    if joined and len(points) > 1:
        path = " ".join("{:.1f},{:.1f}".format(*at(p.x, p.y)) for p in sorted(points, key=lambda p: p.x))
        style = 'stroke-width="1" stroke-dasharray="5 4"' if dashed else 'stroke-width="2"'
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" {style}/>')
    for p in points:
        h, v = at(p.x, p.y)
        if p.low is not None and p.high is not None:
            (_, a), (_, b) = at(p.x, p.low), at(p.x, p.high)
            out.append(f'<line x1="{h:.1f}" x2="{h:.1f}" y1="{a:.1f}" y2="{b:.1f}" stroke="{colour}"/>')
        out.append(f'<g fill="{colour}"><title>{escape(p.title or name)}</title>{_mark(p.shape, h, v)}</g>')
    return out


def _mark(shape: int, h: float, v: float) -> str:
    word = _SHAPES[shape % len(_SHAPES)]
    if word == "circle":
        return f'<circle cx="{h:.1f}" cy="{v:.1f}" r="4"/>'
    corners = {
        "square": ((-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)),
        "triangle": ((0, -4.8), (4.6, 3.6), (-4.6, 3.6)),
        "diamond": ((0, -5), (5, 0), (0, 5), (-5, 0)),
    }[word]
    return f'<polygon points="{" ".join(f"{h + a:.1f},{v + b:.1f}" for a, b in corners)}"/>'


def _ticks(x0: float, x1: float) -> list[float]:
    fine = [m * 10.0**k for k in range(math.floor(x0) - 1, math.ceil(x1) + 1) for m in (1, 2, 5)]
    inside = [t for t in fine if x0 <= math.log10(t) <= x1]
    return inside if len(inside) <= 8 else [t for t in inside if math.log10(t) % 1 < 1e-9]

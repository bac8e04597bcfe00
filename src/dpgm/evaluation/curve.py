"""Training curves as inline SVG: a polyline that stretches with the page, its labels as ordinary text beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

WIDTH, HEIGHT = 640.0, 180.0
_POINTS = 300
_LOG_FROM = 30.0


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One series, ready to draw.

    Attributes:
        name: of the series, e.g. "loss".
        points: SVG points in a box of `WIDTH` x `HEIGHT`.
        top, bottom: values at the upper and lower edge.
        first, last: steps at the left and right edge.
        end: the last value.
        log: whether the vertical axis is logarithmic.
        skipped: how many values were not finite and are left out.
    """

    name: str
    points: str
    top: str
    bottom: str
    first: str
    last: str
    end: str
    log: bool
    skipped: int


def curves(training: Mapping[str, Any]) -> list[Curve]:
    """A curve for every list of numbers in {"step": [...], "loss": [...], ...}; the steps default to 1, 2, ...

    Long series are drawn as means of neighbouring values, 300 points in all; a positive series that spans a factor of
    30 or more gets a logarithmic axis.
    """
    steps = training.get("step")
    found: list[Curve] = []
    for name, values in training.items():
        if name == "step" or not _numbers(values) or len(values) < 2:
            continue
        at = steps if _numbers(steps) and len(steps) == len(values) else range(1, len(values) + 1)
        pairs = [(float(s), float(v)) for s, v in zip(at, values, strict=True) if math.isfinite(s) and math.isfinite(v)]
        if len(pairs) > 1:
            found.append(_curve(str(name), _thin(sorted(pairs)), skipped=len(values) - len(pairs)))
    return found


def _curve(name: str, pairs: list[tuple[float, float]], *, skipped: int) -> Curve:
    steps, values = [s for s, _ in pairs], [v for _, v in pairs]
    low, high = min(values), max(values)
    log = low > 0 and high / low >= _LOG_FROM
    heights = [math.log(v) for v in values] if log else values
    base, span = min(heights), (max(heights) - min(heights)) or 1.0
    reach = (steps[-1] - steps[0]) or 1.0
    points = " ".join(
        f"{WIDTH * (s - steps[0]) / reach:.1f},{HEIGHT * (1 - (h - base) / span):.1f}"
        for s, h in zip(steps, heights, strict=True)
    )
    return Curve(
        name=name,
        points=points,
        top=f"{high:.4g}",
        bottom=f"{low:.4g}",
        first=f"{steps[0]:,.10g}",
        last=f"{steps[-1]:,.10g}",
        end=f"{values[-1]:.4g}",
        log=log,
        skipped=skipped,
    )


def _thin(pairs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    size = math.ceil(len(pairs) / _POINTS)
    blocks = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    return [(b[-1][0], math.fsum(v for _, v in b) / len(b)) for b in blocks]


def _numbers(values: Any) -> TypeGuard[Sequence[float]]:
    return isinstance(values, Sequence) and all(isinstance(v, int | float) for v in values)

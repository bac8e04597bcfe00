"""Gaussian noise on every record, released in random order: how the other records hide one.

Each of n - 1 other records looks, with probability p = e^-e0, like a draw from one of the two laws that the changed
record may have. So the release says no more than two counts (A + 1, C - A) against (A, C - A + 1), with
C ~ Bin(n - 1, p) and A ~ Bin(C, 1/2), up to a total variation that the local curve at e0 bounds. Every e0 gives a
valid bound; the best one of a grid counts.

Proof page: docs/proofs/shuffling.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom

Curve = Callable[[float], float]
"""delta(epsilon) of one record's own law, e.g. of a Gaussian one."""


def grid(records: int) -> list[float]:
    """Local epsilons e0 that are tried: clones are many enough up to ln n."""
    return [float(e) for e in np.linspace(0.25, max(0.5, math.log(records)), 48)]


def counts_delta(e0: float, records: int, epsilon: float) -> float:
    """H_{e^epsilon} of (A + 1, C - A) against (A, C - A + 1), from above."""
    n, p = records - 1, math.exp(-e0)
    reach = 9 * math.sqrt(n * p) + 40
    low, high = max(0, math.floor(n * p - reach)), min(n, math.ceil(n * p + reach))
    c = np.arange(low, high + 1)
    weight = binom.pmf(c, n, p)
    outside = binom.cdf(low - 1, n, p) + binom.sf(high, n, p)  # of which nothing is known: it counts in full
    # The likelihood ratio at (a, b) is a/b, so the best event is a > e^epsilon b.
    first = np.floor((c + 1) * (1 / (1 + math.exp(-epsilon)))) + 1
    inside = binom.sf(first - 2, c, 0.5) - math.exp(epsilon) * binom.sf(first - 1, c, 0.5)
    return float(weight @ np.maximum(inside, 0.0) + outside)


def shuffled_delta(curve: Curve, records: int, epsilon: float) -> float:
    """delta(epsilon) of the shuffled release, from above; never more than without shuffling.

    Args:
        curve: delta of one record's own law, which bounds any two values of a record.
        records: their number n, 1 or more.
        epsilon: 0 or more.
    """
    best = curve(epsilon)
    if records < 2:
        return best
    for e0 in grid(records):
        cut = (1 + math.exp(epsilon)) * (records - 1) * math.exp(-e0) * curve(e0)
        if cut < best:
            best = min(best, counts_delta(e0, records, epsilon) + cut)
    return best


def shuffled_epsilon(curve: Curve, records: int, delta: float, most: float) -> float:
    """An epsilon >= 0 with shuffled_delta <= delta, about the smallest; `most` is the epsilon without shuffling.

    The bound may rise again with epsilon, so the first crossing on a grid is refined.
    """

    def excess(epsilon: float) -> float:
        return math.log(max(shuffled_delta(curve, records, epsilon), 1e-300) / delta)

    low = 0.0
    if excess(low) <= 0:
        return low
    for point in np.linspace(0, most, 65)[1:-1]:
        if excess(float(point)) > 0:
            low = float(point)
            continue
        root = float(brentq(excess, low, float(point), xtol=1e-8))
        while excess(root) > 0 and root < point:  # the curve has steps, and the root is exact to 1e-8 only
            root = min(float(point), root + 1e-7)
        return root
    return most

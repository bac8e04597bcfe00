"""Exact numbers of Gaussian noise behind random directions: (U, U^T v + N(0, s^2 I)) with U ~ N(0, 1) published.

Given U, a shift of v by c moves the answer by c sqrt(W), W ~ chi^2 with as many degrees of freedom as there are
directions. So the privacy curve is a mixture over W of Gaussian ones with mu = sqrt(W) / multiplier, multiplier = s/c.
Every sum below replaces W by the upper end of its cell, which is worse for privacy: results are upper bounds.

Proof page: docs/proofs/slicing.md.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr
from scipy.stats import chi2

from dpgm.privacy.guarantee import PrivacyError

Array = NDArray[np.float64]

_TAIL = 1e-30
"""Probability of the largest W that is given up for lost, i.e. added to delta."""


def mixture(multiplier: float, slices: int, cells: int) -> tuple[Array, Array, float]:
    """The law of mu as (upper ends of cells [cells], their probabilities [cells], probability beyond the last)."""
    low, high = math.sqrt(chi2.ppf(_TAIL, slices)), math.sqrt(chi2.isf(_TAIL, slices))
    root = np.linspace(low, high, cells + 1)
    below, above = chi2.cdf(root**2, slices), chi2.sf(root**2, slices)
    weight = np.where(below[1:] < 0.5, np.diff(below), -np.diff(above))  # differences of the smaller tail keep digits
    weight[0] += below[0]
    return root[1:] / multiplier, weight, float(above[-1])


def sliced_delta(multiplier: float, slices: int, epsilon: float, *, cells: int = 1 << 16) -> float:
    """delta(epsilon) = E Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu), mu^2 ~ chi^2_slices/multiplier^2.

    Args:
        multiplier: s / c, noise over shift, for directions of N(0, 1) entries; above 0.
        slices: number of directions, 1 or more.
        epsilon: 0 or more.
        cells: resolution; 2^16 is above the exact value by less than one part in 10^4.
    """
    mu, weight, lost = mixture(multiplier, slices, cells)
    curve = ndtr(mu / 2 - epsilon / mu) - np.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))
    return min(1.0, float(weight @ np.maximum(curve, 0.0)) + lost)


def sliced_epsilon(multiplier: float, slices: int, delta: float) -> float:
    """The smallest epsilon >= 0 with sliced_delta <= delta; infinite where it is astronomical."""
    if sliced_delta(multiplier, slices, 0.0) <= delta:
        return 0.0
    high = 1.0
    while sliced_delta(multiplier, slices, high) > delta:
        high *= 2
        if high > 1e4:
            return math.inf
    root = brentq(lambda e: sliced_delta(multiplier, slices, e) - delta, 0.0, high, xtol=1e-10, rtol=1e-12)
    return float(root) * (1 + 1e-10) + 1e-9


def sliced_multiplier(epsilon: float, delta: float, slices: int) -> float:
    """The smallest multiplier s / c whose single release is (epsilon, delta)-DP, epsilon above 0.

    Raises:
        PrivacyError: delta is not in (0, 1): Gaussian noise has no pure form.
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"delta is {delta}; noisy slices of records need a delta in (0, 1), e.g. 1e-5")

    def excess(log_multiplier: float) -> float:
        return math.log(sliced_delta(math.exp(log_multiplier), slices, epsilon, cells=1 << 14) / delta)

    low = high = 0.5 * math.log(slices) - math.log1p(epsilon)
    while excess(high) > 0:
        high += 1
    while excess(low) < 0:
        low -= 1
    root = math.exp(brentq(excess, low, high, xtol=1e-9))
    while sliced_epsilon(root, slices, delta) > epsilon:  # the root is exact to 1e-9 only
        root *= 1 + 1e-7
    return root


def sliced_losses(multiplier: float, slices: int, grid: float, *, cells: int = 1000) -> tuple[dict[int, float], float]:
    """The privacy loss rounded up to multiples of `grid`: ({multiple: probability}, probability of an infinite loss).

    Given mu the loss is N(mu^2/2, mu^2), in either order of the neighbours.
    """
    mu, weight, lost = mixture(multiplier, slices, cells)
    top, reach = float(mu[-1]), 9.0
    first = math.floor((mu**2 / 2 - reach * mu).min() / grid)
    last = math.ceil((top**2 / 2 + reach * top) / grid)
    below = np.zeros(last - first + 1)
    points = np.arange(first, last + 1) * grid
    for start in range(0, len(points), 4096):
        z = (points[start : start + 4096, None] - mu**2 / 2) / mu
        below[start : start + 4096] = ndtr(z) @ weight
    mass = np.diff(below, prepend=0.0)
    rest = max(0.0, 1.0 - float(below[-1]))
    return {first + i: float(p) for i, p in enumerate(mass) if p > 0}, max(rest, lost)

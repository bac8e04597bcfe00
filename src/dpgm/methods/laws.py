"""From noisy moments to laws that can be sampled from: shrinkage by known noise, all of it post-processing."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Moments of m cells as they came from a noisy answer.

    Attributes:
        counts: [m], at least 1.
        means: [m, d].
        seconds: second moments about the origin [m, d, d], or None.
        mean_std: standard deviation of the noise in an entry of `means`, [m].
        second_std: of a diagonal entry of `seconds`, [m]; off the diagonal it is sqrt(1/2) of that.
        certain: cells whose count stands clear of its noise, [m], bool.
    """

    counts: Array
    means: Array
    seconds: Array | None
    mean_std: Array
    second_std: Array
    certain: NDArray[np.bool_]


def shrink_means(means: Array, std: Array, frequency: Array) -> tuple[Array, Array]:
    """Class means pulled to their average as far as noise explains their spread, band by band of frequency.

    With dev = mean_c - average and known noise variance s_c^2, a band's spread is v = max(0, mean(dev^2 - s^2)) and dev
    becomes dev v / (v + s_c^2).

    Args:
        means: noisy means [m, d].
        std: noise of each cell's entries [m].
        frequency: band of each coordinate [d].

    Returns:
        The shrunk means [m, d] and the variance that remains uncertain [m, d].
    """
    var = np.broadcast_to((std**2)[:, None], means.shape)
    weight = 1 / var.mean(1, keepdims=True)
    centre = (means * weight).sum(0) / weight.sum()
    out, left = means - centre, np.zeros_like(means)
    for band in np.unique(frequency):
        at = frequency == band
        spread = max(0.0, float((out[:, at] ** 2 - 0.9 * var[:, at]).mean()))
        share = spread / (spread + var[:, at])
        out[:, at] *= share
        left[:, at] = share * var[:, at]
    return centre + out, left


_BANDS = (0, 4, 8, 16, 32, 64, 128, 1 << 30)


def shrink_covariance(noisy: Array, std: float, n: float, base: Array, *, floor: float = 0.05) -> Array:
    """A noisy covariance pulled to `base`, entry by entry in the eigenbasis of `base`.

    There W = base^(-1/2) noisy base^(-1/2) has known noise variance v_ij (release and sampling); the spread t of
    W - I beyond v is estimated for bands of directions, and (W - I)_ij is multiplied by t / (t + v_ij). Eigenvalues
    below `floor` (relative to base) are lifted to it.

    Args:
        noisy: symmetric [d, d].
        std: noise of a diagonal entry; off the diagonal sqrt(1/2) of it.
        n: records behind it.
        base: positive definite [d, d].
        floor: least eigenvalue relative to base.
    """
    values, basis = np.linalg.eigh(base)
    root = np.sqrt(np.maximum(values, 1e-9))
    d, scale = len(root), np.outer(root, root)
    gap = basis.T @ noisy @ basis / scale - np.eye(d)
    var = (std**2 / 2 / scale**2 + 1 / max(n, 1.0)) * (1 + np.eye(d))
    weight = 1 / (var + 0.01) ** 2
    rank = np.empty(d, int)
    rank[np.argsort(-values)] = np.arange(d)
    outer = np.maximum.outer(rank, rank)
    spread = np.zeros((d, d))
    for low, high in pairwise(_BANDS):
        at = (outer >= low) & (outer < high)
        if at.any():
            spread[at] = max(0.0, float((weight[at] * (gap[at] ** 2 - var[at])).sum() / weight[at].sum()))
    values, turn = np.linalg.eigh(np.eye(d) + spread / (spread + var) * gap)
    shrunk = (turn * np.maximum(values, floor)) @ turn.T
    return (basis * root) @ shrunk @ (basis * root).T


def class_laws(moments: Moments, prior: Array, *, groups: int, uncertain: Array) -> Array:
    """Covariances [m, d, d] by shrinkage in steps: cell to its class, class to all, all to a public diagonal.

    Args:
        moments: of m = groups x K cells, class by class; `seconds` about each cell's released centre.
        prior: public variances [d], right up to a factor.
        groups: number of classes.
        uncertain: variance that the means' noise leaves [m, d]; added, as the predictive law wants it.
    """
    assert moments.seconds is not None
    weight = moments.counts * moments.certain
    total = max(float(weight.sum()), 1.0)
    pooled = np.tensordot(weight, moments.seconds, 1) / total
    noise = float(np.sqrt(((weight * moments.second_std) ** 2).sum())) / total
    size = max(float(np.trace(pooled)), noise)
    pooled = shrink_covariance(pooled, noise, total, np.diag(prior * size / prior.sum()))
    out = np.empty_like(moments.seconds)
    per = len(weight) // groups
    for g in range(groups):
        mine = slice(g * per, (g + 1) * per)
        n = max(float(weight[mine].sum()), 1.0)
        noisy = np.tensordot(weight[mine], moments.seconds[mine], 1) / n
        noise = float(np.sqrt(((weight[mine] * moments.second_std[mine]) ** 2).sum())) / n
        base = shrink_covariance(noisy, noise, n, pooled) if weight[mine].any() else pooled
        for j in range(mine.start, mine.stop):
            law = base
            if per > 1 and moments.certain[j]:
                law = shrink_covariance(moments.seconds[j], float(moments.second_std[j]), moments.counts[j], base)
            out[j] = law + np.diag(uncertain[j])
    return out


def public_cells(mean_free: Array, n_cells: int, *, rng: np.random.Generator, axes: int = 10) -> Array:
    """Centres [n_cells, d] of a k-means of made-up points of N(0, mean_free), in its `axes` widest directions.

    Args:
        mean_free: released covariance [d, d].
        n_cells: number of centres.
        rng: public coins.
        axes: directions that the cells tell apart.
    """
    values, basis = np.linalg.eigh(mean_free)
    wide = np.argsort(-values)[:axes]
    points = rng.normal(size=(4000, len(wide))) * np.sqrt(np.maximum(values[wide], 0))
    centres = points[rng.choice(len(points), n_cells, replace=False)]
    for _ in range(15):
        nearest = ((centres**2).sum(1) - 2 * points @ centres.T).argmin(1)
        centres = np.stack(
            [points[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in range(n_cells)]
        )
    return centres @ basis[:, wide].T

"""Tables from noisy records: their first and second moments, and a mixture of products that has them.

Under as much noise as one record needs, a law shows in its first two moments only. Their errors fall with the number of
records as 1/sqrt(n), and between two columns the noise adds nothing to them: its covariance is 0 there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpgm.mechanisms.tables import Cells, TableVectors
from dpgm.methods.base import OnNote, Release, Tensors, reporter
from dpgm.methods.tabular import MixtureModel, fine_cells
from dpgm.nets.mixture import ProductMixture, Targets, fit_mixture

if TYPE_CHECKING:
    from dpgm.methods.slicing import Slicing

_BLOCK = 8192
_LEAST = {"label": 0.05, "pair": 0.005}
"""Mean squared correlations that are thought possible, whatever the noise hides; chosen on Adult's train part,
which is public."""


def train(method: Slicing, release: Release, *, seed: int, on_note: OnNote | None = None) -> MixtureModel:
    """A mixture of products with the moments of the records."""
    schema: Any = release.schema
    vectors = TableVectors(schema=schema, label=method.label)
    shares, targets = moments(release.tensors["values"], vectors)
    net, cells = _mixture(method, vectors, seed)
    hot = torch.from_numpy(np.concatenate([np.full(s, _is_hot(vectors, j)) for j, s in _features(vectors)]))
    with torch.no_grad():
        net.logits += torch.where(hot, (targets.first / shares[:, None]).clamp(min=1e-3).log(), 0.0)[:, None]
        net.prior += shares.log()[:, None]
    net.prior.requires_grad_(False)  # known far better than anything else
    steps = method.steps or 300
    fit_mixture(net, targets, steps=steps, lr=method.lr or 0.2, on_step=reporter(on_note, "train", steps))
    return _model(release, net, cells)


def restore(method: Slicing, release: Release, tensors: Tensors) -> MixtureModel:
    """The model from its saved weights."""
    schema: Any = release.schema
    net, cells = _mixture(method, TableVectors(schema=schema, label=method.label), 0)
    net.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()})
    return _model(release, net, cells)


def moments(values: NDArray[Any], vectors: TableVectors) -> tuple[Tensor, Targets]:
    """Shares of the classes [classes], and what a mixture should match, with the precision of each number.

    Between axes a, b of two columns the released rows' covariance S_ab is unbiased, with variance S_aa S_bb/n. Labels
    come first: p(y) m_a + C_ya, where C_ya is what is believed of S_ya. Then pairs of features, m_a m_b + B_ab + R_ab:
    B = sum_y C_ya C_yb/p(y) is what the label brings about, R what is believed of S - B.

    Args:
        values: released rows [n, dim].
        vectors: what the rows are.
    """
    schema, n, dim = vectors.schema, len(values), vectors.dim
    member = np.repeat(np.arange(len(vectors.sizes)), vectors.sizes)
    norms = np.array(vectors.norms)[member]
    total, squares = np.zeros(dim), np.zeros((dim, dim))
    for start in range(0, n, _BLOCK):
        block = values[start : start + _BLOCK].astype(np.float64) / norms
        total, squares = total + block.sum(0), squares + block.T @ block
    mean, n = total / max(n, 1), max(n, 1)
    cov = squares / n - np.outer(mean, mean) if len(values) > 1 else 1e6 * np.eye(dim)  # one record tells nothing
    same = member[:, None] == member
    hot = np.array([_is_hot(vectors, j) for j in range(len(vectors.sizes))])[member]
    keep = np.eye(dim) - same * hot / same.sum(1)  # axes of a category sum to 1, so deviations sum to 0
    cov = keep @ cov @ keep
    noise = np.outer(cov.diagonal(), cov.diagonal()) / n
    mean = _nearest(vectors, mean)
    variances = _variances(vectors, mean, member, hot)
    prior = np.outer(variances, variances)
    label = member == (-1 if schema.label_index is None else schema.label_index)
    x = ~label
    m, error, apart = mean[x], cov.diagonal()[x] / n, ~same[x][:, x]
    shares, contrast, unsure = np.ones(1), np.zeros((1, len(m))), np.zeros(len(m))
    if label.any():
        shares = np.maximum(mean[label][: schema.n_classes], 0.01 / schema.n_classes)
        shares = shares / shares.sum()
        y = np.ix_(np.flatnonzero(label)[: schema.n_classes], np.flatnonzero(x))
        contrast, spread = _believed(cov[y], noise[y], prior[y], _LEAST["label"])
        unsure = spread.mean(0)
    first, first_error = np.outer(shares, m) + contrast, (shares**2).mean() * error + unsure
    brought = contrast.T @ (contrast / shares[:, None])
    rest, pair_error = _believed(cov[x][:, x] - brought, noise[x][:, x], prior[x][:, x], _LEAST["pair"], apart)
    d, slack = len(m), np.outer(m**2, error)
    pooled, pooled_precision = np.outer(m, m) + brought + rest, apart * _precision(pair_error + slack + slack.T)
    arrays = (first, _precision(first_error), np.zeros((len(first), d, d)), np.zeros((d, d)), pooled, pooled_precision)
    names = ("first", "first_precision", "second", "second_precision", "pooled", "pooled_precision")
    found = {k: torch.from_numpy(v).float() for k, v in zip(names, arrays, strict=True)}
    return torch.from_numpy(shares).float(), Targets(**found)


def _precision(error: NDArray[Any]) -> NDArray[np.float64]:
    """1 / error; 0 where there is none: a category of one value is what it is, and tells nothing."""
    return np.where(error > 0, 1 / np.maximum(error, 1e-300), 0.0)


def _believed(
    found: NDArray[np.float64],
    noise: NDArray[np.float64],
    prior: NDArray[np.float64],
    least: float,
    mine: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Posterior means and variances of covariances that were `found` with variance `noise`.

    They are thought to come from N(0, r^2 v_a v_b), `prior` = v_a v_b, with r^2, the mean squared correlation, from all
    of them (or all of `mine`) at once, at least `least`.
    """
    chosen = np.ones(found.shape, bool) if mine is None else mine
    weight = prior * chosen
    r2 = np.clip(((found**2 - noise) * weight).sum() / max((weight**2).sum(), 1e-300), least, 1.0)
    likely = r2 * prior
    return chosen * found * likely / (likely + noise), likely * noise / (likely + noise)


def _variances(
    vectors: TableVectors, mean: NDArray[np.float64], member: NDArray[np.int64], hot: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Variances of the axes that their means allow: m(1 - m), and half of |v|^2 - |m|^2 for cosine and sine."""
    found = mean * (1 - mean)
    for j, column in enumerate(vectors.schema.columns):
        at = np.flatnonzero((member == j) & ~hot)
        if len(at):
            there = 1 - mean[at[2]] if column.missing else 1.0
            found[at[:2]] = (there - (mean[at[:2]] ** 2).sum()) / 2
    return np.clip(found, 1e-3, 0.25)


def _nearest(vectors: TableVectors, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest means that records can have: shares of a category, and a cosine and a sine of norm at most 1."""
    parts = np.split(mean, np.cumsum(vectors.sizes)[:-1])
    for j, m in enumerate(parts):
        if _is_hot(vectors, j):
            down = np.sort(m)[::-1]
            excess = (np.cumsum(down) - 1) / np.arange(1, len(m) + 1)
            parts[j] = np.maximum(m - excess[np.flatnonzero(down > excess)[-1]], 0.0)
        else:
            parts[j] = np.clip(m, 0.0, 1.0)
            parts[j][:2] /= max(1.0, np.hypot(*parts[j][:2]))
    return np.concatenate(parts)


def _is_hot(vectors: TableVectors, j: int) -> bool:
    return vectors.schema.columns[j].kind in ("category", "boolean")


def _features(vectors: TableVectors) -> list[tuple[int, int]]:
    """Position and number of axes of each column but the label."""
    return [(j, size) for j, size in enumerate(vectors.sizes) if j != vectors.schema.label_index]


def _mixture(method: Slicing, vectors: TableVectors, seed: int) -> tuple[ProductMixture, list[Cells]]:
    """The mixture over fine intervals, known by their axes only, and the intervals of all columns."""
    schema = vectors.schema
    cells = [fine_cells(c) for c in schema.columns]
    axes: list[Tensor] = []
    for j, _ in _features(vectors):
        edges = np.array(cells[j].edges)
        x = edges[:-1] if _is_hot(vectors, j) else (edges[1:] + edges[:-1]) / 2
        axes.append(torch.from_numpy(vectors.axes(j, np.r_[x, np.nan] if cells[j].missing else x)).float())
    counts, each = [len(a) for a in axes], max(1, method.components // schema.n_classes)
    rng = torch.Generator().manual_seed(seed)
    return ProductMixture(counts, schema.n_classes, each, rng=rng, axes=torch.block_diag(*axes)), cells


def _model(release: Release, net: ProductMixture, cells: list[Cells]) -> MixtureModel:
    return MixtureModel(release, net, cells, [np.ones(c.intervals) for c in cells])

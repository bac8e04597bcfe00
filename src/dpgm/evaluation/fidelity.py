"""How close synthetic images are to real ones, and how varied: FID, KID, IS, precision, recall, density, coverage.

Every value names the features it is seen through and the records it is measured on: two feature sets are never
compared. The formulas are a few lines of linear algebra each and work on features, whoever made them; the tests pin
them to what torchmetrics and prdc give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.spatial.distance import cdist
from torch import nn

from dpgm.nets.classifiers import train_classifier
from dpgm.nets.judges import Judge, Judges, LeNet, load_inception
from dpgm.schema import ImageSchema, Rows, SchemaError

Array: TypeAlias = NDArray[np.float64]
Distances: TypeAlias = NDArray[np.floating[Any]]
Value: TypeAlias = dict[str, Any]

MOST = 5_000
"""Largest number of records on each side."""
NEAR = 2_000
"""Largest number of records for what needs all distances."""
_STEPS, _SEED, _K = 400, 0, 5


# ---------------------------------------------------------------------------------------------------------------------
# Formulas on features x (synthetic) and y (real), [n, d]


def fid(x: Array, y: Array) -> float:
    """Fréchet distance |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of the normal laws with the features' moments.

    **Source**: Heusel et al. 2017.
    """
    cx, cy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values, vectors = eigh(np.atleast_2d(cx))
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = eigh(root @ np.atleast_2d(cy) @ root, eigvals_only=True)
    gap = x.mean(0) - y.mean(0)
    return max(0.0, float(gap @ gap + np.trace(np.atleast_2d(cx + cy)) - 2 * np.sqrt(cross.clip(0)).sum()))


def kid(x: Array, y: Array, weights: tuple[Array, Array] | None = None) -> Array:
    """Unbiased squared MMD under the kernel (a·b/d + 1)^3; may be slightly negative.

    **Source**: Bińkowski et al. 2018.

    Args:
        x: synthetic features.
        y: real features.
        weights: 0 or 1 for each record and each of r subsets, [n, r] and [m, r]; by default one subset of all.

    Returns:
        A value for each subset, [r].
    """
    s, t = weights or (np.ones((len(x), 1)), np.ones((len(y), 1)))

    def total(a: Array, u: Array, b: Array, v: Array) -> Array:
        sums = np.zeros(u.shape[1])
        for i in range(0, len(a), 1000):  # in blocks: the whole kernel need not fit into memory
            kernel = (a[i : i + 1000] @ b.T / a.shape[1] + 1) ** 3
            sums += (u[i : i + 1000] * (kernel @ v)).sum(0)
        return sums

    def within(a: Array, u: Array) -> Array:
        n, own = u.sum(0), u.T @ ((a * a).sum(1) / a.shape[1] + 1) ** 3
        return (total(a, u, a, u) - own) / (n * (n - 1))

    return within(x, s) + within(y, t) - 2 * total(x, s, y, t) / (s.sum(0) * t.sum(0))


def inception_score(odds: Array) -> float:
    """exp(mean KL(p(class | image) || mean of p)), from 1 to the number of classes; over all images at once.

    **Source**: Salimans et al. 2016.
    **Differs from the paper**: one set instead of ten parts, whose mean depends on their size.
    """
    p = odds.clip(1e-12)
    return float(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))


def neighbourhoods(xx: Distances, yy: Distances, xy: Distances, k: int = _K) -> dict[str, float]:
    """Precision, recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    A record's ball reaches to its k-th nearest other record of its own set. Precision: share of synthetic records in
    some real ball; recall: share of real ones in some synthetic ball; density: real balls around a synthetic record,
    over k; coverage: share of real balls that hold a synthetic record.

    Args:
        xx: distances among synthetic records [n, n].
        yy: distances among real ones [m, m].
        xy: distances between them [n, m].
        k: number of neighbours.
    """
    rx, ry = (np.partition(d, k, axis=1)[:, k] for d in (xx, yy))
    inside = xy < ry
    return {
        "precision": float(inside.any(1).mean()),
        "recall": float((xy < rx[:, None]).any(0).mean()),
        "density": float(inside.sum(1).mean() / k),
        "coverage": float((xy.min(0) < ry).mean()),
    }


# ---------------------------------------------------------------------------------------------------------------------
# All of them, with intervals


def measures(x: Array, y: Array, odds: Array, *, seed: int = 0, replicates: int = 40) -> dict[str, Value]:
    """Every metric with its 95 % interval: the value -+ 1.96 standard errors.

    The standard error is the spread over random half-samples *without* replacement, which for halves is that of the
    whole sample. The usual bootstrap would draw records twice: their nearest neighbour would be themselves, and an FID
    grows with fewer different records. The interval tells how much the value hangs on these records; it says nothing
    of the FID's bias, which depends on n: compare equal n only. The FID is no mean, and halves of
    few records spread more: its interval is a quarter too wide at n = 2 d to 5 d, and about right from n = 20 d on.
    Near the end of a metric's range (a precision of 0.99 of 100 records) it covers less often than it says.

    Args:
        x: synthetic features [n, d].
        y: real features [n, d].
        odds: class probabilities of the synthetic records [n, k].
        seed: of the half-samples.
        replicates: how many.

    Returns:
        {name: {`value`, `low`, `high`, `n`}}.
    """
    if len(x) != len(y) or len(x) < 4 * _K:
        raise SchemaError(f"{len(x)} synthetic and {len(y)} real records; give as many of each, at least {4 * _K}")
    rng = np.random.default_rng(seed)
    near = min(len(x), NEAR)

    def halves(n: int) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        return [(rng.permutation(n)[: n // 2], rng.permutation(n)[: n // 2]) for _ in range(replicates)]

    pairs = halves(len(x))
    weights = (np.zeros((len(x), replicates + 1)), np.zeros((len(y), replicates + 1)))
    for r, (i, j) in enumerate([(slice(None), slice(None)), *pairs]):
        weights[0][i, r] = weights[1][j, r] = 1
    distances = kid(x, y, weights)
    few = pairs if x.shape[1] <= 512 else pairs[:10]  # the work grows with the cube of the features
    found = {
        "fid": _value(fid(x, y), [fid(x[i], y[j]) for i, j in few], len(x), least=0),
        "kid": _value(float(distances[0]), distances[1:], len(x)),
        "inception_score": _value(inception_score(odds), [inception_score(odds[i]) for i, _ in pairs], len(x), least=1),
    }
    xs, ys = x[:near], y[:near]
    xx, yy, xy = cdist(xs, xs), cdist(ys, ys), cdist(xs, ys)
    whole = neighbourhoods(xx, yy, xy)
    parts = [
        neighbourhoods(xx[np.ix_(i, i)], yy[np.ix_(j, j)], xy[np.ix_(i, j)]) for i, j in halves(near)[: replicates // 2]
    ]
    for name, value in whole.items():
        most = math.inf if name == "density" else 1
        found[name] = _value(value, [p[name] for p in parts], near, least=0, most=most)
    return found


def _value(value: float, replicates: Any, n: int, *, least: float = -math.inf, most: float = math.inf) -> Value:
    reach = 1.96 * float(np.std(np.asarray(replicates), ddof=1))
    low, high = max(least, value - reach), min(most, value + reach)
    return {"value": value, "low": float(low), "high": float(high), "n": n}


# ---------------------------------------------------------------------------------------------------------------------
# Who looks


@dataclass(frozen=True, kw_only=True)
class View:
    """Features to look through, and the real records to compare with.

    Attributes:
        name: of the features: "lenet-mnist", "inception-FILE".
        net: makes them.
        real: features of the reference records [n, d].
        reference: which records these are, in words.
    """

    name: str
    net: Judge
    real: Array
    reference: str

    def __call__(self, images: NDArray[np.uint8], *, seed: int = 0) -> dict[str, Value]:
        """Every metric of synthetic images [n, h, w, c], on equal numbers of both.

        Returns:
            {name: {`value`, `low`, `high`, `n`, `features`, `reference`}}; empty below 20 records.
        """
        n = min(len(images), len(self.real))
        if n < 4 * _K:
            return {}
        x, odds = self.net.look(images[:n])
        found = measures(x, self.real[:n], odds, seed=seed)
        return {k: {**v, "features": self.name, "reference": self.reference} for k, v in found.items()}


def open_view(kind: str, test: Rows, *, schema: ImageSchema, data: str, judges: Judges | None = None) -> View | None:
    """The view that `--fid-features` names.

    Args:
        kind: "lenet": a LeNet trained on one half of the real *test* part, with the other half as reference, so that no
            train record is looked at; "inception:FILE": Inception with weights of a local file, against the test part;
            "none": no view.
        test: the real test part, in an order that does not matter.
        schema: its public facts.
        data: the set's name, for the features' name.
        judges: nets of earlier evaluations of the same test part.

    Raises:
        SchemaError: another kind, a file that cannot be used, or too few test records.
    """
    if kind == "none":
        return None
    order = np.random.default_rng(_SEED).permutation(len(test))  # the same halves for every run
    kept = order
    if kind == "lenet":
        seen, kept = order[: len(test) // 2], order[len(test) // 2 :]
        net: Judge = _lenet(test.take(np.sort(seen)), schema, judges or Judges())
        name, words = f"lenet-{data}", "half of the real test part, which the features have not seen"
    elif kind.startswith("inception:"):
        path = Path(kind.partition(":")[2])
        try:
            net = load_inception(path)
        except ValueError as error:
            raise SchemaError(str(error)) from error
        name, words = f"inception-{path.stem}", "the real test part"
    else:
        raise SchemaError(f"the features are '{kind}'; allowed are lenet, inception:FILE and none")
    kept = kept[:MOST]
    return View(name=name, net=net, real=net.look(test["image"][kept])[0], reference=f"{words} ({len(kept)} records)")


def _lenet(rows: Rows, schema: ImageSchema, judges: Judges) -> Judge:
    rng = torch.Generator().manual_seed(_SEED)
    height, width, channels = schema.shape
    net = LeNet(height=height, width=width, channels=channels, n_classes=schema.n_classes, rng=rng)
    epochs = math.ceil(_STEPS / math.ceil(len(rows) / 128))
    images, labels = rows["image"], rows["label"]

    def train() -> nn.Module:
        return train_classifier(images, labels, n_classes=schema.n_classes, rng=rng, epochs=epochs, net=net)

    trained = judges.net(f"lenet of {len(rows)}, {epochs} epochs", net, train)
    assert isinstance(trained, Judge)
    return trained.requires_grad_(False)


def real_view(view: View, door: Callable[..., Any], *, n: int, seed: int) -> tuple[dict[str, Value], Mapping[str, str]]:
    """The same metrics of real *train* records: what a perfect generator would get. It is *not private*.

    Args:
        view: through what, and against what.
        door: to the train records, e.g. `Curator.expose`, which writes the look down before it is taken.
        n: how many train records, drawn at random.
        seed: of the draw.

    Returns:
        The metrics, and the exposure {`reason`, `audience`}.
    """
    exposure = {
        "reason": f"not private: {view.name} features of real train records compared with those of test records",
        "audience": "readers of the metrics and the report",
    }

    def look(rows: Rows) -> dict[str, Value]:
        index = np.random.default_rng(seed).permutation(len(rows))[: min(n, len(view.real))]
        return view(rows["image"][index], seed=seed)  # in random order: some metrics take the first ones only

    return door(look, **exposure), exposure

"""Makers of hostile records: what a broken reader, an attacker or bad luck would put into a data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dpgm.schema import ImageSchema, Rows

Maker: TypeAlias = Callable[[int, np.random.Generator], Rows]
"""(number of records, coins) -> fresh records; zero records must work."""


def vectors(dim: int, *, n_classes: int = 2) -> Maker:
    """Records with `x` float64 [n, dim] and `label` int64 [n], labels outside the classes included.

    Rows are Gaussian of many sizes, signed unit vectors, constant, zero, NaN, infinite, near overflow or underflow.
    """

    def row(rng: np.random.Generator) -> NDArray[np.float64]:
        sign, j = rng.choice([-1.0, 1.0]), rng.integers(dim)
        axis = np.eye(dim)[j] * sign
        kinds: list[Callable[[], NDArray[np.float64]]] = [
            lambda: rng.normal(size=dim) * 10 ** rng.uniform(-3, 3),
            lambda: axis * 10 ** rng.uniform(-3, 3),
            *[lambda: axis * 10 ** rng.uniform(3, 9)] * 3,  # often: pairs of these are the worst of neighbours
            lambda: np.full(dim, sign * 10 ** rng.uniform(-3, 9)),
            lambda: np.zeros(dim),
            lambda: np.where(axis != 0, np.nan, rng.normal(size=dim)),
            lambda: np.where(axis != 0, sign * np.inf, rng.normal(size=dim)),
            lambda: np.full(dim, sign * 1.7e308),
            lambda: np.full(dim, sign * 5e-324),
        ]
        return kinds[rng.integers(len(kinds))]()

    def make(n: int, rng: np.random.Generator) -> Rows:
        x = np.stack([np.zeros(dim), *(row(rng) for _ in range(n))])[1:]
        return Rows(x=x, label=_labels(n, n_classes, rng, strange=True))

    return make


def images(schema: ImageSchema, *, strange_labels: bool = False) -> Maker:
    """Records with `image` uint8 [n, height, width, channels] and `label` int64 [n].

    Images are black, white, one pixel, stripes or noise; `strange_labels` adds labels outside the classes.
    """

    def row(rng: np.random.Generator) -> NDArray[Any]:
        out = np.zeros(schema.shape, dtype=np.uint8)
        match rng.integers(5):
            case 0:
                out[:] = rng.choice([0, 255])
            case 1:
                out[rng.integers(schema.height), rng.integers(schema.width)] = 255
            case 2:
                out[:: rng.integers(2, 5)] = 255
            case 3:
                out[:, :: rng.integers(2, 5)] = 255
            case _:
                out[:] = rng.integers(0, 256, size=schema.shape)
        return out

    def make(n: int, rng: np.random.Generator) -> Rows:
        image = np.stack([np.zeros(schema.shape, np.uint8), *(row(rng) for _ in range(n))])[1:]
        return Rows(image=image, label=_labels(n, schema.n_classes, rng, strange=strange_labels))

    return make


def _labels(n: int, n_classes: int, rng: np.random.Generator, *, strange: bool) -> NDArray[np.int64]:
    label = rng.integers(n_classes, size=n)
    if strange:
        odd = rng.choice([-1, n_classes, n_classes + 1, np.iinfo(np.int64).min, np.iinfo(np.int64).max], size=n)
        label = np.where(rng.random(n) < 0.25, odd, label)
    return label.astype(np.int64)

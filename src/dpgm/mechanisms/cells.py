"""Moments cell by cell: counts, sums and second moments of clipped vectors, where every record falls into one cell.

A cell is a class, or a class and a public region of space. Because a record touches one row of the answer only, adding
cells costs nothing, and pure noise may be drawn for each row on its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dpgm.mechanisms.moments import pack
from dpgm.mechanisms.noise import KNorm
from dpgm.mechanisms.queries import LEAST, clip_rows, foreign, total
from dpgm.privacy.guarantee import PrivacyError, Relation, Source
from dpgm.privacy.mechanism import REAL_ARITHMETIC, Array, Cost, NoiseSource, PureEvent, evidence_of
from dpgm.schema import Rows

Look: TypeAlias = Callable[[Rows], tuple[NDArray[Any], NDArray[Any]]]
"""Per-record map of a block of rows to cells, whole numbers [b], and vectors [b, dim]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AboutCentres:
    """A look at labelled images: vectors about a released mean of the class, cells around public centres.

    Attributes:
        encoder: per-record map from images [b, height, width, channels] to vectors [b, dim].
        means: released class means [k, dim] that are subtracted; None subtracts nothing.
        centres: public centres [k, m, dim] about those means; the cell is the nearest one of the record's class,
            counted through all classes, and the vector is taken about it. None makes the class the cell.
    """

    encoder: Callable[[NDArray[np.uint8]], Array]
    means: Array | None = None
    centres: Array | None = None

    def __call__(self, rows: Rows) -> tuple[NDArray[Any], Array]:
        """Cells [b] and vectors [b, dim]."""
        images, label = rows["image"], rows["label"]
        full = np.zeros((max(1, -(-len(images) // LEAST)) * LEAST, *images.shape[1:]), np.uint8)
        full[: len(images)] = images  # parts of one size: no record's value depends on how many others there are
        v = np.concatenate([self.encoder(full[i : i + LEAST]) for i in range(0, len(full), LEAST)])[: len(images)]
        if self.means is not None:
            v = v - self.means[label]
        if self.centres is None:
            return label, v
        nearest = ((v[:, None, :] - self.centres[label]) ** 2).sum(2).argmin(1)
        return label * self.centres.shape[1] + nearest, v - self.centres[label, nearest]


@dataclass(frozen=True, kw_only=True)
class CellMoments:
    """sum_i onehot(cell_i) (x) (v_i / R, w pack(v_i v_i^T) / R^2, c0) with |v_i| <= R.

    Proof: docs/proofs/cell-moments.md.

    Attributes:
        look: per-record map from a block of rows to cells [b] and vectors [b, dim]; cells outside 0..n_cells-1 count
            nowhere. None only states the price.
        dim: d, length of a vector.
        n_cells: number of cells, public.
        radius: R, above 0; longer vectors are clipped.
        second_weight: w, 0 or more; with 0 there are no second moments in the answer.
        count_weight: c0, above 0.
        rests_on: assumptions of `look`.
    """

    look: Look | None
    dim: int
    n_cells: int
    radius: float
    second_weight: float = 0.0
    count_weight: float = 0.3
    rests_on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("radius", self.radius), ("count_weight", self.count_weight)):
            if not (value > 0 and math.isfinite(value)):
                raise PrivacyError(f"{name} is {value}; allowed is a finite number above 0")
        if not (self.second_weight >= 0 and math.isfinite(self.second_weight)):
            raise PrivacyError(f"second_weight is {self.second_weight}; allowed is a finite number, 0 or more")

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_cells, d + 1), or (n_cells, d + d (d + 1) / 2 + 1) with second moments; the last column counts."""
        return (self.n_cells, self.dim + 1 + (self.dim * (self.dim + 1) // 2 if self.second_weight else 0))

    def partial(self, rows: Rows) -> Array:
        """The sums over one block."""
        if self.look is None:
            raise PrivacyError("these moments only state a price; give them a look at records before they are asked")
        cells, raw = self.look(rows)
        if raw.shape != (len(rows), self.dim) or cells.shape != (len(rows),):
            raise PrivacyError(
                f"a block gave vectors of width {raw.shape[1:]} and cells of shape [n, {cells.shape[1:]}]; allowed are "
                f"one vector of {self.dim} numbers and one cell for each record"
            )
        v = clip_rows(raw, self.radius) / self.radius
        out = np.zeros(self.shape)
        for cell in np.unique(cells[(cells >= 0) & (cells < self.n_cells)]):
            mine = v[cells == cell]
            row = out[int(cell)]
            row[: self.dim] = mine.sum(axis=0)
            if self.second_weight:
                row[self.dim : -1] = self.second_weight * pack(mine.T @ mine)
            row[-1] = self.count_weight * len(mine)
        return out

    def sensitivity(self, relation: Relation, norm: int = 2) -> float:
        """ADD_REMOVE: sqrt(1 + w^2 + c0^2). REPLACE: sqrt(2) of that for another cell, sqrt(4 + 2 w^2) within one."""
        if norm != 2:
            raise PrivacyError("cell moments have an L2 sensitivity only; use Gaussian or CellKNorm noise, not Laplace")
        one = 1 + self.second_weight**2 + self.count_weight**2
        if relation is Relation.ADD_REMOVE:
            return math.sqrt(one)
        return math.sqrt(max(2 * one, 4 + 2 * self.second_weight**2))

    def assumptions(self) -> tuple[str, ...]:
        """What the look rests on."""
        return tuple(dict.fromkeys((*self.rests_on, *foreign(self.look))))


@dataclass(frozen=True, kw_only=True)
class CellKNorm:
    """query(rows) + Z, every row of Z with density proportional to exp(-|z|_2 / scale), independently.

    **Guarantee**: (S / scale, 0)-DP under ADD_REMOVE and (2 S / scale, 0)-DP under REPLACE, S the add/remove L2
    sensitivity: a record touches one row of the answer, so rows do not compose (docs/proofs/cell-moments.md).
    **Source**: Hardt and Talwar 2010, and parallel composition (McSherry 2009).
    **Differs from the paper**: the norm is the Euclidean one, row by row.

    Attributes:
        query: the moments to release.
        scale: scale of the noise; the norm of a row of D numbers moves by about D times this.
        name: what ledger and guarantee call this release.
    """

    query: CellMoments
    scale: float
    name: str = "cell-k-norm"
    sources: ClassVar[tuple[Source, ...]] = (
        KNorm.source,
        Source(
            key="mcsherry2009privacy",
            title="Privacy Integrated Queries",
            authors="McSherry, Frank",
            year=2009,
            where="SIGMOD 2009",
            part="theorem 4, parallel composition",
        ),
    )

    def __post_init__(self) -> None:
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise PrivacyError(f"scale is {self.scale}; allowed is a finite number above 0")

    def cost(self, relation: Relation) -> Cost:
        """Pure epsilon: one row moves, or two."""
        moved = self.query.sensitivity(Relation.ADD_REMOVE) * (1 if relation is Relation.ADD_REMOVE else 2)
        return Cost(
            event=PureEvent(moved / self.scale),
            name=self.name,
            evidence=evidence_of(self.query),
            sources=self.sources,
            assumptions=(REAL_ARITHMETIC, *self.query.assumptions()),
        )

    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        """The noisy answer."""
        direction = noise.normal(self.query.shape)
        n_rows, width = self.query.shape
        radius = self.scale * noise.gamma(width, n_rows)[:, None]
        norm = np.sqrt((direction**2).sum(axis=1, keepdims=True))
        return total(self.query, rows) + direction * (radius / norm)

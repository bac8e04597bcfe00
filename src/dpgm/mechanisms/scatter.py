"""Second moments under pure differential privacy, by a matrix form of Laplace noise.

A record moves a matrix of second moments by a matrix of rank one. Noise that knows this is smaller, by a factor of
about sqrt(d / 2), than noise for any move of the same length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dpgm.mechanisms.cells import Look
from dpgm.mechanisms.moments import pack
from dpgm.mechanisms.queries import clip_rows, foreign, total
from dpgm.privacy.guarantee import PrivacyError, Relation, Source
from dpgm.privacy.mechanism import REAL_ARITHMETIC, Array, Cost, NoiseSource, PureEvent, evidence_of
from dpgm.schema import Rows


@dataclass(frozen=True, kw_only=True)
class CellScatter:
    """sum_i onehot(cell_i) (x) pack(u_i u_i^T) with u_i = (sqrt(1 - a) v_i / R, sqrt(a)), |v_i| <= R.

    One matrix a cell holds second moments, means and the count. Proof: docs/proofs/matrix-laplace.md.

    Attributes:
        look: per-record map from a block of rows to cells [b] and vectors [b, dim]; cells outside 0..n_cells-1 count
            nowhere. None only states the price.
        dim: length of a vector.
        n_cells: number of cells, public.
        radius: R, above 0; longer vectors are clipped.
        count_share: a, above 0 and below 1.
        rests_on: assumptions of `look`.
    """

    look: Look | None
    dim: int
    n_cells: int
    radius: float
    count_share: float = 0.1
    rests_on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.radius > 0 and math.isfinite(self.radius)):
            raise PrivacyError(f"radius is {self.radius}; allowed is a finite number above 0")
        if not 0 < self.count_share < 1:
            raise PrivacyError(f"count_share is {self.count_share}; allowed is a number above 0 and below 1, e.g. 0.1")

    @property
    def side(self) -> int:
        """D = dim + 1, rows of a matrix."""
        return self.dim + 1

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_cells, D (D + 1) / 2)."""
        return (self.n_cells, self.side * (self.side + 1) // 2)

    def partial(self, rows: Rows) -> Array:
        """The sums over one block."""
        if self.look is None:
            raise PrivacyError("this scatter only states a price; give it a look at records before it is asked")
        cells, raw = self.look(rows)
        if raw.shape != (len(rows), self.dim) or cells.shape != (len(rows),):
            raise PrivacyError(
                f"a block gave vectors of width {raw.shape[1:]} and cells of shape [n, {cells.shape[1:]}]; allowed are "
                f"one vector of {self.dim} numbers and one cell for each record"
            )
        u = np.full((len(rows), self.side), math.sqrt(self.count_share))
        u[:, :-1] = clip_rows(raw, self.radius) * (math.sqrt(1 - self.count_share) / self.radius)
        out = np.zeros(self.shape)
        for cell in np.unique(cells[(cells >= 0) & (cells < self.n_cells)]):
            mine = u[cells == cell]
            out[int(cell)] = pack(mine.T @ mine)
        return out

    def sensitivity(self, relation: Relation, norm: int = 2) -> float:
        """ADD_REMOVE: 1, in the trace norm as in the L2 norm. REPLACE: sqrt(2) in the L2 norm."""
        if norm != 2:
            raise PrivacyError("a scatter has an L2 sensitivity only; use Gaussian or MatrixLaplace noise, not Laplace")
        return 1.0 if relation is Relation.ADD_REMOVE else math.sqrt(2)

    def assumptions(self) -> tuple[str, ...]:
        """What the look rests on."""
        return tuple(dict.fromkeys((*self.rests_on, *foreign(self.look))))


@dataclass(frozen=True, kw_only=True)
class MatrixLaplace:
    """query(rows) + pack(V - W) for each cell, V and W of density proportional to exp(-tr / scale) on the cone.

    The cone is that of the positive semidefinite D x D matrices; there V = (scale / 2) G G^T with G [D, D + 1] of
    standard normal numbers. In one dimension V - W is Laplace noise.

    **Guarantee**: (1 / scale, 0)-DP under ADD_REMOVE and (2 / scale, 0)-DP under REPLACE: a record adds a positive
    semidefinite matrix of trace at most 1 to one cell (docs/proofs/matrix-laplace.md).
    **Source**: Jiang, Xie and Zhang 2016 add one Wishart matrix to a second moment.
    **Differs from the paper**: the difference of two is added, whose support does not move with the data.

    Attributes:
        query: the scatter to release.
        scale: b; an entry of the packed answer gets noise of standard deviation b sqrt(D + 1).
        name: what ledger and guarantee call this release.
    """

    query: CellScatter
    scale: float
    name: str = "matrix-laplace"
    source: ClassVar[Source] = Source(
        key="jiang2016wishart",
        title="Wishart Mechanism for Differentially Private Principal Components Analysis",
        authors="Jiang, Wuxuan and Xie, Cong and Zhang, Zhihua",
        year=2016,
        where="AAAI 2016, arXiv 1511.05680",
    )

    def __post_init__(self) -> None:
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise PrivacyError(f"scale is {self.scale}; allowed is a finite number above 0")

    def cost(self, relation: Relation) -> Cost:
        """Pure epsilon: one matrix of trace at most 1 comes or goes, or two do."""
        moved = 1 if relation is Relation.ADD_REMOVE else 2
        return Cost(
            event=PureEvent(moved / self.scale),
            name=self.name,
            evidence=evidence_of(self.query),
            sources=(self.source,),
            assumptions=(REAL_ARITHMETIC, *self.query.assumptions()),
        )

    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        """The noisy answer."""
        side = self.query.side
        g = noise.normal((2, self.query.n_cells, side, side + 1))
        v, w = self.scale / 2 * g @ np.swapaxes(g, 2, 3)
        return total(self.query, rows) + pack(v - w)

"""The exponential mechanism: publish which of several marginals is worst described by what is known so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dpgm.mechanisms.queries import total
from dpgm.mechanisms.tables import Cells, Marginals
from dpgm.privacy.guarantee import PrivacyError, Relation, Source
from dpgm.privacy.mechanism import REAL_ARITHMETIC, Array, BoundedRangeEvent, Cost, NoiseSource
from dpgm.schema import Rows


@dataclass(frozen=True, kw_only=True, eq=False)
class SelectMarginal:
    """The position of one block, drawn with probability proportional to exp(strength w_k (|T_k - E_k|_1 - b_k) / 2).

    **Guarantee**: bounded range epsilon = strength under ADD_REMOVE, 2 strength under REPLACE.
    **Source**: McSherry and Talwar 2007. Proof: docs/proofs/exponential.md.
    **Differs from the paper**: nothing.

    Attributes:
        cells: for each column of the table, how it falls into cells.
        blocks: the candidates, sets of columns by position.
        expected: for each block its expected counts, public.
        strength: how much an error of one record counts, above 0.
        weights: w_k of each block, above 0 and at most 1; () gives each 1.
        offsets: public errors b_k that do not count, as those of the noise to come; () means 0.
        name: what ledger and guarantee call the choice.
    """

    cells: tuple[Cells, ...]
    blocks: tuple[tuple[int, ...], ...]
    expected: Sequence[NDArray[np.float64]]
    strength: float
    weights: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()
    name: str = "select-marginal"
    source: ClassVar[Source] = Source(
        key="mcsherry2007mechanism",
        title="Mechanism Design via Differential Privacy",
        authors="McSherry, Frank and Talwar, Kunal",
        year=2007,
        where="FOCS 2007",
    )

    def __post_init__(self) -> None:
        if not 0 < self.strength < np.inf:
            raise PrivacyError(f"strength is {self.strength}; allowed is a finite number above 0")
        if len(self.expected) != len(self.blocks):
            raise PrivacyError(f"{len(self.blocks)} blocks have {len(self.expected)} expected tables; give one to each")
        if any(len(v) not in (0, len(self.blocks)) for v in (self.weights, self.offsets)):
            raise PrivacyError("weights and offsets are one for each block, or none at all")
        if not all(0 < w <= 1 for w in self.weights):
            raise PrivacyError("a weight is not above 0 and at most 1: a larger one would cost more than is stated")

    def cost(self, relation: Relation) -> Cost:
        """The price of one choice, whatever the candidates."""
        epsilon = self.strength * (1 if relation is Relation.ADD_REMOVE else 2)
        return Cost(
            event=BoundedRangeEvent(epsilon),
            name=self.name,
            sources=(self.source,),
            assumptions=(REAL_ARITHMETIC,),
        )

    def scores(self, rows: Rows) -> Array:
        """w_k (|T_k - E_k|_1 - b_k) for each block."""
        query = Marginals(cells=self.cells, blocks=self.blocks, weights=(1.0,) * len(self.blocks))
        tables = query.split(total(query, rows))
        errors = np.array([np.abs(t - e).sum() for t, e in zip(tables, self.expected, strict=True)])
        return np.array(self.weights or 1.0) * (errors - np.array(self.offsets or 0.0))

    def __call__(self, rows: Rows, noise: NoiseSource) -> int:
        """Position of the chosen block."""
        gumbel = -np.log(-np.log(noise.uniform(len(self.blocks))))
        return int(np.argmax(self.scores(rows) + 2 / self.strength * gumbel))

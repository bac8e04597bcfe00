"""The slicing mechanism's row-wise releases: every record is published, projected or whole, under its own noise.

They are local randomisers: the noise does not shrink with the number of records, and that number is published. The
modes that release sums instead are queries (`queries.py`, `tables.py`) under Gaussian noise.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dpgm.mechanisms.queries import clip_rows, foreign
from dpgm.privacy.guarantee import PrivacyError, Relation, Source
from dpgm.privacy.mechanism import (
    PUBLIC_NUMBER,
    REAL_ARITHMETIC,
    Cost,
    Event,
    GaussianEvent,
    NoiseSource,
    ShuffledGaussianEvent,
    SlicedGaussianEvent,
)
from dpgm.schema import Rows

Vectors = Callable[[Rows], NDArray[Any]]
BLOCK = 4096
"""Rows projected at a time: memory does not grow with their number, but for the release, see `_store`."""
_IN_MEMORY = 1 << 28
"""Bytes of a release above which it lies in a file without a name, mapped to memory."""


@dataclass(frozen=True, kw_only=True)
class _RowWise:
    """What both releases share: vectors x_i of norm at most C, clipped, one noisy row for each, in random order.

    Attributes:
        vectors: per-record map from a block of rows to [b, dim]; it must treat each record alone.
        dim: length of a vector.
        clip_norm: C, above 0.
        noise_std: standard deviation of the noise on each released number.
        nonnegative: cut negative entries off, which lowers the shift under REPLACE.
        rests_on: assumptions of `vectors`.
        name: what ledger and guarantee call this release.
    """

    vectors: Vectors
    dim: int
    noise_std: float
    clip_norm: float = 1.0
    nonnegative: bool = False
    rests_on: tuple[str, ...] = ()
    name: str = "row-wise"

    def __post_init__(self) -> None:
        for label in ("noise_std", "clip_norm", "dim"):
            if not (getattr(self, label) > 0 and math.isfinite(getattr(self, label))):
                raise PrivacyError(f"{label} is {getattr(self, label)}; allowed is a finite number above 0")

    def shift(self, relation: Relation) -> float:
        """How far one record's vector can move: 2C under REPLACE, sqrt(2) C for non-negative vectors.

        Raises:
            PrivacyError: under ADD_REMOVE, where a release of one row for each record tells their number.
        """
        if relation is not Relation.REPLACE:
            raise PrivacyError(
                f"'{self.name}' publishes one noisy row for each record, so the number of rows tells how many records "
                f"there are, which '{relation.value}' protects: no epsilon would hold. Use --relation replace, where "
                "the number of records is public, or the mode 'aggregated', which releases sums only"
            )
        return (math.sqrt(2) if self.nonnegative else 2.0) * self.clip_norm

    def _cost(self, event: Event, source: Source) -> Cost:
        return Cost(
            event=event,
            name=self.name,
            sources=(source,),
            assumptions=(REAL_ARITHMETIC, PUBLIC_NUMBER, *self.rests_on, *foreign(self.vectors)),
        )

    def _clipped(self, rows: Rows) -> NDArray[np.float64]:
        vectors = self.vectors(rows)
        if vectors.shape != (len(rows), self.dim):
            raise PrivacyError(
                f"the rows of a block gave vectors of shape {vectors.shape[1:]}; declared is ({self.dim},), one a row"
            )
        return clip_rows(vectors, self.clip_norm, nonnegative=self.nonnegative)


@dataclass(frozen=True, kw_only=True)
class SlicedProjection(_RowWise):
    """(U, X U + V): random slices of every record, published with their directions.

    X [n, d] holds the clipped vectors, U [d, m k] has N(0, 1/d) entries and V [n, m k] has N(0, noise_std^2) entries.
    U is drawn from the operating system's entropy when the rows are there, so that nobody could fit a record to it.

    **Guarantee**: delta(epsilon) = E delta_Gauss(epsilon; mu), mu^2 = W c^2/(d noise_std^2), W ~ chi^2 with m k degrees
    of freedom, under REPLACE with c = 2C (sqrt(2) C for non-negative vectors). ADD_REMOVE is refused.
    **Source**: Greenewald, Yu, Wang and Xu 2024, definition 5. Proof: docs/proofs/slicing.md.
    **Differs from the paper**: exact accounting instead of theorem 1; replace-one counts c = 2C, not C; neither
    add/remove nor the amplification by a Poisson sample is claimed; nothing of the preprocessing is free.

    Attributes:
        slices: number of slices m.
        slice_dim: directions in a slice, k.
    """

    slices: int = 25
    slice_dim: int = 2
    source: ClassVar[Source] = Source(
        key="greenewald2024privacy",
        title="Privacy without Noisy Gradients: Slicing Mechanism for Generative Model Training",
        authors="Greenewald, Kristjan and Yu, Yuancheng and Wang, Hao and Xu, Kai",
        year=2024,
        where="NeurIPS 2024, arXiv 2410.19941",
        part="definition 5; accounting: docs/proofs/slicing.md",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slices < 1 or self.slice_dim < 1:
            raise PrivacyError(
                f"{self.slices} slices of {self.slice_dim} directions; allowed are whole numbers, 1 or more"
            )

    def cost(self, relation: Relation) -> Cost:
        """The price of all slices together: they share one shift."""
        multiplier = self.noise_std * math.sqrt(self.dim) / self.shift(relation)
        return self._cost(SlicedGaussianEvent(multiplier, self.slices * self.slice_dim), self.source)

    def __call__(self, rows: Rows, noise: NoiseSource) -> dict[str, NDArray[Any]]:
        """`directions` U [dim, m k] and noisy `values` [n, m k], in half precision where the noise hides that."""
        width = self.slices * self.slice_dim
        directions = noise.normal((self.dim, width), 1 / math.sqrt(self.dim)).astype(np.float32)
        exact = directions.astype(np.float64)
        values = _store((len(rows), width), self.noise_std)
        for start, block in _blocks(rows, noise):
            v = noise.normal((len(block), width), self.noise_std)
            values[start : start + len(block)] = self._clipped(block) @ exact + v
        return {"directions": directions, "values": values}


@dataclass(frozen=True, kw_only=True)
class NoisyRecords(_RowWise):
    """X + N(0, noise_std^2 I): every clipped vector whole, so that fresh slices of it can be taken for ever.

    **Guarantee**: mu-Gaussian DP with mu = c / noise_std under REPLACE, c = 2C (sqrt(2) C for non-negative vectors).
    ADD_REMOVE is refused.
    **Source**: the limit of the slicing mechanism for a tight frame of directions. Proof: docs/proofs/slicing.md.
    **Differs from the paper**: no random directions; at least as good at the same price where m k >= d.
    """

    name: str = "noisy-records"
    source: ClassVar[Source] = SlicedProjection.source

    def cost(self, relation: Relation) -> Cost:
        """The price of one Gaussian release."""
        return self._cost(GaussianEvent(self.noise_std / self.shift(relation)), self.source)

    def __call__(self, rows: Rows, noise: NoiseSource) -> dict[str, NDArray[Any]]:
        """Noisy `values` [n, dim], in half precision where the noise hides that."""
        values = _store((len(rows), self.dim), self.noise_std)
        for start, block in _blocks(rows, noise):
            v = noise.normal((len(block), self.dim), self.noise_std)
            values[start : start + len(block)] = self._clipped(block) + v
        return {"values": values}


@dataclass(frozen=True, kw_only=True)
class ShuffledRecords(NoisyRecords):
    """`NoisyRecords` priced by the random order of its rows: the others hide the one that changed.

    **Guarantee**: the smaller of two bounds: mu-Gaussian DP as without shuffling, and that of the clones among
    `records` records. ADD_REMOVE is refused.
    **Source**: Feldman, McMillan and Talwar 2021. Proof: docs/proofs/shuffling.md.
    **Differs from the paper**: Gaussian noise, whose tails enter delta; the two counts are summed, not bounded.

    Attributes:
        records: a declared number; fewer rows are refused.
    """

    records: int
    name: str = "shuffled-records"
    source: ClassVar[Source] = Source(
        key="feldman2021hiding",
        title="Hiding Among the Clones: A Simple and Nearly Optimal Analysis of Privacy Amplification by Shuffling",
        authors="Feldman, Vitaly and McMillan, Audra and Talwar, Kunal",
        year=2021,
        where="FOCS 2021, arXiv 2012.12803",
        part="clones; for tails: docs/proofs/shuffling.md",
    )

    def cost(self, relation: Relation) -> Cost:
        """The price of one shuffled release."""
        return self._cost(ShuffledGaussianEvent(self.noise_std / self.shift(relation), self.records), self.source)

    def __call__(self, rows: Rows, noise: NoiseSource) -> dict[str, NDArray[Any]]:
        """Noisy `values` [n, dim] in random order."""
        if len(rows) < self.records:
            raise PrivacyError(
                f"there are fewer than the {self.records} records that '{self.name}' declares, and fewer hide less; "
                "declare a smaller size, which is public here"
            )
        return super().__call__(rows, noise)


def _store(shape: tuple[int, int], noise_std: float) -> NDArray[Any]:
    """Room for noisy values: half precision (its step is below a thousandth of a value; rounding what is noisy already
    is free) unless they may overflow it, and in a nameless file where they are many.
    """
    kind = np.dtype(np.float16 if 1e-2 < noise_std < 1e3 else np.float32)
    if shape[0] * shape[1] * kind.itemsize <= _IN_MEMORY:
        return np.empty(shape, kind)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype=kind, mode="w+", shape=shape)


def _blocks(rows: Rows, noise: NoiseSource) -> Iterator[tuple[int, Rows]]:
    """Blocks of the rows in a random order: what position a record had is nobody's business."""
    order = np.argsort(noise.bits(len(rows)), kind="stable")
    for start in range(0, len(rows), BLOCK):
        yield start, rows.take(order[start : start + BLOCK])

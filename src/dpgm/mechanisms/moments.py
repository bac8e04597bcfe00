"""Second moments: of clipped vectors, and of latent codes class by class."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpgm.mechanisms.queries import clip_rows, foreign, one_each
from dpgm.privacy.guarantee import PrivacyError, Relation
from dpgm.privacy.mechanism import Array
from dpgm.schema import Rows


def pack(matrices: NDArray[Any]) -> Array:
    """Symmetric matrices `[..., d, d]` as vectors `[..., d(d+1)/2]` of the same Euclidean length."""
    d = matrices.shape[-1]
    i, j = np.triu_indices(d)
    return matrices[..., i, j] * np.where(i == j, 1.0, math.sqrt(2))


def unpack(vectors: NDArray[Any], d: int) -> Array:
    """The symmetric matrices that `pack` made vectors of."""
    i, j = np.triu_indices(d)
    out = np.zeros((*vectors.shape[:-1], d, d))
    values = vectors / np.where(i == j, 1.0, math.sqrt(2))
    out[..., i, j] = values
    out[..., j, i] = values
    return out


@dataclass(frozen=True, kw_only=True)
class SecondMoment:
    """sum_i v_i v_i^T / R^2 with |v_i| <= R, packed so that one independent noise a number makes symmetric noise.

    Nothing is centred: subtracting the exact mean would be a second, unpaid look.

    Proof: docs/proofs/second-moment.md.

    Attributes:
        vectors: per-record map from a block of rows to [b, dim].
        dim: d, the length of a vector.
        radius: R, above 0; longer vectors are clipped.
    """

    vectors: Callable[[Rows], NDArray[Any]]
    dim: int
    radius: float

    def __post_init__(self) -> None:
        _positive("radius", self.radius)

    @property
    def shape(self) -> tuple[int, ...]:
        """(d (d + 1) / 2,)."""
        return (self.dim * (self.dim + 1) // 2,)

    def partial(self, rows: Rows) -> Array:
        """The sum over one block."""
        v = clip_rows(one_each(self.vectors(rows), (len(rows), self.dim)), self.radius) / self.radius
        return pack(v.T @ v)

    def sensitivity(self, relation: Relation, norm: int = 2) -> float:
        """ADD_REMOVE: |v v^T|_F / R^2 <= 1. REPLACE: sqrt(2), since two such matrices have no negative product."""
        _l2_only(norm)
        return 1.0 if relation is Relation.ADD_REMOVE else math.sqrt(2)

    def assumptions(self) -> tuple[str, ...]:
        """None beside the proof's for this project's own vectors."""
        return foreign(self.vectors)


@dataclass(frozen=True, kw_only=True)
class CodeMoments:
    """Class-wise sums sum_i onehot(y_i) (x) (z_i / R, w z_i z_i^T / R^2, c0) of latent codes with |z_i| <= R.

    One release gives every class its count, mean and covariance. With `centres` it does so for every cell of a class: a
    code lies in the cell of its nearest centre, and onehot(y_i) tells cells apart.

    Proof: docs/proofs/second-moment.md.

    Attributes:
        codes: per-record map from a block of rows to codes [b, latent]; None only states the price.
        latent: d, length of a code.
        n_classes: k, public.
        radius: R, above 0; longer codes are clipped.
        second_weight: w, weight of the second moments, above 0.
        count_weight: c0, weight of the riding class count, above 0.
        centres: public points, each of `latent` numbers, the same for every class; none leaves classes whole.
    """

    codes: Callable[[Rows], NDArray[Any]] | None
    latent: int
    n_classes: int
    radius: float
    second_weight: float = 2.0
    count_weight: float = 0.1
    centres: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        _positive("radius", self.radius)
        _positive("second_weight", self.second_weight)
        _positive("count_weight", self.count_weight)
        if any(len(centre) != self.latent for centre in self.centres):
            raise PrivacyError(f"a centre does not have latent = {self.latent} numbers; give points where codes are")

    @property
    def cells(self) -> int:
        """Cells of a class, 1 without centres."""
        return max(1, len(self.centres))

    @property
    def shape(self) -> tuple[int, ...]:
        """(k cells, d + d (d + 1) / 2 + 1), cell by cell of each class."""
        return (self.n_classes * self.cells, self.latent + self.latent * (self.latent + 1) // 2 + 1)

    def partial(self, rows: Rows) -> Array:
        """The sums over one block; labels outside 0..k-1 count nowhere."""
        if self.codes is None:
            raise PrivacyError("these moments only state a price; give them codes before they are asked")
        z = clip_rows(one_each(self.codes(rows), (len(rows), self.latent)), self.radius) / self.radius
        out, d, place = np.zeros(self.shape), self.latent, rows["label"]
        if self.centres:
            centres = np.array(self.centres) / self.radius
            place = place * self.cells + ((centres**2).sum(1) - 2 * z @ centres.T).argmin(1)
        for k in range(len(out)):
            mine = z[place == k]
            out[k, :d] = mine.sum(axis=0)
            out[k, d:-1] = self.second_weight * pack(mine.T @ mine)
            out[k, -1] = self.count_weight * len(mine)
        return out

    def sensitivity(self, relation: Relation, norm: int = 2) -> float:
        """ADD_REMOVE: sqrt(1 + w^2 + c0^2). REPLACE: sqrt(2) of that for another class, sqrt(4 + 2 w^2) within one."""
        _l2_only(norm)
        one = 1 + self.second_weight**2 + self.count_weight**2
        if relation is Relation.ADD_REMOVE:
            return math.sqrt(one)
        return math.sqrt(max(2 * one, 4 + 2 * self.second_weight**2))

    def assumptions(self) -> tuple[str, ...]:
        """That the codes are of each record alone, where this project did not make them."""
        return foreign(self.codes)

    def laws(self, noisy: NDArray[Any], noise_std: float, *, floor: float = 1e-3) -> tuple[Array, Array, Array]:
        """Counts [k], means [k, d], covariances [k, d, d] of codes of k classes or cells, from a noisy answer; free.

        Covariances are shrunk towards their average over the classes, by as much as the known noise explains of their
        spread. Directions whose variance then lies below `floor` get `floor`; counts are at least their noise.

        Args:
            noisy: the released answer, of `shape`.
            noise_std: standard deviation of its noise.
            floor: least variance of a direction.
        """
        d, k = self.latent, len(noisy)
        counts = np.maximum(noisy[:, -1] / self.count_weight, max(1.0, noise_std / self.count_weight))
        means = noisy[:, :d] * self.radius / counts[:, None]
        unit = self.radius**2 / self.second_weight / counts[:, None]
        packed = noisy[:, d:-1] * unit - pack(means[:, :, None] * means[:, None, :])
        weights = counts / counts.sum()
        centre = weights @ packed
        away = packed - centre
        if k > 1:
            spread = (away**2).sum(axis=1) / packed.shape[1] * k / (k - 1)
            noise = (noise_std * unit[:, 0]) ** 2
            excess = max(0.0, float(weights @ (spread - noise)))
            away *= (excess / (excess + noise))[:, None]
        values, vectors = np.linalg.eigh(unpack(centre + away, d))
        values = np.maximum(values, floor)
        return counts, means, (vectors * values[:, None, :]) @ np.swapaxes(vectors, 1, 2)


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise PrivacyError(f"{name} is {value}; allowed is a finite number above 0")


def _l2_only(norm: int) -> None:
    if norm != 2:
        raise PrivacyError("second moments have an L2 sensitivity only; use Gaussian or KNorm noise, not Laplace")

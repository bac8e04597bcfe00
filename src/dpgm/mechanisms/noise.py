"""Additive noise: each mechanism is a frozen value that knows its price."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

from dpgm.mechanisms.queries import Histogram, total
from dpgm.privacy.guarantee import PrivacyError, Relation, Source
from dpgm.privacy.mechanism import (
    REAL_ARITHMETIC,
    Array,
    Cost,
    DiscreteGaussianEvent,
    GaussianEvent,
    NoiseSource,
    PureEvent,
    Query,
    ZeroConcentratedEvent,
    evidence_of,
)
from dpgm.schema import Rows


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """query(rows) + N(0, noise_std^2 I).

    **Guarantee**: mu-Gaussian DP with mu = L2 sensitivity / noise_std, under either relation.
    **Source**: Balle and Wang 2018. Proof: docs/proofs/gaussian.md.
    **Differs from the paper**: nothing.

    Attributes:
        query: the sum to release.
        noise_std: standard deviation of the noise, in the unit of the answer.
        name: what ledger and guarantee call this release.
    """

    query: Query
    noise_std: float
    name: str = "gaussian"
    source: ClassVar[Source] = Source(
        key="balle2018improving",
        title="Improving the Gaussian Mechanism for Differential Privacy",
        authors="Balle, Borja and Wang, Yu-Xiang",
        year=2018,
        where="ICML 2018, arXiv 1805.06530",
        part="theorem 8",
    )

    def __post_init__(self) -> None:
        _positive("noise_std", self.noise_std)

    def cost(self, relation: Relation) -> Cost:
        """Noise relative to the L2 sensitivity, which is asked, not typed."""
        return Cost(
            event=GaussianEvent(self.noise_std / self.query.sensitivity(relation)),
            name=self.name,
            evidence=evidence_of(self.query),
            sources=(self.source,),
            assumptions=(REAL_ARITHMETIC, *self.query.assumptions()),
        )

    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        """The noisy answer."""
        return total(self.query, rows) + noise.normal(self.query.shape, self.noise_std)


@dataclass(frozen=True, kw_only=True)
class Laplace:
    """query(rows) + Laplace(scale) on each coordinate.

    **Guarantee**: (L1 sensitivity / scale, 0)-DP, under either relation.
    **Source**: Dwork, McSherry, Nissim and Smith 2006. Proof: docs/proofs/laplace.md.
    **Differs from the paper**: nothing.

    Attributes:
        query: the sum to release; it must have an L1 sensitivity.
        scale: scale b of the noise (standard deviation sqrt(2) b), in the unit of the answer.
        name: what ledger and guarantee call this release.
    """

    query: Query
    scale: float
    name: str = "laplace"
    source: ClassVar[Source] = Source(
        key="dwork2006calibrating",
        title="Calibrating Noise to Sensitivity in Private Data Analysis",
        authors="Dwork, Cynthia and McSherry, Frank and Nissim, Kobbi and Smith, Adam",
        year=2006,
        where="TCC 2006",
    )

    def __post_init__(self) -> None:
        _positive("scale", self.scale)

    def cost(self, relation: Relation) -> Cost:
        """Pure epsilon = L1 sensitivity / scale."""
        return Cost(
            event=PureEvent(self.query.sensitivity(relation, norm=1) / self.scale),
            name=self.name,
            evidence=evidence_of(self.query),
            sources=(self.source,),
            assumptions=(REAL_ARITHMETIC, *self.query.assumptions()),
        )

    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        """The noisy answer; a Laplace variate is the difference of two exponential ones."""
        n = math.prod(self.query.shape)
        difference = np.log(noise.uniform(n)) - np.log(noise.uniform(n))
        return total(self.query, rows) + self.scale * difference.reshape(self.query.shape)


@dataclass(frozen=True, kw_only=True)
class KNorm:
    """query(rows) + Z with density proportional to exp(-|z|_2 / scale): pure DP for L2-bounded answers.

    |Z| is Gamma(D, scale) and its direction is uniform, for an answer of D numbers.

    **Guarantee**: (L2 sensitivity / scale, 0)-DP, under either relation.
    **Source**: Hardt and Talwar 2010. Proof: docs/proofs/k-norm.md.
    **Differs from the paper**: the norm is the Euclidean one.

    Attributes:
        query: the sum to release.
        scale: scale of the noise; its norm is about D times this.
        name: what ledger and guarantee call this release.
    """

    query: Query
    scale: float
    name: str = "l2-k-norm"
    source: ClassVar[Source] = Source(
        key="hardt2010geometry",
        title="On the Geometry of Differential Privacy",
        authors="Hardt, Moritz and Talwar, Kunal",
        year=2010,
        where="STOC 2010, arXiv 0907.3754",
        part="K-norm mechanism",
    )

    def __post_init__(self) -> None:
        _positive("scale", self.scale)

    def cost(self, relation: Relation) -> Cost:
        """Pure epsilon = L2 sensitivity / scale."""
        return Cost(
            event=PureEvent(self.query.sensitivity(relation) / self.scale),
            name=self.name,
            evidence=evidence_of(self.query),
            sources=(self.source,),
            assumptions=(REAL_ARITHMETIC, *self.query.assumptions()),
        )

    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        """The noisy answer."""
        direction = noise.normal(self.query.shape)
        radius = self.scale * noise.gamma(direction.size, 1)[0]
        return total(self.query, rows) + direction * (radius / np.sqrt((direction**2).sum()))


@dataclass(frozen=True, kw_only=True)
class DiscreteGaussian:
    """Counts plus integer noise with mass proportional to exp(-z^2 / (2 sigma^2)), drawn exactly.

    **Guarantee**: under ADD_REMOVE one count moves by one: the exact privacy loss of the one-dimensional law; under
    REPLACE two counts move: (1/sigma^2)-zCDP. No floating-point assumption: counts and noise are integers.
    **Source**: Canonne, Kamath and Steinke 2020. Proof: docs/proofs/discrete-gaussian.md.
    **Differs from the paper**: nothing.

    Attributes:
        query: the histogram to release.
        sigma: parameter of the noise, close to its standard deviation, in records.
        name: what ledger and guarantee call this release.
    """

    query: Histogram
    sigma: float
    name: str = "discrete-gaussian"
    source: ClassVar[Source] = Source(
        key="canonne2020discrete",
        title="The Discrete Gaussian for Differential Privacy",
        authors="Canonne, Clement and Kamath, Gautam and Steinke, Thomas",
        year=2020,
        where="NeurIPS 2020, arXiv 2004.00010",
        part="theorems 4 and 7, algorithms 1 to 3",
    )

    def __post_init__(self) -> None:
        _positive("sigma", self.sigma)
        if type(self.query) is not Histogram:  # the price rests on a record moving one count by one
            raise PrivacyError(
                f"the query is a {type(self.query).__name__}; discrete Gaussian noise is priced for a Histogram only; "
                "use Gaussian noise"
            )

    def cost(self, relation: Relation) -> Cost:
        """One moving coordinate: its exact law; two: zero-concentrated DP."""
        if relation is Relation.ADD_REMOVE:
            event = DiscreteGaussianEvent(self.sigma, 1)
        else:
            event = ZeroConcentratedEvent(self.query.sensitivity(relation) ** 2 / (2 * self.sigma**2))
        return Cost(
            event=event,
            name=self.name,
            evidence=evidence_of(self.query),
            sources=(self.source,),
            assumptions=self.query.assumptions(),
        )

    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        """The noisy counts: integers, possibly negative, as float64."""
        counts = total(self.query, rows)
        variance = Fraction(self.sigma) ** 2  # exact: a float is a fraction
        # added as whole numbers: a float of the noise alone would be rounded before it meets the count
        return np.array([float(int(count) + _discrete_gaussian(variance, noise)) for count in counts])


# ---------------------------------------------------------------------------------------------------------------------
# Exact sampling with integers only


def _below(n: int, noise: NoiseSource) -> int:
    """Uniform on 0..n-1, by rejection."""
    words = (n.bit_length() + 63) // 64
    while True:
        value = 0
        for word in noise.bits(words):
            value = (value << 64) | int(word)
        value >>= 64 * words - n.bit_length()
        if value < n:
            return value


def _bernoulli(p: Fraction, noise: NoiseSource) -> bool:
    return _below(p.denominator, noise) < p.numerator


def _bernoulli_exp(x: Fraction, noise: NoiseSource) -> bool:
    """True with probability exp(-x), x >= 0."""
    while x > 1:
        if not _bernoulli_exp(Fraction(1), noise):
            return False
        x -= 1
    k = 1
    while _bernoulli(x / k, noise):
        k += 1
    return k % 2 == 1


def _discrete_laplace(t: int, noise: NoiseSource) -> int:
    """Integer z with probability proportional to exp(-|z|/t)."""
    while True:
        u = _below(t, noise)
        if not _bernoulli_exp(Fraction(u, t), noise):
            continue
        v = 0
        while _bernoulli_exp(Fraction(1), noise):
            v += 1
        magnitude = u + t * v
        negative = _below(2, noise) == 1
        if not (negative and magnitude == 0):
            return -magnitude if negative else magnitude


def _discrete_gaussian(variance: Fraction, noise: NoiseSource) -> int:
    """Integer z with probability proportional to exp(-z^2 / (2 variance))."""
    t = math.isqrt(math.floor(variance)) + 1
    while True:
        z = _discrete_laplace(t, noise)
        if _bernoulli_exp((abs(z) - variance / t) ** 2 / (2 * variance), noise):
            return z


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise PrivacyError(f"{name} is {value}; allowed is a finite number above 0; plan the mechanism with a budget")

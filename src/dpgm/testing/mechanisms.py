"""The contract of mechanisms."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import gammainc, ndtr

from dpgm.mechanisms.noise import DiscreteGaussian, KNorm, Laplace
from dpgm.mechanisms.queries import total
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Evidence, PrivacyError, Relation
from dpgm.privacy.mechanism import (
    Array,
    Cost,
    DiscreteGaussianEvent,
    GaussianEvent,
    Mechanism,
    NoiseSource,
    PureEvent,
    SeededNoise,
    ZeroConcentratedEvent,
)
from dpgm.schema import Rows
from dpgm.testing.queries import _check_frozen  # pyright: ignore[reportPrivateUsage]

Law: TypeAlias = Callable[[Array, float], Array]
"""(noise [calls, size], factor) -> numbers that are uniform on (0, 1) if the noise is `factor` times the stated one."""


def stated_law(mechanism: Any, relation: Relation) -> Law | None:
    """The law of the noise as the *price* states it: from the event and the sensitivity that the query answers.

    Known are Gaussian events, the Laplace and K-norm mechanisms and the discrete Gaussian; None for all others.
    """
    event, query = mechanism.cost(relation).event, getattr(mechanism, "query", None)
    if query is None:
        return None
    match event:
        case GaussianEvent(noise_multiplier=m):
            std = m * query.sensitivity(relation)
            return lambda z, factor: ndtr(z / (factor * std))
        case PureEvent(epsilon=e) if isinstance(mechanism, KNorm):
            unit = query.sensitivity(relation) / e
            return lambda z, factor: gammainc(z.shape[1], np.linalg.norm(z, axis=1) / (factor * unit))
        case PureEvent(epsilon=e) if isinstance(mechanism, Laplace):
            scale = query.sensitivity(relation, 1) / e
            return lambda z, factor: stats.laplace.cdf(z, scale=factor * scale)
        case DiscreteGaussianEvent(sigma=s, sensitivity=k):
            return _discrete(s / k)
        case ZeroConcentratedEvent(rho=rho) if isinstance(mechanism, DiscreteGaussian):
            return _discrete(query.sensitivity(relation) / math.sqrt(2 * rho))
        case _:
            return None


def check_mechanism(
    mechanism: Mechanism[Any],
    rows: Rows,
    *,
    exact: Callable[[Rows], Array] | None = None,
    law: Callable[[Relation], Law] | None = None,
    values: int = 6000,
    alarm: float = 1e-6,
) -> None:
    """Raise unless `mechanism` is a frozen value whose price is pure and whose noise is what the price says.

    The noise is the answer minus the exact answer, over many calls on `rows`, on its first row and on no rows. H0: it
    follows the stated law. The Kolmogorov-Smirnov test must accept the stated scale and reject 2/3 and 3/2 of it, so
    the check fails rather than pass without power (at 6,000 numbers of Gaussian noise the power is above 1 - 1e-9).

    Args:
        mechanism: what is checked.
        rows: a few records, made up.
        exact: the answer without noise; the total of `mechanism.query` by default.
        law: relation -> law of the noise, for mechanisms that `stated_law` does not know.
        values: how many numbers of noise are drawn.
        alarm: probability that a right mechanism fails here, for each relation.

    Raises:
        AssertionError: saying which part of the contract is broken.
    """
    _check_frozen(mechanism)
    prices = _prices(mechanism)
    if exact is None:
        query = getattr(mechanism, "query", None)
        assert query is not None, "the mechanism has no query; pass exact=, the answer without noise"
        exact = lambda r: total(query, r)  # noqa: E731
    noise = _noise(mechanism, rows, exact, values)
    _check_fresh(mechanism, rows, noise)
    for relation, price in prices.items():
        stated = law(relation) if law else stated_law(mechanism, relation)
        if stated is None:
            assert price.evidence < Evidence.PROVED, f"no law is known for {price.event}; pass law= to check it"
            continue
        found = {factor: _p_value(stated(noise, factor)) for factor in (2 / 3, 1.0, 3 / 2)}
        assert found[1.0] >= alarm, (
            f"under '{relation.value}' the noise is not what {price.event} says (p = {found[1.0]:.2g} < {alarm:g}; "
            f"its standard deviation is {noise.std():.6g})"
        )
        weak = [f"{factor:.2g}" for factor in found if factor != 1.0 and found[factor] >= alarm]
        assert not weak, f"the check cannot tell the noise from {weak} times it; raise values above {values}"
    assert prices == _prices(mechanism), "the price has changed after the calls"


def _prices(mechanism: Mechanism[Any]) -> dict[Relation, Cost]:
    found: dict[Relation, Cost] = {}
    for relation in Relation:
        try:
            cost = mechanism.cost(relation)
            epsilon = accountant.epsilon_of([(cost, 1)], delta=0.5, relation=relation)
        except PrivacyError:  # a mechanism may have no price under one of them
            continue
        assert mechanism.cost(relation) == cost, f"the price under '{relation.value}' changes when it is asked again"
        assert hash(cost) == hash(mechanism.cost(relation)), "equal prices must have equal hashes"
        assert Cost.from_json(json.loads(json.dumps(cost.to_json()))) == cost, f"the ledger cannot keep {cost}"
        assert cost.name, "the mechanism has no name"
        assert epsilon >= 0, f"the price {cost.event} is an epsilon of {epsilon}"
        found[relation] = cost
    assert found, "the mechanism has a price under no relation"
    return found


class _Counted(NoiseSource):
    """The system's noise, counting how much is taken."""

    def __init__(self) -> None:
        self.words = 0

    def bits(self, n: int) -> NDArray[np.uint64]:
        self.words += n
        return super().bits(n)


def _noise(mechanism: Mechanism[Any], rows: Rows, exact: Callable[[Rows], Array], values: int) -> Array:
    """Noise of many calls, [calls, size]."""
    out: list[Array] = []
    size = exact(rows.take(slice(0, 0))).size
    if isinstance(mechanism, KNorm):
        size = 1  # one number a call is tested: the norm
    for some in (rows, rows.take(slice(0, 1)), rows.take(slice(0, 0))):
        truth, source = exact(some), _Counted()
        for _ in range(max(2, math.ceil(values / size / 3))):
            before = source.words
            answer = np.asarray(mechanism(some, source))
            assert source.words >= before + 1, "a call takes no noise from the source that it is given"
            assert answer.shape == truth.shape, f"an answer has shape {answer.shape}, the exact one {truth.shape}"
            assert np.isfinite(answer).all(), "an answer is not finite"
            out.append((answer - truth).ravel())
    return np.array(out)


def _check_fresh(mechanism: Mechanism[Any], rows: Rows, noise: Array) -> None:
    whole = bool((noise == np.round(noise)).all())
    if whole:  # integers repeat; whole answers should not
        head = noise[: max(2, 64 // noise.shape[1])]
        assert len(np.unique(np.abs(head), axis=0)) > 1, "every call has the same noise"
    else:
        # Differences of floats: noise that is drawn once and used again agrees to the last digits.
        kept = np.round(np.abs(noise.ravel()) / noise.std(), 9)
        repeated = 1 - len(np.unique(kept)) / len(kept)
        assert repeated < 0.01, f"{repeated:.0%} of the noise was seen before: it is drawn once and used again"
    twice = [np.asarray(mechanism(rows, SeededNoise(7))) for _ in range(2)]
    assert np.allclose(twice[0], twice[1]), "there is randomness that does not come from the noise source"


def _discrete(sigma: float) -> Law:
    """The discrete Gaussian, made continuous by a uniform share of each step."""

    def uniform(z: Array, factor: float) -> Array:
        reach = math.ceil(12 * sigma * factor + np.abs(z).max()) + 2
        steps = np.arange(-reach, reach + 1)
        mass = np.exp(-(steps**2) / (2 * (sigma * factor) ** 2))
        below = np.concatenate([[0.0], np.cumsum(mass / mass.sum())])
        index = z.astype(np.int64) + reach
        assert np.array_equal(index - reach, z), "the noise is not whole"
        return below[index] + NoiseSource().uniform(z.size).reshape(z.shape) * (below[index + 1] - below[index])

    return uniform


def _p_value(uniform: Array) -> float:
    return float(stats.kstest(np.clip(uniform.ravel(), 0, 1), "uniform").pvalue)

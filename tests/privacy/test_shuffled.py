"""Shuffled noisy records: bounds, the mechanism, calibration, and the twins that must be caught."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from dpgm.mechanisms.projection import ShuffledRecords
from dpgm.methods.slicing import Slicing
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, PrivacyError, Relation
from dpgm.privacy.mechanism import Cost, GaussianEvent, NoiseSource, ShuffledGaussianEvent
from dpgm.privacy.shuffled import counts_delta, shuffled_delta
from dpgm.schema import Column, Rows, TableSchema

REPLACE = Relation.REPLACE


def x_of(rows: Rows) -> NDArray[Any]:
    return rows["x"]


def curve(mu: float) -> Any:
    return partial(accountant.gaussian_delta, mu)


def epsilon(*events: Any, delta: float = 1e-6) -> float:
    costs = [(Cost(event=e, name="m"), 1) for e in events]
    return accountant.epsilon_of(costs, delta=delta, relation=REPLACE)


# --- the two counts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "e0", "eps"), [(2, 0.5, 0.3), (7, 1.0, 0.7), (12, 0.3, 0.0)])
def test_counts_are_summed_as_they_are_defined(n: int, e0: float, eps: float) -> None:
    p, total = math.exp(-e0), 0.0
    for c in range(n):
        for r in range(c + 2):  # draws from the first law; s = c + 1 - r from the second
            first = binom.pmf(c, n - 1, p) * binom.pmf(r - 1, c, 0.5)
            second = binom.pmf(c, n - 1, p) * binom.pmf(r, c, 0.5)
            total += max(first - math.exp(eps) * second, 0.0)
    assert counts_delta(e0, n, eps) == pytest.approx(total, rel=1e-9)


# --- an attack that knows everything but the record and the order ----------------------------------------------------


def attacked(mu: float, n: int, eps: float, other: float, trials: int = 40_000) -> tuple[float, float]:
    """delta of the best test of a shuffled release of one record at +-mu/2 and n - 1 at `other`, with its error."""
    rng = np.random.default_rng(0)
    gain = np.empty(trials)
    for start in range(0, trials, 4000):
        z = rng.normal(size=(4000, n)) + other
        z[:, 0] += mu / 2 - other
        shift = z - other
        plus, minus = (np.exp(v * shift - v * v / 2).sum(1) for v in (mu / 2 - other, -mu / 2 - other))
        gain[start : start + 4000] = np.maximum(1 - math.exp(eps) * minus / plus, 0.0)
    return float(gain.mean()), float(gain.std() / math.sqrt(trials))


@pytest.mark.parametrize("other", [0.5, 0.0, -0.5])
@pytest.mark.parametrize(("mu", "eps"), [(1.0, 0.2), (1.0, 0.5), (0.5, 0.1)])
def test_no_attack_beats_the_bound(mu: float, eps: float, other: float) -> None:
    found, error = attacked(mu, 200, eps, other * mu)
    assert found < shuffled_delta(curve(mu), 200, eps) + 5 * error
    assert shuffled_delta(curve(mu), 200, eps) < accountant.gaussian_delta(mu, eps)


def test_twin_that_takes_clones_for_certain_is_caught() -> None:
    mu, n, eps = 4.0, 200, 1.0
    found, error = attacked(mu, n, eps, 0.0)
    assert counts_delta(0.25, n, eps) < found - 5 * error  # without the tails of the local law
    assert shuffled_delta(curve(mu), n, eps) > found


# --- the price -------------------------------------------------------------------------------------------------------


def test_more_records_hide_more_and_never_less_than_none() -> None:
    values = [epsilon(ShuffledGaussianEvent(1.25, n)) for n in (1, 10, 1000, 30_000, 1_000_000)]
    assert values == sorted(values, reverse=True)
    assert values[0] == values[1] == pytest.approx(epsilon(GaussianEvent(1.25)))
    assert values[3] == pytest.approx(0.58, abs=0.03)
    assert values[-1] < 0.15


def test_beside_other_events_it_is_priced_as_if_it_was_not_shuffled() -> None:
    both = epsilon(ShuffledGaussianEvent(5.0, 10_000), GaussianEvent(5.0))
    assert both <= epsilon(GaussianEvent(5.0 / math.sqrt(2))) * (1 + 1e-9)
    with pytest.raises(PrivacyError, match="number"):
        accountant.epsilon_of(
            [(Cost(event=ShuffledGaussianEvent(5.0, 9), name="m"), 1)], delta=1e-6, relation=Relation.ADD_REMOVE
        )


@pytest.mark.parametrize("eps", [0.2, 1.0, 5.0])
def test_calibration_meets_the_budget(eps: float) -> None:
    budget = Budget(epsilon=eps, delta=1e-6)
    mu = accountant.shuffled_mu(budget, 32_000)
    assert mu >= accountant.gaussian_mu(budget)
    assert 0.35 * eps < epsilon(ShuffledGaussianEvent(1 / mu, 32_000)) <= eps
    if eps <= 1:
        assert mu > 3 * accountant.gaussian_mu(budget)


# --- the mechanism ---------------------------------------------------------------------------------------------------

MECHANISM = ShuffledRecords(vectors=x_of, dim=2, noise_std=1e-3, records=50)


def check_order_is_random(mechanism: Any) -> None:
    x = np.linspace(-0.6, 0.6, 50)[:, None] * np.ones((1, 2))
    places = [int(np.argmax(mechanism(Rows(x=x), NoiseSource())["values"][:, 0])) for _ in range(40)]
    assert len(set(places)) > 10, "rows lie where their records lay"  # by chance below 1e-9


def test_rows_come_in_random_order_and_a_twin_that_keeps_it_is_caught() -> None:
    class InOrder(ShuffledRecords):
        def __call__(self, rows: Rows, noise: NoiseSource) -> dict[str, Any]:
            return {"values": rows["x"] + noise.normal((len(rows), 2), self.noise_std)}

    check_order_is_random(MECHANISM)
    with pytest.raises(AssertionError, match="lay"):
        check_order_is_random(InOrder(vectors=x_of, dim=2, noise_std=1e-3, records=50))


def test_fewer_records_than_declared_are_refused_and_a_twin_is_cheaper_than_it_may_be() -> None:
    with pytest.raises(PrivacyError, match="fewer"):
        MECHANISM(Rows(x=np.zeros((49, 2))), NoiseSource())
    claimed = replace(MECHANISM, noise_std=2.5, records=100_000).cost(REPLACE).event
    true = replace(MECHANISM, noise_std=2.5, records=50).cost(REPLACE).event
    assert epsilon(claimed) < 0.2 * epsilon(true)


def test_the_method_plans_it_and_needs_a_declared_size() -> None:
    schema: Any = TableSchema(columns=(Column(name="a", kind="boolean"), Column(name="b", kind="boolean")), size=20_000)
    budget = Budget(epsilon=1.0, delta=1e-6)
    method = Slicing(mode="full-rank", shuffled=True)
    plan = method.plan(schema, relation=REPLACE, budget=budget)
    plain = Slicing(mode="full-rank").plan(schema, relation=REPLACE, budget=budget)
    assert plan.guarantee().epsilon <= 1.0
    assert float(plan.details["noise_std"]) < 0.4 * float(plain.details["noise_std"])
    with pytest.raises(PrivacyError, match="size"):
        method.plan(replace(schema, size=None), relation=REPLACE, budget=budget)
    with pytest.raises(PrivacyError, match="number of records"):
        method.plan(schema, relation=Relation.ADD_REMOVE, budget=budget)
    with pytest.raises(PrivacyError, match="full-rank"):
        Slicing(mode="paper", shuffled=True)

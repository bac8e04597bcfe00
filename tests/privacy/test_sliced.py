"""Sliced Gaussian events: exact numbers, Monte Carlo, the published theorem from below, composition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpgm.privacy import accountant
from dpgm.privacy.guarantee import PrivacyError, Relation
from dpgm.privacy.mechanism import Cost, GaussianEvent, SlicedGaussianEvent, ZeroConcentratedEvent
from dpgm.privacy.sliced import sliced_delta, sliced_epsilon, sliced_multiplier


def costs(*events, count=1):
    return [(Cost(event=e, name="x"), count) for e in events]


@pytest.mark.parametrize(
    ("s", "slices", "epsilon"),
    [(14, 200, 4.541), (34, 1000, 4.046), (5, 20, 4.635), (10, 50, 3.189), (10, 3, 1.005)],
)
def test_epsilon_at_delta_1e_5(s, slices, epsilon):
    cost = costs(SlicedGaussianEvent(s, slices))
    assert accountant.epsilon_of(cost, delta=1e-5, relation=Relation.REPLACE) == pytest.approx(epsilon, abs=6e-4)


@pytest.mark.parametrize(
    ("s_over_c", "slices", "epsilon", "delta"),
    [(4.0, 8, 1, 0.04363), (2.0, 8, 3, 0.04697), (6.4, 32, 2, 0.01101), (9.8, 200, 5, 1.116e-3)],
)
def test_delta_to_four_digits(s_over_c, slices, epsilon, delta):
    assert sliced_delta(s_over_c, slices, epsilon) == pytest.approx(delta, rel=5e-4)


@pytest.mark.parametrize(("multiplier", "slices", "epsilon"), [(4.0, 8, 1.0), (6.4, 32, 2.0), (2.0, 8, 3.0)])
def test_monte_carlo_of_the_mixture_agrees(multiplier, slices, epsilon):
    """mu from real projections of a shift, the loss from real noise: nothing of the quadrature is used."""
    rng, d, n = np.random.default_rng(0), 16, 40_000
    shift = np.zeros(d)
    shift[0] = 1.0
    directions = rng.normal(size=(n, d, slices))
    moved = np.einsum("d,nds->ns", shift, directions)
    released = moved + rng.normal(size=(n, slices)) * multiplier
    loss = (released**2 - (released - moved) ** 2).sum(1) / (2 * multiplier**2)
    gain = np.maximum(0, -np.expm1(epsilon - loss))
    assert gain.mean() == pytest.approx(sliced_delta(multiplier, slices, epsilon), abs=5 * gain.std() / math.sqrt(n))


def theorem_1(s: float, slices: int, delta: float) -> float:
    """The published bound, best order: slices alpha/(2 (s^2 - (alpha^2 - alpha))) + ln(1/delta)/(alpha - 1)."""
    alpha = 1 + np.geomspace(1e-3, s, 4000)
    gamma = alpha**2 - alpha
    alpha, gamma = alpha[gamma < s**2], gamma[gamma < s**2]
    return float((slices * alpha / (2 * (s**2 - gamma)) + math.log(1 / delta) / (alpha - 1)).min())


@pytest.mark.parametrize("s", [4.0, 14.0, 60.0])
@pytest.mark.parametrize("slices", [3, 50, 400])
def test_never_above_the_published_theorem_nor_below_its_mean_direction(s, slices):
    exact = sliced_epsilon(s, slices, 1e-5)
    assert exact <= theorem_1(s, slices, 1e-5)
    assert exact >= accountant.gaussian_epsilon(math.sqrt(slices) / s, 1e-5) * (1 - 1e-3)  # fixed tight frame


def test_upper_bound_falls_with_resolution():
    values = [sliced_delta(6.4, 32, 2.0, cells=c) for c in (100, 1000, 10_000, 100_000)]
    assert values == sorted(values, reverse=True)


def test_double_shift_is_half_the_multiplier():
    assert SlicedGaussianEvent(14 / 2, 200) == SlicedGaussianEvent(7.0, 200)
    assert sliced_epsilon(7.0, 200, 1e-5) > 2 * sliced_epsilon(14.0, 200, 1e-5)


def test_composition_by_privacy_loss_distributions():
    event = SlicedGaussianEvent(14.0, 200)
    alone = accountant.pld_epsilon([(event, 1)], 1e-5)
    assert 4.5406 <= alone <= 4.546
    both = accountant.epsilon_of(costs(event, GaussianEvent(1.0)), delta=1e-5, relation=Relation.REPLACE)
    mean_mu = math.hypot(math.sqrt(200) / 14, 1.0)
    assert accountant.gaussian_epsilon(mean_mu, 1e-5) < both < accountant.gaussian_epsilon(mean_mu, 1e-5) * 1.03


def test_composition_bounds_the_exact_curve_from_above():
    """Two releases share no directions, so mu^2 adds: W ~ chi^2 of twice as many directions, exactly."""
    event = SlicedGaussianEvent(10.0, 25)
    exact = sliced_epsilon(10.0, 50, 1e-5)
    composed = accountant.epsilon_of(costs(event, count=2), delta=1e-5, relation=Relation.REPLACE)
    assert exact <= composed <= exact * 1.01


def test_calibration_meets_the_budget():
    for epsilon, slices, s in [(1, 50, 27.9), (5.1, 200, 12.7), (10, 1000, 15.9)]:
        found = sliced_multiplier(epsilon, 1e-5, slices)
        assert found == pytest.approx(s, rel=5e-3)
        assert epsilon * (1 - 2e-4) <= sliced_epsilon(found, slices, 1e-5) <= epsilon


def test_refusals():
    with pytest.raises(PrivacyError, match="slices"):
        SlicedGaussianEvent(1.0, 0)
    with pytest.raises(PrivacyError, match="Renyi"):
        accountant.epsilon_of(
            costs(SlicedGaussianEvent(5.0, 9), ZeroConcentratedEvent(0.1)), delta=1e-5, relation=Relation.REPLACE
        )
    with pytest.raises(PrivacyError, match="not pure"):
        accountant.epsilon_of(costs(SlicedGaussianEvent(5.0, 9)), delta=0.0, relation=Relation.REPLACE)


def test_events_survive_the_ledger():
    cost = Cost(event=SlicedGaussianEvent(5, 9), name="x")
    assert Cost.from_json(cost.to_json()) == cost

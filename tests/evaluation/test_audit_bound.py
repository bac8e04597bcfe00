"""Lower bounds on epsilon: false alarms, power, and the arithmetic at the ends."""

import numpy as np
import pytest
from scipy import stats

from dpgm.evaluation.audit import clopper_pearson, epsilon_bound, examine
from dpgm.evaluation.audit.bound import ceiling
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import PrivacyError

# H0 everywhere: the claim holds. 1e-6 is the false-alarm rate of each bound; power is at least 1 - 1e-6 unless said.
SURE = 1 - 1e-6


def test_clopper_pearson_is_that_of_the_beta_law_and_covers():
    low, high = clopper_pearson([0, 3, 50, 100], 100, 0.01)
    assert (low[0], high[3]) == (0.0, 1.0)
    assert np.allclose(low[1:], [stats.beta.ppf(0.01, k, 101 - k) for k in (3, 50, 100)])
    assert np.allclose(high[:3], [stats.beta.ppf(0.99, k + 1, 100 - k) for k in (0, 3, 50)])
    k = np.arange(201)
    low, high = clopper_pearson(k, 200, 0.01)
    for p in (0.001, 0.02, 0.5, 0.9):  # exact probability of missing, by the binomial law
        mass = stats.binom.pmf(k, 200, p)
        assert mass[low > p].sum() <= 0.01
        assert mass[high < p].sum() <= 0.01


def test_epsilon_bound_is_the_smallest_that_fits():
    assert np.isclose(epsilon_bound(0.5, 0.1, 0.0), np.log(5))
    assert np.isclose(epsilon_bound(0.5, 0.1, 0.2), np.log(3))
    assert epsilon_bound(0.1, 0.5, 0.0) == epsilon_bound(0.0, 0.5, 0.1) == 0


def test_perfect_attack_reaches_the_ceiling_and_not_more():
    a, b = np.ones(1000), np.zeros(1000)
    stated, best, held = examine(a, b, claim=lambda _: 1.0, delta=1e-5, confidence=0.999)
    assert held == 500
    assert stated.found == pytest.approx(ceiling(500, 1e-5, 0.999))
    assert stated.beaten
    assert best == stated  # one claim at every delta is weakest where the bound is largest, at the smallest
    assert 3.9 < stated.found < 4.2  # ln(500 / ln(4000)) = 4.1
    stated, best, _ = examine(a, b, claim=lambda d: 9.0 if d < 0.01 else 1.0, delta=1e-5, confidence=0.999)
    assert (stated.delta, stated.claimed, stated.beaten) == (1e-5, 9.0, False)
    assert (best.delta, best.claimed, best.beaten) == (0.01, 1.0, True)
    assert best.found == pytest.approx(ceiling(500, 0.01, 0.999))
    assert stated.found == pytest.approx(ceiling(500, 1e-5, 0.999))


def test_equal_sides_give_nothing():
    scores = np.random.default_rng(0).normal(size=1000)
    for a in (scores, np.zeros(1000)):
        stated, best, _ = examine(a, a, claim=lambda _: 0.0, delta=0.0, confidence=SURE)
        assert stated.found == best.found == 0


@pytest.mark.parametrize("mu", [0.1, 0.5, 2.0])
def test_gaussian_claims_stand_and_those_of_less_noise_fall(mu):
    """20,000 runs a side; the twin has half of the noise (for mu = 0.1: a quarter)."""
    rng, n = np.random.default_rng(), 40_000
    z = rng.normal(size=(2, n))

    def run(shift):
        return examine(
            z[0] + shift,
            z[1],
            claim=lambda d: accountant.gaussian_epsilon(mu, d),
            delta=1e-5,
            confidence=SURE,
        )

    assert not any(b.beaten for b in run(mu)[:2])
    assert any(b.beaten for b in run(mu * (4 if mu == 0.1 else 2))[:2])


def test_larger_deltas_add_power():
    """At delta 1e-5 alone this twin (0.7 of the noise, epsilon 1) needs a thousand times as many runs."""
    mu, n = 0.268, 400_000
    z = np.random.default_rng().normal(size=(2, n))
    stated, best, _ = examine(
        z[0] + mu / 0.7, z[1], claim=lambda d: accountant.gaussian_epsilon(mu, d), delta=1e-5, confidence=SURE
    )
    assert best.beaten
    assert best.delta > 1e-3
    assert not stated.beaten


def test_fixed_threshold_uses_all_runs():
    a, b = np.ones(100), -np.ones(100)
    stated, best, held = examine(a, b, claim=lambda _: 0.2, delta=0.0, confidence=0.999, threshold=0.0)
    assert held == 100
    assert stated == best
    assert stated.beaten
    assert not examine(b, a, claim=lambda _: 0.2, delta=0.0, confidence=0.999, threshold=0.0)[0].beaten


def test_too_few_runs_are_refused():
    with pytest.raises(PrivacyError, match="2 or more"):
        examine(np.ones(1), np.zeros(1), claim=lambda _: 1.0, delta=0.0, confidence=0.999)
    with pytest.raises(PrivacyError, match="says nothing at delta"):
        examine(np.ones(4), np.zeros(4), claim=lambda d: accountant.gaussian_epsilon(1.0, d), delta=0.0, confidence=0.9)

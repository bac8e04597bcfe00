"""Bounds from guesses about one run: against linear programs, an independent sum, and simulated mechanisms."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.special import comb
from scipy.stats import binom

from dpgm.evaluation.audit.one_run import crumb, guess, guess_bound, guess_ceiling, guess_pairs, p_value
from dpgm.privacy.guarantee import PrivacyError


def best_attack(m: int, v: int, epsilon: float, delta: float) -> float:
    """The largest probability of v or more right guesses about m coins that any (epsilon, delta) mechanism allows.

    A linear program over the laws of the guesses for each of the 2^m ways the coins can fall, with one inequality for
    each pair of neighbours and each event.
    """
    falls = list(itertools.product((0, 1), repeat=m))
    n = len(falls)
    right = np.array([[sum(a == b for a, b in zip(s, t, strict=True)) >= v for t in falls] for s in falls], float)
    events = [np.array(e, float) for e in itertools.product((0, 1), repeat=n)]
    rows: list[Any] = []
    for i, j in itertools.permutations(range(n), 2):
        if sum(a != b for a, b in zip(falls[i], falls[j], strict=True)) == 1:
            for event in events:
                row = np.zeros((n, n))
                row[i], row[j] = event, -math.exp(epsilon) * event
                rows.append(row.ravel())
    whole = np.kron(np.eye(n), np.ones(n))
    found = linprog(
        -right.ravel() / n, A_ub=np.array(rows), b_ub=np.full(len(rows), delta), A_eq=whole, b_eq=np.ones(n)
    )
    assert found.success
    return -found.fun


@pytest.mark.parametrize("epsilon", [0.0, 0.7, 2.0])
def test_no_mechanism_on_two_coins_does_better_and_a_pure_one_does_as_well(epsilon: float):
    for v in (1, 2):
        assert best_attack(2, v, epsilon, 0.0) == pytest.approx(p_value(v, 2, 2, epsilon=epsilon), abs=1e-7)
        for delta in (0.01, 0.1):
            exact = best_attack(2, v, epsilon, delta)
            bound = p_value(v, 2, 2, epsilon=epsilon, delta=delta)
            assert p_value(v, 2, 2, epsilon=epsilon) < exact + 1e-9
            assert exact <= bound + 1e-7


def test_no_mechanism_on_three_coins_does_better():
    for v, delta in itertools.product((1, 2, 3), (0.0, 0.05)):
        exact, bound = best_attack(3, v, 1.0, delta), p_value(v, 3, 3, epsilon=1.0, delta=delta)
        assert exact <= bound + 1e-7
        if delta == 0:
            assert exact == pytest.approx(bound, abs=1e-7)


def test_mechanisms_that_spend_their_delta_stay_below():
    """Randomised response that shows everything with probability delta, or each coin with that probability."""
    for m, epsilon, delta in itertools.product((5, 40), (0.0, 1.0, 3.0), (1e-4, 0.01)):
        q = 1 / (1 + math.exp(-epsilon))
        for v in range(m // 2, m + 1):
            bound = p_value(v, m, m, epsilon=epsilon, delta=delta)
            for at_once, each in ((delta, q), (0.0, delta + (1 - delta) * q)):
                tail = sum(comb(m, k) * each**k * (1 - each) ** (m - k) for k in range(v, m + 1))
                assert at_once + (1 - at_once) * tail <= bound + 1e-12


def test_p_value_is_a_sum_of_binomial_terms():
    m, r, v, epsilon, delta = 50, 20, 17, 0.8, 1e-3
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    tail = sum(math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(v, r + 1))
    assert p_value(v, r, m, epsilon=epsilon, delta=delta) == pytest.approx(tail + m * delta * (1 - q))
    assert p_value(0, r, m, epsilon=epsilon, delta=delta) == 1


def test_the_papers_own_term_in_delta_does_not_cover_every_number_of_guesses():
    """Two coins, one right guess: the linear program is above P[W >= v] + 2 m delta max_i P[v > W >= v - i] / i."""
    epsilon, delta = 2.0, 0.01
    q = 1 / (1 + math.exp(-epsilon))
    papers = 1 - (1 - q) ** 2 + 4 * delta * (1 - q) ** 2
    assert papers + 5e-4 < best_attack(2, 1, epsilon, delta) <= p_value(1, 2, 2, epsilon=epsilon, delta=delta)


def test_bound_inverts_the_p_value():
    # All of m guesses right: (e^eps / (1 + e^eps))^m = alarm.
    share = 0.05 ** (1 / 100)
    assert guess_bound(100, 100, 100, delta=0.0, alarm=0.05) == pytest.approx(math.log(share / (1 - share)))
    found = guess_bound(90, 100, 1000, delta=1e-6, alarm=0.001)
    assert p_value(90, 100, 1000, epsilon=found - 1e-6, delta=1e-6) <= 0.001
    assert p_value(90, 100, 1000, epsilon=found + 1e-6, delta=1e-6) > 0.001
    assert guess_bound(50, 100, 100, delta=0.0, alarm=0.01) == 0
    assert guess_ceiling(1000, delta=0.0, confidence=0.95) > guess_ceiling(100, delta=0.0, confidence=0.95) > 2
    assert crumb(1e-5, 500, 0.001) == pytest.approx(1e-8)
    assert crumb(0.0, 500, 0.001) == 0


def test_bound_is_the_largest_epsilon_that_is_ruled_out():
    """Beside a fine grid, with slacks whose part alone is above the alarm at epsilon 0."""
    grid, above_a_gap = np.arange(0, 8, 0.01), 0
    for right, made, delta in itertools.product((60, 95, 100, 300, 330, 345, 350), (100, 350), (0.0, 1e-6, 1e-5, 2e-4)):
        if right > made:
            continue
        found = guess_bound(right, made, 500, delta=delta, alarm=0.001)
        ruled = [e for e in grid if p_value(right, made, 500, epsilon=e, delta=delta) <= 0.001]
        assert (found == 0) == (not ruled)
        if ruled:
            assert 0 <= found - ruled[-1] <= 0.01
            assert p_value(right, made, 500, epsilon=max(0.0, found - 1e-9), delta=delta) <= 0.001
            above_a_gap += ruled[0] > 0
    assert above_a_gap >= 5


@pytest.mark.parametrize("delta", [0.0, 1e-7, 1e-5, 5e-5])
def test_no_more_than_the_alarm_is_above_the_epsilon_of_randomised_response(delta: float):
    """Exact, by the binomial law. H0: each of 500 answers is right with e^eps / (1 + e^eps), all of them with delta.

    The largest delta takes more than the alarm at epsilon 0, and less than it from about 0.4 on.
    """
    coins, alarm, v = 500, 0.01, np.arange(501)
    found = np.array([guess_bound(k, coins, coins, delta=delta, alarm=alarm) for k in range(coins + 1)])
    assert (np.diff(found) >= 0).all()  # so that "above epsilon" is "so many right, or more"
    assert found[-1] > 4.6
    for epsilon in (0.0, 0.5, 1.0, 2.0, 3.0, 4.0):
        law = (1 - delta) * binom.pmf(v, coins, 1 / (1 + math.exp(-epsilon))) + delta * (v == coins)
        false = law[found > epsilon].sum()
        assert false <= alarm
        if delta < 5e-5:
            assert false >= alarm / 2  # and the alarm is used
        twin = binom.pmf(v, coins, 1 / (1 + math.exp(-epsilon - 2)))
        assert twin[found > epsilon].sum() > 0.85


def test_randomised_response_is_rarely_called_more_than_it_is_and_its_broken_twin_is():
    """H0: epsilon 1. 200 runs at alarm 0.1 give at most 43 false alarms but once in a million; the twin's is 2."""
    rng, false, caught = np.random.default_rng(), 0, 0
    for _ in range(200):
        coins = rng.random(300) < 0.5
        flip = rng.random(300)
        for epsilon in (1.0, 2.0):
            said = np.where(flip < 1 / (1 + math.exp(-epsilon)), coins, ~coins)
            found = guess(said + 1e-3 * rng.random(300), coins, delta=0.0, confidence=0.9).found
            false += epsilon == 1 and found > 1
            caught += epsilon == 2 and found > 1
    assert false <= 43
    assert caught >= 190


def test_abstaining_shows_more_where_few_are_sure():
    rng = np.random.default_rng()
    coins = rng.random(1000) < 0.5
    scores = rng.normal(size=1000)
    sure = rng.choice(1000, 100, replace=False)
    scores[sure] = np.where(coins[sure], 9.0, -9.0)
    found = guess(scores, coins, delta=0.0, confidence=0.999)
    assert found.made in (50, 100)  # coins decide how many of the sure ones lie at either end
    assert guess(scores, coins, delta=0.0, confidence=0.999, shares=(1.0,)).found < 0.6 < 0.9 < found.found


def test_pairs_are_guessed_by_their_gap():
    rng = np.random.default_rng()
    assert guess_pairs(np.abs(rng.normal(size=200)) + 0.1, delta=0.0, confidence=0.999).found > 2
    assert guess_pairs(np.zeros(200), delta=0.0, confidence=0.999).found == 0
    fair = [guess_pairs(rng.normal(size=200), delta=0.0, confidence=0.99).found for _ in range(100)]
    assert sum(f > 0 for f in fair) <= 12  # 1 is expected, at most


def test_numbers_that_are_no_counts_are_refused():
    for bad in ((3, 2, 5), (1, 6, 5)):
        with pytest.raises(PrivacyError, match="right <= made"):
            p_value(*bad, epsilon=1.0)
    with pytest.raises(PrivacyError, match="scores for 3 coins"):
        guess(np.zeros(2), np.zeros(3, bool), delta=0.0, confidence=0.9)
    with pytest.raises(PrivacyError, match="2 or more"):
        guess_pairs(np.zeros(1), delta=0.0, confidence=0.9)

"""The accountant: golden values, the order of its engines, composition, refusals and calibration."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, BudgetExceeded, PrivacyError, Relation
from dpgm.privacy.mechanism import (
    BoundedRangeEvent,
    ClaimEvent,
    Cost,
    DiscreteGaussianEvent,
    Event,
    GaussianEvent,
    PoissonGaussianEvent,
    PureEvent,
    ZeroConcentratedEvent,
)

ADD, REPLACE = Relation.ADD_REMOVE, Relation.REPLACE
GOLDEN: dict[str, list[dict[str, Any]]] = tomllib.loads(
    (Path(__file__).parents[1] / "golden/accounting.toml").read_text("utf-8")
)


def cost(event: Event, name: str = "m") -> Cost:
    return Cost(event=event, name=name)


def epsilon(*events: tuple[Event, int] | Event, delta: float = 1e-5, relation: Relation = ADD) -> float:
    pairs = [e if isinstance(e, tuple) else (e, 1) for e in events]
    return accountant.epsilon_of([(cost(e), k) for e, k in pairs], delta=delta, relation=relation)


# --- golden values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", GOLDEN["multiplier"])
def test_noise_for_a_budget(case: dict[str, Any]) -> None:
    for eps, value in zip(case["epsilon"], case["value"], strict=True):
        budget = Budget(epsilon=eps, delta=case["delta"])
        assert 1 / accountant.gaussian_mu(budget) == pytest.approx(value, rel=case["relative"])
        found = accountant.calibrate(lambda s: [(cost(GaussianEvent(s)), 1)], budget, relation=ADD)
        assert found == pytest.approx(value, rel=3e-4)


@pytest.mark.parametrize("case", GOLDEN["gaussian"])
@pytest.mark.parametrize("relation", Relation)
def test_epsilon_of_a_gaussian_release_under_either_relation(case: dict[str, Any], relation: Relation) -> None:
    for sensitivity, value in zip(case["sensitivity"], case["value"], strict=True):
        event = GaussianEvent(case["noise_std"] / sensitivity)
        assert epsilon(event, delta=case["delta"], relation=relation) == pytest.approx(value, rel=case["relative"])


@pytest.mark.parametrize("case", GOLDEN["gdp"])
def test_gaussian_dp(case: dict[str, Any]) -> None:
    assert accountant.gaussian_epsilon(case["mu"], case["delta"]) == pytest.approx(case["value"], rel=case["relative"])


@pytest.mark.parametrize("case", GOLDEN["sampled"])
def test_sampled_gradients(case: dict[str, Any]) -> None:
    event = PoissonGaussianEvent(case["rate"], case["noise_multiplier"])
    assert epsilon((event, case["steps"]), delta=case["delta"]) == pytest.approx(case["pld"], rel=case["relative"])
    if "rdp" in case:
        found = accountant.rdp_epsilon([(event, case["steps"])], case["delta"])
        assert found == pytest.approx(case["rdp"], rel=case["relative"])


# --- closed forms -----------------------------------------------------------------------------------------------------


@given(st.floats(0.01, 20), st.floats(0, 30))
def test_delta_is_what_its_formula_says(mu: float, eps: float) -> None:
    direct = norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu)
    assert accountant.gaussian_delta(mu, eps) == pytest.approx(direct, rel=1e-6, abs=1e-13)


@given(st.floats(1e-4, 100), st.floats(1e-12, 0.5))
def test_epsilon_inverts_delta_from_above(mu: float, delta: float) -> None:
    eps = accountant.gaussian_epsilon(mu, delta)
    assert accountant.gaussian_delta(mu, eps) <= delta * (1 + 1e-6)
    if eps > 1e-6:
        assert accountant.gaussian_delta(mu, eps * (1 - 1e-6)) > delta * (1 - 1e-9)


@given(st.floats(1e-3, 100), st.floats(1e-12, 0.1))
@example(1e-3, 0.5)
@example(300.0, 1e-100)
def test_mu_inverts_epsilon_from_below(eps: float, delta: float) -> None:
    mu = accountant.gaussian_mu(Budget(epsilon=eps, delta=delta))
    assert accountant.gaussian_delta(mu, eps) <= delta * (1 + 1e-6)
    assert accountant.gaussian_epsilon(mu, delta) <= eps  # what is reported never exceeds what was asked


def test_next_to_no_noise_is_an_infinite_epsilon_not_an_endless_loop() -> None:
    assert epsilon(GaussianEvent(1e-200)) == math.inf
    assert accountant.gaussian_delta(1e300, 1.0) == 1.0
    assert epsilon(GaussianEvent(1e200)) == 0.0


# --- engines and composition ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multiplier", [0.7, 2.0, 8.0])
@pytest.mark.parametrize("count", [1, 20])
def test_engines_are_ordered(multiplier: float, count: int) -> None:
    events = [(GaussianEvent(multiplier), count)]
    exact = epsilon(events[0])
    pld = accountant.pld_epsilon(events, 1e-5)
    rdp = accountant.rdp_epsilon(events, 1e-5)
    assert exact <= pld * (1 + 1e-9) <= rdp * (1 + 1e-9)
    assert pld <= exact * 1.01 + 1e-3


@pytest.mark.parametrize(("steps", "delta"), [(10_000, 1e-10), (10_000, 1e-13), (300_000, 1e-11), (300_000, 1e-9)])
def test_rounding_of_convolutions_makes_no_epsilon_too_small(steps: int, delta: float) -> None:
    """At a rate of 1 the truth is known; without room for rounding, 1e-13 after 10,000 steps gave 7.41 for 7.56."""
    events = [(PoissonGaussianEvent(1.0, math.sqrt(steps)), steps)]
    found = accountant.pld_epsilon(events, delta)
    exact = accountant.gaussian_epsilon(1.0, delta)
    assert exact <= found <= 1.05 * exact + 0.1


@pytest.mark.parametrize(("rate", "multiplier", "steps"), [(0.1, 3.0, 100), (0.5, 5.0, 50), (0.02, 1.0, 200)])
def test_sampled_engines_are_ordered_and_sampling_helps(rate: float, multiplier: float, steps: int) -> None:
    sampled = [(PoissonGaussianEvent(rate, multiplier), steps)]
    pld, rdp = accountant.pld_epsilon(sampled, 1e-5), accountant.rdp_epsilon(sampled, 1e-5)
    assert pld <= rdp
    assert rdp < epsilon((GaussianEvent(multiplier), steps))
    # a rate of 1 is no sampling
    whole = accountant.pld_epsilon([(PoissonGaussianEvent(1.0, multiplier), steps)], 1e-5)
    assert whole == pytest.approx(epsilon((GaussianEvent(multiplier), steps)), rel=0.01)


@given(st.lists(st.tuples(st.floats(0.3, 50), st.integers(1, 9)), min_size=1, max_size=5))
def test_gaussians_compose_by_their_squares(parts: list[tuple[float, int]]) -> None:
    whole = sum(k / s**2 for s, k in parts) ** -0.5
    assert epsilon(*((GaussianEvent(s), k) for s, k in parts)) == pytest.approx(epsilon(GaussianEvent(whole)), rel=1e-8)


def test_pure_events_add_and_need_no_delta() -> None:
    assert epsilon((PureEvent(0.25), 3), PureEvent(1.0), delta=0.0) == 1.75
    mixed = epsilon(PureEvent(0.5), GaussianEvent(4.0))
    assert max(0.5, epsilon(GaussianEvent(4.0))) <= mixed <= 0.5 + epsilon(GaussianEvent(4.0)) + 2e-3
    for event in (GaussianEvent(1.0), PoissonGaussianEvent(0.1, 1.0), ZeroConcentratedEvent(0.1)):
        with pytest.raises(PrivacyError, match="delta is 0"):
            epsilon(PureEvent(1.0), event, delta=0.0)


def test_claims_compose_by_addition() -> None:
    claim = ClaimEvent(0.5, 1e-6)
    assert epsilon((claim, 4)) == pytest.approx(2.0)
    rest = accountant.gaussian_epsilon(0.5, 1e-5 - 4e-6)
    assert epsilon((claim, 4), GaussianEvent(2.0)) == pytest.approx(2.0 + rest)
    with pytest.raises(PrivacyError, match="claims alone need delta"):
        epsilon((claim, 11))


@given(st.floats(1e-3, 5), st.floats(1e-9, 1e-2))
@settings(max_examples=20)
def test_zero_concentrated_costs_at_least_a_gaussian_and_at_most_the_textbook(rho: float, delta: float) -> None:
    found = epsilon(ZeroConcentratedEvent(rho), delta=delta)
    assert found >= accountant.gaussian_epsilon(math.sqrt(2 * rho), delta) - 1e-9
    assert found <= (rho + 2 * math.sqrt(rho * math.log(1 / delta))) * 1.01  # Bun and Steinke 2016, proposition 1.3


def test_pure_events_beside_zero_concentrated_ones() -> None:
    assert epsilon(ZeroConcentratedEvent(0.1), PureEvent(0.0)) == epsilon(ZeroConcentratedEvent(0.1))
    assert epsilon(ZeroConcentratedEvent(0.1), PureEvent(0.3)) > epsilon(ZeroConcentratedEvent(0.1))


@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0])
def test_discrete_gaussian_against_its_definition(sigma: float) -> None:
    # delta(epsilon) = sum over integers of max(0, p(z) - e^epsilon p(z - 1)), computed directly
    reach = range(-200, 201)
    mass = {z: math.exp(-(z**2) / (2 * sigma**2)) for z in reach}
    norm_ = sum(mass.values())
    found = epsilon(DiscreteGaussianEvent(sigma, 1))

    def delta(eps: float) -> float:
        return sum(max(0.0, mass[z] - math.exp(eps) * mass[z - 1]) for z in reach if z - 1 in mass) / norm_

    assert delta(found) <= 1e-5 * (1 + 1e-6)
    assert delta(found - 5e-3) > 1e-5
    zcdp = epsilon(ZeroConcentratedEvent(1 / (2 * sigma**2)))
    assert found <= zcdp


def test_order_of_costs_does_not_matter() -> None:
    events: list[Event] = [GaussianEvent(3.0), PoissonGaussianEvent(0.1, 2.0), PureEvent(0.1)]
    assert epsilon(*events) == epsilon(*events[::-1])
    assert epsilon(*events, *events) == epsilon(*((e, 2) for e in events))


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_sampled_gradients_under_replace_are_refused() -> None:
    with pytest.raises(PrivacyError, match="no checked accounting"):
        epsilon(PoissonGaussianEvent(0.1, 1.0), relation=REPLACE)


@pytest.mark.parametrize("count", [-1, 1.5, True, math.nan])
def test_counts_that_are_none_are_refused(count: Any) -> None:
    with pytest.raises(PrivacyError, match="whole number"):
        epsilon((GaussianEvent(1.0), count))


@pytest.mark.parametrize(
    "make",
    [
        lambda v: GaussianEvent(v),
        lambda v: PoissonGaussianEvent(0.1, v),
        lambda v: PoissonGaussianEvent(v, 1.0),
        lambda v: DiscreteGaussianEvent(v, 1),
        lambda v: DiscreteGaussianEvent(1.0, v),
        lambda v: ZeroConcentratedEvent(v),
        lambda v: PureEvent(v),
        lambda v: BoundedRangeEvent(v),
        lambda v: ClaimEvent(v, 0.0),
        lambda v: ClaimEvent(1.0, v),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, -math.inf])
def test_prices_that_would_pass_every_cap_are_refused(make: Any, value: float) -> None:
    # the twin of this guard: NaN compares false with every cap, a negative epsilon pays others back
    assert not (value > 1.0) or math.isinf(value)
    with pytest.raises(PrivacyError, match="allowed is"):
        make(value)


# --- choices of bounded range -----------------------------------------------------------------------------------------


def two_points(epsilon: float, t: float) -> tuple[float, float]:
    """(P(A), Q(A)) of the extreme choice: the loss is t on A and t - epsilon off it."""
    w = math.exp(-epsilon)
    return (1 - w * math.exp(t)) / (1 - w), (math.exp(-t) - w) / (1 - w)


def worst_gap(epsilon: float, mu: float) -> float:
    """By how much extreme choices exceed what the Gaussian pair allows; at most 0 if it dominates."""
    pairs = [two_points(epsilon, epsilon * i / 400) for i in range(1, 400)]
    return max(norm.ppf(p) - norm.ppf(a) - mu for p, a in pairs)


@pytest.mark.parametrize("range_", [1e-3, 0.1, 1.0, 4.0, 12.0])
def test_the_gaussian_in_place_of_a_choice_dominates_and_is_the_smallest(range_: float) -> None:
    mu = accountant.bounded_range_mu(range_)
    assert -1e-6 < worst_gap(range_, mu) < 1e-9
    assert accountant.bounded_range_epsilon(mu) == pytest.approx(range_, rel=1e-9)
    assert worst_gap(range_, range_ / 2) > 0.01 * range_ or range_ > 10  # the twin: zCDP read as a Gaussian


def test_choices_compose_as_gaussians_or_by_renyi_divergences_whichever_says_less() -> None:
    choice, gauss = BoundedRangeEvent(0.1), GaussianEvent(3.0)
    mixed = epsilon((gauss, 1), (choice, 10))
    mu = math.hypot(1 / 3, math.sqrt(10) * accountant.bounded_range_mu(0.1))
    assert mixed <= accountant.gaussian_epsilon(mu, 1e-5)
    assert mixed <= accountant.rdp_epsilon([(gauss, 1), (choice, 10)], 1e-5)
    assert epsilon(gauss) < mixed
    assert epsilon(choice) <= 0.1  # alone it is pure
    assert epsilon((choice, 3), delta=0.0) == pytest.approx(0.3)
    assert epsilon(choice, PureEvent(0.2), gauss) < epsilon((choice, 3), PureEvent(0.2), gauss)


# --- calibration ------------------------------------------------------------------------------------------------------

BUDGETS = st.builds(Budget, epsilon=st.floats(0.01, 50), delta=st.floats(1e-12, 0.1))


@given(BUDGETS, st.integers(1, 100))
def test_calibration_never_exceeds_the_budget_and_wastes_little(budget: Budget, count: int) -> None:
    def costs(scale: float) -> list[tuple[Cost, int]]:
        return [(cost(GaussianEvent(scale)), count)]

    scale = accountant.calibrate(costs, budget, relation=ADD)
    assert accountant.epsilon_of(costs(scale), delta=budget.delta, relation=ADD) <= budget.epsilon
    exact = math.sqrt(count) / accountant.gaussian_mu(budget)
    assert exact * (1 - 1e-6) <= scale <= max(exact * 1.001, 0.0101)


@given(st.floats(0.1, 10), st.floats(1e-10, 1e-3))
@settings(max_examples=3)
def test_calibration_of_sampled_steps_never_exceeds_the_budget(eps: float, delta: float) -> None:
    def costs(scale: float) -> list[tuple[Cost, int]]:
        return [(cost(PoissonGaussianEvent(0.05, scale)), 40)]

    scale = accountant.calibrate(costs, Budget(epsilon=eps, delta=delta), relation=ADD)
    assert accountant.epsilon_of(costs(scale), delta=delta, relation=ADD) <= eps


def test_calibration_beside_fixed_parts() -> None:
    def costs(scale: float) -> list[tuple[Cost, int]]:
        return [(cost(PureEvent(0.9)), 1), (cost(ClaimEvent(0.0, 1e-6)), 1), (cost(GaussianEvent(scale)), 1)]

    scale = accountant.calibrate(costs, Budget(epsilon=1.0, delta=1e-5), relation=ADD)
    assert accountant.epsilon_of(costs(scale), delta=1e-5, relation=ADD) <= 1.0
    with pytest.raises(BudgetExceeded, match=r"its fixed parts cost 0\.9"):
        accountant.calibrate(costs, Budget(epsilon=0.8, delta=1e-5), relation=ADD)


def test_calibration_keeps_to_its_range() -> None:
    budget = Budget(epsilon=1e6, delta=1e-5)
    assert accountant.calibrate(lambda s: [(cost(GaussianEvent(s)), 1)], budget, relation=ADD, low=0.3) == 0.3
    tight = Budget(epsilon=0.0101, delta=1e-5)
    found = accountant.calibrate(lambda s: [(cost(PureEvent(1 / s)), 1)], tight, relation=ADD, high=100.0)
    assert 99 < found <= 100

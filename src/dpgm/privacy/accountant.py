"""The only place that talks to dp-accounting: epsilon of composed costs, and noise calibrated to a budget.

Events arrive relative to the sensitivity under the ledger's relation, so dp-accounting is only ever called with
sensitivity 1 in its add/remove mode: its own reading of "replace one" differs between its accountants (for a
multiplier of 2 at delta 1e-5 its RDP accountant says 2.17 and its PLD accountant 4.38).

Engines, best first; the first that covers all events answers:

1. Gaussian events only: exact closed form, mu^2 adds (Balle and Wang 2018; Dong, Roth and Su 2022); with choices of
   bounded range among them: the same form, a Gaussian in place of each choice, or Renyi divergences if these say less.
2. pure events only, or delta = 0: epsilons add.
3. one sliced event alone: quadrature over its random directions (an upper bound within 0.01 % of delta); one shuffled
   event alone: its clones; beside other events a shuffled one is priced as if it was not.
4. anything without zCDP events: privacy loss distributions, pessimistic discretisation (an upper bound), at a delta
   that leaves room for the rounding of Fourier transforms; a delta no larger than that room goes to 5.
5. the rest: Renyi divergences (an upper bound).

Bare claims are added at the end: their epsilons and deltas sum (basic composition).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from scipy.optimize import brentq
from scipy.special import expit, log_ndtr, logit, ndtr, ndtri

from dpgm.privacy.guarantee import Budget, BudgetExceeded, Evidence, Guarantee, PrivacyError, Relation
from dpgm.privacy.mechanism import (
    BoundedRangeEvent,
    ClaimEvent,
    Cost,
    DiscreteGaussianEvent,
    Event,
    GaussianEvent,
    PoissonGaussianEvent,
    PureEvent,
    ShuffledGaussianEvent,
    SlicedGaussianEvent,
    ZeroConcentratedEvent,
)
from dpgm.privacy.shuffled import counts_delta, grid, shuffled_epsilon
from dpgm.privacy.sliced import sliced_epsilon, sliced_losses

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

Costs = Sequence[tuple[Cost, int]]

_GRID = 1e-3
"""Discretisation of the privacy loss; its error is upwards (1e-4 changes epsilon by < 0.1 %, in 10x the time)."""

_ROUNDING = 1e-15
"""What a convolution's rounding may take from delta: 25 times the most that was seen against the closed form of up to
300,000 composed Gaussians. A delta it matters for is far below any sensible one."""

_GAUSSIAN = (GaussianEvent, BoundedRangeEvent, ShuffledGaussianEvent)
"""Events that a Gaussian one dominates, with which it composes in closed form."""

_MU_MAX = 1e5
"""Beyond it the closed forms lose their digits; an epsilon of 5e9 may as well be infinite."""


# ---------------------------------------------------------------------------------------------------------------------
# One Gaussian release: closed forms


def gaussian_delta(mu: float, epsilon: float) -> float:
    """delta(epsilon) = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu) of a mu-GDP mechanism."""
    if mu == 0:
        return 0.0
    if mu > _MU_MAX:
        return 1.0
    return float(ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The smallest epsilon >= 0 with gaussian_delta(mu, epsilon) <= delta."""
    if not 0 < delta < 1:
        raise PrivacyError(
            f"delta is {delta}; this noise is Gaussian and needs a delta above 0 and below 1, e.g. 1e-5; which methods "
            "have pure noise stands in docs/choose.md"
        )
    if mu > _MU_MAX:
        return math.inf
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    high = 1.0
    while gaussian_delta(mu, high) > delta:
        high *= 2
    root = brentq(lambda e: gaussian_delta(mu, e) - delta, 0.0, high, xtol=1e-12, rtol=1e-14)
    return float(root) * (1 + 1e-12) + 1e-11


def gaussian_mu(budget: Budget) -> float:
    """The largest mu whose single Gaussian release stays within `budget`."""
    if budget.delta <= 0:
        raise PrivacyError(
            "delta is 0; this noise is Gaussian and needs a delta above 0, e.g. 1e-5; which methods have pure noise "
            "stands in docs/choose.md"
        )
    high = 1.0
    while gaussian_delta(high, budget.epsilon) < budget.delta:
        high *= 2
    low = high
    while gaussian_delta(low, budget.epsilon) > budget.delta:
        low /= 2
    if low < high:
        low = float(brentq(lambda m: gaussian_delta(m, budget.epsilon) - budget.delta, low, high, xtol=1e-15 * low))
    while gaussian_epsilon(low * (1 + 1e-10), budget.delta) > budget.epsilon:  # its own safety margin counts, too
        low *= 1 - 1e-10
    return low


def one_release(budget: Budget) -> GaussianEvent | PureEvent:
    """The Gaussian release that takes the whole budget; the pure one, where delta is 0."""
    return GaussianEvent(1 / gaussian_mu(budget)) if budget.delta > 0 else PureEvent(budget.epsilon)


def shuffled_mu(budget: Budget, records: int) -> float:
    """The largest mu of each record's Gaussian noise whose shuffled release stays within `budget`."""
    best = gaussian_mu(budget)
    epsilons = [budget.epsilon * f for f in (1.0, 0.8, 0.6, 0.4)]  # the bound may be better at a smaller epsilon
    for e0, epsilon in itertools.product(grid(records) if records > 1 else (), epsilons):
        left = budget.delta * (1 - 1e-4) - counts_delta(e0, records, epsilon)
        if left > 0:
            local = left / ((1 + math.exp(epsilon)) * (records - 1) * math.exp(-e0))
            best = max(best, gaussian_mu(Budget(epsilon=e0, delta=min(local, 0.5))))
    return best


def bounded_range_mu(epsilon: float) -> float:
    """The smallest mu whose Gaussian pair dominates every choice of range epsilon: 2 Phi^-1(1/(1 + e^(-epsilon/2))).

    Proof page: docs/proofs/exponential.md.
    """
    return -2 * float(ndtri(expit(-epsilon / 2)))  # of the smaller tail, which keeps its digits


def bounded_range_epsilon(mu: float) -> float:
    """The range epsilon with bounded_range_mu(epsilon) = mu."""
    return -2 * float(logit(ndtr(-mu / 2)))


# ---------------------------------------------------------------------------------------------------------------------
# Composition


def epsilon_of(costs: Costs, *, delta: float, relation: Relation) -> float:
    """An upper bound on the epsilon of all `costs` together at `delta`.

    Args:
        costs: pairs (cost, how many times), for adaptive composition.
        delta: the total slack, in [0, 1).
        relation: the relation under which the costs were stated.

    Raises:
        PrivacyError: events that have no accounting under `relation`, or a delta that cannot be reached.
    """
    counts: Counter[Event] = Counter()
    for cost, count in costs:
        if type(count) is not int or count < 0:
            raise PrivacyError(f"'{cost.name}' is counted {count!r} times; allowed is a whole number, 0 or more")
        counts[cost.event] += count
    if relation is not Relation.ADD_REMOVE and any(isinstance(e, PoissonGaussianEvent) for e in counts):
        raise PrivacyError(
            f"Poisson-sampled gradients under '{relation.value}' have no checked accounting here; "
            f"use '{Relation.ADD_REMOVE.value}' (a replaced record is one removed and one added)"
        )
    if relation is not Relation.REPLACE and any(isinstance(e, ShuffledGaussianEvent) for e in counts):
        raise PrivacyError(f"a row for each record tells their number, which '{relation.value}' protects")
    claims = {e: k for e, k in counts.items() if isinstance(e, ClaimEvent)}
    claimed_epsilon = sum(e.epsilon * k for e, k in claims.items())
    claimed_delta = sum(e.delta * k for e, k in claims.items())
    rest = tuple(sorted(((e, k) for e, k in counts.items() if e not in claims and k), key=repr))
    if claimed_delta > delta:
        raise PrivacyError(f"the claims alone need delta {claimed_delta:g}, above the {delta:g} that is allowed")
    return claimed_epsilon + (_epsilon(rest, delta - claimed_delta) if rest else 0.0)


def promise(costs: Costs, *, delta: float, relation: Relation, unit: str = "record") -> Guarantee:
    """The guarantee of all `costs` together: their epsilon, the weakest evidence, every source and assumption once.

    Args:
        costs: pairs (cost, how many times); without any, epsilon is 0.
        delta: the total slack, in [0, 1).
        relation: the relation under which the costs were stated.
        unit: what one neighbour step changes.
    """
    return Guarantee(
        relation=relation,
        unit=unit,
        epsilon=epsilon_of(costs, delta=delta, relation=relation) if costs else 0.0,
        delta=delta,
        evidence=min((c.evidence for c, _ in costs), default=Evidence.PROVED),
        mechanisms=tuple(dict.fromkeys(c.name for c, _ in costs)),
        sources=tuple(dict.fromkeys(s for c, _ in costs for s in c.sources)),
        assumptions=tuple(dict.fromkeys([*(a for c, _ in costs for a in c.assumptions), *of_unit(unit)])),
    )


def of_unit(unit: str) -> tuple[str, ...]:
    """What a promise for another unit than a record rests on: mechanisms bound what one record does, and no more."""
    return () if unit == "record" else (f"one {unit} has one record",)


@lru_cache(maxsize=4096)
def _epsilon(events: tuple[tuple[Event, int], ...], delta: float) -> float:
    pure = all(isinstance(e, PureEvent | BoundedRangeEvent) for e, _ in events)
    total = sum(e.epsilon * k for e, k in events if isinstance(e, PureEvent | BoundedRangeEvent))
    if pure and (delta <= 0 or all(isinstance(e, PureEvent) for e, _ in events)):
        return total
    if delta <= 0:
        names = sorted({type(e).__name__ for e, _ in events if not isinstance(e, PureEvent | BoundedRangeEvent)})
        raise PrivacyError(f"delta is 0, but {names} are not pure; give a delta above 0, e.g. 1e-5")
    if all(isinstance(e, GaussianEvent) for e, _ in events):
        return gaussian_epsilon(gaussian_sum(events), delta)
    if len(events) == 1 and isinstance(one := events[0][0], ShuffledGaussianEvent) and events[0][1] == 1:
        mu = 1 / one.noise_multiplier
        return shuffled_epsilon(partial(gaussian_delta, mu), one.records, delta, gaussian_epsilon(mu, delta))
    if all(isinstance(e, _GAUSSIAN) for e, _ in events):
        closed = min(gaussian_epsilon(gaussian_sum(events), delta), rdp_epsilon(events, delta))
        return min(closed, total) if pure else closed
    if len(events) == 1 and isinstance(one := events[0][0], SlicedGaussianEvent) and events[0][1] == 1:
        return sliced_epsilon(one.noise_multiplier, one.slices, delta)
    if any(isinstance(e, ZeroConcentratedEvent) for e, _ in events):
        return rdp_epsilon(events, delta)
    return pld_epsilon(events, delta)


def gaussian_sum(events: Iterable[tuple[Event, int]]) -> float:
    """The mu of composed Gaussian events, and of Gaussians in place of others: mu^2 = sum of count mu_i^2."""
    return math.hypot(*(math.sqrt(k) * _mu(e) for e, k in events if isinstance(e, _GAUSSIAN)))


def _mu(event: GaussianEvent | BoundedRangeEvent | ShuffledGaussianEvent) -> float:
    return bounded_range_mu(event.epsilon) if isinstance(event, BoundedRangeEvent) else 1 / event.noise_multiplier


def pld_epsilon(events: Iterable[tuple[Event, int]], delta: float, *, grid: float = _GRID) -> float:
    """Epsilon by composed privacy loss distributions, an upper bound."""
    events = tuple(events)
    room = _ROUNDING * (100 + sum(count for _, count in events))
    if delta <= 2 * room:
        return rdp_epsilon(events, delta)
    total: PrivacyLossDistribution | None = None
    gaussians: list[tuple[Event, int]] = []
    for event, count in events:
        if isinstance(event, _GAUSSIAN):
            gaussians.append((event, count))  # merged into one: one convolution instead of many
            continue
        part = _pld(event, grid).self_compose(count)
        total = part if total is None else total.compose(part)
    if gaussians and gaussian_sum(gaussians) > 0:
        part = _pld(GaussianEvent(1 / gaussian_sum(gaussians)), grid)
        total = part if total is None else total.compose(part)
    return 0.0 if total is None else float(total.get_epsilon_for_delta(delta - room))


def _pld(event: Event, grid: float) -> PrivacyLossDistribution:
    from dp_accounting.pld import common, pld_pmf
    from dp_accounting.pld import privacy_loss_distribution as pld

    match event:
        case GaussianEvent(noise_multiplier=s):
            return pld.from_gaussian_mechanism(s, value_discretization_interval=grid)
        case PoissonGaussianEvent(rate=q, noise_multiplier=s):
            return pld.from_gaussian_mechanism(s, sampling_prob=q, value_discretization_interval=grid)
        case DiscreteGaussianEvent(sigma=s, sensitivity=k):
            return pld.from_discrete_gaussian_mechanism(s, k, value_discretization_interval=grid)
        case SlicedGaussianEvent(noise_multiplier=s, slices=k):
            losses, infinite = sliced_losses(s, k, grid)
            return pld.PrivacyLossDistribution(pld_pmf.create_pmf(losses, grid, infinite, pessimistic_estimate=True))
        case PureEvent(epsilon=e):
            return pld.from_privacy_parameters(common.DifferentialPrivacyParameters(e, 0.0), grid)
        case _:
            raise PrivacyError(f"{event} has no privacy loss distribution here; compose it by zCDP or as a claim")


def rdp_epsilon(events: Iterable[tuple[Event, int]], delta: float) -> float:
    """Epsilon by Renyi divergences: covers zCDP, and cross-checks the others from above."""
    from dp_accounting import dp_event as dp
    from dp_accounting.rdp import RdpAccountant

    accountant: Any = RdpAccountant()
    for event, count in events:
        match event:
            case GaussianEvent(noise_multiplier=s) | ShuffledGaussianEvent(noise_multiplier=s):
                step: dp.DpEvent = dp.GaussianDpEvent(s)
            case PoissonGaussianEvent(rate=q, noise_multiplier=s):
                step = dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(s))
            case DiscreteGaussianEvent(sigma=s, sensitivity=k):
                step = dp.GaussianDpEvent(s / k)  # the same zCDP bound (Canonne, Kamath and Steinke 2020, theorem 4)
            case ZeroConcentratedEvent(rho=r):
                step = dp.GaussianDpEvent(1 / math.sqrt(2 * r))  # a Gaussian has exactly the curve rho * alpha
            case PureEvent(epsilon=0) | BoundedRangeEvent(epsilon=0):
                continue
            case BoundedRangeEvent(epsilon=e):
                step = dp.GaussianDpEvent(2 / e)  # (epsilon^2/8)-zCDP (Cesar and Rogers 2021)
            case PureEvent(epsilon=e):
                step = dp.GaussianDpEvent(1 / e)  # pure epsilon implies (epsilon^2/2)-zCDP (Bun and Steinke 2016)
            case _:
                raise PrivacyError(
                    f"{event} has no Renyi accounting here; give a larger delta, or compose no zCDP with it"
                )
        accountant.compose(step, count)
    return float(accountant.get_epsilon(delta))


# ---------------------------------------------------------------------------------------------------------------------
# Calibration


def calibrate(
    costs_at: Callable[[float], Costs], budget: Budget, *, relation: Relation, low: float = 1e-2, high: float = 1e6
) -> float:
    """The smallest noise scale in [low, high], within 0.01 %, whose costs stay within `budget`.

    Args:
        costs_at: noise scale -> costs; epsilon must fall as the scale grows.
        budget: what may be spent; the returned scale never exceeds it.
        relation: the relation under which the costs are stated.
        low: smallest scale tried.
        high: largest scale tried.

    Raises:
        BudgetExceeded: even the largest scale costs too much.
    """

    def epsilon(scale: float) -> float:
        return epsilon_of(costs_at(scale), delta=budget.delta, relation=relation)

    probe = max(low, 1.0)  # very small scales are slow to account for: approach from above
    if epsilon(probe) > budget.epsilon:
        while epsilon(probe) > budget.epsilon:
            low, probe = probe, min(probe * 4, high)
            if low >= high:
                raise BudgetExceeded(
                    f"no noise scale up to {high:g} brings the plan below epsilon {budget.epsilon:g} at delta "
                    f"{budget.delta:g}; its fixed parts cost {epsilon(high):.4g}; raise the budget or drop parts"
                )
    else:
        while probe > low and epsilon(max(probe / 2, low)) <= budget.epsilon:
            probe = max(probe / 2, low)
        if probe <= low:
            return probe
        low = max(probe / 2, low)
    high = probe
    while high > low * (1 + 1e-4):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if epsilon(middle) > budget.epsilon else (low, middle)
    return high

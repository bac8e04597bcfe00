"""Lower bounds on epsilon from runs on two neighbouring data sets, and what an audit says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from dpgm.privacy.guarantee import Evidence, PrivacyError, Relation

Array = NDArray[np.float64]
Claim = Callable[[float], float]
"""delta -> the epsilon that is claimed at it."""

SLACKS = (1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5)
"""A price promises an epsilon at every delta; these are looked at beside the stated one."""
_LEVELS = np.unique(
    np.concatenate([np.linspace(0, 1, 201), np.geomspace(1e-4, 0.5, 60), 1 - np.geomspace(1e-4, 0.5, 60)])
)


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What the runs show at one delta.

    Attributes:
        delta: the slack.
        claimed: epsilon of the claim at it.
        found: the mechanism's epsilon is at least this.
    """

    delta: float
    claimed: float
    found: float

    @property
    def beaten(self) -> bool:
        """Whether the claim is false."""
        return self.found > self.claimed


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The outcome of one audit. It can refute a claim, and it can never confirm one.

    Attributes:
        name: what was audited.
        relation: which data sets are neighbours.
        evidence: of the claim, before the audit.
        stated: the bound at the stated delta.
        best: the bound at the delta that promised most; often the same.
        trials: runs on each of the two data sets.
        held_out: how many of them the bounds rest on; the others chose the test.
        confidence: probability that no true claim is called beaten.
        ceiling: the largest epsilon that so many trials could have shown at the stated delta.
        pair: the two data sets, in words.
        reach: how far the pair moves the exact answer, relative to the stated sensitivity; None where unknown.
        twin: the weakest broken twin that the same trials beat, e.g. "0.7 of the noise"; None if there is none.
        kind: "mechanism" (many calls), "counterexample" (an event fixed beforehand), "training" (many trained models),
            "canary" (guesses about one run) or "membership" (guesses about a finished run).
        how: the trials in words, where they are not runs on two data sets.
        details: further numbers, as plain JSON values.
    """

    name: str
    relation: Relation
    evidence: Evidence
    stated: Bound
    best: Bound
    trials: int
    held_out: int
    confidence: float
    ceiling: float
    pair: str
    reach: float | None = None
    twin: str | None = None
    kind: str = "mechanism"
    how: str | None = None
    details: Mapping[str, Any] | None = None

    @property
    def beaten(self) -> bool:
        """Whether the claim is false."""
        return self.stated.beaten or self.best.beaten

    @property
    def verdict(self) -> str:
        """One line that may stand alone."""
        if not self.beaten:
            return f"not beaten (up to {self.ceiling:.3g})"
        one = self.stated if self.stated.beaten else self.best
        where = "" if one is self.stated else f", both at delta {one.delta:.3g}"
        return f"BEATEN: epsilon >= {one.found:.3g} at a claimed {one.claimed:.4g}{where}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "verdict": self.verdict,
            "beaten": self.beaten,
            "relation": self.relation.value,
            "evidence": self.evidence.word,
            "stated": vars(self.stated).copy(),
            "best": vars(self.best).copy(),
            "trials": self.trials,
            "how": self.how,
            "held_out": self.held_out,
            "confidence": self.confidence,
            "ceiling": self.ceiling,
            "pair": self.pair,
            "reach": self.reach,
            "weakest_twin": self.twin,
            "details": self.details,
        }

    def _elsewhere(self) -> list[str]:
        """The bound at the delta that promised most, where it is another and shows something."""
        one = self.best
        if one.delta == self.stated.delta or one.found <= one.claimed / 2:
            return []
        return [f"           epsilon >= {one.found:.3g} at delta {one.delta:.3g}, where {one.claimed:.4g} is claimed"]

    def text(self) -> str:
        """A few lines for a person."""
        split = "all" if self.held_out == self.trials else f"{self.held_out:,} of them"
        trials = self.how or f"2 x {self.trials:,}, {split} for the bound"
        reach = "" if self.reach is None else f"; it moves the answer by {self.reach:.0%} of the stated sensitivity"
        lines = [
            f"{self.name}, {self.relation.value} record",
            f"  claim    epsilon {self.stated.claimed:.4g} at delta {self.stated.delta:.3g} ({self.evidence.word})",
            f"  found    epsilon >= {self.stated.found:.3g} with {100 * self.confidence:.7g} % confidence",
            *self._elsewhere(),
            f"  trials   {trials}; the most they could show is {self.ceiling:.3g}",
            f"  pair     {self.pair}{reach}",
        ]
        if self.twin is not None:
            lines.append(f"  power    the weakest broken twin caught: {self.twin}")
        return "\n".join([*lines, f"  verdict  {self.verdict}"])


def clopper_pearson(hits: Any, trials: int, alarm: float) -> tuple[Array, Array]:
    """One-sided bounds on a probability: each fails with probability at most `alarm`.

    Args:
        hits: successes, [...].
        trials: of how many.
        alarm: probability of error of each bound.
    """
    k = np.asarray(hits, np.float64)
    with np.errstate(invalid="ignore"):
        low = np.where(k == 0, 0.0, betaincinv(np.maximum(k, 1), trials - k + 1, alarm))
        high = np.where(k == trials, 1.0, betaincinv(k + 1, np.maximum(trials - k, 1), 1 - alarm))
    return low, high


def epsilon_bound(low: Any, high: Any, delta: float) -> Array:
    """The least epsilon >= 0 with low <= e^epsilon high + delta."""
    return np.maximum(0.0, np.log(np.maximum(np.asarray(low) - delta, 1e-300) / np.asarray(high)))


def ceiling(held_out: int, delta: float, confidence: float) -> float:
    """The bound of a perfect attack: every run on one side inside the event, none on the other."""
    alarm = (1 - confidence) / 4
    low, high = clopper_pearson(held_out, held_out, alarm)[0], clopper_pearson(0, held_out, alarm)[1]
    return float(epsilon_bound(low, high, delta))


def examine(
    present: Array,
    absent: Array,
    *,
    claim: Claim,
    delta: float,
    confidence: float,
    threshold: float | None = None,
) -> tuple[Bound, Bound, int]:
    """Lower bounds from scores of independent runs on two neighbouring data sets.

    The events are "score above t" and its complement, in both orders of the data sets. The first half of the runs
    chooses t and order for the stated delta, and once more with the delta where the claim looks weakest; the second
    half gives the bounds. With a `threshold` fixed beforehand all runs give the bound, at the stated delta.

    H0: the claim holds. False alarms: at most 1 - confidence, shared out over both bounds and both ends.

    Args:
        present: scores under one data set, [trials].
        absent: scores under its neighbour, [trials].
        claim: delta -> epsilon.
        delta: the stated slack.
        confidence: probability that a true claim is not beaten.
        threshold: t, if it was known before the runs.

    Returns:
        the bound at the stated delta, the bound at the best one, and how many runs of a side they rest on.
    """
    if len(present) != len(absent) or len(present) < 2:
        raise PrivacyError(
            f"there are {len(present)} and {len(absent)} runs; give the same number for both data sets, 2 or more"
        )
    alarm = (1 - confidence) / 4
    if threshold is not None:
        k = _hits(present, absent, np.array([threshold]))
        low, high = _ends(k, len(present), alarm)
        # One order, fixed beforehand like the threshold: present above it.
        one = Bound(delta=delta, claimed=claim(delta), found=float(epsilon_bound(low[0], high[0], delta)[0]))
        return one, one, len(present)
    half = len(present) // 2
    levels = np.unique(np.quantile(np.concatenate([present[:half], absent[:half]]), _LEVELS))
    low, high = _ends(_hits(present[:half], absent[:half], levels), half, alarm)
    claims: dict[float, float] = {}
    for slack in (delta, *(s for s in SLACKS if s > delta)):
        try:
            claims[slack] = claim(slack)
        except PrivacyError:  # a claim may say nothing at this delta
            continue
    if delta not in claims:
        raise PrivacyError(f"the claim says nothing at delta {delta:g}; give the delta at which it is stated")
    gains = {slack: epsilon_bound(low, high, slack) - claimed for slack, claimed in claims.items()}
    held = (present[half:], absent[half:])

    def bound(slack: float) -> Bound:
        order, level = np.unravel_index(int(gains[slack].argmax()), low.shape)
        ends = _ends(_hits(*held, levels[level : level + 1]), len(held[0]), alarm)
        found = epsilon_bound(ends[0][order, 0], ends[1][order, 0], slack)
        return Bound(delta=slack, claimed=claims[slack], found=float(found))

    stated = bound(delta)
    chosen = max(gains, key=lambda slack: float(gains[slack].max()))
    return stated, stated if chosen == delta else bound(chosen), len(held[0])


def _hits(present: Array, absent: Array, levels: Array) -> NDArray[np.int64]:
    """How often each side is above each level, [2, levels]."""
    return np.stack([len(s) - np.searchsorted(np.sort(s), levels, side="right") for s in (present, absent)])


def _ends(above: NDArray[np.int64], trials: int, alarm: float) -> tuple[Array, Array]:
    """Low end of the likelier side and high end of the other, for four events, [4, levels]."""
    low, high = clopper_pearson(above, trials, alarm)
    lower, higher = clopper_pearson(trials - above, trials, alarm)
    return np.stack([low[0], lower[1], low[1], lower[0]]), np.stack([high[1], higher[0], high[0], higher[1]])

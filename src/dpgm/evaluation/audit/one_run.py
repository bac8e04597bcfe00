"""Lower bounds on epsilon from many guesses about one run.

M records take part or not by fair coins, one mechanism runs once, and an attacker guesses coins. If the mechanism is
(epsilon, delta)-DP towards each record, guesses cannot be right much more often than randomised response lets them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaincinv, expit, logit

from dpgm.evaluation.audit.bound import Array
from dpgm.privacy.guarantee import PrivacyError

SHARES = (1.0, 0.5, 0.2, 0.1, 0.05)
"""Shares of the coins that are guessed, the surest first; each is a test of its own, and they share the alarm."""
_LARGEST, _STEPS = 60.0, 400


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """What an attacker achieved in one run.

    Attributes:
        coins: fair coins that were thrown, m.
        made: coins that were guessed, r; on the others the attacker abstained.
        right: guesses that were right, v.
        found: epsilon is at least this.
        alarm: probability that `found` is above the true epsilon.
    """

    coins: int
    made: int
    right: int
    found: float
    alarm: float


def p_value(right: int, made: int, coins: int, *, epsilon: float, delta: float = 0.0) -> float:
    """How probable it can be under (epsilon, delta) that `right` or more of `made` guesses are right.

    With W ~ Binomial(r, e^epsilon / (1 + e^epsilon)) it is at most

        P[W >= v] + m delta / (1 + e^epsilon).

    **Source**: Steinke, Nasr and Jagielski, *Privacy Auditing with One (1) Training Run*, NeurIPS 2023 (arXiv
    2305.08846), theorems 5.1 and 5.2. Proof: docs/proofs/one-run.md.
    **Differs from the paper**: its term in delta, 2 m delta max_i P[v > W >= v - i] / i, is smaller in the tails, but a
    linear program over all mechanisms on two coins exceeds it where v is small; the term here is proved for every v.

    Args:
        right: correct guesses v.
        made: guesses r; the attacker may choose which coins to guess after looking.
        coins: all coins m, each thrown independently and fairly.
        epsilon: privacy loss of the claim, towards one coin.
        delta: its slack.

    Raises:
        PrivacyError: numbers that are no counts, or no claim.
    """
    if not 0 <= right <= made <= coins or not (epsilon >= 0 and 0 <= delta <= 1):
        raise PrivacyError(
            f"{right} right of {made} guesses about {coins} coins, epsilon {epsilon}, delta {delta}; allowed are "
            "0 <= right <= made <= coins, epsilon >= 0 and delta from 0 to 1"
        )
    return min(1.0, float(_tail(right, made, coins, epsilon, delta)))


def guess_bound(right: int, made: int, coins: int, *, delta: float, alarm: float) -> float:
    """The largest epsilon, about, that so many right guesses rule out; 0 if they rule out none.

    With a delta the p-value falls with epsilon before it rises, so an epsilon may be ruled out where smaller ones are
    not. The largest counts all the same, at one alarm: whatever satisfies a claim satisfies it at every larger epsilon,
    too. Each of these is ruled out from some number of right guesses on; the smallest of the numbers belongs to one
    epsilon, and is reached with at most the alarm's probability, by the theorem at that epsilon.

    Args:
        right: correct guesses.
        made: guesses.
        coins: all coins.
        delta: slack of the claim.
        alarm: probability that a true claim is ruled out.
    """

    def ruled_out(epsilon: Any) -> Any:
        return _tail(right, made, coins, epsilon, delta) <= alarm

    # Above `top` the binomial part alone is too large, below `bottom` that of delta.
    top = min(_LARGEST, float(logit(betaincinv(right, made - right + 1, alarm)))) if right else 0.0
    spent = coins * delta / alarm if alarm else math.inf
    bottom = math.log(spent - 1) if spent > 2 else 0.0
    if top <= bottom:
        return 0.0
    steps = np.linspace(bottom, top, _STEPS + 1)
    low = int(np.flatnonzero(ruled_out(steps)).max(initial=-1))  # steps may be too coarse: that shows less, not more
    if low < 0:
        return 0.0
    found, high = float(steps[low]), float(steps[min(low + 1, _STEPS)])
    for _ in range(40):  # `found` is ruled out, whatever lies between
        middle = (found + high) / 2
        found, high = (middle, high) if ruled_out(middle) else (found, middle)
    return found


def guess(
    scores: Array, coins: NDArray[np.bool_], *, delta: float, confidence: float, shares: Sequence[float] = SHARES
) -> Guesses:
    """Guess that a high score means heads and a low one tails, abstain between, and say what that shows.

    Half of the guesses go to each end of the scores. Each of `shares` is one test; the best of them counts, at an alarm
    that is divided by their number.

    Args:
        scores: one for each coin, made without looking at the coins, [m].
        coins: how they fell, True for heads, [m].
        delta: slack of the claim.
        confidence: probability that no true claim is ruled out.
        shares: parts of the coins that are guessed, in (0, 1], chosen beforehand.
    """
    if len(scores) != len(coins) or len(coins) < 2:
        raise PrivacyError(f"there are {len(scores)} scores for {len(coins)} coins; give as many, 2 or more")
    heads = coins[np.argsort(scores, kind="stable")]
    return _best([(_ends_right(heads, k), k) for k in _counts(len(heads), shares)], len(heads), delta, confidence)


def guess_pairs(gaps: Array, *, delta: float, confidence: float, shares: Sequence[float] = SHARES) -> Guesses:
    """The same for pairs of records of which a fair coin put one into the data: the higher score is guessed.

    The coins are about a replaced record, so the bound is on epsilon under replace one.

    Args:
        gaps: score of the record that took part minus that of the other, [m]; a gap of 0 is never guessed right.
        delta: slack of the claim.
        confidence: probability that no true claim is ruled out.
        shares: parts of the pairs that are guessed, the widest gaps first.
    """
    if len(gaps) < 2:
        raise PrivacyError(f"there are {len(gaps)} pairs; give 2 or more")
    right = np.cumsum(gaps[np.argsort(-np.abs(gaps), kind="stable")] > 0)
    tests = [(int(right[k - 1]), k) for k in _counts(len(gaps), shares)]
    return _best(tests, len(gaps), delta, confidence)


def guess_ceiling(coins: int, *, delta: float, confidence: float, shares: Sequence[float] = SHARES) -> float:
    """What `guess` would find if every guess were right."""
    return _best([(k, k) for k in _counts(coins, shares)], coins, delta, confidence).found


def crumb(delta: float, coins: int, alarm: float) -> float:
    """A delta so small that it costs nothing among so many coins: m delta stays far below the alarm.

    A price promises an epsilon at every delta, so the claim can be examined there.

    Args:
        delta: the stated one.
        coins: m.
        alarm: probability that a true claim is ruled out.
    """
    return min(delta, alarm / (200 * coins))


def _tail(right: int, made: int, coins: int, epsilon: Any, delta: float) -> Any:
    """The p-value at each epsilon, without its cap at 1."""
    tail = betainc(right, made - right + 1, expit(epsilon)) if right else 1.0
    return tail + coins * delta * expit(-epsilon)


def _counts(coins: int, shares: Sequence[float]) -> list[int]:
    return [max(1, round(share * coins)) for share in shares]


def _ends_right(heads: NDArray[np.bool_], made: int) -> int:
    low = made // 2
    return int((~heads[:low]).sum() + heads[len(heads) - (made - low) :].sum())


def _best(tests: list[tuple[int, int]], coins: int, delta: float, confidence: float) -> Guesses:
    alarm = (1 - confidence) / len(tests)
    tried = [
        Guesses(
            coins=coins,
            made=made,
            right=right,
            found=guess_bound(right, made, coins, delta=delta, alarm=alarm),
            alarm=1 - confidence,
        )
        for right, made in tests
    ]
    return max(tried, key=lambda g: (g.found, g.right / g.made))

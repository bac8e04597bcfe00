"""Audits of mechanisms: many calls on two neighbouring data sets, against the price of one call or of many.

A mechanism is a pure callable, so nothing is trained. Additive noise and sampled gradients are drawn for all runs at
once, through the mechanism's own code; anything else is called run by run.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpgm.evaluation.audit.bound import Array, Audit, ceiling, examine
from dpgm.mechanisms.gradient import PoissonGradient, Task
from dpgm.mechanisms.noise import Gaussian, KNorm, Laplace
from dpgm.mechanisms.projection import NoisyRecords, ShuffledRecords, SlicedProjection
from dpgm.mechanisms.queries import total
from dpgm.mechanisms.selection import SelectMarginal
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Evidence, PrivacyError, Relation
from dpgm.privacy.mechanism import Cost, Mechanism, NoiseSource, Query, SeededNoise
from dpgm.schema import Rows

Score = Callable[[Any], float]
"""An answer -> a number that is larger for the first data set."""

Draw = Callable[[bool, int, NoiseSource], Array]
"""(the first data set or its neighbour, runs, noise) -> scores of one call of each run."""

TWINS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.35, 0.25)
"""Shares of the noise that broken twins keep, from the weakest fault to the grossest."""
CALLS = 4_000
"""Runs on one data set, at most, of a mechanism that has to be called run by run."""
NUMBERS = 6_000_000
"""Noisy numbers drawn for one data set, at most."""


def audit(
    mechanism: Mechanism[Any],
    rows: Rows,
    neighbour: Rows,
    *,
    relation: Relation,
    calls: int = 1,
    cost: Cost | None = None,
    delta: float = 1e-5,
    trials: int = 100_000,
    confidence: float = 0.999,
    score: Score | None = None,
    threshold: float | None = None,
    noise: NoiseSource | None = None,
    weakest: bool = True,
    name: str = "",
    pair: str = "two neighbouring data sets",
) -> Audit:
    """Try to beat the price of a mechanism; the runs state what they could have shown.

    Args:
        mechanism: what is audited.
        rows: a few made-up records.
        neighbour: the same, one record removed or replaced.
        relation: which of the two it is.
        calls: how many calls the claim is about; their scores add up.
        cost: the price of a call that is claimed; the mechanism's own by default.
        delta: the stated slack; the price is examined at larger ones too.
        trials: runs on each data set, at most.
        confidence: probability that a true claim is not beaten.
        score: tells the data sets apart; by default the likelihood ratio, where it is known here.
        threshold: level of the score that was fixed beforehand.
        noise: where noise comes from; the system's by default.
        weakest: look for the weakest broken twin that the runs catch.
        name: what the audit is called.
        pair: the two data sets in words.
    """
    price = mechanism.cost(relation) if cost is None else cost
    source = NoiseSource() if noise is None else noise

    def claim(slack: float) -> float:
        return accountant.epsilon_of([(price, calls)], delta=slack, relation=relation)

    def look(one: Mechanism[Any]) -> Any:
        scores = _scores(one, rows, neighbour, trials, calls, source, score)
        return scores, examine(*scores, claim=claim, delta=delta, confidence=confidence, threshold=threshold)

    def caught(share: float) -> bool:
        return any(b.beaten for b in look(weaker(mechanism, share))[1][:2])

    scores, (stated, best, held_out) = look(mechanism)
    twin = None
    if weakest and weaker(mechanism, TWINS[0]) is not None:
        first = bisect_left(TWINS, True, key=caught)  # a grosser fault is as easy to catch
        twin = f"{TWINS[first]:g} of the noise" if first < len(TWINS) else f"none, down to {TWINS[-1]:g} of the noise"
    return Audit(
        name=name or price.name,
        relation=relation,
        evidence=price.evidence,
        stated=stated,
        best=best,
        trials=len(scores[0]),
        held_out=held_out,
        confidence=confidence,
        ceiling=ceiling(held_out, delta, confidence),
        pair=pair,
        reach=reach(mechanism, rows, neighbour, relation),
        twin=twin,
    )


def weaker(mechanism: Any, share: float) -> Any:
    """The broken twin that keeps only a share of the noise; None where the noise has no known field."""
    if isinstance(mechanism, SelectMarginal):
        return dataclasses.replace(mechanism, strength=mechanism.strength / share)
    for key in ("noise_std", "noise_multiplier", "scale", "sigma"):
        if hasattr(mechanism, key):
            return dataclasses.replace(mechanism, **{key: share * getattr(mechanism, key)})
    return None


def reach(mechanism: Any, rows: Rows, neighbour: Rows, relation: Relation) -> float | None:
    """How far the pair moves the exact answer, relative to the stated sensitivity."""
    if isinstance(mechanism, PoissonGradient):
        return None if mechanism.task is None else task_shift(mechanism.task, rows, neighbour) / mechanism.task.bound
    if isinstance(mechanism, SelectMarginal):
        moved = np.abs(mechanism.scores(rows) - mechanism.scores(neighbour)).max()
        return float(moved / (1 if relation is Relation.ADD_REMOVE else 2))
    if not isinstance(query := getattr(mechanism, "query", None), Query):
        return None
    norm = 1 if isinstance(mechanism, Laplace) else 2
    moved = (total(query, rows) - total(query, neighbour)).ravel()
    return float(np.linalg.norm(moved, norm) / query.sensitivity(relation, norm))


def task_shift(task: Task, rows: Rows, neighbour: Rows) -> float:
    """How far the exact sum of clipped gradients moves, with the records' own coins held fixed.

    The last record of `rows` should be the one that differs, so that all others keep their coins.
    """
    sums = [task.clipped_sum(r, np.arange(len(r)), SeededNoise(0)).double() for r in (rows, neighbour)]
    return float((sums[0] - sums[1]).norm())


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def _scores(
    mechanism: Any, rows: Rows, neighbour: Rows, trials: int, calls: int, noise: NoiseSource, score: Score | None
) -> tuple[Array, Array]:
    """Scores of independent runs on `rows` and on `neighbour`, added up over the calls of a run."""
    if score is None and isinstance(mechanism, PoissonGradient):
        draw = _gradient(mechanism, rows, neighbour)
    elif score is None and type(mechanism) in (Gaussian, Laplace):  # a subclass may do anything: it is called
        draw = _additive(mechanism, rows, neighbour)
    else:
        trials = min(trials, CALLS)
        draw = _called(mechanism, rows, neighbour, score or _teller(mechanism, rows, neighbour))

    def run(present: bool) -> Array:
        scores = draw(present, trials, noise)
        for _ in range(calls - 1):
            scores = scores + draw(present, trials, noise)
        return scores

    trials = max(2, min(trials, NUMBERS // calls))
    present, absent = run(True), run(False)
    # The claims speak of real arithmetic: what the last digits of an answer betray is not what is audited here.
    unit = max(float(np.abs(np.concatenate([present, absent])).max()), 1e-300) * 1e-9
    return np.round(present / unit) * unit, np.round(absent / unit) * unit


def _called(mechanism: Mechanism[Any], rows: Rows, neighbour: Rows, score: Score) -> Draw:
    """One call after the other."""
    if type(mechanism) is KNorm:  # features of the same few records need not be computed a thousand times
        mechanism = dataclasses.replace(mechanism, query=_Remembered(query=mechanism.query))

    def draw(present: bool, times: int, noise: NoiseSource) -> Array:
        some = rows if present else neighbour
        return np.array([score(mechanism(some, noise)) for _ in range(times)])

    return draw


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """Another query in the coordinates of `basis`, many times over: each copy gets noise of its own.

    Gaussian noise in orthonormal coordinates, and Laplace noise in a choice of the coordinates, have the same law.
    """

    query: Query
    basis: Array
    times: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.times, self.basis.shape[1])

    def partial(self, rows: Rows) -> Array:
        return np.tile(self.query.partial(rows).ravel() @ self.basis, (self.times, 1))

    def sensitivity(self, relation: Relation, norm: int = 2) -> float:
        return self.query.sensitivity(relation, norm)

    def assumptions(self) -> tuple[str, ...]:
        return self.query.assumptions()


@dataclass(frozen=True, kw_only=True)
class _Remembered:
    """A query that keeps its answers about blocks it has seen."""

    query: Query
    kept: dict[tuple[bytes, ...], Array] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.query.shape

    def partial(self, rows: Rows) -> Array:
        key = tuple(rows[name].tobytes() for name in rows.names)
        if key not in self.kept:
            self.kept[key] = self.query.partial(rows)
        return self.kept[key]

    def sensitivity(self, relation: Relation, norm: int = 2) -> float:
        return self.query.sensitivity(relation, norm)

    def assumptions(self) -> tuple[str, ...]:
        return self.query.assumptions()


def _additive(mechanism: Gaussian | Laplace, rows: Rows, neighbour: Rows) -> Draw:
    """Likelihood ratios of Gaussian or Laplace noise around the two exact answers."""
    exact = [total(mechanism.query, r).ravel() for r in (rows, neighbour)]
    moved = exact[0] - exact[1]
    if not moved.any():
        raise PrivacyError("the two data sets have the same answer, so no audit could tell them apart; choose others")
    if isinstance(mechanism, Gaussian):
        basis = (moved / np.linalg.norm(moved))[:, None]
    else:
        basis = np.eye(len(moved))[:, moved != 0]
    one, other = (e @ basis for e in exact)
    power = 2 if isinstance(mechanism, Gaussian) else 1

    def draw(present: bool, times: int, noise: NoiseSource) -> Array:
        query = _Seen(query=mechanism.query, basis=basis, times=times)
        seen = dataclasses.replace(mechanism, query=query)(rows if present else neighbour, noise)
        return (np.abs(seen - other) ** power - np.abs(seen - one) ** power).sum(1)

    return draw


@dataclass(frozen=True, kw_only=True)
class _Canaries:
    """A task for many runs in one call: record i adds `amount` to coordinate i, where it is drawn."""

    bound: float
    amount: float
    evidence: Evidence

    def assumptions(self) -> tuple[str, ...]:
        return ()

    def clipped_sum(self, rows: Rows, chosen: NDArray[np.intp], noise: NoiseSource) -> Tensor:
        out = np.zeros(len(rows))
        out[chosen] = self.amount * rows["present"][chosen]
        return torch.from_numpy(out)


def _gradient(mechanism: PoissonGradient, rows: Rows, neighbour: Rows) -> Draw:
    """Log likelihood ratios of a record that is drawn by a coin and then moves the sum as far as the pair does."""
    task = mechanism.task
    amount = 1.0 if task is None else task_shift(task, rows, neighbour)
    bound = 1.0 if task is None else task.bound
    canaries = _Canaries(bound=bound, amount=amount, evidence=mechanism.evidence)
    each = dataclasses.replace(mechanism, task=canaries)
    q, std = mechanism.rate, mechanism.noise_multiplier * bound

    def draw(present: bool, times: int, noise: NoiseSource) -> Array:
        answer = each(Rows(present=np.full(times, float(present))), noise) * (q * mechanism.size)
        ratio = (answer * amount - amount**2 / 2) / std**2
        return ratio if q == 1 else np.logaddexp(math.log1p(-q), math.log(q) + ratio)

    return draw


def _teller(mechanism: Any, rows: Rows, neighbour: Rows) -> Score:
    """A likelihood ratio, or what comes near it, for an answer of a mechanism that is called run by run."""
    if isinstance(mechanism, ShuffledRecords):
        return _among_others(mechanism, rows, neighbour)
    if isinstance(mechanism, SlicedProjection | NoisyRecords):
        if len(rows) != 1 or len(neighbour) != 1:
            raise PrivacyError("a row-wise release is audited on single records; give two data sets of one row each")
        one, other = (np.asarray(mechanism.vectors(r), np.float64) for r in (rows, neighbour))
        one, other = (v / max(1.0, float(np.linalg.norm(v)) / mechanism.clip_norm) for v in (one, other))

        def tell(answer: dict[str, NDArray[Any]]) -> float:
            u = answer["directions"].astype(np.float64) if "directions" in answer else np.eye(mechanism.dim)
            seen = answer["values"]
            return float(((seen - other @ u) ** 2).sum() - ((seen - one @ u) ** 2).sum())

        return tell
    if isinstance(mechanism, SelectMarginal):
        shift = mechanism.scores(rows) - mechanism.scores(neighbour)
        return lambda answer: float(shift[answer])
    query = getattr(mechanism, "query", None)
    if not isinstance(query, Query):
        raise PrivacyError(f"it is not known how to read an answer of {type(mechanism).__name__}; pass score=")
    exact = [total(query, r) for r in (rows, neighbour)]
    power = 1 if isinstance(mechanism, KNorm) else 2
    return lambda answer: float(np.linalg.norm(answer - exact[1]) ** power - np.linalg.norm(answer - exact[0]) ** power)


def _among_others(mechanism: ShuffledRecords, rows: Rows, neighbour: Rows) -> Score:
    """The likelihood ratio of rows in random order: the last record of one value or the other, all others equal."""
    one, other = (np.asarray(mechanism.vectors(r), np.float64) for r in (rows, neighbour))
    if len(one) != len(other) or not (one[:-1] == one[0]).all() or not (other[:-1] == one[0]).all() or len(one) < 2:
        raise PrivacyError("shuffled records are audited on equal records of which the last one is replaced")
    points = [v / max(1.0, float(np.linalg.norm(v)) / mechanism.clip_norm) for v in (one[0], one[-1], other[-1])]

    def tell(answer: dict[str, NDArray[Any]]) -> float:
        rest, first, second = (((answer["values"] - p) ** 2).sum(1) / (2 * mechanism.noise_std**2) for p in points)
        return float(np.logaddexp.reduce(rest - first) - np.logaddexp.reduce(rest - second))

    return tell

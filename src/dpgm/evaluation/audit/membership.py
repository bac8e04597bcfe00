"""Membership inference on samples: do they lie nearer to the records they were made from than to others of the kind?

Records of the train part and held-out records are paired within their class. If both parts are a random split of one
population, a fair coin put one of each pair into the data; the attacker guesses it from the samples alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom
from torch import Tensor
from torch.nn import functional

from dpgm.evaluation.audit.bound import Array, Audit, Bound, Claim, clopper_pearson
from dpgm.evaluation.audit.one_run import Guesses, crumb, guess_ceiling, guess_pairs
from dpgm.evaluation.utility import Door
from dpgm.nets.classifiers import to_unit
from dpgm.privacy.guarantee import Guarantee, PrivacyError, Relation
from dpgm.schema import AnySchema, ImageSchema, Rows, SchemaError, TableSchema

COPIES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the records that memorising twins copy into their samples."""
REASON = "membership inference: train records beside held-out ones, against the samples"
_NEAR, _SIDE, _TINY = 10, 32, 1e-9
_ALARM, _TAIL = 0.01, 0.0125
_ROUNDS = 4

Odds = Callable[[NDArray[np.uint8]], NDArray[Any] | None]


def audit_membership(
    samples: Rows,
    held_out: Rows,
    *,
    door: Door,
    schema: AnySchema,
    guarantee: Guarantee,
    claim: Claim,
    odds: Odds | None = None,
    pairs: int = 2_000,
    confidence: float = 0.999,
    audience: str = "the auditor",
    name: str = "membership in the samples",
) -> Audit:
    """Guess which of two records was in the data.

    Scores, each a test of its own: "nearest", minus the log of the squared distance to the nearest sample of the class;
    "density", the same for the mean over the ten nearest; "labeller", the log odds of the record's label, where a
    classifier was released. The numbers that come back are *not private*: they count guesses about private records.

    Args:
        samples: synthetic records, columns as in `held_out`.
        held_out: records of the same kind that took no part.
        door: way to the train records; it records the look.
        schema: public facts about all of them.
        guarantee: what is claimed.
        claim: delta -> the epsilon that is claimed at it, under the guarantee's relation.
        odds: class probabilities of images, by a released classifier.
        pairs: pairs of records at most.
        confidence: probability that a true claim is not beaten, if the parts are a random split.
        audience: who sees the outcome.
        name: what the audit is called.

    Raises:
        SchemaError: there are no samples, or fewer than ten pairs.
    """
    if len(samples) == 0:
        raise SchemaError("there are no samples to attack; draw some: dpgm sample FOLDER")
    cloud, others = vectors(samples, schema), labels_of(held_out, schema)

    def look(rows: Rows) -> dict[str, Any]:
        inside, outside = _paired(labels_of(rows, schema), others, pairs)
        members, strangers = rows.take(inside), held_out.take(outside)
        both = torch.cat([vectors(members, schema), vectors(strangers, schema)])
        near = nearest(both, cloud)
        scores = _scores(near)
        if odds is not None and (found := _log_odds(odds, members, strangers)) is not None:
            scores["labeller"] = found
        twins = {
            share: _scores(_merged(near, nearest(both, both[: max(1, round(share * len(inside)))]))) for share in COPIES
        }
        return {"scores": scores, "twins": twins}

    seen = door(look, reason=REASON, audience=audience)
    scores: dict[str, Array] = seen["scores"]
    m = len(scores["nearest"]) // 2
    sure = 1 - (1 - confidence) / len(scores)
    slack, claimed = _replaced(claim, guarantee, m, confidence, sure)

    def attack(scores: dict[str, Array]) -> tuple[Bound, str, Guesses]:
        tried = {k: guess_pairs(s[:m] - s[m:], delta=slack, confidence=sure) for k, s in scores.items()}
        which = max(tried, key=lambda k: (tried[k].found, tried[k].right / tried[k].made))
        return Bound(delta=slack, claimed=claimed, found=tried[which].found), which, tried[which]

    bound, which, guesses = attack(scores)
    caught = [share for share, twin in seen["twins"].items() if attack(twin)[0].beaten]
    none = "none, not even samples that copy all records"
    twin = f"samples that copy {caught[0]:.0%} of the records" if caught else none
    rates = {k: _rates(s[:m], s[m:]) for k, s in scores.items()}
    rate = rates["nearest"]
    words = f"1 run, {m:,} pairs; {guesses.right:,} of {guesses.made:,} guesses right (by {which})"
    return Audit(
        name=f"{name}, {guarantee.relation.value} at epsilon {guarantee.epsilon:.4g}, delta {guarantee.delta:g}",
        relation=Relation.REPLACE,
        evidence=guarantee.evidence,
        stated=bound,
        best=bound,
        trials=m,
        held_out=m,
        confidence=confidence,
        ceiling=guess_ceiling(m, delta=slack, confidence=sure),
        pair="a train record or a held-out one of its class, if the two parts are a random split of one population",
        twin=twin,
        kind="membership",
        how=words + (f"; {rate['tpr']:.1%} of the members at 1 % false alarms" if "tpr" in rate else ""),
        details=rates,
    )


def vectors(rows: Rows, schema: AnySchema) -> Tensor:
    """Records as points `[n, d]`, float32; two of different classes lie further apart than any two of one class."""
    if isinstance(schema, ImageSchema):
        x = to_unit(rows["image"])
        if max(x.shape[2:]) > _SIDE:
            x = functional.adaptive_avg_pool2d(x, _SIDE)
        x, n_classes = x.flatten(1), schema.n_classes
        label = torch.from_numpy(rows["label"])
        return torch.cat([x, math.sqrt(x.shape[1]) * functional.one_hot(label, n_classes).float()], 1)
    return _table_points(rows["table"], schema)


def labels_of(rows: Rows, schema: AnySchema) -> NDArray[np.int64]:
    """The class of each record, [n]."""
    return rows["label"] if isinstance(schema, ImageSchema) else schema.labels(rows["table"])


def nearest(points: Tensor, cloud: Tensor, *, block: int = 1000) -> Tensor:
    """Squared distances of each point to the ten nearest points of a cloud, ascending, `[n, 10]`; infinite where the
    cloud has fewer.
    """
    parts: list[Tensor] = []
    k = min(_NEAR, len(cloud))
    for some in points.split(block):
        index = torch.cdist(some, cloud).topk(k, 1, largest=False).indices
        exact = (some[:, None] - cloud[index]).square().sum(2).sort(1).values  # cdist rounds: copies would not be at 0
        parts.append(functional.pad(exact, (0, _NEAR - k), value=math.inf))
    return torch.cat(parts)


def _merged(one: Tensor, other: Tensor) -> Tensor:
    return torch.cat([one, other], 1).sort(1).values[:, :_NEAR]


def _scores(near: Tensor) -> dict[str, Array]:
    some = near.double()
    some = torch.where(torch.isfinite(some), some, some[torch.isfinite(some)].max())
    return {"nearest": -(some[:, 0] + _TINY).log().numpy(), "density": -(some.mean(1) + _TINY).log().numpy()}


def _log_odds(odds: Odds, *parts: Rows) -> Array | None:
    found: list[Array] = []
    for rows in parts:
        shares = odds(rows["image"])
        if shares is None:
            return None
        found.append(np.log(np.maximum(shares[np.arange(len(rows)), rows["label"]].astype(np.float64), 1e-30)))
    return np.concatenate(found)


def _paired(
    inside: NDArray[np.int64], outside: NDArray[np.int64], most: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions of records of equal class in both parts, at random, at most `most` pairs."""
    rng = np.random.default_rng(0)  # which records are looked at is public
    ones: list[NDArray[np.intp]] = []
    others: list[NDArray[np.intp]] = []
    for k in np.unique(outside):
        a, b = (rng.permutation(np.flatnonzero(part == k)) for part in (inside, outside))
        n = min(len(a), len(b))
        ones.append(a[:n])
        others.append(b[:n])
    order = rng.permutation(sum(map(len, ones)))[:most]
    if len(order) < 10:
        raise SchemaError(
            f"only {len(order)} pairs of train and held-out records share a class; at least 10 are needed"
        )
    return np.concatenate(ones)[order], np.concatenate(others)[order]


def _replaced(claim: Claim, guarantee: Guarantee, pairs: int, confidence: float, sure: float) -> tuple[float, float]:
    """(delta, epsilon) that the claim implies for a *replaced* record, at a delta that costs little.

    Under add/remove a replaced record is two steps: (2 epsilon, (1 + e^epsilon) delta). A smaller delta leaves more of
    the alarm to the guesses, and raises the claim. Taken is the first at which perfect guesses would beat it, or, where
    none would, that at which they show most. No guess is looked at for it, so it costs nothing.
    """
    small = delta = crumb(guarantee.delta, pairs, 1 - confidence)
    tried: list[tuple[float, float, float]] = []  # what perfect guesses show, delta, epsilon
    for _ in range(_ROUNDS):
        try:
            epsilon = claim(delta)
        except PrivacyError:  # a bare claim says nothing at another delta, and no sum is exact at the smallest ones
            break
        slack, claimed = _two_steps(guarantee.relation, delta, epsilon)
        tried.append((guess_ceiling(pairs, delta=slack, confidence=sure), slack, claimed))
        if tried[-1][0] > claimed:
            return slack, claimed
        if guarantee.relation is Relation.REPLACE or not math.isfinite(epsilon):
            break
        delta = small / _factor(epsilon)
    if not tried:
        return _two_steps(guarantee.relation, guarantee.delta, guarantee.epsilon)
    return max(tried, key=lambda one: one[0])[1:]


def _two_steps(relation: Relation, delta: float, epsilon: float) -> tuple[float, float]:
    if relation is Relation.REPLACE:
        return delta, epsilon
    return min(1.0, delta * _factor(epsilon)), 2 * epsilon


def _factor(epsilon: float) -> float:
    return 1 + math.exp(min(epsilon, 700.0))


def _rates(members: Array, strangers: Array) -> dict[str, float]:
    """Area under the curve and, from 99 pairs on, the share of members above the level of 1 % false alarms.

    The level is the order statistic of the strangers that a further one exceeds with probability `false_alarms`.
    The 95 % interval is of the share above the true level: half of its error goes to where that lies.
    """
    n, ordered = len(members), np.sort(strangers)
    ranks = np.searchsorted(ordered, members, side="left") + np.searchsorted(ordered, members, side="right")
    found = {"auc": float(ranks.mean() / (2 * len(strangers)))}
    kth = math.floor((len(strangers) + 1) * _ALARM)
    if kth < 1:
        return found
    levels = np.concatenate([[-np.inf], ordered, [np.inf]])[::-1]  # levels[r]: the r-th largest
    above = binom(len(strangers), _ALARM)
    high = int(above.ppf(_TAIL))  # P(fewer than `high` of them above the true level) <= _TAIL
    low = int(above.isf(_TAIL)) + 1  # P(as many as `low`) <= _TAIL
    hits = [int((members > levels[r]).sum()) for r in (high, kth, low)]
    return found | {
        "tpr": hits[1] / n,
        "tpr_low": float(clopper_pearson(hits[0], n, _TAIL)[0]),
        "tpr_high": float(clopper_pearson(hits[2], n, _TAIL)[1]),
        "false_alarms": kth / (len(strangers) + 1),
    }


def _table_points(table: NDArray[np.float64], schema: TableSchema) -> Tensor:
    """Numbers in [0, 1] by their bounds, categories one-hot; a missing value is a category of its own."""
    parts: list[NDArray[np.float64]] = []
    for j, column in enumerate(schema.columns):
        x, missing = table[:, j], np.isnan(table[:, j])
        low, high = column.bounds
        if column.kind in ("category", "boolean"):
            code = np.where(missing, -1, x).astype(np.int64)
            one = np.eye(int(high) + 2)[code] / math.sqrt(2)
        else:
            one = np.stack([np.where(missing, 0.0, (x - low) / (high - low)), missing], 1)
        parts.append(one * (math.sqrt(2 * len(schema.columns)) if j == schema.label_index else 1.0))
    return torch.from_numpy(np.concatenate(parts, 1)).float()

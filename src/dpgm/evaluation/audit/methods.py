"""Audits of methods: every mechanism that a method really asks, on a few hostile pictures or rows of a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dpgm.evaluation.audit.bound import Audit
from dpgm.evaluation.audit.mechanisms import audit, task_shift
from dpgm.mechanisms.gradient import PoissonGradient
from dpgm.mechanisms.noise import Laplace
from dpgm.mechanisms.projection import NoisyRecords, ShuffledRecords, SlicedProjection
from dpgm.mechanisms.queries import total
from dpgm.mechanisms.selection import SelectMarginal
from dpgm.methods.base import Method, Note, Plan, Resume
from dpgm.privacy.guarantee import Budget, PrivacyError, Relation
from dpgm.privacy.mechanism import Mechanism, NoiseSource, Query
from dpgm.schema import AnySchema, Column, ImageSchema, Rows, TableSchema

TINY = ImageSchema(height=8, width=8, channels=1, classes=("0", "1"), size=100)
"""What methods are audited on: mechanisms are the same code at every size."""
TINY_TABLE = TableSchema(
    columns=(
        Column(name="a", kind="category", values=("u", "v", "w")),
        Column(name="b", kind="number", low=0.0, high=1.0, missing=True),
        Column(name="c", kind="boolean"),
    ),
    label="c",
    size=100,
)
"""The same for tables."""


def stages(method: Method | type[Method]) -> tuple[AnySchema, ...]:
    """What a method is audited on: a small schema for each kind of records that it takes."""
    return tuple(schema for schema in (TINY, TINY_TABLE) if isinstance(schema, method.takes))


def audit_method(
    method: Method,
    *,
    budget: Budget,
    relation: Relation = Relation.ADD_REMOVE,
    schema: AnySchema | None = None,
    trials: int = 100_000,
    confidence: float = 0.999,
    weakest: bool = True,
    noise: NoiseSource | None = None,
) -> list[Audit]:
    """Audit every mechanism of a method's plan, each with all its calls, against its own share of the promise.

    The method talks as in a run, so the mechanisms are those that would touch private rows, with their encoders and
    nets. For each the pair of neighbours is taken that moves its exact answer furthest, among black, white, striped,
    checked and one-pixel pictures of each class, or table rows at the ends of their columns.

    Args:
        method: what is audited.
        budget: what its plan may spend; the stated delta of the audits.
        relation: which data sets are neighbours.
        schema: public facts about the made-up records; the first of `stages` by default.
        trials: runs on each data set, at most.
        confidence: probability that no true claim is beaten, for each mechanism.
        weakest: look for the weakest broken twins.
        noise: where noise comes from.
    """
    if schema is None:
        schema = stages(method)[0]
    facts: Any = schema
    plan = method.plan(facts, relation=relation, budget=budget)
    found: list[Audit] = []
    for mechanism, calls in asked(method, plan):
        rows, neighbour, pair = worst_pair(mechanism, schema, relation)
        found.append(
            audit(
                mechanism,
                rows,
                neighbour,
                relation=relation,
                calls=calls,
                delta=budget.delta,
                trials=trials,
                confidence=confidence,
                noise=noise,
                weakest=weakest,
                name=f"{mechanism.cost(relation).name}, {calls} call{'s' * (calls > 1)}",
                pair=pair,
            )
        )
    return found


def asked(method: Method, plan: Plan) -> list[tuple[Mechanism[Any], int]]:
    """The mechanisms that `method` asks, with their tasks, and how often each was reserved."""
    rows, source = _hostile(plan.schema)[1], NoiseSource()
    calls = dict(plan.costs())
    seen: dict[str, tuple[Mechanism[Any], int]] = {}
    still: dict[str, Any] = {}
    talk = method.talk(plan, rng=np.random.default_rng(0), resume=Resume(used={}))
    answer: Any = None
    while True:
        try:
            ask = talk.send(answer)
        except StopIteration:
            return list(seen.values())
        if isinstance(ask, Note):
            answer = None
            continue
        cost = ask.cost(plan.relation)
        # Further gradients are answered by zeros: the bound must hold whatever the weights are.
        some = rows.take(np.arange(ask.records) % len(rows)) if isinstance(ask, ShuffledRecords) else rows
        answer = still[cost.name] if cost.name in still else ask(some, source)
        seen.setdefault(cost.name, (ask, calls[cost]))
        if isinstance(ask, PoissonGradient):
            still.setdefault(cost.name, np.zeros_like(answer))


def worst_pair(mechanism: Any, schema: AnySchema, relation: Relation) -> tuple[Rows, Rows, str]:
    """The neighbours among hostile records that move the exact answer of `mechanism` furthest.

    Returns:
        two data sets and words for them.
    """
    names, hostile = _hostile(schema)
    alone = isinstance(mechanism, SlicedProjection | NoisyRecords)
    # A sum does not care about the others; what couples records shows itself among many of them.
    others = 0 if alone else 60 if isinstance(mechanism, PoissonGradient) else 3
    base = hostile.take(np.arange(others) % len(hostile))
    moved = _moved(mechanism)
    best: tuple[float, Rows, Rows, str] | None = None
    for i, name in enumerate(names):
        rivals: list[int | None] = [None] if relation is Relation.ADD_REMOVE else list(range(i))
        for j in rivals:
            rows = _joined(base, hostile, i)
            neighbour = base if j is None else _joined(base, hostile, j)
            shift = moved(rows, neighbour)
            if best is None or shift > best[0] * (1 + 1e-9):
                words = f"{len(base)} records, and {name}" + ("" if j is None else f" or {names[j]}")
                if isinstance(mechanism, PoissonGradient):
                    words += ", the records' own coins held fixed"
                best = (shift, rows, neighbour, words)
    assert best is not None
    _, rows, neighbour, words = best
    if isinstance(mechanism, ShuffledRecords):  # others that look like one of the two hide the record least
        others = neighbour.take(np.zeros(mechanism.records - 1, np.int64))
        rows, neighbour = _joined(others, rows, 0), _joined(others, neighbour, 0)
        words = f"{len(others)} records like the second of{words.removeprefix('0 records, and')}"
    return rows, neighbour, words


def _moved(mechanism: Any) -> Callable[[Rows, Rows], float]:
    """How far a mechanism's exact answer moves between two data sets."""
    if isinstance(mechanism, SlicedProjection | NoisyRecords):
        return lambda a, b: float(np.linalg.norm(mechanism.vectors(a) - mechanism.vectors(b)))
    if isinstance(mechanism, PoissonGradient) and mechanism.task is not None:
        task = mechanism.task
        return lambda a, b: task_shift(task, a, b)
    if isinstance(mechanism, SelectMarginal):  # what all candidates gain alike does not show
        return lambda a, b: float(np.ptp(mechanism.scores(a) - mechanism.scores(b)))
    query = getattr(mechanism, "query", None)
    if not isinstance(query, Query):
        raise PrivacyError(
            f"it is not known how {type(mechanism).__name__} reads pictures; call dpgm.evaluation.audit.audit with a "
            "pair of data sets and score="
        )
    norm = 1 if isinstance(mechanism, Laplace) else 2
    return lambda a, b: float(np.linalg.norm((total(query, a) - total(query, b)).ravel(), norm))


def _hostile(schema: AnySchema) -> tuple[list[str], Rows]:
    """Records far apart from each other, with words for them."""
    return _pictures(schema) if isinstance(schema, ImageSchema) else _table(schema)


def _pictures(schema: ImageSchema) -> tuple[list[str], Rows]:
    height, width, channels = schema.shape
    i, j = np.mgrid[:height, :width]
    kinds = {
        "black": np.zeros_like(i),
        "white": np.ones_like(i),
        "striped": i % 2,
        "checked": (i + j) % 2,
        "one-pixel": (i == height // 2) & (j == width // 2),
    }
    one = np.stack([np.repeat(255 * k[:, :, None], channels, 2) for k in kinds.values()]).astype(np.uint8)
    labels = schema.classes[:2]
    names = [f"a {word} picture of class {label}" for label in labels for word in kinds]
    return names, Rows(image=np.tile(one, (len(labels), 1, 1, 1)), label=np.repeat(np.arange(len(labels)), len(one)))


def _table(schema: TableSchema) -> tuple[list[str], Rows]:
    ends = np.array([column.bounds for column in schema.columns]).T
    rows = np.stack([ends[0], ends[1], ends.mean(0).round(), np.where(np.arange(ends.shape[1]) % 2, ends[0], ends[1])])
    names = ["a row of lowest values", "a row of highest values", "a row of middle values", "a row of ends in turn"]
    if (may := np.array([column.missing for column in schema.columns])).any():
        rows, names = np.vstack([rows, np.where(may, np.nan, ends[0])]), [*names, "a row that lacks values"]
    return names, Rows(table=rows)


def _joined(base: Rows, more: Rows, index: int) -> Rows:
    """`base` with record `index` of `more` at its end."""
    return Rows(**{name: np.concatenate([base[name], more[name][index : index + 1]]) for name in base.names})

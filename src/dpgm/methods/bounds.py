"""Bounds of columns that nobody can declare: a charged step before the method's own plan.

A column with `private_bounds` is first counted on a public grid of powers of two (of years, for dates and datetimes)
under Gaussian noise. Its bounds are the outer ends of the cells that stand out of the noise, alone or together with
their neighbours; what lies beyond is moved to them.

Proof page: docs/proofs/bounds.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpgm.mechanisms.noise import Gaussian
from dpgm.mechanisms.tables import Cells, Marginals
from dpgm.methods.base import Method, Plan
from dpgm.privacy import accountant
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, BudgetExceeded, PrivacyError, Relation
from dpgm.privacy.mechanism import Cost
from dpgm.schema import Column, SchemaError, TableSchema

SHARE = 0.05
"""Share of the budget (of mu^2) that bounds take where some are private."""
_STANDS_OUT = 5.0
"""Standard deviations of noise above which cells are taken for occupied: 1 in 1,000 for 4,000 empty ones."""
_FINEST, _LARGEST = -30, 50
"""Powers of two that the grid of numbers begins and ends with."""


def private_columns(schema: Any) -> tuple[int, ...]:
    """Positions of the columns whose bounds must be paid for; none in a schema of images."""
    columns: Sequence[Column] = schema.columns if isinstance(schema, TableSchema) else ()
    return tuple(j for j, c in enumerate(columns) if c.private_bounds)


def grid(column: Column) -> Cells:
    """The public grid of a column, within its outer limits: 0 and powers of two, or years."""
    low, high = column.bounds
    if column.unit:
        years = np.array([f"{y}-01-01" for y in range(1970 - 370, 1970 + 431)], f"datetime64[{column.unit}]")
        edges = years.astype(float) - 0.5
    elif column.whole:
        powers = 2.0 ** np.arange(0, _LARGEST + 1) - 0.5
        edges = np.concatenate([-powers[::-1], powers])
    else:
        powers = 2.0 ** np.arange(_FINEST, _LARGEST + 1)
        edges = np.concatenate([-powers[::-1], powers])
    margin = 0.5 if column.whole else 0.0
    inside = edges[(edges > low - margin) & (edges < high + margin)]
    return Cells(edges=(low - margin, *(float(e) for e in inside), high + margin))


def question(schema: TableSchema, *, relation: Relation, mu: float) -> Gaussian:
    """Counts of every private column on its grid, all in one release of mu-Gaussian DP."""
    chosen = private_columns(schema)
    anything = Cells(edges=(-math.inf, math.inf))
    cells = tuple(grid(c) if j in chosen else anything for j, c in enumerate(schema.columns))
    query = Marginals(cells=cells, blocks=tuple((j,) for j in chosen), weights=(1.0,) * len(chosen))
    return Gaussian(query=query, noise_std=query.sensitivity(relation) / mu, name="bounds")


def crowded(counts: NDArray[np.float64], noise_std: float) -> NDArray[np.bool_]:
    """Which cells hold records: alone, or together with neighbours of which none does alone.

    Runs of 1, 2, 4, ... cells, each half over the next, whose sum is above 5 standard deviations of its noise.

    Args:
        counts: noisy counts of the cells, in order.
        noise_std: standard deviation of the noise on each.
    """
    sure, size = np.zeros(len(counts), bool), 1
    while size <= len(counts):
        last, known = len(counts) - size, sure.copy()
        for start in {*range(0, last, max(1, size // 2)), last}:
            run = slice(start, start + size)
            if not known[run].any() and counts[run].sum() > _STANDS_OUT * noise_std * math.sqrt(size):
                sure[run] = True
        size *= 2
    return sure


def answered(schema: TableSchema, asked: Gaussian, answer: NDArray[np.float64]) -> tuple[TableSchema, tuple[str, ...]]:
    """The schema with bounds that the noisy counts tell, and the names of columns of which they tell nothing; these get
    the cells next to 0.
    """
    query: Any = asked.query
    columns, unseen = list(schema.columns), list[str]()
    for j, counts in zip(private_columns(schema), query.split(answer), strict=True):
        column, edges = columns[j], np.array(query.cells[j].edges)
        found = np.flatnonzero(crowded(counts, asked.noise_std))
        if not len(found):
            unseen.append(column.name)
            found = np.clip(np.searchsorted(edges, [0.0, 1.0], side="right") - 1, 0, len(counts) - 1)
        low, high = float(edges[found[0]]), float(edges[found[-1] + 1])
        low = 0.0 if low < 0 < edges[found[0] + 1] else low  # the cell around 0, of almost no width, is 0
        if column.whole:
            low, high = math.ceil(low), math.floor(high)
        high = max(high, low + 1) if column.whole else high
        ends = [_written(column, v) for v in (low, high)]
        columns[j] = dataclasses.replace(column, low=ends[0], high=ends[1], private_bounds=False)
    for wider in ((), columns, schema.columns):
        try:
            return dataclasses.replace(schema, columns=tuple(_widened(schema, columns, wider))), tuple(unseen)
        except SchemaError:  # an order would be impossible, and the bounds are paid for: take wider ones
            continue
    raise AssertionError("the declared limits allow every order")


def _widened(schema: TableSchema, columns: Sequence[Column], wider: Sequence[Column]) -> list[Column]:
    """The columns; each private one that stands in an order with the widest bounds that any of these has in `wider`, as
    far as its declared limits allow.
    """
    out, ordered = list(columns), {schema.names.index(name) for pair in schema.ordered for name in pair}
    for j in ordered.intersection(private_columns(schema)) if wider else ():
        column, limits = columns[j], schema.columns[j].bounds
        of_kind = [wider[i].bounds for i in ordered if columns[i].unit == column.unit]
        low, high = min(b[0] for b in of_kind), max(b[1] for b in of_kind)
        if column.whole:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, limits[0]), min(high, limits[1])
        out[j] = dataclasses.replace(
            column, low=_written(column, low), high=_written(column, high), private_bounds=False
        )
    return out


def _written(column: Column, value: float) -> float | str:
    return column.moment(value) if column.unit else value


def prices(method: Method, plan: Plan, *, share: float = SHARE) -> list[tuple[Cost, int]]:
    """What a whole run will ask: bounds, where some are private, and then the method.

    Args:
        method: what is run.
        plan: its plan with the outer limits; prices do not depend on the bounds that will be found.
        share: of the budget, for the bounds.
    """
    if not private_columns(plan.schema):
        return plan.costs()
    spent = _asked(plan.schema, plan.relation, plan.budget, share).cost(plan.relation), 1
    return [spent, *rest(method, plan.schema, relation=plan.relation, budget=plan.budget, spent=spent).costs()]


def price(curator: Curator, *, budget: Budget, share: float = SHARE) -> tuple[Cost, int]:
    """Reserve the bounds and say what they cost.

    Args:
        curator: answers over rows that were read by the schema's outer limits.
        budget: what the whole run may spend.
        share: share of it, of mu^2, above 0 and below 1.

    Raises:
        PrivacyError: the share is not, or delta is 0.
    """
    asked = _asked(curator.schema, curator.ledger.relation, budget, share)
    curator.reserve("bounds", [(asked, 1)])
    return asked.cost(curator.ledger.relation), 1


def find(curator: Curator, *, budget: Budget, share: float = SHARE) -> tuple[TableSchema, str]:
    """Ask for the bounds that `price` reserved; the schema that they complete, and what must be said of it, or ""."""
    schema: Any = curator.schema
    asked = _asked(schema, curator.ledger.relation, budget, share)
    found, unseen = answered(schema, asked, curator.answer(asked))
    if not unseen:
        return found, ""
    return found, (
        f"no values of {', '.join(unseen)} stood out of the noise, so all of them are moved next to 0 (dates to 1970); "
        "declare bounds from public knowledge, or start anew with a larger epsilon or --bounds-share"
    )


def _asked(schema: Any, relation: Relation, budget: Budget, share: float) -> Gaussian:
    if not 0 < share < 1:
        raise PrivacyError(f"the share of the bounds is {share}; allowed is more than 0 and less than 1")
    return question(schema, relation=relation, mu=math.sqrt(share) * accountant.gaussian_mu(budget))


def rest(method: Method, schema: Any, *, relation: Relation, budget: Budget, spent: tuple[Cost, int]) -> Plan:
    """The method's plan with what is left, so that both together stay within the budget.

    Raises:
        BudgetExceeded: nothing is left.
    """
    left = accountant.gaussian_mu(budget) ** 2 - accountant.gaussian_sum([(spent[0].event, spent[1])]) ** 2
    epsilon = accountant.gaussian_epsilon(math.sqrt(max(left, 1e-12)), budget.delta)
    for _ in range(60):
        plan = method.plan(schema, relation=relation, budget=dataclasses.replace(budget, epsilon=epsilon))
        if accountant.epsilon_of([spent, *plan.costs()], delta=budget.delta, relation=relation) <= budget.epsilon:
            return plan
        epsilon *= 0.98  # plans that are not Gaussian compose to a little more
    raise BudgetExceeded("the bounds leave nothing for the method; raise epsilon, or lower --bounds-share")

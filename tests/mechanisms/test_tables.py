"""Marginals of tables: sensitivities against hostile records, and the twin that forgets its weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dpgm.mechanisms.queries import total
from dpgm.mechanisms.tables import Cells, Marginals
from dpgm.privacy.guarantee import PrivacyError, Relation
from dpgm.schema import Rows
from dpgm.testing import check_query

CELLS = (
    Cells(edges=(0.0, 1.0, 2.0, 3.0), missing=True),
    Cells(edges=(-1.0, 0.5, 10.0), groups=(0, 1)),
    Cells(edges=(0.0, 1.0, 2.0, 3.0, 4.0), groups=(0, 1, 1, 0)),
)
QUERY = Marginals(cells=CELLS, blocks=((0,), (0, 1), (1, 2, 0)), weights=(1.0, 2.0, 0.5))


def hostile(n: int, rng: np.random.Generator) -> Rows:
    table = rng.choice([-5.0, 0.0, 0.5, 1.0, 2.5, 3.0, 4.0, 1e300, np.inf, -np.inf, np.nan], size=(n, 3))
    return Rows(table=table)


def test_marginals_keep_the_contract_and_their_bound_is_tight() -> None:
    seen = check_query(QUERY, hostile)
    assert seen[Relation.ADD_REMOVE, 2] == pytest.approx(1.0)
    assert seen[Relation.REPLACE, 2] == pytest.approx(1.0)


def test_twin_that_forgets_its_weights_is_caught() -> None:
    class Forgets(Marginals):
        def sensitivity(self, relation: Relation, norm: int = 2) -> float:
            return math.sqrt(len(self.weights))

    with pytest.raises(AssertionError):
        check_query(Forgets(cells=CELLS, blocks=QUERY.blocks, weights=QUERY.weights), hostile)


def test_cells() -> None:
    x = np.array([-0.1, 0, 0.99, 1, 3, 3.1, np.nan])
    assert CELLS[0](x).tolist() == [-1, 0, 0, 1, 2, -1, 3]
    assert CELLS[2](np.array([0.5, 1.5, 2.5, 4.0, np.nan])).tolist() == [0, 1, 1, 0, -1]
    assert [c.count for c in CELLS] == [4, 2, 2]


def test_counts_and_split() -> None:
    table = np.array([[0.0, 0.0, 1.0], [np.nan, 5.0, 3.5], [7.0, 0.0, 0.0]])
    one, two, three = QUERY.split(total(QUERY, Rows(table=table)))
    assert one.tolist() == [1, 0, 0, 1]
    assert two.tolist() == [[1, 0], [0, 0], [0, 0], [0, 1]]
    assert three.shape == (2, 2, 4)
    assert three.sum() == 2
    assert QUERY.sensitivity(Relation.ADD_REMOVE) == pytest.approx(math.hypot(1, 2, 0.5))
    assert QUERY.sensitivity(Relation.REPLACE, 1) == pytest.approx(7.0)


def test_long_answers_are_counted_in_large_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = tuple(Cells(edges=tuple(range(200))) for _ in range(3))
    query = Marginals(cells=cells, blocks=((0, 1, 2),), weights=(1.0,))
    rows = Rows(table=np.random.default_rng(0).uniform(0, 199, (1500, 3)))
    sums: list[int] = []

    def partial(self: Marginals, rows: Rows) -> Any:
        sums.append(len(rows))
        return one_block(self, rows)

    one_block = Marginals.partial
    monkeypatch.setattr(Marginals, "partial", partial)
    answer = total(query, rows)
    assert sums == [1500]  # each sum is as long as the answer
    np.testing.assert_array_equal(answer, total(query, rows, block=500))
    assert replace(query, cells=cells * 1000).block < query.block  # memory is bounded in columns, too


@pytest.mark.parametrize(
    "fields",
    [
        {"weights": (1.0,)},
        {"weights": (1.0, 0.0, 1.0)},
        {"blocks": ((0,), (0, 0), (1,))},
        {"blocks": ((0,), (3,), (1,))},
        {"blocks": ((0,), (), (1,))},
    ],
)
def test_refusals(fields: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError):
        replace(QUERY, **fields)
    with pytest.raises(PrivacyError):
        Cells(edges=(0.0, 0.0))
    with pytest.raises(PrivacyError):
        Cells(edges=(0.0, 1.0, 2.0), groups=(0, 2))
    with pytest.raises(PrivacyError, match="columns"):
        QUERY.partial(Rows(table=np.zeros((2, 2))))

"""Scores of tables: values that SDMetrics 0.32 gave, and what perfect and useless tables must score."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dpgm.evaluation import tables
from dpgm.evaluation.tables import evaluate_table, fidelity, utility
from dpgm.evaluation.utility import public_door
from dpgm.schema import Column, Rows, SchemaError, TableSchema

SCHEMA = TableSchema(
    columns=(
        Column(name="a", kind="category", values=("x", "y", "z"), missing=True),
        Column(name="b", kind="boolean"),
        Column(name="c", kind="number", low=0, high=100, missing=True),
        Column(name="d", kind="number", low=0, high=100),
    ),
    label="b",
)


def made_up(n: int, a: int) -> NDArray[np.float64]:
    i = np.arange(n)
    columns = [(i * a) % 3, (i // 2 + a) % 2, (i * 7 % 50) / 5 + a, np.sqrt(i) + (i * a) % 4]
    t = np.stack(columns, 1).astype(float)
    t[i % 11 == a, 0] = np.nan
    t[i % 13 == a, 2] = np.nan
    return t


def learnable(n: int, seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    a = np.where(rng.random(n) < 0.8, y, 2)
    return np.stack([a, y, np.abs(10 + 5 * y + rng.normal(size=n) * 3), rng.random(n) * 100], 1).astype(float)


def test_fidelity_is_what_sdmetrics_says() -> None:
    found = fidelity(made_up(200, 2), made_up(150, 5), SCHEMA)
    assert 0 < found.pop("KMarginal") < 1000 * found["PairSimilarity"]  # triples differ more than pairs
    assert found == pytest.approx(
        {
            "KSComplement": 0.7745652173913044,
            "TVComplement": 0.9941666666666666,
            "CorrelationSimilarity": 0.9882209192328438,
            "ContingencySimilarity": 0.789,
            "PairSimilarity": 0.7480555555555556,
        }
    )


def test_a_table_is_perfectly_like_itself() -> None:
    table = made_up(100, 3)
    found = fidelity(table, table, SCHEMA)
    assert found == pytest.approx({**dict.fromkeys(found, 1.0), "KMarginal": 1000.0})


def test_k_marginal_sees_what_no_pair_shows() -> None:
    schema = TableSchema(columns=tuple(Column(name=n, kind="boolean") for n in "abc"))
    bits = np.array(list(np.ndindex(2, 2, 2)), float)
    even = np.repeat(bits[bits.sum(1) % 2 == 0], 2, axis=0)  # the third is the others' exclusive or
    found = fidelity(even, bits, schema)
    assert found["PairSimilarity"] == pytest.approx(1.0)
    assert found["KMarginal"] == pytest.approx(500.0)
    pairs = TableSchema(columns=schema.columns[:2])
    assert "KMarginal" not in fidelity(even[:, :2], bits[:, :2], pairs)


def test_k_marginal_takes_the_same_triples_of_every_wide_table() -> None:
    assert tables._triples(4) == [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)]
    chosen = tables._triples(30)
    assert chosen == tables._triples(30)
    assert len(set(chosen)) == len(chosen) == tables.TRIPLES
    assert all(i < j < k < 30 for i, j, k in chosen)


def test_utility_of_a_learnable_and_of_a_mislabelled_table() -> None:
    train, test = learnable(600, 0), learnable(400, 1)
    good = utility(train, test, SCHEMA)
    assert good["logreg"]["auc"] > 0.9
    assert good["boosting"]["auc"] > 0.9
    train[:, 1] = 1 - train[:, 1]
    assert utility(train, test, SCHEMA)["logreg"]["auc"] < 0.1
    train[:, 1] = 1
    assert utility(train, test, SCHEMA)["boosting"]["auc"] == 0.5


def test_a_column_that_lost_all_its_values_is_no_fault() -> None:
    train = learnable(300, 0)
    missing = [j for j, c in enumerate(SCHEMA.columns) if c.missing]
    train[:, missing] = np.nan
    assert missing
    assert 0 <= utility(train, learnable(200, 1), SCHEMA)["boosting"]["auc"] <= 1


def test_evaluation_lists_its_look_at_real_train_records() -> None:
    test = Rows(table=learnable(200, 1))
    door = public_door(lambda: Rows(table=learnable(300, 3)))
    found = evaluate_table(learnable(250, 0), test, schema=SCHEMA, real=door)
    assert set(found["utility"]) == {"logreg", "boosting", "real_logreg", "real_boosting"}
    assert found["sizes"] == {"synthetic": 250, "test": 200, "real": 300}
    assert len(found["exposures"]) == 1
    assert not evaluate_table(learnable(50, 0), test, schema=SCHEMA)["exposures"]
    with pytest.raises(SchemaError, match="no records"):
        evaluate_table(np.zeros((0, 4)), test, schema=SCHEMA)
    with pytest.raises(SchemaError, match="does not allow"):
        evaluate_table(np.full((1, 4), 7.0), test, schema=SCHEMA)

"""Declared orders between columns: refused where they make no sense, kept by every record in and out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dpgm
from dpgm.schema import Column, SchemaError, TableSchema

COLUMNS = (
    Column(name="a", kind="integer", low=-5, high=40),
    Column(name="b", kind="number", low=-3, high=10.5, decimals=1, missing=True),
    Column(name="c", kind="integer", low=0, high=12),
    Column(name="born", kind="date", low="1900-01-01", high="2020-12-31"),
    Column(name="died", kind="date", low="1950-01-01", high="2030-12-31", missing=True),
    Column(name="ill", kind="boolean"),
)
ORDERED = (("a", "b"), ("b", "c"), ("born", "died"))
SCHEMA = TableSchema(columns=COLUMNS, label="ill", ordered=ORDERED)


def made_up(n: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    table = np.stack([rng.uniform(*c.bounds, n) for c in COLUMNS], 1)
    for j, c in enumerate(COLUMNS):
        table[:, j] = c.settle(table[:, j])
        if c.missing:
            table[rng.random(n) < 0.2, j] = np.nan
    return table


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_records_in_order_fit_the_schema_and_those_that_were_stay(seed: int) -> None:
    table = made_up(60, seed)
    settled = SCHEMA.in_order(table)
    SCHEMA.check_table(settled)
    kept = ~SCHEMA.disordered(table)
    assert np.array_equal(settled[kept], table[kept], equal_nan=True)
    assert np.array_equal(np.isnan(settled), np.isnan(table))


def test_a_record_out_of_order_is_caught() -> None:
    table = SCHEMA.in_order(made_up(5, 0))
    table[2, :3] = [9, 8, 12]
    assert SCHEMA.disordered(table).tolist() == [False, False, True, False, False]
    with pytest.raises(SchemaError, match="orders"):
        SCHEMA.check_table(table)


def test_orders_survive_json() -> None:
    assert TableSchema.from_json(json.loads(json.dumps(SCHEMA.to_json()))) == SCHEMA


@pytest.mark.parametrize(
    ("pair", "message"),
    [(("a", "x"), "pairs"), (("a", "a"), "pairs"), (("a", "ill"), "order"), (("a", "born"), "order")],
)
def test_orders_that_cannot_be_are_refused(pair: tuple[str, str], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        TableSchema(columns=COLUMNS, ordered=(pair,))


def test_an_order_that_bounds_forbid_is_refused() -> None:
    late = Column(name="late", kind="integer", low=50, high=60)
    with pytest.raises(SchemaError, match="ended"):
        TableSchema(columns=(*COLUMNS, late), ordered=(("late", "a"),))


def test_synthetic_records_keep_the_order() -> None:
    pytest.importorskip("pandas")
    from dpgm.data.frames import to_frame

    frame = to_frame(SCHEMA.in_order(made_up(400, 1)), SCHEMA)
    model: Any = dpgm.fit(dpgm.Slicing(components=4, steps=5), frame, schema=SCHEMA, epsilon=1.0, delta=1e-5)
    drawn = model.sample(300, seed=0).table
    assert not SCHEMA.disordered(drawn).any()
    loose = model.records(np.zeros(300, np.int64), np.random.default_rng(0))  # the twin: what the mixture alone says
    assert SCHEMA.disordered(loose).any()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_a_chain_whose_end_has_lower_bounds_is_put_in_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns = tuple(
        Column(name=n, kind="number" if d is not None else "integer", low=0, high=h, decimals=d, missing=n != "a")
        for n, h, d in (("a", 10, None), ("b", 10, 1), ("c", 5, 0), ("d", 5, None))
    )
    chain = (("a", "b"), ("b", "c"), ("c", "d"))
    for orders in (chain, chain[::-1], (("a", "b"), ("b", "a"))):
        schema = TableSchema(columns=columns, ordered=orders)
        table = np.stack([c.settle(rng.uniform(*c.bounds, 50)) for c in columns], 1)
        table[:, 1:][rng.random((50, 3)) < 0.2] = np.nan
        settled = schema.in_order(table)
        schema.check_table(settled)
        kept = ~schema.disordered(table)
        assert np.array_equal(settled[kept], table[kept], equal_nan=True)


def test_a_chain_that_bounds_forbid_is_refused() -> None:
    names = (("a", 8, 10), ("b", 0, 10), ("c", 0, 5))
    columns = tuple(Column(name=n, kind="integer", low=low, high=high) for n, low, high in names)
    with pytest.raises(SchemaError, match="begins where 'c' has ended"):
        TableSchema(columns=columns, ordered=(("a", "b"), ("b", "c")))


def test_a_whole_number_has_to_fit_between() -> None:
    kinds: Any = (("a", "number", 4.2, 9), ("b", "integer", 0, 10), ("c", "number", 0, 4.5))
    columns = tuple(Column(name=n, kind=kind, low=low, high=high) for n, kind, low, high in kinds)
    with pytest.raises(SchemaError, match="'b' begins where 'c' has ended"):
        TableSchema(columns=columns, ordered=(("a", "b"), ("b", "c")))

"""Private bounds: their price, what they find, what they cost the method, and the twins that would leak them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import dpgm
from dpgm.cli import main
from dpgm.mechanisms.tables import Marginals
from dpgm.methods import bounds
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, PrivacyError, Relation
from dpgm.privacy.ledger import Ledger
from dpgm.privacy.mechanism import NoiseSource
from dpgm.schema import Column, Rows, SchemaError, TableSchema
from dpgm.testing import check_query

BUDGET = Budget(epsilon=1.0, delta=1e-6)
SCHEMA: Any = TableSchema(
    columns=(
        Column(name="wage", kind="number", private_bounds=True),
        Column(name="age", kind="integer", low=0, private_bounds=True, missing=True),
        Column(name="born", kind="date", private_bounds=True),
        Column(name="ill", kind="boolean"),
    ),
    label="ill",
)


def made_up(n: int, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    age = rng.integers(18, 90, n).astype(float)
    age[rng.random(n) < 0.1] = np.nan
    wage, born = rng.normal(0, 900, n), rng.integers(-3000, 9000, n).astype(float)
    return np.stack([wage, age, born, rng.integers(0, 2, n).astype(float)], 1)


def found(rows: NDArray[np.float64], mu: float = 1.0) -> TableSchema:
    asked = bounds.question(SCHEMA, relation=Relation.ADD_REMOVE, mu=mu)
    return bounds.answered(SCHEMA, asked, asked(Rows(table=rows), NoiseSource()))[0]


def test_bounds_hold_nearly_all_records_and_are_round() -> None:
    schema = found(made_up(5000))
    wage, age, born, _ = schema.columns
    assert not bounds.private_columns(schema)
    assert (age.low, age.high) in ((16, 127), (16, 63), (32, 127), (8, 127))
    assert wage.low == -wage.high  # pyright: ignore[reportOptionalOperand, reportOperatorIssue]
    assert wage.high in (2048.0, 4096.0)
    assert str(born.low)[4:] == "-01-01"
    assert str(born.high)[4:] == "-12-31"


def test_bounds_of_moments_are_those_of_years() -> None:
    schema: Any = TableSchema(columns=(Column(name="seen", kind="datetime", private_bounds=True),))
    asked = bounds.question(schema, relation=Relation.ADD_REMOVE, mu=1.0)
    rows = np.random.default_rng(0).integers(1_580_515_200, 1_609_459_199, (2000, 1)).astype(float)  # in 2020
    [seen] = bounds.answered(schema, asked, asked(Rows(table=rows), NoiseSource()))[0].columns
    assert (seen.low, seen.high) == ("2020-01-01 00:00:00", "2020-12-31 23:59:59")


@pytest.mark.parametrize("n", [0, 3])
def test_too_few_records_tell_nothing(n: int) -> None:
    wage, age, born, _ = found(made_up(n)).columns
    assert (age.low, age.high) == (0, 1)
    assert wage.high == 2.0
    assert (born.low, born.high) == ("1970-01-01", "1970-12-31")


def test_years_of_few_records_stand_out_together() -> None:
    rng = np.random.default_rng(0)
    rows = made_up(2000)
    rows[:, 2] = rng.integers(-14_600, 11_000, 2000)  # 1930 to 2000, some 28 a year, under noise of 17
    asked = bounds.question(SCHEMA, relation=Relation.ADD_REMOVE, mu=0.1)
    query: Any = asked.query
    answers = [asked(Rows(table=rows), NoiseSource()) for _ in range(20)]
    alone = [(query.split(a)[2] > 5 * asked.noise_std).any() for a in answers]
    assert sum(alone) < 10  # no year by itself, five times in a hundred
    columns = [bounds.answered(SCHEMA, asked, a)[0].columns[2] for a in answers]
    good = ["1900" < str(c.low) < "1966" and "1965" < str(c.high) < "2035" for c in columns]
    assert sum(good) >= 18  # each fails twice in a thousand, measured; three of twenty once in 100,000


def test_noise_alone_is_hardly_ever_taken_for_records() -> None:
    rng = np.random.default_rng(0)  # 300 columns of 800 empty cells: 0.3 false alarms in all are to be expected
    assert sum(bounds.crowded(rng.normal(0, 3, 800), 3.0).any() for _ in range(300)) <= 3
    counts = np.zeros(64)
    counts[20:28] = 9.0
    assert np.flatnonzero(bounds.crowded(counts, 3.0)).tolist() in (list(range(18, 30)), list(range(20, 28)))
    assert not bounds.crowded(counts, 10.0).any()


def test_columns_of_which_nothing_is_seen_are_named() -> None:
    asked = bounds.question(SCHEMA, relation=Relation.ADD_REMOVE, mu=1.0)
    _, unseen = bounds.answered(SCHEMA, asked, asked(Rows(table=made_up(0)), NoiseSource()))
    assert unseen == ("wage", "age", "born")
    _, unseen = bounds.answered(SCHEMA, asked, asked(Rows(table=made_up(5000)), NoiseSource()))
    assert unseen == ()


def test_numbers_that_are_never_negative_begin_at_zero() -> None:
    rows = made_up(3000)
    rows[:, 0] = np.where(np.arange(3000) % 2, 0.0, np.abs(rows[:, 0]))
    assert found(rows).columns[0].low == 0.0


def test_one_far_record_moves_nothing() -> None:
    near = made_up(5000)
    far = np.concatenate([near, [[1e12, 1e9, 90_000.0, 0.0]]])
    for _ in range(20):
        assert found(far).columns[0].high in (2048.0, 4096.0)


def exact(rows: NDArray[np.float64]) -> TableSchema:
    """The twin: bounds read off the rows."""
    low, high = np.nanmin(rows, 0), np.nanmax(rows, 0)
    column = replace(SCHEMA.columns[0], low=float(low[0]), high=float(high[0]), private_bounds=False)
    return replace(SCHEMA, columns=(column, *SCHEMA.columns[1:]))


def test_twin_that_reads_bounds_off_the_rows_is_caught() -> None:
    near = made_up(5000)
    far = np.concatenate([near, [[1e12, 50.0, 0.0, 0.0]]])
    assert exact(far).columns[0] != exact(near).columns[0]  # a single record, told with certainty


@pytest.mark.parametrize("relation", list(Relation))
def test_the_query_keeps_its_sensitivity_and_a_twin_that_forgets_columns_does_not(relation: Relation) -> None:
    asked = bounds.question(SCHEMA, relation=relation, mu=0.5)

    def make(n: int, rng: np.random.Generator) -> Rows:
        return Rows(table=made_up(n, int(rng.integers(1000))))

    check_query(asked.query, make)
    assert asked.noise_std == pytest.approx(asked.query.sensitivity(relation) / 0.5)

    @dataclass(frozen=True, kw_only=True)
    class OneColumn(Marginals):
        def sensitivity(self, relation: Relation, norm: int = 2) -> float:
            return super().sensitivity(relation, norm) / math.sqrt(3)

    query: Any = asked.query
    with pytest.raises(AssertionError):
        check_query(OneColumn(cells=query.cells, blocks=query.blocks, weights=query.weights), make)


@pytest.mark.parametrize("method", [dpgm.Slicing(components=4, steps=5), dpgm.methods.get("mst")()])
def test_bounds_and_method_together_stay_within_the_budget(method: Any) -> None:
    asked = bounds.question(SCHEMA, relation=Relation.REPLACE, mu=0.05)
    spent = (asked.cost(Relation.REPLACE), 1)
    plan = bounds.rest(method, found(made_up(500)), relation=Relation.REPLACE, budget=BUDGET, spent=spent)
    costs = [spent, *((m.cost(Relation.REPLACE), n) for m, n in plan.items)]
    total = accountant.epsilon_of(costs, delta=1e-6, relation=Relation.REPLACE)
    assert 0.95 < total <= 1.0
    alone = method.plan(found(made_up(500)), relation=Relation.REPLACE, budget=BUDGET)  # the twin: bounds for nothing
    free = [spent, *((m.cost(Relation.REPLACE), n) for m, n in alone.items)]
    assert accountant.epsilon_of(free, delta=1e-6, relation=Relation.REPLACE) > 1.0


def tables() -> list[Any]:
    """Every method that takes tables, in each of its modes."""
    known = [m() for m in map(dpgm.methods.get, dpgm.methods.names()) if TableSchema in m.takes]
    return [*known, *(dpgm.Slicing(mode=mode) for mode in ("full-rank", "paper"))]


@pytest.mark.parametrize("method", tables(), ids=lambda m: f"{m.name}-{getattr(m, 'mode', '')}")
def test_the_price_after_the_bounds_does_not_depend_on_them(method: Any) -> None:
    """Prices that follow answers are beyond the theorem of composition."""
    spent = (bounds.question(SCHEMA, relation=Relation.REPLACE, mu=0.05).cost(Relation.REPLACE), 1)
    relation = Relation.ADD_REMOVE if method.name == "dp-logreg" else Relation.REPLACE

    def price(rows: NDArray[np.float64]) -> list[Any]:
        schema = replace(found(rows), size=5000)
        plan = bounds.rest(method, schema, relation=relation, budget=BUDGET, spent=spent)
        return [(m.cost(relation), n) for m, n in plan.items]

    far = made_up(2000)
    far[:, :3] *= 1000
    prices = price(far)
    assert prices == price(made_up(0))
    assert prices != [(replace(cost, name="other"), n) for cost, n in prices]  # what is compared can differ


def test_fit_charges_the_bounds_and_records_keep_to_them() -> None:
    pd = pytest.importorskip("pandas")
    rows = made_up(2000)
    frame = pd.DataFrame({"wage": rows[:, 0], "age": rows[:, 1], "ill": rows[:, 3] > 0.5})
    frame["born"] = pd.to_datetime(rows[:, 2], unit="D")
    model: Any = dpgm.fit(dpgm.Slicing(components=4, steps=5), frame, schema=SCHEMA, epsilon=5.0, delta=1e-6)
    assert model.guarantee.epsilon <= 5.0
    assert "bounds" in model.guarantee.mechanisms
    drawn = model.sample(300, seed=0).frame()
    assert drawn["wage"].abs().max() < 5000
    assert drawn["age"].dropna().between(0, 127).all()


def test_a_run_keeps_the_bounds_it_paid_for(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    rows = made_up(1500)
    frame = pd.DataFrame({"wage": rows[:, 0], "age": rows[:, 1], "ill": rows[:, 3] > 0.5})
    frame["born"] = pd.to_datetime(rows[:, 2], unit="D").strftime("%Y-%m-%d")
    frame.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA.to_json()))
    data = [str(tmp_path / "t.csv"), "--schema", str(tmp_path / "s.json"), "--test-fraction", "0.1"]
    words = ["run", *data, "--method", "slicing"]
    words += ["--components", "4", "--steps", "5", "--delta", "1e-6", "--samples", "50", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    kept = json.loads((tmp_path / "out/schema.json").read_text())
    assert json.loads((tmp_path / "out/run.json").read_text())["schema"] == kept
    with Ledger(tmp_path / "out/ledger.jsonl", relation=Relation.ADD_REMOVE, cap=BUDGET) as book:
        assert book.used("bounds", 0) == 1
        assert book.guarantee().epsilon <= 1.0
    audit = ["audit", str(tmp_path / "out"), *data, "--kind", "membership", "--allow", "exposure"]
    assert main(audit) == 0  # the file declares no bounds, the run found them
    for name in ("run.json", "model.safetensors", "release.safetensors"):  # as if killed after the bounds
        (tmp_path / "out" / name).unlink()
    with Ledger(tmp_path / "out/ledger.jsonl", relation=Relation.ADD_REMOVE, cap=BUDGET) as book:
        before = len(book.entries)
    assert main(words) != 0 or json.loads((tmp_path / "out/schema.json").read_text()) == kept
    with Ledger(tmp_path / "out/ledger.jsonl", relation=Relation.ADD_REMOVE, cap=BUDGET) as book:
        assert not [e for e in book.entries[before:] if e.get("label") == "bounds" and e["kind"] == "charge"]


def test_refusals() -> None:
    with pytest.raises(SchemaError, match="no bounds"):
        Column(name="a", kind="boolean", private_bounds=True)
    with pytest.raises(SchemaError, match="private_bounds"):
        Column(name="a", kind="integer")
    book = Ledger(None, relation=Relation.ADD_REMOVE, cap=BUDGET)
    curator = dpgm.privacy.curator.Curator(lambda: Rows(table=made_up(5)), schema=SCHEMA, ledger=book)
    with pytest.raises(PrivacyError, match="share"):
        bounds.price(curator, budget=BUDGET, share=1.0)


def test_bounds_that_were_found_leave_every_order_possible() -> None:
    """Noise may find a column that has to be smaller above one that has to be larger; the budget is spent then."""
    limits: tuple[dict[str, Any], ...] = (
        {"kind": "integer"},
        {"kind": "number"},
        {"kind": "integer", "low": -1000, "high": 1000},
    )
    for some in limits:
        columns = tuple(Column(name=n, private_bounds=True, **some) for n in ("a", "b", "c"))
        schema = TableSchema(columns=columns, size=1000, ordered=(("a", "b"), ("b", "c")))
        asked = bounds.question(schema, relation=Relation.ADD_REMOVE, mu=1.0)
        at = {"a": 900.0, "b": 3.3, "c": -700.0}
        counts: list[NDArray[np.float64]] = []
        query: Any = asked.query
        for j, name in enumerate(at):
            edges = np.array(query.cells[j].edges)
            counts.append(np.where((edges[:-1] <= at[name]) & (at[name] < edges[1:]), 1e6, 0.0))
        found, unseen = bounds.answered(schema, asked, np.concatenate(counts))
        assert not unseen
        rows = np.stack([np.random.default_rng(0).uniform(*c.bounds, 50).round() for c in found.columns], 1)
        found.check_table(found.in_order(rows))

"""MST: its price, a tree of every column, records along it, resuming; the estimation needs mbi."""

from __future__ import annotations

import importlib.util
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import dpgm
from dpgm.mechanisms.selection import SelectMarginal
from dpgm.methods import options
from dpgm.methods.base import Note, Release, privatise
from dpgm.methods.mst import MST
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, Relation
from dpgm.privacy.ledger import Ledger
from dpgm.schema import Column, Rows, SchemaError, TableSchema

BUDGET = Budget(epsilon=5.0, delta=1e-5)
SCHEMA: Any = TableSchema(
    columns=(
        Column(name="kind", kind="category", values=("a", "b", "c"), missing=True),
        Column(name="age", kind="integer", low=0, high=100),
        Column(name="ill", kind="boolean"),
        Column(name="x", kind="number", low=0, high=1),
    ),
    label="ill",
)


def made_up(n: int, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    kind = np.where(rng.random(n) < 0.9, y, 2).astype(float)
    kind[rng.random(n) < 0.1] = np.nan
    age = np.clip(rng.normal(30 + 30 * y, 6), 0, 100).round()
    return np.stack([kind, age, y, np.clip(age / 100 + rng.normal(size=n) / 50, 0, 1)], 1).astype(float)


def open_curator(book: Ledger, n: int = 3000, schema: Any = SCHEMA) -> Curator:
    return Curator(lambda: Rows(table=made_up(n)[:, : len(schema.columns)]), schema=schema, ledger=book)


def release(relation: Relation = Relation.ADD_REMOVE, n: int = 3000) -> Release:
    plan = MST().plan(SCHEMA, relation=relation, budget=BUDGET)
    with Ledger(None, relation=relation, cap=BUDGET) as book:
        return privatise(MST(), open_curator(book, n), plan, seed=0)


@pytest.mark.parametrize("relation", list(Relation))
@pytest.mark.parametrize("n", [0, 1, 3000])
def test_a_tree_of_every_column_within_the_budget(relation: Relation, n: int) -> None:
    made = release(relation, n)
    assert 0.99 * BUDGET.epsilon < made.guarantee.epsilon <= BUDGET.epsilon
    assert made.guarantee.evidence is dpgm.Evidence.PROVED
    tree = made.tensors["tree"]
    assert tree.shape == (3, 2)
    reached = {0}
    for _ in range(3):
        reached |= {v for i, j in tree.tolist() if i in reached or j in reached for v in (i, j)}
    assert reached == {0, 1, 2, 3}
    if n == 3000:
        assert [1, 3] in tree.tolist()  # by far the strongest dependence


def test_a_crash_in_the_middle_chooses_nothing_twice(tmp_path: Path) -> None:
    plan = MST().plan(SCHEMA, relation=Relation.ADD_REMOVE, budget=BUDGET)
    states: list[Any] = []

    def watch(note: Note) -> None:
        states.append({k: v.copy() for k, v in (note.state or {}).items()})
        if len(states) == 2:
            raise KeyboardInterrupt

    with Ledger(tmp_path / "l", relation=plan.relation, cap=BUDGET) as book, pytest.raises(KeyboardInterrupt):
        privatise(MST(), open_curator(book), plan, seed=0, on_note=watch)
    with Ledger(tmp_path / "l", relation=plan.relation, cap=BUDGET) as book:
        done = privatise(MST(), open_curator(book), plan, seed=0, state=states[-1])
        assert [book.used("fit", i) for i in range(3)] == [1, 3, 1]
    assert done.tensors["tree"][0].tolist() == states[-1]["tree"][0].tolist()


def test_a_choice_that_a_crash_burnt_is_made_by_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its call is paid for and gone; the run goes on with a tree that needs no further one."""
    plan = MST().plan(SCHEMA, relation=Relation.ADD_REMOVE, budget=BUDGET)
    states: list[Any] = []
    choose, made = SelectMarginal.__call__, list[int]()

    def dies(self: Any, rows: Any, noise: Any) -> int:
        made.append(1)
        if len(made) == 2:
            raise KeyboardInterrupt
        return choose(self, rows, noise)

    def watch(note: Note) -> None:
        states.append({k: v.copy() for k, v in (note.state or {}).items()})

    monkeypatch.setattr(SelectMarginal, "__call__", dies)
    for code in (KeyboardInterrupt, None):
        with Ledger(tmp_path / "l", relation=plan.relation, cap=BUDGET) as book:
            state = states[-1] if states else None
            with pytest.raises(code) if code else nullcontext():
                done = privatise(MST(), open_curator(book), plan, seed=0, state=state, on_note=watch)
                assert [book.used("fit", i) for i in range(3)] == [1, 3, 1]
                assert done.tensors["tree"].shape == (3, 2)
                assert done.tensors["tree"][0].tolist() == states[1]["tree"][0].tolist()


def test_a_missing_package_is_named_before_anything_is_paid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    with pytest.raises(SchemaError, match=r"needs the package mbi; pip install 'dpgm\[marginals\]'"):
        options.check_takes(MST(), SCHEMA)


def test_one_column_is_no_tree() -> None:
    schema: Any = TableSchema(columns=SCHEMA.columns[:1])
    with pytest.raises(SchemaError, match="slicing"):
        MST().plan(schema, relation=Relation.ADD_REMOVE, budget=BUDGET)


def test_without_mbi_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "mbi", None)
    with pytest.raises(SchemaError, match="marginals"):
        MST().train(release(n=100), seed=0)


@pytest.mark.skipif(importlib.util.find_spec("mbi") is None, reason="needs mbi")
@pytest.mark.filterwarnings("ignore")
def test_records_are_like_those_that_were_measured(tmp_path: Path) -> None:
    from dpgm.evaluation.tables import fidelity, utility

    model: Any = MST(steps=1500).train(release(), seed=0)
    drawn, test = model.sample(3000, seed=0).table, made_up(2000, seed=1)
    SCHEMA.check_table(drawn)
    assert min(fidelity(test, drawn, SCHEMA).values()) > 0.85
    assert utility(drawn, test, SCHEMA)["logreg"]["auc"] > 0.9
    assert (model.sample(10, labels=[1] * 10, seed=0).labels == 1).all()
    model.save(tmp_path)
    again: Any = dpgm.load(tmp_path)
    assert np.array_equal(again.sample(20, seed=3).table, model.sample(20, seed=3).table, equal_nan=True)

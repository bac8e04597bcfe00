"""AIM: its price, rounds that spend it all, resuming, records; the estimation needs mbi."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import dpgm
from dpgm.evaluation.tables import fidelity, utility
from dpgm.mechanisms.tables import Cells
from dpgm.methods import graphical
from dpgm.methods.aim import AIM, _affordable
from dpgm.methods.base import Note, Release, privatise
from dpgm.methods.graphical import Measured, components, draw_cells, estimate, model_cells
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, PrivacyError, Relation
from dpgm.privacy.ledger import Ledger
from dpgm.schema import Column, Rows, SchemaError, TableSchema

BUDGET = Budget(epsilon=5.0, delta=1e-5)
SCHEMA: Any = TableSchema(
    columns=(
        Column(name="kind", kind="category", values=("a", "b", "c")),
        Column(name="yes", kind="boolean", missing=True),
        Column(name="ill", kind="boolean"),
        Column(name="x", kind="number", low=0, high=1),
    ),
    label="ill",
)
SMALL = AIM(rounds=3, together=2, units=2, cells=4, round_steps=20, steps=100)
needs_mbi = pytest.mark.skipif(importlib.util.find_spec("mbi") is None, reason="needs mbi")
pytestmark = pytest.mark.filterwarnings("ignore")


def made_up(n: int, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    kind = np.where(rng.random(n) < 0.9, y, 2).astype(float)
    yes = np.where(rng.random(n) < 0.8, kind == 1, rng.random(n) < 0.5).astype(float)
    yes[rng.random(n) < 0.1] = np.nan
    return np.stack([kind, yes, y, np.clip(0.4 * y + rng.random(n) / 2, 0, 1)], 1).astype(float)


def open_curator(book: Ledger, n: int = 3000) -> Curator:
    return Curator(lambda: Rows(table=made_up(n)), schema=SCHEMA, ledger=book)


def release(n: int = 3000, relation: Relation = Relation.ADD_REMOVE) -> Release:
    plan = SMALL.plan(SCHEMA, relation=relation, budget=BUDGET)
    with Ledger(None, relation=relation, cap=BUDGET) as book:
        made = privatise(SMALL, open_curator(book, n), plan, seed=0)
        assert book.used("fit", 2) == 6  # every unit is spent
    return made


@pytest.mark.parametrize("relation", list(Relation))
@pytest.mark.parametrize("rounds", [0, 1, 7])
def test_the_plan_spends_the_budget_and_no_more(relation: Relation, rounds: int) -> None:
    plan = AIM(rounds=rounds).plan(SCHEMA, relation=relation, budget=BUDGET)
    assert 0.99 * BUDGET.epsilon < plan.guarantee().epsilon <= BUDGET.epsilon
    assert plan.guarantee().evidence is dpgm.Evidence.PROVED
    assert [n for _, n in plan.items] == [1, rounds or 8, 4 * (rounds or 8)]


@needs_mbi
def test_two_columns_have_one_pair() -> None:
    schema: Any = TableSchema(columns=SCHEMA.columns[:2])
    plan = SMALL.plan(schema, relation=Relation.ADD_REMOVE, budget=BUDGET)
    with Ledger(None, relation=Relation.ADD_REMOVE, cap=BUDGET) as book:
        curator = Curator(lambda: Rows(table=made_up(500)[:, :2]), schema=schema, ledger=book)
        made = privatise(SMALL, curator, plan, seed=0)
    assert made.tensors["units"].sum() == 6
    assert {tuple(b) for b in made.tensors["blocks"].tolist()} == {(0, 1, -1)}


@needs_mbi
@pytest.mark.parametrize(("n", "relation"), [(0, Relation.ADD_REMOVE), (3000, Relation.REPLACE)])
def test_records_are_like_those_that_were_measured(n: int, relation: Relation, tmp_path: Path) -> None:
    made = release(n, relation)
    assert made.tensors["units"].sum() == 6
    if not n:
        return
    model: Any = SMALL.train(made, seed=0)
    drawn = model.sample(3000, seed=0).table
    SCHEMA.check_table(drawn)
    assert (model.sample(10, labels=[1] * 10, seed=0).labels == 1).all()
    model.save(tmp_path)
    again: Any = dpgm.load(tmp_path)
    assert np.array_equal(again.sample(20, seed=3).table, model.sample(20, seed=3).table, equal_nan=True)
    assert min(fidelity(made_up(2000, seed=1), drawn, SCHEMA).values()) > 0.8
    assert utility(drawn, made_up(2000, seed=1), SCHEMA)["logreg"]["auc"] > 0.9


@needs_mbi
def test_a_crash_between_rounds_spends_nothing_twice(tmp_path: Path) -> None:
    plan = SMALL.plan(SCHEMA, relation=Relation.ADD_REMOVE, budget=BUDGET)
    states: list[Any] = []

    def watch(note: Note) -> None:
        states.append({k: v.copy() for k, v in (note.state or {}).items()})
        if len(states) == 2:
            raise KeyboardInterrupt

    with Ledger(tmp_path / "l", relation=plan.relation, cap=BUDGET) as book, pytest.raises(KeyboardInterrupt):
        privatise(SMALL, open_curator(book), plan, seed=0, on_note=watch)
    with Ledger(tmp_path / "l", relation=plan.relation, cap=BUDGET) as book:
        done = privatise(SMALL, open_curator(book), plan, seed=0, state=states[-1])
        assert all(book.used("fit", i) <= n for i, (_, n) in enumerate(plan.items))
    assert done.tensors["blocks"][0].tolist() == states[-1]["blocks"][0].tolist()
    assert np.array_equal(done.tensors["answer0"], states[-1]["answer0"])


@needs_mbi
def test_every_round_gets_about_as_many_units_as_are_left_for_it() -> None:
    many = AIM(rounds=4, together=2, units=8, cells=4, round_steps=100)
    plan = many.plan(SCHEMA, relation=Relation.ADD_REMOVE, budget=Budget(epsilon=50.0, delta=1e-5))
    with Ledger(None, relation=plan.relation, cap=plan.budget) as book:
        made = privatise(many, open_curator(book, 30_000), plan, seed=0)
    assert made.tensors["units"].tolist() == [8, 8, 8, 8]


@needs_mbi
def test_a_bold_first_step_comes_much_nearer_to_exact_marginals_beside_noisy_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    n, k = 50_000, 8
    cause = rng.normal(size=n)
    data = [np.clip(((cause + rng.normal(size=n)) * 1.4 + 4).astype(int), 0, k - 1) for _ in range(4)]
    cells = [Cells(edges=tuple(range(k + 1)))] * 4
    measured: list[Measured] = []
    for block, std in [*(((j,), 1.0) for j in range(4)), ((0, 1, 2), 8.0), ((1, 2, 3), 8.0), ((0, 3), 8.0)]:
        counts = np.zeros([k] * len(block))
        np.add.at(counts, tuple(data[j] for j in block), 1)
        measured.append(Measured(block=block, counts=counts + std * rng.normal(size=counts.shape), std=std))

    def worst() -> float:
        model = estimate(cells, measured, steps=100)
        found = [np.asarray(model.project(tuple(map(str, m.block))).datavector()) for m in measured]
        return max(float(np.abs(f - m.counts.ravel()).mean()) / m.std for f, m in zip(found, measured, strict=True))

    bold = worst()
    monkeypatch.setattr(graphical, "_BOLD", 1.0)
    assert bold < 100 < 1000 < worst()  # measured: 32 and 1,300 standard deviations


def test_records_drawn_along_a_junction_tree_have_its_marginals() -> None:
    rng = np.random.default_rng(0)
    joint = rng.random((3, 2, 4, 2)) ** 3
    joint /= joint.sum()
    first = joint.sum(3)  # columns 0, 1, 2
    second = joint.sum(0).sum(1)  # columns 1, 3
    drawn = draw_cells([((1, 3), second), ((0, 1, 2), first)], 200_000, rng)
    for i, j, k in itertools.product(range(3), range(2), range(4)):
        share = ((drawn[0] == i) & (drawn[1] == j) & (drawn[2] == k)).mean()
        assert share == pytest.approx(first[i, j, k], abs=0.006)
    assert ((drawn[1] == 1) & (drawn[3] == 1)).mean() == pytest.approx(second[1, 1], abs=0.006)
    ones = np.ones(500, np.int64)
    assert (draw_cells([((1, 3), second)], 500, rng, (3, ones))[3] == 1).all()


def test_the_size_of_a_model_is_that_of_its_junction_tree() -> None:
    sizes = [3, 5, 2, 7]
    assert model_cells(sizes, [(0,), (1, 2)]) == 3 + 10
    assert model_cells(sizes, [(0, 1), (1, 2), (1, 2, 3)]) == 15 + 70
    assert model_cells(sizes, [(0, 1), (1, 2), (0, 2)]) == 30  # a triangle is one clique
    assert model_cells(sizes, [(0, 1), (1, 3), (3, 2), (2, 0)]) <= 70 + 42  # a square needs a chord


def test_refusals() -> None:
    with pytest.raises(SchemaError, match="slicing"):
        AIM().plan(TableSchema(columns=SCHEMA.columns[:1]), relation=Relation.ADD_REMOVE, budget=BUDGET)
    with pytest.raises(PrivacyError, match="shares"):
        AIM(first=0.6, choice=0.5)
    with pytest.raises(SchemaError, match="rounds is -1"):
        AIM(rounds=-1)


def test_a_marginal_that_is_added_changes_only_the_parts_that_it_joins() -> None:
    rng = np.random.default_rng(0)
    sizes = [int(k) for k in rng.integers(2, 9, 12)]
    cells = [Cells(edges=tuple(range(k + 1))) for k in sizes]
    workload = list(itertools.combinations(range(12), 2))
    for n in (1, 4, 12):
        blocks = [workload[i] for i in rng.choice(len(workload), n)] + [(j,) for j in range(12)]
        parts = components(blocks)
        assert sorted(b for p in parts for b in p) == sorted(blocks)
        assert sum(len({j for b in p for j in b}) for p in parts) == 12
        measured = [Measured(block=b, counts=np.zeros(1), std=1.0) for b in blocks]
        for largest in (100, 300, 1000):
            found = _affordable(cells, workload, measured, largest)
            sizes_of = {b: model_cells(sizes, [*blocks, b]) for b in workload}
            assert found == [b for b in workload if sizes_of[b] <= largest] or len(found) == 1


@needs_mbi
def test_programs_of_earlier_models_are_dropped_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    drops: list[bool] = []
    monkeypatch.setattr("jax.clear_caches", lambda: drops.append(True))
    cells = [Cells(edges=(0.0, 0.5, 1.0))] * 2
    one = Measured(block=(0, 1), counts=np.ones((2, 2)), std=1.0)
    for _ in range(8):
        estimate(cells, [one], steps=1)
    assert len(drops) == 1


@needs_mbi
def test_flags_that_someone_has_set_count_more(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = "--xla_cpu_use_fusion_emitters=true"
    monkeypatch.setenv("XLA_FLAGS", theirs)
    for _ in range(2):
        graphical.load()
        assert os.environ["XLA_FLAGS"].split() == ["--xla_cpu_use_fusion_emitters=false", theirs]  # the last one counts
    config = importlib.import_module("jax").config
    with graphical._quickly_compiled():
        assert config.read("jax_disable_most_optimizations")
    assert not config.read("jax_disable_most_optimizations"), "other programs of the process keep their own"
    monkeypatch.setenv("XLA_FLAGS", theirs)
    monkeypatch.setattr(graphical, "version", lambda name: "0.99.0")
    graphical.load()
    assert os.environ["XLA_FLAGS"] == theirs, "a flag that a version does not know ends the process"
    with graphical._quickly_compiled():
        assert not config.read("jax_disable_most_optimizations")

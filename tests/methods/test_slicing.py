"""The slicing method on tables and images: price, contract, every mode and loss, conditional sampling, resuming."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import dpgm
from dpgm.artefact import load_samples, load_table, save_samples
from dpgm.mechanisms.tables import TableVectors
from dpgm.methods.base import Note, Plan, Release, privatise
from dpgm.methods.embedding import DPMERF
from dpgm.methods.options import check_takes
from dpgm.methods.slicing import Slicing
from dpgm.methods.table_moments import moments
from dpgm.methods.tabular import _positions, fine_cells, join_cells, most_kept
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, PrivacyError, Relation
from dpgm.privacy.ledger import Ledger
from dpgm.schema import Column, ImageSchema, Rows, SchemaError, TableSchema
from dpgm.testing import check_method, check_query, images

SCHEMA: Any = TableSchema(
    columns=(
        Column(name="kind", kind="category", values=("a", "b", "c", "d"), missing=True),
        Column(name="age", kind="integer", low=0, high=100),
        Column(name="wage", kind="number", low=0, high=1e6, decimals=1, missing=True),
        Column(name="day", kind="date", low="2000-01-01", high="2030-01-01"),
        Column(name="yes", kind="boolean"),
        Column(name="ill", kind="category", values=("no", "so", "very")),
    ),
    label="ill",
    size=2000,
)
IMAGES = ImageSchema(height=8, width=8, channels=1, classes=("a", "b", "c"), size=60)
BUDGET = Budget(epsilon=5.0, delta=1e-5)


def made_up(n: int, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    y = rng.choice(3, n, p=[0.6, 0.3, 0.1])
    kind = np.where(rng.random(n) < 0.8, y, 3).astype(float)
    kind[rng.random(n) < 0.1] = np.nan
    wage = np.where(rng.random(n) < 0.5, 0, np.exp(rng.normal(8 + y, 1, n)))
    wage[rng.random(n) < 0.2] = np.nan
    day = rng.integers(10957, 21915, n)
    age = np.clip(rng.normal(30 + 15 * y, 8), 0, 100).round()
    return np.stack([kind, age, np.clip(wage, 0, 1e6).round(1), day, rng.integers(0, 2, n), y], 1).astype(float)


def release(method: Slicing, table: NDArray[np.float64], *, relation: Relation = Relation.REPLACE) -> Release:
    plan = method.plan(SCHEMA, relation=relation, budget=BUDGET)
    with Ledger(None, relation=relation, cap=BUDGET) as book:
        curator = Curator(lambda: Rows(table=table), schema=SCHEMA, ledger=book)
        return privatise(method, curator, plan, seed=0)


MODES = [
    Slicing(steps=300, components=48, triple=0.0, pair=1.0),
    Slicing(steps=20, components=6, triple=1.0, pair=0.0),
    Slicing(mode="full-rank", steps=15, components=6),
    Slicing(mode="full-rank", steps=15, batch=50, loss="cf"),
    Slicing(mode="full-rank", steps=5, batch=50, loss="wasserstein"),
    Slicing(mode="full-rank", steps=5, batch=50, loss="chi2"),
    Slicing(mode="paper", steps=15, batch=50),
    Slicing(mode="paper", steps=5, batch=50, loss="kl"),
    Slicing(mode="paper", steps=5, batch=50, loss="wasserstein"),
]


@pytest.mark.parametrize("method", MODES, ids=lambda m: f"{m.mode}-{m.loss}-{m.triple:g}")
def test_every_mode_makes_allowed_tables_at_its_price(method: Slicing, tmp_path: Path) -> None:
    made = release(method, made_up(500))
    assert made.guarantee.epsilon <= BUDGET.epsilon
    assert made.guarantee.epsilon > 0.99 * BUDGET.epsilon
    assert made.guarantee.evidence is dpgm.Evidence.PROVED
    model: Any = method.train(made, seed=0)
    batch = model.sample(200, seed=1)
    SCHEMA.check_table(batch.table)
    assert len(batch) == 200
    assert list(batch.frame().columns) == list(SCHEMA.names)
    assert (model.sample(30, labels=[2] * 30, seed=1).labels == 2).all()
    assert (model.sample(3, labels=["no", "so", "very"]).labels == [0, 1, 2]).all()
    assert len(model.sample(0)) == 0
    model.save(tmp_path)
    again: Any = dpgm.load(tmp_path)
    assert again.guarantee == model.guarantee
    assert np.array_equal(again.sample(50, seed=4).table, model.sample(50, seed=4).table, equal_nan=True)
    other: Any = method.train(made, seed=0)
    assert np.array_equal(other.sample(50, seed=4).table, model.sample(50, seed=4).table, equal_nan=True)


@pytest.mark.parametrize(
    ("label", "asked", "positions"),
    [
        (Column(name="y", kind="category", values=("no", "so", "very")), [2, 0], [2, 0]),
        (Column(name="y", kind="category", values=("no", "so", "very")), ["very", "no"], [2, 0]),
        (Column(name="y", kind="category", values=("1", "2", "3")), [1, 3], [0, 2]),  # a value, never a position
        (Column(name="y", kind="category", values=("1", "2", "3")), [1.0, 3.0], [0, 2]),
        (Column(name="y", kind="category", values=("1", "2", "3")), ["3", "2"], [2, 1]),
        (Column(name="y", kind="category", values=("1", "2", "3")), [0, 1], None),
        (Column(name="y", kind="category", values=("no", "so", "very")), [3, 0], None),
        (Column(name="y", kind="boolean"), [True, False], [1, 0]),
        (Column(name="y", kind="boolean"), [1, 0], [1, 0]),
        (Column(name="y", kind="boolean"), ["true", "perhaps"], None),
    ],
)
def test_classes_are_asked_for_by_value(label: Column, asked: list, positions: list | None) -> None:
    schema = TableSchema(columns=(label,), label="y")
    if positions is None:
        with pytest.raises(SchemaError, match="labels must be among"):
            _positions(asked, schema)
    else:
        assert _positions(asked, schema).tolist() == positions


@pytest.mark.parametrize("mode", ["aggregated", "full-rank", "paper"])
def test_a_table_of_nothing_but_its_label_is_refused_before_it_is_paid_for(mode: Any) -> None:
    schema = TableSchema(columns=(Column(name="y", kind="boolean"),), label="y")
    with pytest.raises(SchemaError, match="declare other columns"):
        Slicing(mode=mode).plan(schema, relation=Relation.REPLACE, budget=BUDGET)


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("method", [MODES[1], MODES[2], MODES[3], MODES[6]], ids=lambda m: f"{m.mode}-{m.loss}")
def test_few_records_work_like_many(method: Slicing, n: int) -> None:
    model: Any = method.train(release(method, made_up(n)), seed=0)
    SCHEMA.check_table(model.sample(20, seed=0).table)


def test_aggregated_tables_are_like_the_records() -> None:
    from dpgm.evaluation.tables import fidelity, utility

    method = MODES[0]
    model: Any = method.train(release(method, made_up(4000), relation=Relation.ADD_REMOVE), seed=0)
    drawn, test = model.sample(4000, seed=0).table, made_up(2000, seed=1)
    scores = fidelity(test, drawn, SCHEMA)
    assert min(scores.values()) > 0.85, scores
    assert utility(drawn, test, SCHEMA)["logreg"]["auc"] > 0.85
    assert np.abs(np.bincount(drawn[:, 5].astype(int)) / 4000 - [0.6, 0.3, 0.1]).max() < 0.05


def test_tables_without_a_label() -> None:
    schema: Any = TableSchema(columns=SCHEMA.columns[:3])
    method = Slicing(steps=10, components=8)
    plan = method.plan(schema, relation=Relation.ADD_REMOVE, budget=BUDGET)
    with Ledger(None, relation=plan.relation, cap=BUDGET) as book:
        curator = Curator(lambda: Rows(table=made_up(300)[:, :3]), schema=schema, ledger=book)
        made = privatise(method, curator, plan, seed=0)
    model: Any = method.train(made, seed=0)
    schema.check_table(model.sample(10, seed=0).table)
    assert model.schema.classes == ("all",)
    vectors = TableVectors(schema=schema)
    _, targets = moments(vectors(Rows(table=made_up(300)[:, :3])), vectors)
    assert targets.first.shape == (1, 5 + 2 + 3)


@pytest.mark.parametrize("mode", ["full-rank", "paper"])
def test_row_wise_modes_refuse_add_remove_with_the_reason(mode: Any) -> None:
    for schema in (SCHEMA, IMAGES):
        with pytest.raises(PrivacyError, match="tells how many records"):
            Slicing(mode=mode).plan(schema, relation=Relation.ADD_REMOVE, budget=BUDGET)


@pytest.mark.parametrize("std", [0.0, 0.5])
def test_moments_of_noisy_records_are_those_of_the_records(std: float) -> None:
    """Within six standard errors of all 30 numbers at once; a twin that takes one norm for all axes is far off."""
    vectors, table = TableVectors(schema=SCHEMA, label=3.0), made_up(20_000)
    rows = vectors(Rows(table=table))
    noisy = rows + std * np.random.default_rng(1).normal(size=rows.shape)
    truth = vectors.axes(5, table[:, 5]).T @ np.concatenate([vectors.axes(j, table[:, j]) for j in range(5)], 1)

    def error(of: TableVectors) -> float:
        shares, targets = moments(noisy, of)
        off = np.abs(shares.numpy() - [0.6, 0.3, 0.1]).max(), np.abs(targets.first.numpy() - truth / len(table)).max()
        return float(max(off))

    limit = 0.01 + 6 * 8 * std**2 / math.sqrt(20_000)
    assert error(vectors) < limit
    assert error(TableVectors(schema=SCHEMA)) > limit


@pytest.mark.parametrize("options", [{"mode": "paper"}, {"mode": "full-rank"}, {"mode": "full-rank", "shuffled": True}])
def test_row_wise_modes_refuse_pure_privacy(options: dict[str, Any]) -> None:
    for schema in (SCHEMA, IMAGES):
        with pytest.raises(PrivacyError, match="delta is 0"):
            Slicing(**options).plan(schema, relation=Relation.REPLACE, budget=Budget(epsilon=1.0, delta=0.0))


@pytest.mark.parametrize("label", [0.2, 1.0, 3.0])
def test_records_of_a_table_have_norm_one_whatever_the_label_weighs(label: float) -> None:
    vectors = TableVectors(schema=SCHEMA, label=label)
    np.testing.assert_allclose(np.linalg.norm(vectors(Rows(table=made_up(500))), axis=1), 1.0, rtol=1e-9)


@pytest.mark.parametrize("label", [0.0, -1.0, math.inf, math.nan])
def test_a_label_that_cannot_be_weighed_is_refused(label: float) -> None:
    with pytest.raises((PrivacyError, SchemaError), match="finite number"):
        Slicing(mode="full-rank", label=label).plan(SCHEMA, relation=Relation.REPLACE, budget=BUDGET)


def test_generators_of_noisy_records_learn_the_label() -> None:
    from dpgm.evaluation.tables import utility

    test = made_up(1000, seed=1)
    for noise, least in ((0.02, 0.9), (0.5, 0.85)):
        method = Slicing(mode="full-rank", components=24, steps=150)
        budget = Budget(epsilon=1e6, delta=1e-5)
        plan = method.plan(SCHEMA, relation=Relation.REPLACE, budget=budget)
        mechanism: Any = replace(plan.items[0][0], noise_std=noise)  # type: ignore[type-var]
        plan = replace(plan, items=((mechanism, 1),), details={**plan.details, "noise_std": noise})
        with Ledger(None, relation=Relation.REPLACE, cap=budget) as book:
            curator = Curator(lambda: Rows(table=made_up(8000)), schema=SCHEMA, ledger=book)
            made = privatise(method, curator, plan, seed=0)
        model: Any = method.train(made, seed=0)
        assert utility(model.sample(3000, seed=0).table, test, SCHEMA)["logreg"]["auc"] > least


def test_categories_of_one_value_tell_nothing_and_break_nothing() -> None:
    from dpgm.methods.table_moments import moments

    columns = [Column(name=name, kind="category", values=("1",)) for name in ("all", "same")]
    vectors = TableVectors(schema=replace(SCHEMA, columns=(*SCHEMA.columns, *columns)))
    table = np.concatenate([made_up(200), np.zeros((200, 2))], 1)
    shares, targets = moments(vectors(Rows(table=table)), vectors)
    for found in (shares, targets.first, targets.first_precision, targets.pooled, targets.pooled_precision):
        assert bool(found.isfinite().all())


def test_moments_are_refused_where_there_are_none() -> None:
    with pytest.raises(PrivacyError, match="full-rank"):
        Slicing(mode="paper", loss="moments")
    with pytest.raises(SchemaError, match="tables"):
        Slicing(mode="full-rank", loss="moments").plan(IMAGES, relation=Relation.REPLACE, budget=BUDGET)


def test_a_crash_between_the_rounds_repeats_neither(tmp_path: Path) -> None:
    method, path = MODES[1], tmp_path / "ledger.jsonl"
    plan: Plan = method.plan(SCHEMA, relation=Relation.ADD_REMOVE, budget=BUDGET)
    states: list[Any] = []

    def watch(note: Note) -> None:
        if note.state is not None:
            states.append(note.state)
            raise KeyboardInterrupt

    def curator(book: Ledger) -> Curator:
        return Curator(lambda: Rows(table=made_up(300)), schema=SCHEMA, ledger=book)

    with Ledger(path, relation=plan.relation, cap=BUDGET) as book, pytest.raises(KeyboardInterrupt):
        privatise(method, curator(book), plan, seed=0, on_note=watch)
    with Ledger(path, relation=plan.relation, cap=BUDGET) as book:
        done = privatise(method, curator(book), plan, seed=0, state=states[0])
        assert [book.used("fit", i) for i in (0, 1)] == [1, 1]
    assert np.array_equal(done.tensors["one"], states[0]["one"])


def test_queries_of_both_rounds_keep_the_contract() -> None:
    plan = Slicing(triple=0.5).plan(SCHEMA, relation=Relation.ADD_REMOVE, budget=BUDGET)

    def draw(n: int, rng: np.random.Generator) -> Rows:
        return Rows(table=made_up(n, seed=int(rng.integers(1000))))

    asked: list[Any] = [mechanism for mechanism, _ in plan.items]
    for mechanism in asked:
        check_query(mechanism.query, draw, trials=10)


def test_other_options_are_free_after_the_release() -> None:
    method = MODES[1]
    assert method.retrained(Slicing(steps=7, components=9, triple=1.0, pair=0.0)).steps == 7
    with pytest.raises(SchemaError, match="triple"):
        method.retrained(Slicing(steps=7, components=9, triple=0.0))


@pytest.mark.parametrize("options", [{"temperature": 2.0}, {"movement": 1.0}, {"ensemble": 2}])
def test_options_of_images_are_refused_for_tables(options: dict[str, Any]) -> None:
    with pytest.raises(SchemaError, match="images in mode 'aggregated'"):
        Slicing(**options).plan(SCHEMA, relation=Relation.ADD_REMOVE, budget=BUDGET)
    Slicing(**options).plan(IMAGES, relation=Relation.ADD_REMOVE, budget=BUDGET)


def test_methods_for_images_refuse_tables() -> None:
    with pytest.raises(SchemaError, match=r"takes images.*tables.*--method slicing"):
        check_takes(DPMERF(), SCHEMA)
    check_takes(Slicing(), SCHEMA)
    check_takes(Slicing(), IMAGES)


def test_expected_memory_follows_what_was_measured() -> None:
    def expected(n: int, classes: int) -> float:
        columns = [Column(name=f"c{i}", kind="number", low=0, high=1) for i in range(n)]
        label = Column(name="y", kind="category", values=tuple(map(str, range(classes))))
        schema: Any = TableSchema(columns=(*columns, label), label="y", size=20_000)
        return Slicing().plan(schema, relation=Relation.ADD_REMOVE, budget=BUDGET).memory_mb

    assert expected(10, 2) == 800
    for n, classes, measured in ((60, 2, 899), (120, 2, 1457), (60, 10, 1151)):
        assert 0.9 * measured < expected(n, classes) < 1.25 * measured


def test_categories_that_cannot_stand_out_of_the_noise_are_not_counted() -> None:
    assert most_kept(50, None, 4.0) == most_kept(50, 20_000, 4.0) == 50
    assert most_kept(100_000, 6_000, 4.0) == 702  # 500 of 12 records each, and the 200 that noise lifts


@pytest.mark.parametrize("column", SCHEMA.columns, ids=lambda c: c.name)
def test_every_allowed_value_falls_into_an_interval(column: Column) -> None:
    cells = fine_cells(column)
    low, high = column.bounds
    values = column.settle(np.linspace(low, high, 1001))
    assert (cells(values) >= 0).all()
    assert len(np.unique(cells(values))) <= cells.intervals
    assert (cells(np.array([np.nan])) == (cells.intervals - 1 if column.missing else -1)).all()


@pytest.mark.parametrize(("low", "high"), [(-3, 4), (-1e6, 1e6), (0, 1e-6), (5, 1e9), (-1e9, -5), (0.5, 0.75)])
@pytest.mark.parametrize("kind", ["integer", "number"])
def test_cells_cover_bounds_of_all_sizes(kind: Any, low: float, high: float) -> None:
    if kind == "integer" and high - low < 1:
        pytest.skip("no two whole numbers")
    column = Column(name="x", kind=kind, low=low, high=high)
    cells = fine_cells(column)
    assert cells.intervals < 600
    assert (cells(column.settle(np.linspace(low, high, 501))) >= 0).all()


def test_joined_cells_keep_a_crowded_value_apart() -> None:
    cells = fine_cells(Column(name="x", kind="integer", low=0, high=99))
    counts = np.full(100, 5.0)
    counts[40] = 900
    joined = join_cells(cells, counts, least=100, std=1, ordered=True)
    groups = np.array(joined.groups)
    assert (groups == groups[40]).sum() == 1
    assert 3 <= joined.count <= 10
    assert (np.diff(groups) >= 0).all()
    names = join_cells(cells, counts * (np.arange(100) > 97), least=0, std=1, ordered=False)
    assert names.count == 3


def test_images_keep_the_contract() -> None:
    rows = images(IMAGES)(60, np.random.default_rng(0))
    for mode, relation, ensemble in (
        ("aggregated", Relation.ADD_REMOVE, 2),
        ("full-rank", Relation.REPLACE, 1),
        ("paper", Relation.REPLACE, 1),
    ):
        method = Slicing(mode=mode, steps=3, batch=12, width=4, slices=5, ensemble=ensemble)  # type: ignore[arg-type]
        check_method(method, IMAGES, rows, budget=BUDGET, relation=relation)


def test_samples_are_files(tmp_path: Path) -> None:
    method = MODES[1]
    model: Any = method.train(release(method, made_up(300)), seed=0)
    batch = model.sample(25, seed=0)
    save_samples(batch, SCHEMA, tmp_path / "samples.npz")
    assert np.array_equal(load_table(tmp_path, SCHEMA).table, batch.table, equal_nan=True)
    assert not (tmp_path / "samples.npz").exists()
    with pytest.raises(SchemaError):
        load_samples(tmp_path)
    with pytest.raises(SchemaError, match="make samples"):
        load_table(tmp_path / "none", SCHEMA)
    assert json.loads(json.dumps(method.to_json()))["triple"] == 1.0


def test_a_frame_is_fitted_in_one_call() -> None:
    pytest.importorskip("pandas")
    from dpgm.data.frames import to_frame

    frame = to_frame(made_up(300), SCHEMA)
    model: Any = dpgm.fit(MODES[1], frame, schema=SCHEMA, epsilon=5.0)
    assert model.guarantee.delta == 1e-4
    drawn = model.sample(20, seed=0).frame()
    assert drawn.dtypes.astype(str).tolist() == frame.dtypes.astype(str).tolist()
    with pytest.raises(SchemaError, match="not declared"):
        dpgm.fit(MODES[1], frame, epsilon=5.0, delta=1e-5)
    with pytest.raises(SchemaError, match="no y"):
        dpgm.fit(MODES[1], frame, [0] * 300, schema=SCHEMA, epsilon=5.0)
    with pytest.raises(SchemaError, match="takes images"):
        dpgm.fit(DPMERF(), frame, schema=SCHEMA, epsilon=5.0)

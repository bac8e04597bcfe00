"""Logistic regression by DP-SGD on tables: its features, bounded gradients, its price, and that it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from dpgm import artefact
from dpgm.cli import BAD_INPUT, OK, main
from dpgm.mechanisms.gradient import Task
from dpgm.mechanisms.table_gradient import TableGradient
from dpgm.methods.base import Release, privatise
from dpgm.methods.dp_logreg import DPLogReg
from dpgm.nets.columns import ColumnFeatures
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, Evidence, Relation
from dpgm.privacy.ledger import Ledger
from dpgm.privacy.mechanism import NoiseSource
from dpgm.schema import Column, Rows, SchemaError, TableSchema

BUDGET = Budget(epsilon=5.0, delta=1e-5)
SCHEMA: Any = TableSchema(
    columns=(
        Column(name="kind", kind="category", values=("a", "b", "c"), missing=True),
        Column(name="age", kind="integer", low=0, high=100),
        Column(name="ill", kind="boolean"),
        Column(name="x", kind="number", low=0, high=1, missing=True),
    ),
    label="ill",
    size=3000,
)


def made_up(n: int, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    kind = np.where(rng.random(n) < 0.9, y, 2).astype(float)
    kind[rng.random(n) < 0.1] = np.nan
    age = np.clip(rng.normal(30 + 30 * y, 6), 0, 100).round()
    x = rng.random(n)
    x[rng.random(n) < 0.2] = np.nan
    return np.stack([kind, age, y, x], 1).astype(float)


def released(n: int = 3000) -> Release:
    method = DPLogReg(steps=60)
    plan = method.plan(SCHEMA, relation=Relation.ADD_REMOVE, budget=BUDGET)
    with Ledger(None, relation=Relation.ADD_REMOVE, cap=BUDGET) as book:
        curator = Curator(lambda: Rows(table=made_up(n)), schema=SCHEMA, ledger=book)
        return privatise(method, curator, plan, seed=0)


def test_features_are_of_each_record_alone_and_bounded() -> None:
    features = ColumnFeatures(SCHEMA)
    table = made_up(50)
    whole = features(table)
    assert whole.shape == (50, features.dim)
    assert np.linalg.norm(whole, axis=1).max() <= 1 + 1e-6
    assert np.array_equal(whole, np.concatenate([features(table[i : i + 1]) for i in range(50)]))
    flipped = table.copy()
    flipped[:, 2] = 1 - flipped[:, 2]
    assert np.array_equal(features(flipped), whole), "the label is no feature"
    assert features(np.full((1, 4), np.nan)).sum() > 0


def test_one_record_moves_the_sum_by_no_more_than_its_bound() -> None:
    features = ColumnFeatures(SCHEMA)
    net = nn.Linear(features.dim, 2, bias=False)
    nn.init.normal_(net.weight, std=9, generator=torch.Generator().manual_seed(0))
    task = TableGradient(
        module=net,
        loss=lambda m, x, y: functional.cross_entropy(m(x), y, reduction="none"),
        clip_norm=0.05,
        schema=SCHEMA,
        features=features,
    )
    assert isinstance(task, Task)
    rows = Rows(table=made_up(40))
    everyone = task.clipped_sum(rows, np.arange(40), NoiseSource())
    moved = [
        float((everyone - task.clipped_sum(rows, np.delete(np.arange(40), i), NoiseSource())).norm()) for i in range(40)
    ]
    assert max(moved) == pytest.approx(task.bound, rel=1e-3), "some record uses its whole bound; a missing clip is seen"
    assert task.clipped_sum(rows, np.arange(0), NoiseSource()).abs().sum() == 0


def test_it_learns_within_its_budget() -> None:
    made = released()
    assert 0.99 * BUDGET.epsilon < made.guarantee.epsilon <= BUDGET.epsilon
    assert made.guarantee.evidence is Evidence.PROVED
    test: Any = made_up(1000, seed=1)
    odds = DPLogReg(steps=60).train(made, seed=0).classify(test)
    assert (odds.argmax(1) == test[:, 2]).mean() > 0.9
    assert np.allclose(odds.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("n", [0, 1])
def test_empty_tables_are_no_crash(n: int) -> None:
    assert np.isfinite(released(n).tensors["weight"]).all()


def test_a_table_without_a_label_is_refused() -> None:
    bare: Any = TableSchema(columns=SCHEMA.columns, size=100)
    with pytest.raises(SchemaError, match="names no label"):
        DPLogReg().plan(bare, relation=Relation.ADD_REMOVE, budget=BUDGET)


def test_it_is_a_reference_row_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dpgm.data.tables import write_csv

    for name, seed in (("train", 0), ("test", 1)):
        write_csv(made_up(1500, seed), SCHEMA, tmp_path / f"{name}.csv")
    artefact.write_json(tmp_path / "s.json", SCHEMA.to_json())
    words = [str(tmp_path / "train.csv"), "--schema", str(tmp_path / "s.json"), "--test", str(tmp_path / "test.csv")]
    words += ["--public", "--delta", "1e-5", "--epsilon", "5"]
    run = ["run", *words, "--method", "dp-logreg", "--steps", "60", "--out", str(tmp_path / "run")]
    assert main(run) == OK
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["utility"]["dp_logreg"]["auc"] > 0.9
    assert main(["reference", *words[:-4], "--out", str(tmp_path / "real")]) == OK
    kept = json.loads((tmp_path / "real" / "metrics.json").read_text())
    assert set(kept["utility"]) == {"real_logreg", "real_boosting"}
    assert main(["run", "digits", "--method", "dp-logreg", "--out", str(tmp_path / "x")]) == BAD_INPUT
    assert "takes tables" in capsys.readouterr().err

"""Run folders that differ in the seed become one result; any others are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpgm.cli import BAD_INPUT, OK, main
from dpgm.evaluation.seeds import over_seeds
from dpgm.schema import SchemaError

PROMISE = {"epsilon": 1.0, "delta": 1e-5, "relation": "add/remove one", "unit": "record", "evidence": "proved"}


def folder(place: Path, seed: int, changes: dict[str, Any] | None = None) -> Path:
    path = place / f"run{len(list(place.iterdir()))}"
    path.mkdir()
    run = {"method": "merf", "config": {"dim": 3}, "data": "digits", "schema": {}, "guarantee": PROMISE, "seed": seed}
    run |= {"seconds": {"train": 10.0 + seed}, "cpu_seconds": {"train": 5.0}, "peak_memory_mb": 100.0 + seed}
    metrics = {"accuracy": {"cnn": 0.8 + 0.01 * seed}, "entropy": 2.0, "epochs": 20, "sizes": {"test": 9}}
    metrics |= {"utility": {"logreg": {"auc": 0.5 + 0.1 * seed}}, "seconds": 3.0}
    metrics |= {"fid": {"value": 3.0 + seed, "low": 1.0, "high": 9.0, "n": 50, "features": "lenet-x", "reference": "t"}}
    (path / "run.json").write_text(json.dumps(run | (changes or {})))
    (path / "metrics.json").write_text(json.dumps(metrics))
    return path


def test_five_seeds_have_an_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [folder(tmp_path, seed) for seed in range(5)]
    found = over_seeds(folders)
    cnn = found["metrics"]["accuracy"]["cnn"]
    half = 2.7764451051977987 * 0.01 * (2.5 / 5) ** 0.5  # t(0.975, 4)
    assert cnn == pytest.approx({"mean": 0.82, "low": 0.82 - half, "high": 0.82 + half, "n": 5})
    fid = found["metrics"]["fid"]
    assert fid["value"]["mean"] == 5
    assert (fid["features"], fid["n"], fid["low"]) == ("lenet-x", 50, 1.0)
    assert found["metrics"]["utility"]["logreg"]["auc"]["mean"] == pytest.approx(0.7)
    assert (found["metrics"]["sizes"], found["seeds"]) == ({"test": 9}, [0, 1, 2, 3, 4])
    assert found["seconds"]["train"]["mean"] == 12
    out = tmp_path / "all.json"
    assert main(["seeds", *map(str, folders), "--out", str(out)]) == OK
    said = capsys.readouterr().out
    assert "accuracy cnn: 0.82 (0.8004 to 0.8396)" in said
    assert "fid[lenet-x] on 50 records each: 5 (" in said
    assert json.loads(out.read_text()) == found


def test_scores_of_different_kinds_have_no_mean(tmp_path: Path) -> None:
    one, other = folder(tmp_path, 0), folder(tmp_path, 1)
    for change in ({"epochs": 5}, {"sizes": {"test": 8}}, {"fid": {"value": 60.0, "features": "inception-x"}}):
        metrics = json.loads((other / "metrics.json").read_text())
        (other / "metrics.json").write_text(json.dumps(metrics | change))
        with pytest.raises(SchemaError, match="evaluated differently"):
            over_seeds([one, other])
        (other / "metrics.json").write_text(json.dumps(metrics))


def test_fewer_seeds_have_none(tmp_path: Path) -> None:
    cnn = over_seeds([folder(tmp_path, 0), folder(tmp_path, 1)])["metrics"]["accuracy"]["cnn"]
    assert set(cnn) == {"mean", "n", "values"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config": {"dim": 4}}, "config"),
        ({"data": "mnist"}, "data"),
        ({"guarantee": {**PROMISE, "epsilon": 2.0}}, "epsilon"),
        ({"guarantee": None}, "epsilon, delta"),
        ({"seed": 0}, "each run once"),
    ],
)
def test_other_runs_have_no_common_mean(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    folders = [folder(tmp_path, 0), folder(tmp_path, 1, changes)]
    with pytest.raises(SchemaError, match=said):
        over_seeds(folders)
    assert main(["seeds", *map(str, folders)]) == BAD_INPUT


def test_no_folder_is_no_result() -> None:
    with pytest.raises(SchemaError, match="at least one"):
        over_seeds([])

"""Tables on the command line: drafting a schema, a whole run, its report, sampling by label, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpgm.cli import BAD_INPUT, OK, REFUSED, main
from dpgm.evaluation.scores import Cell as BarCell
from dpgm.evaluation.scores import panels
from dpgm.evaluation.table_figures import describe, figures
from dpgm.schema import Column, TableSchema

pd = pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    for name, n in (("public", 600), ("train", 800), ("test", 300)):
        y = rng.integers(0, 2, n)
        frame = pd.DataFrame(
            {
                "job": np.where(rng.random(n) < 0.7, np.array(["cook", "nurse"])[y], "<b>clerk</b>"),
                "age": np.clip(rng.normal(35 + 15 * y, 9), 18, 90).astype(int),
                "wage": np.where(rng.random(n) < 0.2, "?", (100 * rng.random(n)).round(2).astype(str)),
                "ill": np.array(["no", "yes"])[y],
            }
        )
        frame.to_csv(root / f"{name}.csv", index=False)
    words = ["schema", "draft", str(root / "public.csv"), "--from-public", "--label", "ill", "--size", "800"]
    assert main([*words, "--out", str(root / "s.json")]) == OK
    return root


def words(folder: Path, out: Path, *more: str) -> list[str]:
    data = [str(folder / "train.csv"), "--schema", str(folder / "s.json"), "--method", "slicing", "--epsilon", "3"]
    return ["run", *data, "--steps", "60", "--components", "16", "--samples", "200", "--out", str(out), *more]


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    assert main(words(folder, folder / "run", "--test", str(folder / "test.csv"), "--public")) == OK
    return folder / "run"


def test_scores_without_real_train_records_do_not_speak_of_them() -> None:
    metrics = {"utility": {"boosting": {"auc": 0.8}}, "fidelity": {"KMarginal": 700.0}}
    useful, close = panels(metrics, "1")
    assert useful.columns == ("Synthetic",)
    assert "beside" not in useful.intro
    assert close.rows[0].cells[0] == BarCell(text="700", share=0.7)
    metrics["utility"]["real_boosting"] = {"auc": 0.9}
    useful, _ = panels(metrics, "1")
    assert len(useful.columns) == len(useful.rows[0].cells) == 2
    assert "not private" in useful.intro


def test_a_run_leaves_a_table_and_its_scores(run: Path) -> None:
    frame = pd.read_csv(run / "samples.csv")
    assert list(frame.columns) == ["job", "age", "wage", "ill"]
    assert len(frame) == 200
    assert set(frame["job"].dropna()) <= {"cook", "nurse", "<b>clerk</b>"}
    assert frame["age"].between(18, 90).all()
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    assert {"logreg", "boosting", "real_logreg", "real_boosting"} == set(metrics["utility"])
    assert metrics["fidelity"]["TVComplement"] > 0.8
    assert metrics["exposures"]
    facts = json.loads((run / "run.json").read_text())
    assert facts["guarantee"]["evidence"] == "proved"
    assert facts["guarantee"]["epsilon"] <= 3
    assert facts["guarantee"]["delta"] == 1e-3
    assert facts["data"] == "train.csv"


def test_the_report_shows_columns_and_escapes_their_texts(run: Path) -> None:
    page = (run / "report.html").read_text("utf-8")
    assert "Column by column" in page
    assert "hang together" in page
    assert "4 columns (2 category, 1 integer, 1 number)" in page
    assert "<b>clerk" not in page
    assert "&lt;b&gt;clerk" in page


def test_a_run_on_own_records_looks_at_no_test_part(folder: Path, tmp_path: Path) -> None:
    assert main(words(folder, tmp_path / "run")) == OK
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "utility" not in metrics
    assert "real" not in metrics["figures"]["columns"][0]
    assert "Column by column" in (tmp_path / "run" / "report.html").read_text("utf-8")


def test_scores_of_own_held_out_records_are_named_as_a_look(folder: Path, tmp_path: Path) -> None:
    more = ["--test", str(folder / "test.csv"), "--evaluate", "True"]
    assert main(words(folder, tmp_path / "run", *more)) == OK
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "real_logreg" not in metrics["utility"]
    [look] = metrics["exposures"]
    assert "held-out records" in look["reason"]
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "Looks at real records" in page
    assert "held-out records, and tell their number" in page


def test_records_that_a_run_was_trained_on_are_no_held_out_part(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [str(folder / "train.csv"), "--schema", str(folder / "s.json")]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert main(words(folder, whole)) == OK
    assert main(words(folder, parted, "--test-fraction", "0.2")) == OK
    capsys.readouterr()
    assert main(["evaluate", str(whole), *data, "--size", "900", "--test-fraction", "0.2"]) == BAD_INPUT
    assert "held out none of train.csv, here it is a share of 0.2" in capsys.readouterr().err
    assert main(["evaluate", str(parted), *data, "--test-fraction", "0.3"]) == BAD_INPUT
    assert "give --test-fraction 0.2" in capsys.readouterr().err
    assert "utility" not in json.loads((whole / "metrics.json").read_text())
    assert main(["evaluate", str(parted), *data, "--test-fraction", "0.2"]) == OK
    assert main(["evaluate", str(whole), *data, "--test", str(folder / "test.csv")]) == OK


def test_training_and_sampling_again_are_free(run: Path, tmp_path: Path) -> None:
    again = ["train", str(run / "release.safetensors"), "--steps", "5", "--samples", "20", "--out", str(tmp_path / "b")]
    assert main(again) == OK
    assert (tmp_path / "b" / "samples.csv").is_file()
    out = tmp_path / "yes.csv"
    assert main(["sample", str(run), "--n", "30", "--labels", "yes", "--out", str(out)]) == OK
    assert set(pd.read_csv(out)["ill"]) == {"yes"}
    assert main(["sample", str(run), "--n", "30", "--labels", "1,no", "--out", str(out)]) == BAD_INPUT
    assert main(["sample", str(run), "--n", "30", "--labels", "1", "--out", str(out)]) == OK
    assert set(pd.read_csv(out)["ill"]) == {"yes"}
    assert main(["sample", str(run), "--n", "3", "--labels", "perhaps", "--out", str(out)]) == BAD_INPUT


def test_the_audit_of_a_folder_attacks_what_its_run_asked(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    data = [str(run.parent / "train.csv"), "--schema", str(run.parent / "s.json")]
    assert main(["audit", str(copy), *data, "--kind", "mechanism", "--trials", "50"]) == OK
    names = [a["name"] for a in json.loads((copy / "audit.json").read_text())["audits"]]
    assert names == ["one-way-marginals, 1 call", "two-way-marginals, 1 call"]


def test_the_audit_of_own_records_takes_their_public_facts_from_the_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    monkeypatch.chdir(run.parent)
    assert main(["audit", str(copy), "--test", "train.csv", "--kind", "membership"]) == REFUSED
    assert "--allow exposure" in capsys.readouterr().err, "no fact was missing, but leave to look"


def test_what_is_refused_says_what_to_do(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "draft", str(folder / "train.csv")]) == BAD_INPUT
    assert "--from-public" in capsys.readouterr().err
    assert main(["run", str(folder / "train.csv"), "--method", "slicing", "--out", str(tmp_path / "a")]) == BAD_INPUT
    assert "dpgm schema draft" in capsys.readouterr().err
    line = words(folder, tmp_path / "c")
    line[line.index("slicing")] = "merf"
    assert main([w for w in line if w not in ("--components", "16")]) == BAD_INPUT
    assert "--method slicing" in capsys.readouterr().err
    assert main(words(folder, tmp_path / "d", "--mode", "paper")) == REFUSED
    assert "number of records" in capsys.readouterr().err.replace("\n", " ")
    assert main(words(folder, tmp_path / "e", "--mode", "full-rank", "--relation", "replace", "--steps", "3")) == OK


def test_samples_are_written_as_their_name_says(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["sample", str(run), "--n", "4", "--out", str(tmp_path / "s.tsv")]) == OK
    assert len(pd.read_csv(tmp_path / "s.tsv", sep="\t").columns) == len(pd.read_csv(run / "samples.csv").columns)
    monkeypatch.setattr("dpgm.methods.tabular.TableModel.sample", None)  # nothing is drawn for a name that cannot be
    assert main(["sample", str(run), "--n", "4", "--out", str(tmp_path / "s.json")]) == BAD_INPUT
    assert "ends in .csv" in capsys.readouterr().err


def test_membership_is_not_asked_of_records_that_were_trained_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [str(run.parent / "train.csv"), "--schema", str(run.parent / "s.json"), "--test-fraction", "0.3"]
    assert main(["audit", str(run), *data, "--kind", "membership", "--allow", "exposure"]) == BAD_INPUT
    assert "it was trained on all others" in capsys.readouterr().err.replace("\n", " ")


def test_bounds_that_a_run_finds_move_nobody_between_the_parts(folder: Path, tmp_path: Path) -> None:
    schema = json.loads((folder / "s.json").read_text())
    age = next(c for c in schema["columns"] if c["name"] == "age")
    age |= {"low": -1000, "high": 1000, "private_bounds": True}
    (tmp_path / "p.json").write_text(json.dumps(schema))
    line = words(folder, tmp_path / "r", "--test-fraction", "0.3", "--evaluate", "True")
    line[line.index("--schema") + 1] = str(tmp_path / "p.json")
    assert main(line) == OK
    first = json.loads((tmp_path / "r" / "metrics.json").read_text())["sizes"]["test"]
    data = [str(folder / "train.csv"), "--test-fraction", "0.3"]
    for given in ([], ["--schema", str(tmp_path / "p.json")]):
        assert main(["evaluate", str(tmp_path / "r"), *data, *given]) == OK
        assert json.loads((tmp_path / "r" / "metrics.json").read_text())["sizes"]["test"] == first


def test_a_run_that_cannot_read_its_records_says_what_is_paid(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.read_csv(folder / "train.csv", dtype=str, keep_default_na=False)
    frame.assign(age=frame["age"].mask(frame.index == 3, "")).to_csv(tmp_path / "train.csv", index=False)
    line = words(folder, tmp_path / "r")
    line[1] = str(tmp_path / "train.csv")
    assert main(line) == BAD_INPUT
    assert "give the same command again to use it" in capsys.readouterr().err.replace("\n", " ")
    frame.to_csv(tmp_path / "train.csv", index=False)
    assert main(line) == OK


def test_a_part_drawn_by_a_hash_has_no_public_number(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A replaced record may leave the train part, and a release of one row for each of its records would tell."""
    rows = ["--mode", "full-rank", "--relation", "replace", "--test-fraction", "0.2"]
    line = words(folder, tmp_path / "a", *rows)
    assert main(line) == REFUSED
    assert "depends on what the records are" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "a").exists()


def test_figures_take_nothing_for_granted() -> None:
    assert figures(None) == ""
    assert figures({"columns": []}) == ""
    schema = TableSchema(
        columns=(
            Column(name="a", kind="category", values=tuple(map(str, range(30))), missing=True),
            Column(name="d", kind="date", low="2000-01-01", high="2001-01-01", missing=True),
        )
    )
    table = np.array([[3.0, 10960.0], [np.nan, np.nan], [29.0, 11000.0]])
    shown = describe(table, table, schema)
    assert [len(c["bars"]) for c in shown["columns"]] == [13, 4]  # two crowded days, and what lies between
    assert all(sum(c["synthetic"]) == pytest.approx(1, abs=1e-4) for c in shown["columns"])
    assert shown["dependence"]["real"][0][0] == pytest.approx(1.0)
    empty = describe(table[:0], None, schema)
    assert sum(empty["columns"][0]["synthetic"]) == 0
    assert "<svg" in figures(shown)


def test_crowded_values_have_bars_of_their_own_and_bars_say_what_they_hold() -> None:
    schema = TableSchema(
        columns=(Column(name="gain", kind="integer", low=0, high=999), Column(name="x", kind="number", low=0, high=1))
    )
    table = np.stack([np.r_[np.zeros(900), np.arange(1, 101)], np.linspace(0, 1, 1000)], 1)
    gain, x = describe(table, None, schema)["columns"]
    assert (gain["bars"][0], gain["synthetic"][0]) == ("0", 0.9)
    assert gain["bars"][-1].endswith("to 100")
    assert len(gain["bars"]) == 9
    assert x["synthetic"] == pytest.approx([0.1] * 10, abs=2e-3)
    assert x["bars"][0] == "0 to 0.1"


def test_bars_are_named_by_their_values_and_none_is_empty() -> None:
    schema = TableSchema(columns=(Column(name="wage", kind="number", low=0, high=1e6, decimals=2),))
    wages = np.r_[np.zeros(50), np.linspace(800, 90_000, 50).round(2)][:, None]
    [column] = describe(wages, None, schema)["columns"]
    assert column["bars"][0] == "0"
    assert column["bars"][-1].endswith("90,000")
    assert min(column["synthetic"]) > 0.04


def test_figures_say_in_numbers_what_differs_most() -> None:
    schema = TableSchema(columns=tuple(Column(name=n, kind="boolean") for n in "abc"))
    bits = np.array(list(np.ndindex(2, 2, 2)), float)
    page = figures(describe(bits, np.where(np.arange(3) == 1, bits[:, :1], bits), schema))
    assert "a and b: 0.00, real 1.00" in page
    assert page.count("<td>false</td>") == 3
    assert "Furthest from real" not in figures(describe(bits, None, schema))

"""A run folder that agrees with itself, and every way in which it may not."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpgm.cli import main
from dpgm.data import open_data
from dpgm.evaluation.audit import check_folder
from dpgm.evaluation.report import write_report
from dpgm.schema import SchemaError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("audit") / "run"
    words = ["run", "digits", "--method", "pge", "--out", str(out), "--samples", "1500", "--evaluate", "False"]
    assert main([*words, "--json"]) == 0
    return out


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def failed(folder: Path) -> list[str]:
    return [c.name for c in check_folder(folder) if not c.passed]


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text("utf-8"))
    change(value)
    path.write_text(json.dumps(value), "utf-8")


def rechain(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the entries of a ledger as a forger would: with a new chain of hashes."""
    lines, previous = [], "0" * 64
    for line in path.read_text("utf-8").splitlines():
        entry = json.loads(line)
        change(entry)
        del entry["hash"]
        entry["previous"] = previous
        entry["hash"] = previous = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
        lines.append(json.dumps(entry))
    path.write_text("\n".join(lines) + "\n", "utf-8")


def test_a_run_agrees_with_itself(run: Path):
    checks = check_folder(run)
    assert [c.passed for c in checks] == [True] * 7
    assert "2 of 2 reserved calls" in checks[1].found
    assert checks[0].to_json()["name"] == "the ledger's chain holds"


def test_run_json_that_promises_more_is_found_out(folder: Path):
    edit(folder / "run.json", lambda v: v["guarantee"].update(epsilon=0.5))
    assert failed(folder) == ["run.json promises what the ledger supports"]
    edit(folder / "run.json", lambda v: v["guarantee"].update(epsilon=1.0, delta=1e-9))
    assert failed(folder) == ["run.json promises what the ledger supports"]


@pytest.mark.parametrize(
    "change", [{"unit": "patient, with all visits"}, {"headline": "epsilon 0.01, delta 1e-9: proved"}]
)
def test_another_unit_or_headline_is_found_out(folder: Path, change: dict[str, str]):
    edit(folder / "run.json", lambda v: v["guarantee"].update(change))
    assert failed(folder) == ["run.json promises what the ledger supports"]
    page = write_report(folder).read_text("utf-8")
    assert "epsilon 0.01" not in page
    assert ("protects the unit" in page) == ("unit" in change)


def test_an_assumption_that_was_left_out_is_found_out(folder: Path):
    edit(folder / "run.json", lambda v: v["guarantee"].update(assumptions=[]))
    assert failed(folder) == ["run.json promises what the ledger supports"]


def test_an_edited_ledger_is_found_out(folder: Path):
    path = folder / "ledger.jsonl"
    path.write_text(path.read_text("utf-8").replace('"count": 1', '"count": 2', 1), "utf-8")
    assert failed(folder)[0] == "the ledger's chain holds"


def test_a_forged_ledger_is_found_out_by_its_price(folder: Path):
    def lower(entry: dict[str, Any]) -> None:
        if entry["kind"] == "reserve":
            entry["epsilon"] = 0.3

    rechain(folder / "ledger.jsonl", lower)
    assert failed(folder)[0] == "the events come to the stated epsilon"


def test_a_forged_event_is_found_out_by_the_plan(folder: Path):
    """More noise than was drawn, and an epsilon that goes with it: everything but the plan agrees."""
    from dpgm.privacy import accountant
    from dpgm.privacy.guarantee import Guarantee, Relation
    from dpgm.privacy.mechanism import Cost

    def louder(entry: dict[str, Any]) -> None:
        if entry["kind"] == "reserve":
            for item in entry["plan"]:
                item["cost"]["noise_multiplier"] *= 2
            costs = [(Cost.from_json(i["cost"]), i["count"]) for i in entry["plan"]]
            entry["epsilon"] = accountant.epsilon_of(costs, delta=entry["delta"], relation=Relation.ADD_REMOVE)

    rechain(folder / "ledger.jsonl", louder)

    def cheaper(value: dict[str, Any]) -> None:
        value["guarantee"]["epsilon"] = 0.48
        value["guarantee"]["headline"] = Guarantee.from_json(value["guarantee"]).headline()

    edit(folder / "run.json", cheaper)
    assert failed(folder) == ["the method's plan is what was reserved"]


def test_lifted_evidence_is_found_out_by_the_plan(folder: Path):
    def lower(entry: dict[str, Any]) -> None:
        if entry["kind"] == "reserve":
            entry["plan"][0]["cost"]["evidence"] = "claimed"

    rechain(folder / "ledger.jsonl", lower)
    assert set(failed(folder)) == {
        "run.json promises what the ledger supports",
        "the release promises the same",
        "the method's plan is what was reserved",
    }


def test_charges_beyond_the_reserve_are_found_out(folder: Path):
    def more(entry: dict[str, Any]) -> None:
        if entry["kind"] == "charge":
            entry["until"] = 2

    rechain(folder / "ledger.jsonl", more)
    assert failed(folder) == ["no more was asked than reserved"]


def test_missing_files_are_faults_and_no_run_is_an_error(folder: Path, tmp_path: Path):
    (folder / "ledger.jsonl").unlink()
    assert failed(folder)[0] == "the ledger's chain holds"
    with pytest.raises(SchemaError, match=r"run\.json"):
        check_folder(tmp_path / "nothing")


# --- the command ---


def test_command_audits_a_folder_and_leaves_audit_json(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["audit", str(folder), "--trials", "500"]) == 0
    text = capsys.readouterr().out
    assert "the most they could show" in text
    assert "Nothing contradicts the promise. That is no proof." in text
    value = json.loads((folder / "audit.json").read_text("utf-8"))
    assert value["consistent"]
    assert {a["kind"] for a in value["audits"]} == {"mechanism", "membership"}
    assert value["command"].startswith("dpgm audit run")
    assert str(folder.parent) not in (folder / "audit.json").read_text("utf-8")


def test_command_tells_a_folder_that_contradicts_itself(folder: Path, capsys: pytest.CaptureFixture[str]):
    edit(folder / "run.json", lambda v: v["guarantee"].update(epsilon=0.5))
    assert main(["audit", str(folder), "--kind", "consistency"]) == 5
    assert "FAULT run.json promises" in capsys.readouterr().out


def test_members_that_are_found_are_no_refutation_where_the_split_may_not_be_random(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    rows = open_data("digits").train()
    names = np.array([str(k) for k in range(10)])
    np.savez(folder / "samples.npz", images=rows["image"], labels=rows["label"], class_names=names)
    assert main(["audit", str(folder), "--kind", "membership"]) == 5
    text = capsys.readouterr().out
    assert "MEMBERS WERE FOUND MORE OFTEN THAN THE CLAIM ALLOWS" in text
    assert "THE PROMISE DOES NOT STAND" not in text
    assert json.loads((folder / "audit.json").read_text("utf-8"))["proved_and_beaten"] == []


def test_an_audit_of_one_kind_keeps_what_others_found(folder: Path):
    for kind in ("membership", "mechanism", "consistency"):
        main(["audit", str(folder), "--kind", kind, "--trials", "500"])
    once = json.loads((folder / "audit.json").read_text("utf-8"))
    assert once["checks"]
    assert {a["kind"] for a in once["audits"]} == {"mechanism", "membership"}
    main(["audit", str(folder), "--kind", "mechanism", "--trials", "500"])
    twice = json.loads((folder / "audit.json").read_text("utf-8"))
    assert (len(twice["audits"]), twice["checks"]) == (len(once["audits"]), once["checks"])


def test_private_records_are_looked_at_by_permission_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = (digits.images * 15).astype(np.uint8), digits.target
    own = tmp_path / "own.npz"
    np.savez(own, x_train=images[::2], y_train=labels[::2], x_test=images[1::2], y_test=labels[1::2])
    data = [str(own), "--classes", "10", "--size", "900", "--image-size", "8", "--channels", "1"]
    out = tmp_path / "run"
    study = ["--ledger", str(tmp_path / "study.ledger")]
    run = ["run", *data, "--method", "pge", "--out", str(out), "--samples", "500", "--json"]
    assert main([*run, *study, "--cap", "2"]) == 0
    capsys.readouterr()
    assert main(["audit", str(out), *data, "--kind", "membership"]) == 4
    assert "--allow exposure" in capsys.readouterr().err
    assert "expose" not in (out / "ledger.jsonl").read_text("utf-8")
    assert main(["audit", str(out), *data, "--kind", "all", "--trials", "200"]) == 0
    assert "membership was not looked at" in capsys.readouterr().out
    look = ["audit", str(out), *data, "--kind", "membership", "--allow", "exposure"]
    assert main(look) == 4
    assert "shares the ledger study.ledger, which must know of the look" in capsys.readouterr().err
    assert main([*look, *study]) == 0
    for file in (out / "ledger.jsonl", tmp_path / "study.ledger"):
        assert json.loads(file.read_text("utf-8").splitlines()[-1])["kind"] == "expose", file
    assert "membership inference" in (out / "report.html").read_text("utf-8")
    assert main(["audit", str(out), *data, "--kind", "consistency"]) == 0
    assert "not private beside the promise: membership inference" in capsys.readouterr().out

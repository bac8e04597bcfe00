"""Scores of private held-out records: the page says that it must not be published, and how to get one that may be."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpgm.cli import OK, REFUSED, main
from dpgm.evaluation import wording
from dpgm.evaluation.report import write_report

MakeRun = Callable[..., Path]
WARNING = "Do not publish this page as it is"
LOOK = {"reason": wording.HELD_OUT, "audience": "readers of the report"}


def text_of(folder: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", (folder / "report.html").read_text("utf-8")))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def test_a_page_with_scores_of_private_records_says_so_on_top_and_below(make_run: MakeRun) -> None:
    folder = make_run()
    edit(folder, exposures=[LOOK])
    write_report(folder)
    text = text_of(folder)
    box, rest = text.split("In short", 1)
    what = "plain (not private) statistics of 299 held-out private records"
    assert WARNING in box
    assert what in box
    assert f"This page itself must not be published as it is: it shows {what}" in rest.split("What this epsilon")[0]
    assert f"This page shows {what}. Epsilon covers none of them" in rest
    assert rest.rstrip().endswith("do not publish it as it is.")
    assert "public facts only" not in rest
    edit(folder, sizes={})
    write_report(folder)
    assert "plain (not private) statistics of held-out private records" in text_of(folder)


def test_scores_of_public_records_leave_the_page_as_it_was(make_run: MakeRun) -> None:
    folder = make_run()
    write_report(folder)
    text = text_of(folder)
    assert "Looks at real records for these numbers" in text
    for absent in (WARNING, "must not be published", "held-out private records"):
        assert absent not in text, absent
    assert "It holds synthetic records and public facts only, beside the numbers marked as not private." in text


@pytest.mark.parametrize("looks", [None, "a text", 3, {"reason": wording.HELD_OUT}, [wording.HELD_OUT], [{}]])
def test_other_values_are_no_such_look(looks: Any) -> None:
    assert wording.shown({"exposures": looks, "sizes": [1]}) == ""


def test_a_full_disk_leaves_the_old_report_and_no_half_of_a_new_one(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plain = make_run(), Path.write_text

    def full(path: Path, data: str, *args: Any, **more: Any) -> int:
        plain(path, data[:1000], *args, **more)
        raise OSError(errno.ENOSPC, "no space left on device")

    for before in (None, "the old one"):
        if before:
            (folder / "report.html").write_text(before, "utf-8")
        there = sorted(p.name for p in folder.iterdir())
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", full)
            with pytest.raises(OSError, match="no space"):
                write_report(folder)
        assert sorted(p.name for p in folder.iterdir()) == there
        assert before is None or (folder / "report.html").read_text("utf-8") == before


# --- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words that name a small private table."""
    folder, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    ill = rng.integers(0, 2, 600)
    ages = np.clip(rng.normal(40 + 15 * ill, 9), 18, 90).astype(int)
    lines = ["age,ill", *(f"{a},{('no', 'yes')[i]}" for a, i in zip(ages, ill, strict=True))]
    (folder / "people.csv").write_text("\n".join(lines) + "\n", "utf-8")
    columns = [
        {"name": "age", "kind": "integer", "low": 18, "high": 90},
        {"name": "ill", "kind": "category", "values": ["no", "yes"]},
    ]
    schema = {"kind": "table", "columns": columns, "label": "ill", "size": 600}
    (folder / "people.json").write_text(json.dumps(schema), "utf-8")
    return [str(folder / "people.csv"), "--schema", str(folder / "people.json"), "--test-fraction", "0.2"]


@pytest.fixture(scope="module")
def unscored(people: list[str]) -> Path:
    """A run on it as it is by default."""
    out = Path(people[0]).parent / "run"
    options = ["--method", "slicing", "--epsilon", "3", "--steps", "20", "--samples", "100"]
    assert main(["run", *people, *options, "--out", str(out)]) == OK
    return out


def looks(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the consistency audit answers when it is asked for looks."""
    capsys.readouterr()
    assert main(["audit", str(folder), "--kind", "consistency", "--json"]) == OK
    checks = json.loads(capsys.readouterr().out)["checks"]
    return next(c["found"] for c in checks if c["name"] == "looks that no epsilon covers")


def test_a_page_without_its_scores_may_be_published_and_names_the_look(
    people: list[str], unscored: Path, tmp_path: Path
) -> None:
    assert WARNING not in text_of(unscored)
    assert "not private" not in text_of(unscored)
    scored = Path(shutil.copytree(unscored, tmp_path / "scored"))
    assert main(["evaluate", str(scored), *people]) == OK
    n = json.loads((scored / "metrics.json").read_text("utf-8"))["sizes"]["test"]
    assert f"it shows plain (not private) statistics of {n} held-out private records" in text_of(scored)
    (scored / "metrics.json").unlink()
    assert main(["report", str(scored)]) == OK
    assert WARNING not in text_of(scored)
    assert f"{n} held-out" not in text_of(scored)
    assert wording.HELD_OUT in text_of(scored)


def test_a_look_at_private_records_stands_in_the_ledger(
    people: list[str], unscored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And so in the total of all runs, and in what the audit answers."""
    scored = Path(shutil.copytree(unscored, tmp_path / "scored"))
    assert looks(scored, capsys) == "the ledger records none"
    assert main(["total", str(scored)]) == OK
    assert "NOT PRIVATE beside it" not in capsys.readouterr().out
    assert main(["evaluate", str(scored), *people]) == OK
    assert "do not publish them as they are" in capsys.readouterr().out
    assert wording.HELD_OUT in looks(scored, capsys)
    assert main(["sample", str(scored), "--n", "10", "--out", str(tmp_path / "few.csv")]) == OK
    assert f"NOT PRIVATE beside it: {wording.HELD_OUT}" in capsys.readouterr().out
    assert main(["total", str(scored)]) == OK
    assert f"NOT PRIVATE beside it: {wording.HELD_OUT}" in capsys.readouterr().out


def test_what_was_not_looked_at_is_no_look(people: list[str], unscored: Path, tmp_path: Path) -> None:
    """A command that fails before it reads a record leaves nothing in the ledger; without one the metrics say it."""
    for part, fails in (("samples.csv", True), ("ledger.jsonl", False)):
        folder = Path(shutil.copytree(unscored, tmp_path / part))
        (folder / part).unlink()
        assert (main(["evaluate", str(folder), *people]) != OK) is fails
        if fails:
            assert wording.HELD_OUT not in (folder / "ledger.jsonl").read_text("utf-8")
        else:
            assert wording.HELD_OUT in (folder / "metrics.json").read_text("utf-8")


def test_a_shared_ledger_must_know_of_the_look(
    people: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, out = tmp_path / "study.ledger", tmp_path / "run"
    options = ["--method", "slicing", "--epsilon", "1", "--steps", "20", "--samples", "100"]
    words = ["run", *people, *options, "--ledger", str(study), "--cap", "3", "--out", str(out)]
    assert main(words) == OK
    assert main(["evaluate", str(out), *people]) == REFUSED
    assert "--ledger" in capsys.readouterr().err
    assert main(["evaluate", str(out), *people, "--ledger", str(study)]) == OK
    for path in (study, out / "ledger.jsonl"):
        assert wording.HELD_OUT in path.read_text("utf-8")
    assert main([*words[:-1], str(tmp_path / "other"), "--evaluate", "True"]) == OK
    assert wording.HELD_OUT in capsys.readouterr().out
    assert wording.HELD_OUT in (tmp_path / "other" / "run.json").read_text("utf-8")
    assert study.read_text("utf-8").count(wording.HELD_OUT) == 2

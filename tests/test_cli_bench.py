"""`dpgm bench` as a user meets it: the real pipeline, killed again and again, and finished all the same."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dpgm.cli import BAD_INPUT, OK, main
from dpgm.evaluation.bench.spec import Spec, read_spec

QUICK = Path(__file__).parents[1] / "experiments" / "quick.toml"


def test_full_size_draws_the_rows_of_the_headline() -> None:
    full, headline = (read_spec(QUICK.parent / f"{name}.toml") for name in ("full_size", "headline"))
    assert (full.data, full.delta, full.classifiers) == (headline.data[::-1], headline.delta, headline.classifiers)
    rows, there = _rows(full), _rows(headline)
    assert rows
    assert all(row in there for row in rows)


def _rows(spec: Spec) -> list[Any]:
    """Each row on each of its sets, at whatever epsilon."""
    return [
        (data, dataclasses.replace(row, on=row.on.get(data, {}), data=None, epsilon=None))
        for row in spec.rows
        for data in row.data or spec.data
    ]


def test_experiment_files_are_in_order() -> None:
    for path in QUICK.parent.glob("*.toml"):
        assert read_spec(path).cells(), path.name


def test_committed_results_are_of_the_committed_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", str(QUICK.parent / "headline.toml"), "--known", str(QUICK.parent / "headline.json")]
    assert main([*words, "--dry-run", "--limit", "0", "--json"]) == OK, "a cell there has other options than its row"
    found = json.loads(capsys.readouterr().out)["cells"]
    assert len(found) == len(json.loads((QUICK.parent / "headline.json").read_text())["cells"])


def test_cells_of_other_defaults_are_not_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = json.loads((QUICK.parent / "headline.json").read_text())["cells"]
    known = tmp_path / "results.json"
    words = ["bench", str(QUICK.parent / "headline.toml"), "--known", str(known), "--dry-run", "--limit", "0"]
    cell = next(c for c in cells if c["row"] == "pge+labeller-soft")
    cell["config"]["labeller"]["features"] = "pixels"  # what the words do not say
    known.write_text(json.dumps({"cells": [cell]}))
    assert main(words) == BAD_INPUT
    assert "other defaults (labeller.features: pixels then, scattering now)" in capsys.readouterr().err
    del cell["config"]
    known.write_text(json.dumps({"cells": [cell]}))
    assert main(words) == BAD_INPUT
    assert "none are recorded" in capsys.readouterr().err


TABLE = """
data = ["people"]
seeds = 1
[sets.people]
source = "people.csv"
schema = "people.json"
test = "people.csv"
[[row]]
method = "slicing"
"""


def test_data_on_which_nothing_can_be_scored_are_refused_before_anything_is_paid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "people.csv").write_text("a,b\n1,0\n2,1\n")
    columns = [{"name": "a", "kind": "number", "low": 0, "high": 3}, {"name": "b", "kind": "boolean"}]
    schema: dict[str, Any] = {"kind": "table", "columns": columns, "size": 100}
    experiment, out = tmp_path / "experiment.toml", tmp_path / "out"
    for text, label, said in (
        (TABLE, None, "has no label of two or more classes"),
        (TABLE.replace('test = "people.csv"\n', ""), "b", "has no test part"),
    ):
        (tmp_path / "people.json").write_text(json.dumps({**schema, "label": label}))
        experiment.write_text(text)
        assert main(["bench", str(experiment), "--out", str(out)]) == BAD_INPUT
        assert said in capsys.readouterr().err
        assert not list(out.glob("runs/*"))
        assert main(["bench", str(experiment), "--dry-run"]) == 1
        assert said in capsys.readouterr().out


@pytest.mark.slow
def test_a_bench_killed_again_and_again_pays_for_each_cell_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "-c", "import sys; from dpgm.cli import main; sys.exit(main())", "bench", str(QUICK)]
    words += ["--out", str(out)]
    seen: dict[Path, int] = {}

    def ledgers() -> list[Path]:
        return sorted(out.glob("runs/*/ledger.jsonl"))

    def finished() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in out.glob("runs/*/report.html")}

    for more in range(1, 5):  # killed as soon as one more cell has opened its ledger, and a moment later each time
        count = len(ledgers()) + 1
        child = subprocess.Popen([*words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 300
        while len(ledgers()) < count and child.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.5 * more)
        child.send_signal(signal.SIGKILL)
        child.wait()
        time.sleep(1)  # the cell ends with its bench
        now = finished()
        assert seen.items() <= now.items(), "a finished cell was lost or done again"
        seen = now
    assert subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0
    assert seen.items() <= finished().items()
    results = json.loads((out / "results.json").read_text())
    assert {c["status"] for c in results["cells"]} == {"done"}
    assert sum(c["attempts"] for c in results["cells"]) > len(results["cells"]), "nothing was interrupted"
    assert len(ledgers()) == 12
    for ledger in ledgers():
        entries = [json.loads(line) for line in ledger.read_text().splitlines()]
        assert [e["kind"] for e in entries].count("reserve") == 1, ledger
        charges = [(e["label"], e["item"], e["until"]) for e in entries if e["kind"] == "charge"]
        assert charges, ledger
        assert len(charges) == len(set(charges)), ledger


@pytest.mark.slow
def test_cells_run_on_a_real_ray_cluster(tmp_path: Path) -> None:
    """In a process of its own: a cluster outlives what started it."""
    pytest.importorskip("ray")
    words = ["bench", str(QUICK), "--out", str(tmp_path / "out"), "--rows", "merf", "--limit", "3", "--executor", "ray"]
    code = "import sys; from dpgm.cli import main; sys.exit(main(sys.argv[1:]))"
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert "3 done, 0 failed, " in ended.stdout, ended.stdout + ended.stderr

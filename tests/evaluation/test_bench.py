"""The benchmark: experiment files, cells, resuming, results and the leaderboard; cells are stand-ins that are quick."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import isfunction
from pathlib import Path
from typing import Any

import pytest

from dpgm.evaluation.bench import board, collect, text
from dpgm.evaluation.bench.cell import Workshop
from dpgm.evaluation.bench.executor import Executor, LocalExecutor, RayExecutor
from dpgm.evaluation.bench.spec import Spec, option, read_spec
from dpgm.schema import SchemaError

EXPERIMENT = """
title = "Two <methods>"
data = ["mnist"]
epsilon = [1, 0.2]
seeds = 2
delta = 1e-5
samples = 100
classifiers = ["cnn"]

[[row]]
method = "merf"
[row.options]
steps = 50
balanced = true
widths = [3, 4]
[row.on.mnist]
widths = [5]

[[row]]
method = "pge"
labeller = 0.3
epsilon = [1]

[[row]]
method = "real"
"""

# Does what `dpgm run` does to a folder, in the time that Python takes to start
STAND_IN = r"""
import json, pathlib, sys, time
words = sys.argv[1:]
value = lambda name, default=None: words[words.index(name) + 1] if name in words else default
out = pathlib.Path(value("--out"))
if value("--method") in {fail!r}:
    sys.exit("boom: " + value("--method"))
out.mkdir(parents=True, exist_ok=True)
with (out / "ledger.jsonl").open("a") as file:
    file.write("paid\n")
if value("--method") in {hang!r}:
    time.sleep(600)
real, seed = words[0] == "reference", int(value("--seed"))
promise = None if real else dict(
    epsilon=float(value("--epsilon")), delta=1e-5, relation="add/remove one", evidence="proved")
seconds = dict(release=1.0, train=2.0 + seed, evaluate=50.0)
run = dict(guarantee=promise, seconds=seconds, cpu_seconds=seconds, peak_memory_mb=100.0, command=" ".join(words))
score = 0.99 if real else 0.8 + 0.02 * seed
fid = dict(value=3.0 + seed, low=2.0, high=5.0, n=50, features="lenet-mnist", reference="test")
(out / "run.json").write_text(json.dumps(run))
metrics = dict(accuracy={{"real_cnn" if real else "cnn": score}}, entropy=2.3, fid=fid)
(out / "metrics.json").write_text(json.dumps(metrics))
if not real:
    (out / "report.html").write_text("")
"""


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    path = tmp_path / "experiment.toml"
    path.write_text(EXPERIMENT)
    return read_spec(path)


def workshop(spec: Spec, out: Path, *, fail: Sequence[str] = (), hang: Sequence[str] = ()) -> Workshop:
    code = STAND_IN.format(fail=tuple(fail), hang=tuple(hang))
    return Workshop(spec=spec, out=out, data_dir=None, program=(sys.executable, "-c", code))


# --- experiment files ------------------------------------------------------------------------------------------------


def test_the_most_telling_cells_come_first(spec: Spec) -> None:
    assert [c.id for c in spec.cells()] == [
        "mnist_real_seed0",
        "mnist_merf_eps1_seed0",
        "mnist_pge+labeller_eps1_seed0",
        "mnist_merf_eps0.2_seed0",
        "mnist_real_seed1",
        "mnist_merf_eps1_seed1",
        "mnist_pge+labeller_eps1_seed1",
        "mnist_merf_eps0.2_seed1",
    ]


def test_words_are_those_of_a_run(spec: Spec, tmp_path: Path) -> None:
    real, merf, pge = spec.cells()[:3]
    words = " ".join(spec.words(merf, data_dir=tmp_path, out=Path("o")))
    assert words == (
        f"run mnist --data-dir {tmp_path} --seed 0 --samples 100 --out o --classifiers cnn --fid-features lenet "
        "--method merf --epsilon 1 --relation add-remove --evaluate True --delta 1e-05 "
        "--steps 50 --balanced --widths 5"
    )
    assert "--labeller 0.3" in " ".join(spec.words(pge, data_dir=None, out=Path("o")))
    soft = replace(pge, row=replace(pge.row, labeller_mode="soft"))
    assert "--labeller 0.3 --labeller-mode soft" in " ".join(spec.words(soft, data_dir=None, out=Path("o")))
    assert spec.words(real, data_dir=None, out=Path("o"))[0] == "reference"
    assert option("warm_start", False) == ["--no-warm-start"]


def test_a_labellers_mode_stands_in_the_name_and_soft_labels_in_the_judges(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    row = "[[row]]\nmethod = 'merf'\nlabeller = 0.3\nlabeller_mode = "
    path.write_text("data = ['mnist']\nseeds = 1\n" + f"{row}'soft'\n{row}'filter'\n")
    assert [c.row.name for c in read_spec(path).cells()] == ["merf+labeller-soft", "merf+labeller"]
    flat = collect._scores({"accuracy": {"cnn_soft": 0.9, "logreg": 0.8, "labeller": 0.95, "real_cnn": 0.97}})
    assert (flat["score"], flat["judge"]) == (0.9, "accuracy_cnn_soft")
    lines = [{"method": "merf", "judge": j} for j in ("accuracy_cnn", "accuracy_cnn_soft", "accuracy_cnn")]
    assert board._judges(lines, []) == "accuracy cnn or accuracy cnn soft"


def test_a_row_may_draw_more_and_stands_beside_as_many_real_records(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    more = "\n[[row]]\nname = 'merf-many'\nmethod = 'merf'\nsamples = 240000\n"
    path.write_text(EXPERIMENT + more)
    spec = read_spec(path)
    few, many = (next(c for c in spec.cells() if c.row.name == name) for name in ("merf", "merf-many"))
    words = spec.words(many, data_dir=None, out=Path("o"))
    assert words[words.index("--samples") + 1] == "240000"
    assert spec.reference(few) is not None
    assert spec.reference(many) is None, "real records were as few as the other rows' samples"
    path.write_text(EXPERIMENT + more + "[[row]]\nname = 'all'\nmethod = 'real'\nsamples = 240000\n")
    real = [spec.reference(cell) for spec in [read_spec(path)] for cell in (few, many)]
    assert [cell and cell.row.name for cell in real] == ["real", "all"]
    path.write_text(EXPERIMENT + more.replace("240000", "0"))
    with pytest.raises(SchemaError, match="1 or more"):
        read_spec(path)


def test_own_sets_are_found_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text("{}")
    path = tmp_path / "e.toml"
    path.write_text(
        "data = ['own']\n[[row]]\nmethod = 'slicing'\n[sets.own]\nsource = 'a.csv'\nschema = 'facts.json'\n"
        "public = true\n"
    )
    words = read_spec(path).data_words("own", None)
    assert words == ["a.csv", "--schema", str(tmp_path / "facts.json"), "--public"]


def test_a_line_of_the_table_may_have_other_options_at_another_epsilon(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    other = '[[row]]\nmethod = "pge"\nlabeller = 0.3\nepsilon = [0.2]\n[row.options]\ntemperature = 3\n'
    path.write_text(EXPERIMENT + other)
    spec = read_spec(path)
    mine = [c for c in spec.cells() if c.row.name == "pge+labeller" and c.seed == 0]
    assert [c.epsilon for c in mine] == [1, 0.2]
    assert ["--temperature" in spec.words(c, data_dir=None, out=tmp_path) for c in mine] == [False, True]
    path.write_text(EXPERIMENT + other.replace("0.2", "1"))
    with pytest.raises(SchemaError, match="same epsilon"):
        read_spec(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("seeds = 2", "seedz = 2"), "allowed are"),
        (("seeds = 2", "seeds = []"), "one seed"),
        (("epsilon = [1, 0.2]", "epsilon = [0]"), "above 0"),
        (("epsilon = [1, 0.2]", "epsilon = 'x'"), "allowed is"),
        (("samples = 100", "samples = 0"), "1 or more"),
        (('method = "pge"', 'method = "pge"\nname = "merf"'), "two rows are called"),
        (('method = "pge"', 'method = "pge"\nname = "../x"'), "cannot name a folder"),
        (('method = "pge"', 'method = "pge"\nlabler = 1'), "row 2 has no key"),
        (('method = "pge"', 'method = "pge"\ndata = ["usps"]'), "does not list"),
        (("[row.on.mnist]", "[row.on.usps]"), "does not list"),
        (('method = "pge"', 'method = "pge"\nrelation = "swap"'), "add-remove, replace"),
        (('method = "pge"\n', ""), "row 2 names no method"),
        (('method = "real"', 'method = "real"\nlabeller = 0.3'), "takes no options"),
        (('method = "merf"', 'method = "merf"\nlabeller_mode = "soft"'), "give its share"),
        (("labeller = 0.3", 'labeller = 0.3\nlabeller_mode = "softly"'), "'filter', 'soft', 'relabel'|Literal"),
        (("title", "title title"), "is no TOML"),
    ],
)
def test_a_wrong_file_is_refused(change: tuple[str, str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    assert change[0] in EXPERIMENT
    path.write_text(EXPERIMENT.replace(*change, 1))
    with pytest.raises(SchemaError, match=said):
        read_spec(path)


def test_nested_options_are_refused() -> None:
    with pytest.raises(SchemaError, match="plain values"):
        option("generator", {"name": "merf"})


# --- executors -------------------------------------------------------------------------------------------------------


class FakeRay:
    """The four calls of Ray that are used."""

    def __init__(self) -> None:
        self.ready = False

    def is_initialized(self) -> bool:
        return self.ready

    def init(self, **options: Any) -> None:
        self.ready = True

    def remote(self, **options: Any) -> Callable[[Callable[[Any], Any]], Any]:
        assert options == {"num_cpus": 2}

        class Remote:
            def __init__(self, fn: Callable[[Any], Any]) -> None:
                assert isfunction(fn), "Ray refuses callable objects"
                self.remote = lambda item: (fn, item)

        return Remote

    def wait(self, left: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        assert self.ready
        return left[-1:], left[:-1]

    def get(self, done: list[Any]) -> list[Any]:
        return [fn(item) for fn, item in done]


class Doubler:
    def __call__(self, item: int) -> int:
        return 2 * item


@pytest.mark.parametrize("executor", [LocalExecutor(2), LocalExecutor(), RayExecutor(2, ray=FakeRay())])
def test_executors_are_a_map(executor: Executor) -> None:
    assert sorted(executor.map(lambda v: v * v, [1, 2, 3, 4])) == [1, 4, 9, 16]
    assert list(executor.map(lambda v: v, [])) == []
    assert list(executor.map(Doubler(), [3])) == [6]
    with pytest.raises(ZeroDivisionError):
        list(executor.map(lambda v: 1 // v, [0]))


def test_ray_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SchemaError, match=r"pip install 'dpgm\[ray\]'"):
        RayExecutor()
    with pytest.raises(SchemaError, match="1 or more"):
        LocalExecutor(0)


# --- cells -----------------------------------------------------------------------------------------------------------


def test_finished_cells_are_left_alone_and_failed_ones_tried_again(spec: Spec, tmp_path: Path) -> None:
    out, cells = tmp_path / "out", spec.cells()
    first = workshop(spec, out, fail=["pge"])
    codes = dict(LocalExecutor(4).map(first, cells))
    assert {c for c, code in codes.items() if code} == {c.id for c in cells if c.row.method == "pge"}
    left = [c for c in cells if not first.finished(c)]
    assert {c.row.method for c in left} == {"pge"}
    failed = [r for r in collect.records(first, cells) if r["status"] == collect.FAILED]
    assert [(r["code"], r["error"]) for r in failed] == [(1, "boom: pge")] * 2
    second = workshop(spec, out)
    second.check(cells)
    assert [code for _, code in LocalExecutor().map(second, left)] == [0, 0]
    found = collect.records(second, cells)
    assert {r["status"] for r in found} == {collect.DONE}
    assert [r["attempts"] for r in found if r["method"] == "pge"] == [2, 2]
    assert all((first.folder(c) / "ledger.jsonl").read_text() == "paid\n" for c in cells)
    reference = f"--reference {out / 'runs' / 'mnist_real_seed0'}"  # made once, and handed on to whatever comes later
    assert reference in (first.folder(cells[2]) / "run.json").read_text()


def test_other_options_are_refused(spec: Spec, tmp_path: Path) -> None:
    cells = spec.cells()
    workshop(spec, tmp_path / "out")(cells[1])
    path = tmp_path / "other.toml"
    path.write_text(EXPERIMENT.replace("steps = 50", "steps = 60"))
    other = read_spec(path)
    with pytest.raises(SchemaError, match="begun with other options"):
        workshop(other, tmp_path / "out").check(other.cells())
    moved = Workshop(spec=spec, out=tmp_path / "out", data_dir=tmp_path, program=())
    moved.check(cells)  # where the data lie decides nothing


def test_a_cell_ends_with_its_bench(tmp_path: Path) -> None:
    code = "import threading, time; from dpgm.cli.cell import _end_with_starter as end\n"
    code += "threading.Thread(target=end, daemon=True).start(); print('up', flush=True); time.sleep({})"
    for seconds, close, expected in ((600, True, 1), (0.1, False, 0)):
        words = [sys.executable, "-c", code.format(seconds)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdin is not None
            assert child.stdout.readline() == b"up\n"
            if close:
                child.stdin.close()
            assert child.wait(60) == expected


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def results(spec: Spec, tmp_path: Path) -> dict[str, Any]:
    shop = workshop(spec, tmp_path / "out", fail=["pge"])
    list(LocalExecutor(4).map(shop, spec.cells()))
    found = collect.records(shop, spec.cells())
    return {
        "title": spec.title,
        "about": "",
        "command": "dpgm bench",
        "machine": collect.machine(1, 1),
        "samples": 100,
        "other_samples": {"merf-many": 240000},
        "wall_seconds": 1.0,
        "summary": collect.summary(found),
        "cells": found,
        "papers": collect.papers(),
    }


def test_seeds_are_summed_up_and_failures_counted(results: dict[str, Any]) -> None:
    lines = {(x["row"], x["epsilon"]): x for x in results["summary"]}
    merf = lines["merf", 1]
    assert merf["score"] == {"mean": pytest.approx(0.81), "n": 2, "values": [0.8, pytest.approx(0.82)]}
    assert merf["seconds"]["mean"] == pytest.approx(3.5)  # evaluation is nobody's cost
    assert (merf["fid"]["mean"], merf["features"]) == (3.5, "lenet-mnist")
    assert (merf["evidence"], merf["relation"], merf["delta"]) == ("proved", "add/remove one", 1e-5)
    assert (lines["pge+labeller", 1]["n"], lines["pge+labeller", 1]["failed"]) == (0, 2)
    assert lines["real", None]["judge"] == "accuracy_real_cnn"


def test_the_leaderboard_shows_what_there_is(results: dict[str, Any]) -> None:
    page = board.render(results)
    for words in ("81.00", "2 seeds", "FID[lenet-mnist]", "boom: pge", "2 failed", "refuted", "Two &lt;methods&gt;"):
        assert words in page, words
    assert "arXiv 2210.09929" in page
    assert "real records, not private: 99.00 %" in page, "a line across both charts"
    assert not re.search(r"(src|href)=|https?://", page), "it asks nothing of anybody"
    for line in results["summary"]:
        for key, value in line.items():
            if isinstance(value, dict):
                line[key] = {"mean": value["mean"], "low": 0.79, "high": 0.83, "n": 5}
    assert "79 to 83 %, 5 seeds" in board.render(results)


def test_the_board_shows_remarks_and_says_what_its_times_are(results: dict[str, Any]) -> None:
    for record in results["cells"]:
        if record["row"] == "pge+labeller":
            record |= {"status": collect.DONE, "method": "labeller", "evidence": "proved", "judge": "accuracy_cnn"}
            record |= {"score": 0.9, "seconds": 9.0, "cpu_seconds": 9.0, "peak_memory_mb": 200.0, "attempts": 2}
            record |= {"relation": "add/remove one", "delta": 1e-5}
    page = board.render({**results, "summary": collect.summary(results["cells"])})
    assert "<small>by the mean below a private classifier on real records (2 seeds against 2)</small>" in page
    assert "2 of the runs were interrupted and went on" in page
    assert "add up to 1 s, those that ran side by side counted each" in page
    assert "together took" not in page


def test_an_interval_that_begins_at_0_is_summed_up(results: dict[str, Any]) -> None:
    fid = {"value": 3, "low": 0, "high": 5.0, "n": 50, "features": "lenet-mnist"}  # 0, as JSON may have it
    found = collect._scores({"accuracy": {"cnn": 0.9}, "fid": fid})
    assert {type(found[k]) for k in ("fid", "fid_low", "fid_high")} == {float}
    merf = [r for r in results["cells"] if r["row"] == "merf" and r["epsilon"] == 1]
    merf[0]["fid_low"] = 0  # of a table that was written before
    [line] = collect.summary(merf)
    assert line["fid_low"]["mean"] == 1.0


def test_tables_are_judged_by_pairs_of_columns_where_pictures_have_an_fid() -> None:
    pictures = {"features": "lenet-mnist", "fid": {"mean": 3.5}}
    found = [board.closeness(lines) for lines in ([{}, pictures], [{"fidelity_PairSimilarity": 0.9}], [{}])]
    assert [c.head for c in found] == ["FID[lenet-mnist]", "PairSimilarity", ""]
    assert [c.key for c in found] == ["fid", "fidelity_PairSimilarity", ""]


def test_the_page_for_a_repository_says_the_same(results: dict[str, Any]) -> None:
    page = text.markdown(results)
    assert "100 synthetic records a run, 240,000 in the row merf-many; train on synthetic" in page
    assert (
        "| row | epsilon 0.2 | epsilon 1 | FID[lenet-mnist], n = 50 | time | CPU | memory | evidence | guarantee |"
        in page
    )
    assert (
        "| merf | 81.00 (2 seeds) | 81.00 (2 seeds) | 3.5 | 4 s | 4 s | 100 MB | proved | add/remove one, delta 1e-5 |"
        in page
    )
    assert "| real | 99.00 (2 seeds) | 99.00 (2 seeds) | 3.5 |  |  | 100 MB | not private |  |" in page
    assert "- mnist_pge+labeller_eps1_seed0: exit code 1: boom: pge" in page


def test_a_row_that_did_not_run_at_the_named_epsilon_shows_its_scores_only(results: dict[str, Any]) -> None:
    for record in results["cells"]:
        if record["row"] == "merf" and record["epsilon"] == 1:
            record["status"] = collect.PENDING
        if record["row"] == "pge+labeller":
            record |= {"status": collect.DONE, "evidence": "proved", "score": 0.9, "judge": "accuracy_cnn"}
            record |= {
                "relation": "add/remove one",
                "delta": 1e-5,
                "seconds": 9.0,
                "cpu_seconds": 9.0,
                "peak_memory_mb": 200.0,
                "fid": 7.0,
                "features": "lenet-mnist",
            }
    page = text.markdown({**results, "summary": collect.summary(results["cells"])})
    assert "| merf | 81.00 (2 seeds) |  |  |  |  |  | proved | add/remove one, delta 1e-5 |" in page
    assert (
        "| pge+labeller |  | 90.00 (2 seeds) | 7 | 9 s | 9 s | 200 MB | proved | add/remove one, delta 1e-5 |" in page
    )
    assert "Whatever is no score is at epsilon 1." in page
    for record in results["cells"]:
        if record["row"] == "pge+labeller":
            record["status"] = collect.PENDING
    page = text.markdown({**results, "summary": collect.summary(results["cells"])})
    assert "| merf | 81.00 (2 seeds) |  | 3.5 | 4 s |" in page
    assert "Whatever is no score is at epsilon 0.2." in page


def test_a_row_is_called_by_its_weakest_evidence(results: dict[str, Any]) -> None:
    for record in results["cells"]:
        if record["row"] == "merf" and record["epsilon"] == 1:
            record["evidence"] = "refuted"
    page = text.markdown({**results, "summary": collect.summary(results["cells"])})
    assert "| refuted (at 1) | add/remove one, delta 1e-5 |" in page
    assert "No private classifier of the same epsilon, relation and delta was run beside merf" in page


def test_rows_with_their_own_number_of_samples_have_as_many_real_records_beside_them(results: dict[str, Any]) -> None:
    for record in results["cells"]:
        if record["row"] == "merf" and record["epsilon"] == 1:
            record["accuracy_real_cnn"] = 0.995
    found = {**results, "summary": collect.summary(results["cells"]), "other_samples": {"merf": 60_000}}
    said = "Beside rows with their own number of samples, the CNN on as many real records, or all: merf 99.50 %."
    assert said in text.markdown(found)
    assert said in board.render(found)
    assert "Beside rows" not in board.render(results)


def test_nothing_finished_is_a_page_too(results: dict[str, Any]) -> None:
    for record in results["cells"]:
        record["status"] = collect.PENDING
    empty = {**results, "summary": collect.summary(results["cells"])}
    assert "still to be run" in board.render(empty)
    assert "0 of 8 runs" in text.markdown(empty)


def test_the_table_needs_no_pyarrow(results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "find_spec", lambda name: None)
    with collect.write_table(results["cells"], tmp_path).open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results["cells"])
    assert rows[1]["accuracy_cnn"] == "0.8"


def test_the_parquet_table_holds_the_same(results: dict[str, Any], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(collect.write_table(results["cells"], tmp_path)).to_pylist()
    assert [r["cell"] for r in table] == [r["cell"] for r in results["cells"]]
    assert table[1]["score"] == 0.8


# --- the command -----------------------------------------------------------------------------------------------------

KILLED = """
import sys
from pathlib import Path
from dpgm.evaluation.bench.cell import Workshop
from dpgm.evaluation.bench.executor import LocalExecutor
from dpgm.evaluation.bench.spec import read_spec
spec = read_spec(Path(sys.argv[1]))
shop = Workshop(spec=spec, out=Path(sys.argv[2]), data_dir=None, program=(sys.executable, "-c", sys.argv[3]))
list(LocalExecutor().map(shop, spec.cells()))
"""


def test_a_killed_bench_loses_no_finished_cell(spec: Spec, tmp_path: Path) -> None:
    out, cells = tmp_path / "out", spec.cells()
    stand_in = STAND_IN.format(fail=(), hang=("pge",))
    stand_in = "import threading\nfrom dpgm.cli.cell import _end_with_starter as end\n" + stand_in
    stand_in = stand_in.replace("words =", "threading.Thread(target=end, daemon=True).start()\nwords =", 1)
    hangs = out / "runs" / cells[2].id / "ledger.jsonl"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "experiment.toml"), str(out), stand_in])
    end = time.monotonic() + 120
    while not hangs.exists() and time.monotonic() < end and child.poll() is None:
        time.sleep(0.05)
    assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    shop = workshop(spec, out)
    assert [shop.finished(c) for c in cells[:4]] == [True, True, False, False]
    before = {c.id: (shop.folder(c) / "run.json").stat().st_mtime_ns for c in cells[:2]}
    assert json.loads(shop.note(cells[2]).read_text())["attempts"][0]["code"] is None
    list(LocalExecutor().map(shop, [c for c in cells if not shop.finished(c)]))
    assert {r["status"] for r in collect.records(shop, cells)} == {collect.DONE}
    assert before == {c.id: (shop.folder(c) / "run.json").stat().st_mtime_ns for c in cells[:2]}

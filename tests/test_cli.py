"""The command line as a user meets it: files, exit codes, JSON, resuming after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dpgm import artefact
from dpgm.artefact import write_json
from dpgm.cli import BAD_INPUT, COMMANDS, INTERRUPTED, OK, REFUSED, USAGE, main
from dpgm.cli.options import printable
from dpgm.evaluation.bench.spec import read_spec
from dpgm.methods.embedding import DPMERF

SMALL = ["--dim", "200", "--steps", "20", "--samples", "60"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    words = ["run", "digits", "--method", "merf", "--epsilon", "1", "--seed", "0", "--out", str(out), *SMALL]
    assert main(words) == OK
    return out


def test_a_run_leaves_what_other_programs_rely_on(run: Path) -> None:
    names = (
        "run.json ledger.jsonl release.safetensors model.safetensors samples.npz samples.png metrics.json report.html"
    )
    assert not [n for n in names.split() if not (run / n).is_file() or (run / n).stat().st_size == 0]
    facts = json.loads((run / "run.json").read_text())
    guarantee = facts["guarantee"]
    assert guarantee["epsilon"] <= 1
    assert (guarantee["evidence"], guarantee["relation"], guarantee["unit"]) == ("proved", "add/remove one", "record")
    assert guarantee["delta"] == 1e-4
    assert set(facts["seconds"]) == {"read", "release", "train", "sample", "evaluate"}
    assert (facts["method"], facts["data"], facts["seed"]) == ("merf", "digits", 0)
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"cnn", "logreg", "mlp", "real_cnn"} <= set(metrics["accuracy"])
    assert metrics["seconds"] > 0
    assert metrics["peak_memory_mb"] > 0
    assert metrics["exposures"], "the reference on real data is a look that must be named"
    with np.load(run / "samples.npz") as samples:
        assert samples["images"].shape == (60, 8, 8, 1)
        assert samples["images"].dtype == np.uint8


def test_no_artefact_names_a_place_of_the_machine(run: Path) -> None:
    for file in run.iterdir():
        assert str(run.parent).encode() not in file.read_bytes(), file.name


def test_a_printed_command_keeps_names_and_cuts_paths() -> None:
    given = ["run", "/a/b c/d.npz", "--classes", "T-shirt/top,n / a", "--schema=sub/s.json", "--reference", "a/real/"]
    assert printable(given) == "dpgm run d.npz --classes 'T-shirt/top,n / a' --schema=s.json --reference real"
    files = "trained:/a/f.safetensors+scattering+torchvision:vgg19=/a/w.pth"
    assert (
        printable(["--features", files]) == "dpgm --features trained:f.safetensors+scattering+torchvision:vgg19=w.pth"
    )
    assert printable(["sample", "run", "--labels", "n/a"]) == "dpgm sample run --labels n/a"
    assert (
        printable(["run", "--labels", "sub/l-ubyte", "--classes=n/a", "sub/d"])
        == "dpgm run --labels l-ubyte --classes=n/a d"
    )


@pytest.mark.parametrize(
    "value", ["/home/me/x", "a,/home/me/my,dir/x", "a b:/home/me/x", "'/home/me/x'", "a;/home/me+/x"]
)
@pytest.mark.parametrize("option", ["", "--classes", "--rows", "--features", "--schema", "--unknown"])
def test_a_printed_command_holds_no_absolute_path(option: str, value: str) -> None:
    for words in ([option, value] if option else [value], [f"{option}={value}"] if option else ["--json", value]):
        shown = printable(["run", *words, "--out", "/home/me/out", "/home/me/d.npz"])
        assert "home" not in shown
        assert "/" not in shown


def test_training_again_is_free(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    words = ["train", str(run / "release.safetensors"), "--steps", "10", "--samples", "10", "--seed", "3"]
    assert main([*words, "--out", str(out)]) == OK
    assert (out / "ledger.jsonl").read_bytes() == (run / "ledger.jsonl").read_bytes()
    before, after = artefact.load_model(run), artefact.load_model(out)
    assert after.guarantee == before.guarantee
    assert not np.array_equal(after.sample(4, seed=0).images, before.sample(4, seed=0).images)


def test_what_decided_the_release_cannot_change(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(run), "--dim", "50", "--out", str(tmp_path / "x")]) == BAD_INPUT
    assert "dim" in capsys.readouterr().err


def test_sampling_by_label(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "threes.npz"
    assert main(["sample", str(run), "--n", "5", "--labels", "3", "--seed", "1", "--out", str(out)]) == OK
    assert artefact.load_samples(out).labels.tolist() == [3] * 5


def test_a_plan_reads_no_row(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from dpgm.data import DataSet

    def touched(self: DataSet) -> None:
        raise AssertionError("a row was read")

    monkeypatch.setattr(DataSet, "train", touched)
    monkeypatch.setattr(DataSet, "test", touched)
    assert main(["plan", "digits", "--dim", "100", "--json"]) == OK
    plan = json.loads(capsys.readouterr().out)
    assert plan["guarantee"]["epsilon"] == pytest.approx(1, abs=1e-6)
    assert plan["seconds"] > 0
    assert plan["memory_mb"] > 0


def test_json_is_all_there_is_on_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "digits", "--out", str(tmp_path / "r"), "--json", "--dim", "50", "--steps", "3"]) == OK
    assert json.loads(capsys.readouterr().out)["guarantee"]["evidence"] == "proved"


@pytest.mark.parametrize(
    ("words", "epsilon"),
    [
        ("--noise-multiplier 3 --rate 0.1 --steps 512 --delta 1e-6", 3.77),
        ("--mu 0.268", 1.0),
        ("--epsilon 1 --rate 0.136 --steps 300", 1.0),
        ("--noise-multiplier 2 --relation replace", 1.993),
    ],
)
def test_account(words: str, epsilon: float, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["account", *words.split(), "--json"]) == OK
    assert json.loads(capsys.readouterr().out)["epsilon"] == pytest.approx(epsilon, rel=1e-3)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["fly"], USAGE, "no command 'fly'"),
        ([], USAGE, ""),
        (["run", "nosuch", "--out", "x"], BAD_INPUT, "named sets are"),
        (["run", "digits", "--method", "nosuch", "--out", "x"], BAD_INPUT, "there are"),
        (["run", "digits", "--method", "labelled", "--out", "x"], BAD_INPUT, "--labeller"),
        (
            ["plan", "digits", "--method", "dp-logreg", "--labeller", "0.3"],
            BAD_INPUT,
            "takes tables; these records are images",
        ),
        (["run", "digits", "--labeller-mode", "soft", "--out", "x"], BAD_INPUT, "--labeller 0.3"),
        (["run", "digits", "--epsilon", "-1", "--out", "x"], REFUSED, "above 0"),
        (["run", "digits", "--delta", "1", "--out", "x"], REFUSED, "1e-5"),
        (["account"], REFUSED, "--noise-multiplier"),
        (["cite", "nosuch"], BAD_INPUT, "neither"),
        (["sample", "nosuch"], BAD_INPUT, "does not exist"),
        (["train", "nosuch", "--out", "x"], BAD_INPUT, "give a release"),
    ],
)
def test_errors_say_what_to_do(
    words: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "a refused command leaves nothing behind"


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["run", "digits", "--out", str(tmp_path / "x"), "--stepz", "3"])
    assert stop.value.code == USAGE


def test_a_finished_run_is_not_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "ledger.jsonl").read_bytes()
    assert main(["run", "digits", "--out", str(run), *SMALL]) == BAD_INPUT
    assert "dpgm train" in capsys.readouterr().err
    assert (run / "ledger.jsonl").read_bytes() == before


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == OK
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


def test_cite_names_method_and_mechanism(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cite", str(run)]) == OK
    shown = capsys.readouterr().out
    assert "@misc{harder2021dpmerf" in shown
    assert "@misc{balle2018improving" in shown


def test_runs_on_the_same_records_are_added_up(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "ledger.jsonl"
    copy.write_bytes((run / "ledger.jsonl").read_bytes())
    assert main(["total", str(run), str(copy), "--json"]) == OK
    value = json.loads(capsys.readouterr().out)
    alone = value["runs"][str(run)]["epsilon"]
    assert alone < value["epsilon"] < 2 * alone
    assert main(["total", str(run), str(run)]) == REFUSED
    assert main(["total", str(tmp_path / "none")]) == REFUSED


def test_runs_on_one_ledger_stay_under_its_cap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, quick = tmp_path / "study.ledger", ["--dim", "50", "--steps", "1", "--samples", "10", "--evaluate", "False"]

    def run(name: str, *more: str) -> int:
        return main(["run", "digits", *quick, "--ledger", str(study), "--out", str(tmp_path / name), *more])

    assert run("a") == REFUSED
    assert "--cap 3" in capsys.readouterr().err
    assert run("a", "--cap", "0.5") == REFUSED  # less than one run
    assert not study.exists()
    assert run("a", "--cap", "1.3") == OK
    assert f"{study.name}: epsilon 1 of 1.3" in capsys.readouterr().err.replace("\n", "")
    assert run("b", "--cap", "2") == REFUSED
    assert "leave --cap out" in capsys.readouterr().err
    before = study.read_bytes()
    assert main(["plan", "digits", "--ledger", str(study)]) == REFUSED
    assert run("b") == REFUSED
    assert "so ask for less" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    assert main(["plan", "digits", "--ledger", str(study), "--epsilon", "0.2", "--json"]) == OK
    assert 1 < json.loads(capsys.readouterr().out)["shared"]["epsilon"] < 1.2
    assert study.read_bytes() == before
    assert run("b", "--epsilon", "0.2") == OK
    capsys.readouterr()
    assert main(["total", str(study), "--json"]) == OK
    value = json.loads(capsys.readouterr().out)
    part = value["runs"][str(study)]
    assert (part["runs"], part["cap"]) == (["a", "b"], 1.3)
    assert 1 < value["epsilon"] < 1.2
    assert main(["total", str(study), str(tmp_path / "a")]) == REFUSED
    assert "counts twice" in capsys.readouterr().err


def test_a_killed_run_goes_on_with_its_shared_ledger_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out = tmp_path / "study.ledger", tmp_path / "a"
    words = [
        "run",
        "digits",
        "--dim",
        "50",
        "--steps",
        "1",
        "--samples",
        "10",
        "--evaluate",
        "False",
        "--out",
        str(out),
    ]
    mine = ["--ledger", str(study), "--cap", "1"]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dpgm.privacy.ledger.Ledger.deliver", killed)
        assert main([*words, *mine]) == INTERRUPTED
    capsys.readouterr()
    assert main(words) == REFUSED
    assert "shared ledger was 'study.ledger', is None" in capsys.readouterr().err
    assert main([*words, *mine]) == OK
    kinds = [json.loads(line)["kind"] for line in study.read_text().splitlines()]
    assert (kinds.count("reserve"), kinds.count("repeat"), kinds.count("deliver")) == (1, 1, 1)
    assert main(["plan", "digits", "--cap", "1"]) == REFUSED
    assert "--ledger study.ledger" in capsys.readouterr().err
    own = ["--ledger", str(tmp_path / "b" / "ledger.jsonl"), "--cap", "1", "--out", str(tmp_path / "b")]
    assert main(["run", "digits", *own]) == BAD_INPUT
    assert not (tmp_path / "b").exists()


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, dpgm, dpgm.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _until_killed(words: list[str], there: Path) -> None:
    """Run a command and kill it the hard way once `there` exists."""
    code = f"import sys; from dpgm.cli import main; sys.exit(main({words!r}))"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while not there.exists() and child.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        assert child.poll() is None, "the run ended before it could be killed"
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()


def test_a_killed_run_goes_on_and_pays_once(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["fit", "digits", "--out", str(out), "--dim", "100", "--steps"]
    _until_killed([*words, "1000000"], out / "release.safetensors")
    paid = (out / "ledger.jsonl").read_bytes()
    released = artefact.load_release(out).tensors["sums"]
    assert main([*words, "5"]) == OK
    assert (out / "ledger.jsonl").read_bytes() == paid, "training costs nothing, so nothing was paid again"
    np.testing.assert_array_equal(artefact.load_release(out).tensors["sums"], released)


def test_a_resumed_run_cannot_change_its_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = ["fit", "digits", "--out", str(out), "--dim", "100", "--steps"]
    _until_killed([*words, "1000000"], out / "release.safetensors")
    assert main([*words, "5", "--count-weight", "0.5"]) == REFUSED
    assert main([*words, "5", "--epsilon", "2"]) == REFUSED
    said = capsys.readouterr().err
    assert "another plan" in said
    assert "terms are" in said


def test_a_run_killed_after_training_goes_on_from_its_model(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["run", "digits", "--seed", "0", "--out", str(out), *SMALL, "--classifiers", "logreg"]
    assert main([*words, "--evaluate", "False"]) == OK
    before = {n: (out / n).read_bytes() for n in ("ledger.jsonl", "release.safetensors", "model.safetensors")}
    seconds = json.loads((out / "run.json").read_text())["seconds"]
    (out / "report.html").unlink()  # the last file that a run writes
    assert main(words) == OK
    assert before == {n: (out / n).read_bytes() for n in before}
    again = json.loads((out / "run.json").read_text())["seconds"]
    assert [again[k] for k in ("read", "release", "train")] == [seconds[k] for k in ("read", "release", "train")]
    assert set(json.loads((out / "metrics.json").read_text())["accuracy"]) == {"logreg", "real_logreg"}
    assert main(words) == BAD_INPUT, "it is finished now"


def test_a_reference_serves_many_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real, out = tmp_path / "real", tmp_path / "run"
    known = ["--seed", "3", "--classifiers", "logreg"]
    assert main(["reference", "digits", "--samples", "60", "--out", str(real), *known]) == OK
    kept = json.loads((real / "metrics.json").read_text())
    assert kept["accuracy"]["real_logreg"] > 0.5
    assert json.loads((real / "run.json").read_text())["guarantee"] is None
    assert (real / "judges.safetensors").exists()
    assert main(["run", "digits", "--out", str(out), *SMALL, *known, "--reference", str(real)]) == OK
    found = json.loads((out / "metrics.json").read_text())
    assert found["accuracy"]["real_logreg"] == kept["accuracy"]["real_logreg"]
    assert found["exposures"] == kept["exposures"]
    other = ["evaluate", str(out), "--seed", "4", "--classifiers", "logreg", "--reference", str(real)]
    assert main(other) == BAD_INPUT
    assert "reference was made with" in capsys.readouterr().err
    (real / "run.json").write_text(json.dumps({"data": "mnist"}))
    assert main([*other[:2], *known, "--reference", str(real)]) == BAD_INPUT
    assert "is a reference on mnist" in capsys.readouterr().err.replace("\n", " ")


def test_private_records_make_no_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, x=np.zeros((20, 8, 8), np.uint8), y=np.arange(20) % 2)
    words = ["reference", str(path), "--image-size", "8", "--channels", "1", "--classes", "2", "--test-fraction", "0.5"]
    assert main([*words, "--out", str(tmp_path / "x")]) == REFUSED
    assert "not private" in capsys.readouterr().err


def test_a_bench_shows_its_cells_without_reading_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpgm.data import DataSet

    monkeypatch.setattr(DataSet, "_read", lambda self, name: pytest.fail("a row was read"))
    path = tmp_path / "e.toml"
    path.write_text("data = ['digits']\nseeds = 2\n[[row]]\nmethod = 'merf'\n[[row]]\nmethod = 'real'\n")
    assert main(["bench", str(path), "--dry-run", "--json"]) == OK
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert len(cells) == 4
    assert "proved" in cells[1]["headline"]
    path.write_text("data = ['digits']\n[[row]]\nmethod = 'nosuch'\n")
    assert main(["bench", str(path), "--dry-run", "--json"]) != OK
    assert "there is no method" in json.loads(capsys.readouterr().out)["cells"][0]["error"]
    assert main(["bench", str(path)]) == BAD_INPUT
    assert "give --out" in capsys.readouterr().err


def test_a_bench_takes_over_what_is_known_from_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, known, out = tmp_path / "e.toml", tmp_path / "there.json", tmp_path / "out"
    path.write_text("data = ['digits']\nseeds = 2\n[[row]]\nmethod = 'merf'\n[[row]]\nmethod = 'real'\n")
    spec = read_spec(path)
    numbers = dict.fromkeys(("score", "wall_seconds", "seconds", "cpu_seconds", "peak_memory_mb"), 0.9)
    record = {"status": "done", "evidence": "proved", "attempts": 1, **numbers}
    cells = [
        {
            **record,
            **{"cell": c.id, "data": c.data, "row": c.row.name, "epsilon": c.epsilon, "method": c.row.method},
            "command": printable(spec.words(c, data_dir=Path("/far/away"), out=Path("/else/where"))),
            "config": DPMERF().to_json(),
        }
        for c in spec.cells()
    ]
    write_json(known, {"cells": cells[:3]})
    words = ["bench", str(path), "--json", "--known", str(known)]
    assert main([*words, "--dry-run"]) == OK
    shown = {c["cell"]: c["finished"] for c in json.loads(capsys.readouterr().out)["cells"]}
    left = "digits_merf_eps1_seed1"
    assert shown == {c["cell"]: c["cell"] not in (left, "digits_real_seed1") for c in cells}, (
        "real records stand beside"
    )
    assert main([*words, "--dry-run", "--rows", "real"]) == OK
    assert [c["finished"] for c in json.loads(capsys.readouterr().out)["cells"]] == [True] * 3
    write_json(known, {"cells": cells})
    assert main([*words, "--out", str(out)]) == OK, "nothing is left to run"
    assert json.loads(capsys.readouterr().out)["done"] == 4
    assert json.loads((out / "results.json").read_text())["summary"][1]["score"]["values"] == [0.9, 0.9]
    assert not (out / "runs").exists()
    assert "(4 taken over from other benches" in (out / "results.md").read_text()
    assert "4 were taken over from other benches" in (out / "leaderboard.html").read_text()
    swapped = [
        {**c, "command": c["command"].replace("--seed 1 --samples 10000", "--seed 10000 --samples 1")} for c in cells
    ]
    write_json(tmp_path / "swapped.json", {"cells": swapped})
    assert main(["bench", str(path), "--dry-run", "--known", str(tmp_path / "swapped.json")]) == BAD_INPUT
    path.write_text(f"samples = 100\n{path.read_text()}")
    for given, said in (
        (["--rows", "mepf"], "has no row mepf; its rows are merf, real"),
        (["--known", str(tmp_path / "no.json")], "does not exist"),
        (["--known", str(known)], "was run with other options (100 10000)"),
    ):
        assert main(["bench", str(path), "--dry-run", *given]) == BAD_INPUT
        assert said in capsys.readouterr().err.replace("\n", " ")


def test_soft_labels_reach_the_cnn_and_the_report(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--labeller", "0.3", "--labeller-mode", "soft", "--steps", "3", "--dim", "40", "--epsilon", "8"]
    words += ["--samples", "60", "--classifiers", "cnn", "--fid-features", "none"]
    assert main(["run", "digits", "--method", "merf", *words, "--out", str(out)]) == OK
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["accuracy"]) == {"cnn_soft", "real_cnn", "labeller"}
    assert json.loads((out / "run.json").read_text())["config"]["mode"] == "soft"
    page = (out / "report.html").read_text()
    assert "CNN on soft labels" in page
    assert "A classifier that saw nothing but samples" in page


@pytest.mark.parametrize("method", ["labeller", "dp-cnn"])
def test_a_classifier_is_a_release_without_samples(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    small = ["--steps", "20", "--rate", "0.2", *(["--dim", "80", "--pictures", "200"] if method == "labeller" else [])]
    assert main(["run", "digits", "--method", method, "--epsilon", "8", "--out", str(out), *small]) == OK
    metrics = json.loads((out / "metrics.json").read_text())
    assert 0.15 < metrics["accuracy"].pop(method.replace("-", "_")) <= 1  # 0.1 by chance
    assert not metrics["accuracy"], "no classifier was trained on samples"
    assert not (out / "samples.npz").exists()
    assert "How good the classifier is" in (out / "report.html").read_text()
    assert main(["evaluate", str(out)]) == OK
    assert main(["sample", str(out)]) == BAD_INPUT
    assert "draws no records" in capsys.readouterr().err
    assert main(["plan", "digits", "--method", method, "--labeller", "0.3"]) == BAD_INPUT
    assert "name a generator" in capsys.readouterr().err


def test_a_private_classifier_of_another_run_stands_beside_the_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, rival = tmp_path / "run", tmp_path / "rival"
    quick = ["--epsilon", "8", "--evaluate", "False", "--samples", "20"]
    assert main(["run", "digits", "--method", "merf", "--steps", "1", "--dim", "50", *quick, "--out", str(run)]) == OK
    assert main(["run", "digits", "--method", "dp-cnn", "--steps", "5", "--epsilon", "8", "--out", str(rival)]) == OK
    short = ["evaluate", str(run), "--classifiers", "logreg", "--fid-features", "none", "--beside"]
    assert main([*short, str(rival)]) == OK
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"logreg", "dp_cnn"} <= set(metrics["accuracy"])
    assert metrics["beside"]["dp_cnn"].startswith("epsilon ")
    assert "publishing both spends both" in (run / "report.html").read_text()
    assert main([*short, str(run)]) == BAD_INPUT
    assert "give one of labeller, dp-cnn or dp-logreg on digits" in capsys.readouterr().err


def test_a_plan_shows_numbers_a_person_can_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "digits", "--method", "pge"]) == OK
    shown = capsys.readouterr().out
    assert "noise_std: means " in shown
    assert not any(c in shown for c in "{}")
    assert max(len(word) for word in shown.split() if word[0].isdigit()) <= 9
    assert main(["account", "--noise-multiplier", "3"]) == OK
    assert capsys.readouterr().out.endswith(", 1 step\n")

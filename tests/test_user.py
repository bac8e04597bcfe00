"""What a hurried user does wrong: one line that says what was given and what is allowed, and never how many records."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import dpgm
from dpgm import artefact, methods
from dpgm.cli import main
from dpgm.data.tables import TableSet
from dpgm.privacy.guarantee import PrivacyError
from dpgm.schema import SchemaError, TableSchema, schema_from_json

N = 61
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 8, 8), dtype=np.uint8)
LABELS = np.arange(N) % 3
FACTS: dict[str, Any] = {
    "kind": "table",
    "label": "job",
    "size": 60,
    "columns": [
        {"name": "age", "kind": "integer", "low": 0, "high": 120},
        {"name": "job", "kind": "category", "values": ["cook", "nurse"]},
    ],
}
LINES = ["age,job", *(f"{20 + i % 50},{('cook', 'nurse')[i % 2]}" for i in range(N))]


def fit(x: Any = IMAGES, y: Any = LABELS, **options: Any) -> dpgm.Model:
    return dpgm.fit(dpgm.DPMERF(dim=20, steps=2), x, y, **{"classes": 3, "epsilon": 1.0, "delta": 1e-3, **options})


def table(folder: Path, *lines: str) -> Path:
    path = folder / "people.csv"
    path.write_text("\n".join(lines or LINES) + "\n", encoding="utf-8")
    return path


def changed(**facts: Any) -> dict[str, Any]:
    return {**FACTS, "columns": [{**FACTS["columns"][0], **facts}, FACTS["columns"][1]]}


# -- schemas ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1], "is a list"),
        (None, "is a NoneType"),
        ({**FACTS, "size": "many"}, "'size' of the schema is 'many'; allowed is a whole number or null"),
        ({**FACTS, "size": 2.5}, "is 2.5"),
        ({**FACTS, "missing_marks": 3}, "allowed is a list"),
        ({**FACTS, "ordered": [3]}, "write pairs"),
        ({**FACTS, "columns": ["age"]}, "a column is 'age'"),
        (changed(name=3), "allowed is a text"),
        (changed(low=[1]), "'low' of column 'age' is .1."),
        (changed(low=True), "'low' of column 'age' is True"),
        (changed(kind="number", decimals="2"), "'decimals' of column 'age' is '2'"),
        (changed(missing="yes"), "allowed is true or false"),
        (changed(kind="category", low=None, high=None, values="abc"), "is 'abc'; allowed is a list"),
        ({"kind": "image", "height": "8", "width": 8, "channels": 1, "classes": ["a"]}, "'height' of the schema"),
        ({"kind": "image", "height": 8, "width": 8, "channels": 1, "classes": "abc"}, "is 'abc'; allowed is a list"),
        ({"kind": "image", "height": 8, "width": 8, "channels": 1, "classes": ["a", ""]}, "none empty"),
    ],
)
def test_a_schema_of_other_types_is_refused_by_name(value: Any, words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        schema_from_json(value)


@pytest.mark.parametrize(
    ("facts", "good"),
    [
        ({"dtype": "nonsense"}, False),
        ({"dtype": "int8"}, True),
        ({"dtype": "int8", "high": 1000}, False),
        ({"dtype": "int64", "missing": True}, False),
        ({"dtype": "Int64", "missing": True}, True),
    ],
)
def test_a_dtype_that_cannot_hold_its_column_is_refused_before_anything_is_paid(
    tmp_path: Path, facts: dict[str, Any], good: bool
) -> None:
    schema = TableSchema.from_json(changed(**facts))
    if good:
        TableSet(path=table(tmp_path), schema=schema)
    else:
        with pytest.raises(SchemaError, match="column 'age' has the dtype"):
            TableSet(path=table(tmp_path), schema=schema)


# -- files of tables --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["empty.csv", "cut.csv.gz", "plain.csv.gz", "wide.csv", "bad.parquet"])
def test_a_damaged_table_is_an_error_in_words(tmp_path: Path, name: str) -> None:
    text = "\n".join(LINES)
    content = {
        "empty.csv": b"",
        "cut.csv.gz": gzip.compress(text.encode())[:40],
        "plain.csv.gz": text.encode(),
        "wide.csv": text.encode("utf-16"),
        "bad.parquet": b"x",
    }
    path = tmp_path / name
    path.write_bytes(content[name])
    with pytest.raises(SchemaError, match=r"no readable header|needs pyarrow"):
        TableSet(path=path, schema=TableSchema.from_json(FACTS))


def test_a_file_that_ends_early_is_an_error_in_words_when_it_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = gzip.compress(("\n".join([LINES[0], *(f"{a},cook" for a in rng.integers(0, 99, 400_000))])).encode())
    path = tmp_path / "people.csv.gz"
    path.write_bytes(whole[: len(whole) - 9])
    with pytest.raises(SchemaError, match="damaged or cut short"):
        TableSet(path=path, schema=TableSchema.from_json(FACTS)).train()


@pytest.mark.parametrize("place", [1, 30])
def test_a_line_with_too_many_fields_is_refused_wherever_it_stands(tmp_path: Path, place: int) -> None:
    lines = [*LINES[:place], f"{LINES[place]},7,8", *LINES[place + 1 :]]
    with pytest.raises(SchemaError, match="a line that is no record"):
        TableSet(path=table(tmp_path, *lines), schema=TableSchema.from_json(FACTS)).train()


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    schema = TableSchema.from_json(FACTS)
    with pytest.raises(SchemaError, match=r"several columns \['age'\]"):
        TableSet(path=table(tmp_path, f"{LINES[0]},age", *(f"{v},1" for v in LINES[1:])), schema=schema)
    TableSet(path=table(tmp_path, f"{LINES[0]},x,x", *(f"{v},1,2" for v in LINES[1:])), schema=schema).train()
    frame = pd.DataFrame([[1, "cook", 2]] * N, columns=["age", "job", "age"])
    with pytest.raises(SchemaError, match=r"several columns \['age'\]"):
        dpgm.fit(dpgm.Slicing(), frame, schema=schema, epsilon=1.0)


# -- dpgm.fit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": "abc"}, "is the text 'abc'"),
        ({"classes": 3.0}, "allowed is a whole number"),
        ({"classes": 10**9}, "allowed is 1 to 10,000"),
        ({"size": "60"}, "size is '60'"),
        ({"size": 60.5}, "size is 60.5"),
        ({"epsilon": "1"}, "epsilon is '1'"),
        ({"epsilon": None}, "epsilon is None"),
        ({"delta": "a"}, "delta is 'a'"),
        ({"relation": "replace"}, "allowed are Relation.ADD_REMOVE"),
        ({"seed": -1}, "the seed is -1"),
        ({"seed": None}, "the seed is None"),
        ({"seed": 2**70}, "2.63 - 1"),
        ({"schema": {"height": 8}}, "give an ImageSchema"),
        ({"schema": dpgm.ImageSchema(height=8, width=8, channels=1, classes=("a", "b"))}, "leave classes out"),
        ({"y": None}, "labels are missing"),
        ({"y": LABELS.astype(float)}, "labels are float64 with 1 axes"),
        ({"y": LABELS[:, None]}, "labels are int64 with 2 axes"),
        ({"x": [[1], [1, 2]]}, "no array of numbers"),
    ],
)
def test_wrong_arguments_are_named_and_cost_nothing(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises((SchemaError, PrivacyError), match=words) as caught:
        fit(ledger=tmp_path / "ledger.jsonl", **options)
    assert not re.search(rf"\b{N}\b", str(caught.value))  # the number of records is protected
    assert not (tmp_path / "ledger.jsonl").exists()


def test_a_class_or_a_name_in_place_of_a_method_is_refused() -> None:
    for method in (dpgm.DPMERF, "merf"):
        with pytest.raises(SchemaError, match=r"e.g. dpgm.DPMERF\(\)"):
            dpgm.fit(method, IMAGES, LABELS, classes=3, epsilon=1.0, delta=1e-3)  # type: ignore[arg-type]


def test_numbers_of_numpy_and_tensors_of_any_precision_are_taken(tmp_path: Path) -> None:
    model = fit(torch.rand(N, 1, 8, 8).bfloat16(), torch.tensor(LABELS), classes=np.int64(3), size=np.int64(60))
    model.save(tmp_path)
    assert artefact.load_model(tmp_path).schema.size == 60


def test_a_delta_of_one_in_the_number_of_records_warns() -> None:
    with pytest.warns(UserWarning, match="publishing a record at random"):
        fit(delta=0.1, size=60)


@pytest.mark.parametrize("name", [n for n in methods.names() if n != "labelled"])
def test_no_method_takes_numbers_below_0_or_of_another_type(name: str) -> None:
    import dataclasses

    method = methods.get(name)
    for f in dataclasses.fields(method):
        if f.type in ("int", "float"):
            for value in (-1, "5", float("nan"), float("inf")):
                with pytest.raises((SchemaError, PrivacyError)):
                    method(**{f.name: value})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("slicing", {"share": 0.0}),
        ("slicing", {"share": 7.0}),
        ("mepf", {"angles": 0}),
        ("mepf", {"waves": 0}),
        ("merf", {"batch": 0}),
        ("labeller", {"clip_norm": 0.0}),
    ],
)
def test_zeros_that_leave_nothing_to_ask_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises((SchemaError, PrivacyError), match="allowed is"):
        methods.get(name)(**options)


@pytest.mark.parametrize("options", [{"n": -1}, {"n": 1.5}, {"n": "3"}, {"n": 3, "seed": -1}])
def test_samples_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SchemaError, match="allowed is a whole number"):
        fit().sample(**options)


# -- the command line -------------------------------------------------------------------------------------------------

RUN = ["run", "digits", "--method", "merf", "--dim", "20", "--steps", "2", "--evaluate", "False", "--samples", "20"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done") / "run"
    assert main([*RUN, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "-1"], "the seed is -1"),
        (["--samples", "-5"], "--samples is -5"),
        (["--steps", "-1"], "merf.steps is -1"),
        (["--test", "x.csv"], "--test goes with tables"),
        (["--reference", "nowhere"], "nowhere/run.json does not exist"),
        (["--fid-features", "lenett"], "--fid-features is 'lenett'"),
        (["--fid-features", "inception:nofile"], "--fid-features is 'inception:nofile'"),
        (["--data-dir", "nowhere"], "the data folder nowhere does not exist"),
    ],
)
def test_options_that_cannot_be_stop_a_run_before_it_pays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main([*RUN, *words, "--out", str(tmp_path / "run")]) == 3
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_options_of_images_are_refused_beside_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.json").write_text(json.dumps(FACTS))
    words = [str(table(tmp_path)), "--schema", str(tmp_path / "s.json"), "--method", "slicing"]
    for option, value in (("--resize", "8"), ("--max-gib", "1"), ("--classifiers", "cnn"), ("--fid-features", "none")):
        assert main(["run", *words, "--out", str(tmp_path / "run"), option, value]) == 3
        assert f"{option} goes with images" in capsys.readouterr().err
    assert main(["plan", *words, "--labeller", "0.3"]) == 3
    assert "a labeller takes images only" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([*RUN, "--out", str(tmp_path / "file" / "run")]) == 1
    assert "Not a directory; mend that" in capsys.readouterr().err


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    def full(*_: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        fit().save(tmp_path / "model")


def test_damaged_folders_are_named(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(done, folder)
    (folder / "samples.npz").write_bytes(b"x")
    assert main(["report", str(folder)]) == 3
    assert main(["evaluate", str(folder), "--classifiers", "logreg", "--fid-features", "none"]) == 3
    for text in ("[1]", "{}"):
        (folder / "run.json").write_text(text)
        assert main(["evaluate", str(folder)]) == 3
        assert main(["audit", str(folder)]) == 3
        assert main(["seeds", str(folder)]) == 3
    assert main(["train", str(folder / "model.safetensors"), "--out", str(tmp_path / "new")]) == 3
    assert main(["report", str(tmp_path / "none")]) == 3
    assert main(["sample", str(done), "--labels", "²"]) == 3
    assert "Traceback" not in capsys.readouterr().err


def test_sample_names_the_file_that_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = dpgm.fit(dpgm.Slicing(components=4, steps=2), pd.read_csv(table(tmp_path)), schema=schema(), epsilon=1.0)
    model.save(tmp_path / "run")
    capsys.readouterr()
    assert main(["sample", str(tmp_path / "run"), "--n", "5", "--seed", "-1"]) == 3
    assert main(["sample", str(tmp_path / "run"), "--n", "5", "--json"]) == 0
    written = Path(json.loads(capsys.readouterr().out)["file"])
    assert written.suffix == ".csv"
    assert written.exists()


def schema() -> TableSchema:
    return TableSchema.from_json(FACTS)


def test_a_run_does_not_go_on_with_other_records(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    np.savez(tmp_path / "other.npz", images=IMAGES, labels=LABELS)
    cut = tmp_path / "cut"
    shutil.copytree(done, cut)
    for name in ("model.safetensors", "run.json", "report.html"):  # as if it had been killed after the release
        (cut / name).unlink()
    other = [str(tmp_path / "other.npz"), "--image-size", "8", "--channels", "1", "--classes", "10", "--size", "1500"]
    assert main(["run", *other, *RUN[2:], "--delta", "1e-4", "--out", str(cut)]) == 4
    assert "data was 'digits', is 'other.npz'" in capsys.readouterr().err
    assert main([*RUN, "--out", str(cut)]) == 0


def test_a_ledger_keeps_whose_account_it_is(tmp_path: Path) -> None:
    from dpgm.privacy.guarantee import Budget, Relation
    from dpgm.privacy.ledger import Ledger

    terms: dict[str, Any] = {"relation": Relation.ADD_REMOVE, "cap": Budget(epsilon=1.0, delta=0.0)}
    with Ledger(tmp_path / "ledger.jsonl", **terms) as ledger:
        ledger.describe({"data": "a", "schema": {"classes": ["x"]}})
        ledger.describe({"data": "a", "schema": {"classes": ["x"]}})
    with Ledger(tmp_path / "ledger.jsonl", **terms) as ledger:
        for facts in ({"data": "b", "schema": {"classes": ["x"]}}, {"data": "a", "schema": {"classes": ["y"]}}):
            with pytest.raises(PrivacyError, match="the account of another run"):
                ledger.describe(facts)
    assert len(ledger.entries) == 2


def test_an_answer_that_was_paid_for_waits_for_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries, save = [], artefact.save_release

    def full_at_first(*given: Any) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise OSError(28, "No space left on device")
        save(*given)

    monkeypatch.setattr("dpgm.cli.job.WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setattr("dpgm.artefact.save_release", full_at_first)
    assert main([*RUN, "--out", str(tmp_path / "run")]) == 0
    assert "the disk is full" in capsys.readouterr().err
    assert "repeat" not in (tmp_path / "run" / "ledger.jsonl").read_text()


def test_a_folder_that_cannot_be_written_to_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("dpgm.artefact.tempfile.mkstemp", denied)
        assert main([*RUN, "--out", str(out)]) == 3
    assert "Permission denied); nothing was paid" in capsys.readouterr().err
    assert '"reserve"' not in (out / "ledger.jsonl").read_text()
    assert main([*RUN, "--out", str(out)]) == 0
    assert not (out / "probe").exists()


@pytest.mark.parametrize("name", ["save_release", "save_checkpoint"])
def test_an_answer_whose_folder_lost_its_rights_is_kept_elsewhere_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    import shutil

    out, save = tmp_path / "run", getattr(artefact, name)

    def denied(what: Any, path: Path, *more: Any) -> None:
        if path.parent == out:
            raise PermissionError(13, "Permission denied")
        save(what, path, *more)

    def asleep(_: float) -> None:
        raise AssertionError("rights do not come back by waiting")

    words = [
        "run",
        "digits",
        "--samples",
        "20",
        "--evaluate",
        "False",
        "--out",
        str(out),
        "--dim",
        "50",
        "--steps",
        "1",
    ]
    words += ["--method", "merf", "--labeller", "0.5"]  # whose first answer is in a checkpoint when the second is asked
    with monkeypatch.context() as patch:
        patch.setattr(artefact, name, denied)
        patch.setattr("dpgm.cli.job.time.sleep", asleep)
        patch.setattr("tempfile.tempdir", str(tmp_path))
        assert main(words) == 4
    told = capsys.readouterr().err
    assert "could not be written" in told
    assert "move it there, and run the same command again" in told
    [kept] = tmp_path.glob("dpgm-*/*")
    shutil.move(kept, out / kept.name)
    assert main(words) == 0
    assert '"repeat"' not in (out / "ledger.jsonl").read_text()


def test_an_answer_that_is_lost_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dpgm.cli.job.WAITS", (0.0,))
    monkeypatch.setattr("dpgm.artefact.save_release", full)
    assert main([*RUN, "--out", str(tmp_path / "run")]) == 4
    assert "it is lost, and" in capsys.readouterr().err


def test_parts_of_files_that_a_kill_left_are_swept(done: Path, tmp_path: Path) -> None:
    import shutil

    cut = tmp_path / "cut"
    shutil.copytree(done, cut)
    (cut / "report.html").unlink()
    for part in (".checkpoint-ab12cd34.safetensors", ".report-ab12cd34.html", ".samples-ab12cd34.png"):
        (cut / part).write_bytes(b"x")
    (cut / ".notes").write_text("mine")
    assert main([*RUN, "--out", str(cut)]) == 0
    assert [p.name for p in cut.glob(".*")] == [".notes"]


def test_bytes_that_the_locale_cannot_read_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "\udcc3.npz"]) == 2
    assert "LC_ALL" in capsys.readouterr().err


def test_a_release_without_its_ledger_is_not_gone_on_with(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    cut = tmp_path / "cut"
    shutil.copytree(done, cut)
    (cut / "report.html").unlink()
    lines = (cut / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    for kept in ([], lines[:1], lines[:3]):
        (cut / "ledger.jsonl").write_bytes(b"".join(kept))
        assert main([*RUN, "--out", str(cut)]) == 4
        assert "the ledger was cut or exchanged" in capsys.readouterr().err
    (cut / "ledger.jsonl").write_bytes(b"".join(lines))
    assert main([*RUN, "--out", str(cut)]) == 0
    (cut / "report.html").unlink()
    (cut / "ledger.jsonl").write_bytes(b"".join(lines).replace(b"digits", b"others"))
    assert main([*RUN, "--out", str(cut)]) == 4

"""`dpgm.fit` takes sources as well as arrays, and reads them only after their price is reserved."""

import dataclasses
import datetime
import json
from typing import Any

import numpy as np
import pytest

import dpgm
from dpgm.data import DataError
from dpgm.methods import fit as fit_module
from dpgm.methods.dp_logreg import DPLogReg
from dpgm.methods.embedding import DPMERF

METHOD = DPMERF(steps=2, dim=20, hidden=8)


def test_a_named_set_needs_no_declaration() -> None:
    model = dpgm.fit(METHOD, "digits", epsilon=1.0)
    assert model.guarantee.delta == 1e-4  # of the official 1,498 records
    assert model.sample(3).images.shape == (3, 8, 8, 1)


def test_features_that_were_fitted_on_the_records_are_refused() -> None:
    class Fitted(DPMERF):
        def public_sets(self) -> tuple[str, ...]:
            return ("digits",)

    with pytest.raises(dpgm.PrivacyError, match="fitted on 'digits'"):
        dpgm.fit(Fitted(steps=2, dim=20, hidden=8), "digits", epsilon=1.0)


def test_a_file_is_read_with_its_schema(tmp_path) -> None:
    x, y = np.zeros((40, 8, 8, 1), np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "own.npz", x=x, y=y)
    schema = dpgm.ImageSchema(height=8, width=8, channels=1, classes=("a", "b"), size=40)
    assert len(dpgm.fit(METHOD, tmp_path / "own.npz", schema=schema, epsilon=1.0).sample(2)) == 2
    with pytest.raises(DataError, match="declared"):
        dpgm.fit(METHOD, tmp_path / "own.npz", epsilon=1.0)
    with pytest.raises(dpgm.SchemaError, match="leave y out"):
        dpgm.fit(METHOD, tmp_path / "own.npz", y, schema=schema, epsilon=1.0)


def test_a_source_that_cannot_be_paid_is_not_read(tmp_path) -> None:
    book = tmp_path / "ledger.jsonl"
    terms = {"classes": 10, "epsilon": 1.0, "delta": 1e-5, "ledger": book}
    images, labels = np.zeros((20, 8, 8), np.uint8), np.zeros(20, int)
    dpgm.fit(METHOD, images, labels, **terms)
    with pytest.raises(dpgm.PrivacyError, match="another plan"):
        dpgm.fit(DPMERF(steps=2, dim=20, hidden=8, count_weight=0.5), "digits", epsilon=1.0, delta=1e-5, ledger=book)
    kinds = [json.loads(line)["kind"] for line in book.read_text().splitlines()]
    assert kinds.count("reserve") == 1
    assert kinds.count("charge") == 1


# --- several fits on one ledger ---------------------------------------------------------------------------------------

IMAGES, LABELS = np.zeros((20, 8, 8), np.uint8), np.zeros(20, int)
TERMS = {"classes": 10, "epsilon": 1.0, "delta": 1e-5}


def no_rows(*_):
    raise AssertionError("the rows were read")


def test_fits_share_a_ledger_and_its_cap(tmp_path) -> None:
    path, cap = tmp_path / "study.ledger", dpgm.Budget(epsilon=1.6, delta=1e-5)
    with dpgm.Ledger(path, cap=cap) as study:
        first = dpgm.fit(METHOD, IMAGES, LABELS, **TERMS, ledger=study)
        assert first.guarantee.epsilon == pytest.approx(study.guarantee().epsilon)
    second = dpgm.fit(METHOD, IMAGES, LABELS, **TERMS, ledger=path, name="again")  # the file keeps its cap
    with dpgm.Ledger(path, cap=cap) as study:
        assert second.guarantee.epsilon <= 1 < study.guarantee().epsilon <= 1.6
        before = path.read_bytes()
        with pytest.raises(dpgm.BudgetExceeded, match=r"'third' brings the total .* so ask for less"):
            dpgm.fit(METHOD, IMAGES, LABELS, **TERMS, ledger=study, name="third")
        with pytest.raises(dpgm.PrivacyError, match="was handed out"):  # the same cell once more
            dpgm.fit(METHOD, IMAGES, LABELS, **TERMS, ledger=study)
        with pytest.raises(dpgm.PrivacyError, match="under 'add/remove one', this run under 'replace one'"):
            dpgm.fit(METHOD, IMAGES, LABELS, **TERMS, ledger=study, name="x", relation=dpgm.Relation.REPLACE)
        assert path.read_bytes() == before


def test_a_fit_that_a_crash_interrupted_goes_on_under_its_name(monkeypatch) -> None:
    study = dpgm.Ledger(None, cap=dpgm.Budget(epsilon=1.0, delta=1e-5))

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dpgm.Ledger, "deliver", stopped)
        with pytest.raises(KeyboardInterrupt):
            dpgm.fit(METHOD, IMAGES, LABELS, **TERMS, ledger=study)
    price = study.guarantee().epsilon
    model = dpgm.fit(METHOD, IMAGES, LABELS, **TERMS, ledger=study)
    assert study.guarantee().epsilon == price
    for promise in (study.guarantee(), model.guarantee):
        assert "an answer that a crash interrupted never left the process" in promise.assumptions


def test_bounds_are_not_asked_for_where_the_method_behind_them_would_not_fit(monkeypatch) -> None:
    pd = pytest.importorskip("pandas")
    column = dpgm.Column(name="wage", kind="number", private_bounds=True)
    schema = dpgm.TableSchema(columns=(column, dpgm.Column(name="ill", kind="boolean")), size=9000)
    frame = pd.DataFrame({"wage": 10 + np.arange(9000) % 5, "ill": np.arange(9000) % 2 == 0})  # all stand out of noise
    study = dpgm.Ledger(None, cap=dpgm.Budget(epsilon=1.2, delta=1e-5))
    slicing = dpgm.Slicing(components=2, steps=1)
    dpgm.fit(slicing, frame, schema=schema, epsilon=1.0, delta=1e-5, ledger=study)
    lines = len(study.entries)
    monkeypatch.setattr("dpgm.privacy.curator.Curator.answer", no_rows)
    with pytest.raises(dpgm.BudgetExceeded, match="'more' brings"):
        dpgm.fit(slicing, frame, schema=schema, epsilon=0.9, delta=1e-5, ledger=study, name="more")
    assert len(study.entries) == lines


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_what_was_paid_for_outlives_a_training_that_fails(kind: type[BaseException], monkeypatch) -> None:
    def fail(*_args: object, **_more: object) -> None:
        raise kind

    with monkeypatch.context() as patch:
        patch.setattr(DPMERF, "train", fail)
        with pytest.raises(kind) as caught:
            dpgm.fit(METHOD, "digits", epsilon=1.0)
    assert "not lost" in caught.value.__notes__[0]
    release = vars(caught.value)["release"]
    assert len(release.method.train(release, seed=0).sample(2)) == 2


def test_a_rate_that_is_too_high_is_told_and_the_release_kept() -> None:
    with pytest.raises(dpgm.SchemaError, match=r"not finite.*lower learning rate") as caught:
        dpgm.fit(dataclasses.replace(METHOD, lr=1e38), "digits", epsilon=1.0)
    release = vars(caught.value)["release"]
    assert len(METHOD.train(release, seed=0).sample(2)) == 2


def test_a_pixel_reads_alike_whatever_dtype_others_have() -> None:
    grey = [((k + 0.5) / 255 * np.ones((2, 2))).astype(np.float32) for k in range(255)]
    alone, beside = fit_module._images(grey), fit_module._images([*grey, np.zeros((2, 2))])
    assert np.array_equal(alone, beside[:255])


def test_facts_and_seeds_may_be_numbers_of_numpy(tmp_path) -> None:
    pd = pytest.importorskip("pandas")
    ages: Any = {"low": np.int64(0), "high": np.int64(9)}
    days: Any = {"low": datetime.date(1990, 1, 1), "high": np.datetime64("2020-01-01")}
    size: Any = np.int64(100)
    columns = (dpgm.Column(name="age", kind="integer", **ages), dpgm.Column(name="born", kind="date", **days))
    schema = dpgm.TableSchema(columns=columns, size=size)
    frame = pd.DataFrame({"age": np.arange(100) % 10, "born": "2001-02-03"})
    terms: Any = {"schema": schema, "epsilon": np.float32(1), "delta": np.float64(1e-3), "seed": np.int64(3)}
    model = dpgm.fit(dpgm.Slicing(components=2, steps=2), frame, ledger=tmp_path / "l", **terms)
    model.save(tmp_path / "model")
    assert dpgm.load(tmp_path / "model").schema == schema
    images = dpgm.ImageSchema(height=8, width=8, channels=1, classes=("a", "b"), size=size)
    assert json.loads(json.dumps(images.to_json()))["size"] == 100


def test_a_classifier_of_records_reads_a_frame() -> None:
    pd = pytest.importorskip("pandas")
    columns = (dpgm.Column(name="x", kind="number", low=0, high=1), dpgm.Column(name="ill", kind="boolean"))
    schema = dpgm.TableSchema(columns=columns, label="ill", size=200)
    frame = pd.DataFrame({"x": np.linspace(0, 1, 200), "ill": np.arange(200) >= 100})
    model: Any = dpgm.fit(DPLogReg(steps=20), frame, schema=schema, epsilon=10.0, delta=1e-3)
    odds = model.classify(frame[["x"]])
    assert odds.shape == (200, 2)
    assert np.array_equal(odds, model.classify(frame))


def test_a_method_by_name_is_told_its_class() -> None:
    with pytest.raises(dpgm.SchemaError, match=r"give an instance of one, e.g. dpgm.AIM\(\)"):
        dpgm.fit("aim", np.zeros((3, 8, 8), np.uint8), np.zeros(3), epsilon=1.0)  # pyright: ignore[reportArgumentType]

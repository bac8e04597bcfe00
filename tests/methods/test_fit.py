"""`dpgm.fit` takes sources as well as arrays, and reads them only after their price is reserved."""

import json

import numpy as np
import pytest

import dpgm
from dpgm.data import DataError
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

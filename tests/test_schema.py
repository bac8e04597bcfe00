"""Schema and rows: public facts are checked, rows show nothing of themselves."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgm.schema import ImageSchema, Rows, SchemaError, default_delta

SCHEMA = ImageSchema(height=2, width=3, channels=1, classes=("cat", "dog"), size=1000)


def rows(n: int = 5) -> Rows:
    return Rows(image=np.full((n, 2, 3, 1), 77, np.uint8), label=np.arange(n, dtype=np.int64) % 2)


def test_schema_survives_json() -> None:
    assert ImageSchema.from_json(json.loads(json.dumps(SCHEMA.to_json()))) == SCHEMA
    bare = dataclasses.replace(SCHEMA, size=None)
    value = bare.to_json()
    del value["size"]
    assert ImageSchema.from_json(value) == bare
    assert (SCHEMA.n_classes, SCHEMA.shape) == (2, (2, 3, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 0}, "height is 0"),
        ({"width": 2000}, "width is 2000"),
        ({"channels": 2}, "grey"),
        ({"classes": ()}, "at least one name"),
        ({"classes": ("a", "a")}, "each of them once"),
        ({"size": 1}, "2 or more"),
    ],
)
def test_facts_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        dataclasses.replace(SCHEMA, **change)


def test_unknown_and_missing_keys_are_refused() -> None:
    with pytest.raises(SchemaError, match="unknown keys"):
        ImageSchema.from_json({**SCHEMA.to_json(), "n_rows": 5})
    with pytest.raises(SchemaError, match="lacks"):
        ImageSchema.from_json({"kind": "image", "height": 2})


def test_rows_that_fit() -> None:
    for n in (0, 1, 5):
        SCHEMA.check(rows(n))


@pytest.mark.parametrize(
    "columns",
    [
        {"image": np.zeros((5, 3, 2, 1), np.uint8)},
        {"image": np.zeros((5, 2, 3), np.uint8)},
        {"image": np.zeros((5, 2, 3, 1), np.int16)},
        {"label": np.zeros(5, np.int32)},
        {"label": np.zeros((5, 1), np.int64)},
        {"label": np.array([0, 1, 2, 0, 0])},
        {"label": np.array([0, 1, -1, 0, 0])},
    ],
)
def test_rows_that_do_not_fit_are_refused_without_their_values(columns: dict[str, Any]) -> None:
    with pytest.raises(SchemaError) as refused:
        SCHEMA.check(Rows(**{"image": rows()["image"], "label": rows()["label"], **columns}))
    assert "5" not in str(refused.value)  # neither the number of rows nor a value


@given(st.integers(2, 10**12))
def test_default_delta_is_a_power_of_ten_below_one_in_size(size: int) -> None:
    delta = default_delta(size)
    assert 0.1 / size < delta * (1 + 1e-9)
    assert delta <= (1 / size) * (1 + 1e-9)
    assert float(f"1e{round(np.log10(delta))}") == delta


def test_columns_are_equally_long() -> None:
    with pytest.raises(SchemaError, match="one value of each") as refused:
        Rows(image=np.zeros(3), label=np.zeros(4))
    assert not {"3", "4"} & set(str(refused.value))


def test_rows_are_cut_into_blocks() -> None:
    blocks = list(rows(5).blocks(2))
    assert [len(b) for b in blocks] == [2, 2, 1]
    assert np.concatenate([b["label"] for b in blocks]).tolist() == [0, 1, 0, 1, 0]
    assert list(rows(0).blocks(2)) == []
    assert len(rows(5).take(np.array([True, False, True, False, False]))) == 2
    assert rows().names == ("image", "label")


def test_repr_shows_neither_values_nor_their_number() -> None:
    assert repr(rows(77)) == "Rows(image, label)"

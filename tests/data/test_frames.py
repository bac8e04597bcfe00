"""What single values of a frame mean: marks, codes, moments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpgm.data.errors import DataError
from dpgm.data.frames import to_frame, to_numbers
from dpgm.data.tables import TableSet, write_csv
from dpgm.schema import Column, TableSchema

pd = pytest.importorskip("pandas")


def test_a_numeric_mark_within_the_bounds_is_a_value_where_none_is_missing(tmp_path: Path) -> None:
    for missing, least in ((False, 0), (True, 1)):
        column = Column(name="x", kind="integer", low=0, high=3000, missing=missing)
        schema = TableSchema(columns=(column,), missing_marks=("", "999"))
        for x in ([999, 5], ["999", "5"]):
            table = to_numbers(pd.DataFrame({"x": x}), schema)
            assert np.isnan(table).sum() == least
    schema = TableSchema(columns=(Column(name="x", kind="integer", low=0, high=120),), missing_marks=("", "999"))
    with pytest.raises(DataError, match="lacks values"):
        to_numbers(pd.DataFrame({"x": [999, 5]}), schema)


@pytest.mark.parametrize(
    ("values", "x"),
    [(("00060", "00061"), [60, 61]), (("1.50", "2.25"), [1.5, 2.25]), (("true", "false"), [True, False])],
)
def test_values_that_a_frame_has_lost_are_not_taken_for_missing(values: tuple[str, ...], x: list) -> None:
    schema = TableSchema(columns=(Column(name="x", kind="category", values=values, missing=True),))
    with pytest.raises(DataError, match="dtype=str"):
        to_numbers(pd.DataFrame({"x": x}), schema)
    assert np.array_equal(to_numbers(pd.DataFrame({"x": list(values)}), schema), [[0], [1]])


def test_sparse_columns_are_read_and_complex_ones_refused() -> None:
    schema = TableSchema(columns=(Column(name="x", kind="number", low=0, high=3, missing=True),))
    sparse = pd.DataFrame({"x": pd.arrays.SparseArray([1.0, np.nan, 2.0])})
    assert np.array_equal(to_numbers(sparse, schema), [[1], [np.nan], [2]], equal_nan=True)
    with pytest.raises(DataError, match="complex"):
        to_numbers(pd.DataFrame({"x": [1j]}), schema)


MOMENTS = ["2020-02-03 00:00:00", "2020-02-03T09:05", "2020-02-03 23:59:59.9+02:00", "2020/02/03 1041", "2020-02-03"]


def test_moments_keep_their_seconds_by_their_own_clock(tmp_path: Path) -> None:
    schema = TableSchema(columns=(Column(name="x", kind="datetime", low="1990-01-01", high="2030-12-31 23:59:59"),))
    table = to_numbers(pd.DataFrame({"x": MOMENTS}), schema)
    seconds = [0, 9 * 3600 + 300, 86399, 10 * 3600 + 41 * 60, 0]
    assert (table[:, 0] - table[0, 0]).tolist() == seconds
    stamps = pd.to_datetime(pd.Series(MOMENTS[:2] + MOMENTS[4:]), format="ISO8601").dt.tz_localize("Asia/Tokyo")
    assert np.array_equal(to_numbers(pd.DataFrame({"x": stamps}), schema), table[[0, 1, 4]])
    write_csv(table, schema, tmp_path / "x.csv")
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert lines[1:3] == ["2020-02-03 00:00:00", "2020-02-03 09:05:00"]
    assert np.array_equal(TableSet(path=tmp_path / "x.csv", schema=schema).train()["table"], table)
    assert str(to_frame(table, schema)["x"].dtype) == "datetime64[s]"
    for text in ("noon", "2020-02-03 24:00", "2020-13-01 10:00"):
        with pytest.raises(DataError, match="are no datetime"):
            to_numbers(pd.DataFrame({"x": [text]}), schema)

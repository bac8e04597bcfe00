"""Files of tables: suffixes, what is written and read back, texts with spaces, moments, columns of every name."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import numpy as np
import pytest

from dpgm.artefact import load_table, read_json, samples_file, save_samples
from dpgm.data import DataError
from dpgm.data.frames import check_dtypes, to_frame, to_numbers
from dpgm.data.tables import TableSet, write_csv
from dpgm.methods.table_batch import table_batch
from dpgm.schema import Column, ImageSchema, SchemaError, TableSchema

pd = pytest.importorskip("pandas")

DATE = TableSchema(columns=(Column(name="x", kind="date", low="1600-01-01", high="2030-12-31", missing=True),))
JOBS = Column(name="job", kind="category", values=(" cook", "nurse "), missing=True)


def of_one(**fields: object) -> TableSchema:
    column: dict = {"name": "x", "missing": True, **fields}
    return TableSchema(columns=(Column(**column),))


def day(text: str) -> float:
    return float(np.datetime64(text, "D").astype(int))


# --- dtypes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "dtype"), [("integer", "int8"), ("integer", "float32"), ("number", "float16"), ("number", "int64")]
)
def test_a_dtype_too_narrow_for_private_bounds_is_refused_before_they_are_paid(kind: str, dtype: str) -> None:
    with pytest.raises(DataError, match=r"cannot hold.*narrow private bounds"):
        check_dtypes(of_one(kind=kind, private_bounds=True, missing=False, dtype=dtype))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("integer", "int64"), ("integer", "float64"), ("number", "float64"), ("number", "float32"), ("date", "str")],
)
def test_a_dtype_wide_enough_for_private_bounds_is_taken(kind: str, dtype: str) -> None:
    check_dtypes(of_one(kind=kind, private_bounds=True, missing=False, dtype=dtype))
    check_dtypes(of_one(kind="integer", private_bounds=True, missing=False, low=0, high=100, dtype="int8"))


# --- texts -----------------------------------------------------------------------------------------------------------


def test_outer_spaces_of_declared_values_do_not_matter(tmp_path: Path) -> None:
    schema = TableSchema(columns=(JOBS, Column(name="n", kind="integer", low=0, high=9)))
    frame = pd.DataFrame({"job": [" cook", "cook", "nurse", None], "n": 1})
    table = to_numbers(frame, schema)
    assert np.array_equal(table[:, 0], [0, 0, 1, np.nan], equal_nan=True)
    write_csv(table, schema, tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text().splitlines()[1:] == [" cook,1", " cook,1", "nurse ,1", ",1"]
    assert np.array_equal(TableSet(path=tmp_path / "x.csv", schema=schema).train()["table"], table, equal_nan=True)
    check_dtypes(of_one(kind="category", values=(" 1", " 2"), dtype="Int64"))


def test_values_that_differ_in_outer_spaces_alone_are_refused(tmp_path: Path) -> None:
    schema = of_one(kind="category", values=("a", " a", "b"))
    (tmp_path / "x.csv").write_text("x\na\n", encoding="utf-8")
    for read in (
        lambda: TableSet(path=tmp_path / "x.csv", schema=schema),
        lambda: to_numbers(pd.DataFrame({"x": ["b"]}), schema),
    ):
        with pytest.raises(DataError, match=r"declares \['a'\] several times"):
            read()


def test_a_mark_of_spaces_is_one() -> None:
    schema = TableSchema(columns=of_one(kind="integer", low=0, high=9).columns, missing_marks=(" ", " ? "))
    for values in ([" ", 1, "?"], ["", 1, " ?"]):
        table = to_numbers(pd.DataFrame({"x": values}), schema)
        assert np.array_equal(table[:, 0], [np.nan, 1, np.nan], equal_nan=True)


@pytest.mark.parametrize("values", [("?", "x"), (" ?", "x"), ("0", "x")])
def test_missing_is_written_as_no_declared_value(tmp_path: Path, values: tuple[str, ...]) -> None:
    column = Column(name="x", kind="category", values=values, missing=True)
    schema = TableSchema(columns=(column, JOBS), missing_marks=("?", "0.0", "", "-"))
    table = np.array([[0, 0], [1, np.nan], [np.nan, 1], [np.nan, np.nan]])
    write_csv(table, schema, tmp_path / "x.csv")
    assert np.array_equal(TableSet(path=tmp_path / "x.csv", schema=schema).train()["table"], table, equal_nan=True)


def test_a_column_that_leaves_no_mark_is_refused(tmp_path: Path) -> None:
    column = Column(name="x", kind="category", values=("?", "1"), missing=True)
    schema = TableSchema(columns=(column,), missing_marks=("?", "1.0"))
    (tmp_path / "x.csv").write_text("x\n?\n", encoding="utf-8")
    with pytest.raises(DataError, match="add a mark that is none"):
        TableSet(path=tmp_path / "x.csv", schema=schema)
    with pytest.raises(DataError, match="add a mark that is none"):
        write_csv(np.array([[np.nan]]), schema, tmp_path / "y.csv")


def test_numbers_are_no_values_that_differ_by_a_point_alone() -> None:
    schema = of_one(kind="category", values=("1", "1.0"))
    for values in ([1, 1], [1, None]):  # the gap makes 1.0 of 1
        with pytest.raises(DataError, match="give the column as texts"):
            to_numbers(pd.DataFrame({"x": values}), schema)


# --- dates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", ["", "Z", "-05:00", " -0500", "-5", "+05:30"])
@pytest.mark.parametrize("time", ["T23:00", " 23:00:00.123456789", "T230000", " 23"])
def test_a_moment_is_the_day_of_its_own_clock(time: str, zone: str) -> None:
    frame = pd.DataFrame({"x": [f"2020-01-01{time}{zone}", "1600-01-01", f"2020/01/01 01:00{zone}", "2020-03"]})
    expected = [day("2020-01-01"), day("1600-01-01"), day("2020-01-01"), day("2020-03-01")]
    assert to_numbers(frame, DATE)[:, 0].tolist() == expected


def test_moments_of_frames_are_days_of_their_own_clocks() -> None:
    late = pd.Timestamp("2020-01-01 23:00", tz="America/New_York")
    east = dt.datetime(2020, 1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=9)))
    for values in ([late], [late, east], [late, east, "2020-01-01", None], [dt.date(2020, 1, 1), late, 20200101]):
        found = to_numbers(pd.DataFrame({"x": values}), DATE)[:, 0]
        assert set(found[~np.isnan(found)]) == {day("2020-01-01")}


@pytest.mark.parametrize(
    "text", ["today", "2020-01-01 25:00", "2020-01-01 later", "2020-01-01T23:00 UTC", "2020-13-01"]
)
def test_what_names_no_day_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="no date"):
        to_numbers(pd.DataFrame({"x": [text]}), DATE)


# --- names -----------------------------------------------------------------------------------------------------------


def test_columns_may_be_named_by_numbers() -> None:
    schema = TableSchema(columns=tuple(Column(name=n, kind="integer", low=0, high=9) for n in ("1", "0")))
    assert to_numbers(pd.DataFrame(np.array([[1, 2]])), schema).tolist() == [[2, 1]]
    with pytest.raises(DataError, match="several columns"):
        to_numbers(pd.DataFrame([[1, 2, 3]], columns=[0, "0", 1]), schema)


def test_a_parquet_index_with_a_name_is_a_column(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    schema = TableSchema(columns=(*DATE.columns, Column(name="n", kind="integer", low=0, high=9)))
    frame = pd.DataFrame({"x": pd.to_datetime(["2020-01-01"]), "n": [3]})
    frame.set_index("x").to_parquet(tmp_path / "P.PARQUET")
    found = TableSet(path=tmp_path / "P.PARQUET", schema=schema).train()["table"]
    assert found.tolist() == [[day("2020-01-01"), 3]]


def test_suffixes_in_capitals_tell_the_same(tmp_path: Path) -> None:
    schema = TableSchema(columns=tuple(Column(name=n, kind="integer", low=0, high=9) for n in "ab"))
    (tmp_path / "P.TSV").write_text("a\tb\n1\t2\n", encoding="utf-8")
    assert TableSet(path=tmp_path / "P.TSV", schema=schema).train()["table"].tolist() == [[1, 2]]


@pytest.mark.parametrize("bom", ["utf-8", "utf-8-sig"])
def test_a_schema_may_begin_with_a_byte_order_mark(tmp_path: Path, bom: str) -> None:
    (tmp_path / "s.json").write_text(json.dumps(DATE.to_json()), encoding=bom)
    assert TableSchema.from_json(read_json(tmp_path / "s.json")) == DATE


# --- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["more.csv", "more.csv.gz", "more.tsv", "MORE.TSV.GZ", "more.parquet", "samples.npz"])
def test_samples_are_written_as_their_name_tells(tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    schema = TableSchema(columns=(JOBS, *DATE.columns, Column(name="b", kind="boolean", missing=True)))
    table = np.array([[0, 3, 1], [np.nan, np.nan, np.nan], [1, 18000, 0]])
    written = save_samples(table_batch(table, schema), schema, tmp_path / name)
    assert written.name == ("samples.csv" if name == "samples.npz" else name)
    assert np.array_equal(load_table(written, schema).table, table, equal_nan=True)
    assert [p.name for p in tmp_path.iterdir()] == [written.name]
    if "tsv" in name.lower():
        frame = pd.read_csv(written, sep="\t")
        assert list(frame.columns) == list(to_frame(table, schema).columns)
    if name.lower().endswith("gz"):
        assert written.read_bytes()[:2] == b"\x1f\x8b"


def test_names_that_tell_no_kind_are_refused(tmp_path: Path) -> None:
    image = ImageSchema(height=2, width=2, channels=1, classes=("a",))
    for schema, names, message in (
        (DATE, ("more.json", "more", "more.npz", "more.txt"), r"ends in \.csv"),
        (image, ("x.csv", "x", "x.png"), r"written as \.npz"),
    ):
        for name in names:
            with pytest.raises(SchemaError, match=message):
                samples_file(schema, tmp_path / name)
    assert samples_file(image, tmp_path / "x.npz").name == "x.npz"


def test_parquet_without_its_library_is_refused_before_records_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(SchemaError, match="needs pyarrow"):
        samples_file(DATE, tmp_path / "more.parquet")

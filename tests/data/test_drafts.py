"""Drafts of schemas: what each kind of column becomes, and what is refused in words."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pytest

from dpgm.data import DataError
from dpgm.data.drafts import doubts, draft_schema
from dpgm.data.frames import to_frame
from dpgm.data.tables import TableSet
from dpgm.schema import Column

pd = pytest.importorskip("pandas")

N = 60


def draft(folder: Path, values: object, *, suffix: str = "csv", label: str | None = None) -> Column:
    """The column that `values` become, and that records of the file fit."""
    path = folder / f"public.{suffix}"
    frame = pd.DataFrame({"x": values})
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    schema = draft_schema(path, label=label)
    rows = TableSet(path=path, schema=schema).train()
    schema.check(rows)
    return schema["x"]


def test_small_numbers_keep_the_digits_that_count(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(N)
    tiny = draft(tmp_path, values * 1e-5)
    assert tiny.decimals is not None
    settled = tiny.settle(values * 1e-5)
    assert np.abs(settled / 1e-5 - values).max() < 1e-5
    assert draft(tmp_path, values * 1e-9).decimals is None
    assert draft(tmp_path, values.round(2)).decimals == 2
    assert draft(tmp_path, values * 1e20).kind == "number"  # whole, but beyond what numbers hold exactly


def test_a_constant_has_bounds(tmp_path: Path) -> None:
    column = draft(tmp_path, np.full(N, -0.5))
    low, high = column.bounds
    assert low <= -0.5 < high


def test_codes_stay_texts(tmp_path: Path) -> None:
    codes = ["02139", "02140", "10001"]
    column = draft(tmp_path, codes * 20)
    assert (column.kind, column.dtype, column.values) == ("category", "", tuple(codes))
    schema = draft_schema(tmp_path / "public.csv")
    frame = to_frame(TableSet(path=tmp_path / "public.csv", schema=schema).train()["table"], schema)
    assert frame["x"].tolist() == codes * 20


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    "values",
    [
        [dt.date(2020, 2, 3) + dt.timedelta(i) for i in range(N)],
        pd.date_range("2020-02-03", periods=N, tz="UTC"),
    ],
)
def test_days_become_dates_between_whole_years(tmp_path: Path, suffix: str, values: object) -> None:
    column = draft(tmp_path, values, suffix=suffix)
    assert (column.kind, column.low, column.high) == ("date", "2020-01-01", "2020-12-31")


def test_marks_of_a_draft_are_numbers_where_values_are_and_stand_behind_the_usual_ones(tmp_path: Path) -> None:
    path = tmp_path / "public.csv"
    pd.DataFrame({"t": [-9.0, *np.arange(N) / 7], "g": [-9, *range(N)], "none": ["n/a", *"ab" * (N // 2)]}).to_csv(
        path, index=False
    )
    schema = draft_schema(path, missing_marks=("-9",))
    assert [(c.kind, c.missing) for c in schema.columns] == [("number", True), ("integer", True), ("category", True)]
    assert schema.missing_marks[0] == ""
    TableSet(path=path, schema=schema).train()


def test_a_draft_says_what_to_look_at(tmp_path: Path) -> None:
    path = tmp_path / "public.csv"
    rng = np.random.default_rng(0)
    bmi = np.where(np.arange(N) < 3, "None", (rng.integers(200, 230, N) / 10).astype(str))
    days = [f"{i % 28 + 1:02d}/01/2020" for i in range(N)]
    fine = rng.integers(0, 30, N)
    pd.DataFrame({"key": range(N), "bmi": bmi, "day": days, "fine": fine}).to_csv(path, index=False)
    said = doubts(path, draft_schema(path))
    assert [line.partition(":")[0] for line in said] == ["key", "bmi", "day"]
    assert "--missing: None" in said[1]


@pytest.mark.parametrize("values", [2**53 + np.arange(N), 1e9 + 1e-6 * np.arange(N)])
def test_bounds_of_large_numbers_that_lie_close_are_apart(tmp_path: Path, values: object) -> None:
    column = draft(tmp_path, values)
    assert column.kind == "number"
    assert column.bounds[0] <= np.min(values) < np.max(values) <= column.bounds[1]  # pyright: ignore[reportArgumentType, reportCallIssue]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_days_with_a_time_become_datetimes(tmp_path: Path, suffix: str) -> None:
    column = draft(tmp_path, pd.date_range("2020-02-03 10:30", periods=N, freq="h"), suffix=suffix)
    assert (column.kind, column.low, column.high) == ("datetime", "2020-01-01", "2020-12-31 23:59:59")


@pytest.mark.parametrize(
    ("values", "label", "message"),
    [
        ([None] * N, None, "holds no value"),
        ([0.5] * (N - 1) + [np.inf], None, "infinite"),
        (["a", None] * 30, "x", "lacks values"),
        ([f"text {i}" for i in range(200)], None, "different texts"),
        ([f"0{i}" for i in range(200)], None, "different texts"),
    ],
)
def test_what_cannot_be_drafted_is_said(tmp_path: Path, values: list, label: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        draft(tmp_path, values, label=label)


def test_another_separator_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "public.csv"
    path.write_text("a;b\n1;2\n3;4\n", encoding="utf-8")
    with pytest.raises(DataError, match="write it with commas"):
        draft_schema(path)


@pytest.mark.parametrize("text", [",a\n0,x\n1,y\n", "a,b,\nx,1,\ny,2,\n", ",a,\n0,x,\n"])
def test_a_column_without_a_name_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "public.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"column without a name.* index=False"):
        draft_schema(tmp_path / "public.csv")


def test_a_parquet_index_is_a_column_where_it_has_a_name(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path, frame = tmp_path / "public.parquet", pd.DataFrame({"a": ["x", "y"]}, index=[3, 7])
    frame.to_parquet(path)
    with pytest.raises(DataError, match="column without a name"):
        draft_schema(path)
    frame.rename_axis("k").to_parquet(path)
    assert sorted(draft_schema(path).names) == ["a", "k"]

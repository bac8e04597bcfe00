"""Frames as numbers and back: what each value of a column means, whatever the others are.

Needs pandas (extra `tables`). Nothing is inferred from the rows: a value outside the bounds is moved to the nearest
one, a text that is no declared category counts as missing where the column allows that, and is an error elsewhere.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dpgm.data.errors import DataError
from dpgm.data.table_files import pandas_
from dpgm.schema import Column, TableSchema
from dpgm.schema.table import Table

if TYPE_CHECKING:
    import pandas as pd

_WHOLE = re.compile(r"^([+-]?\d+)\.0$")
_UNSPELT = re.compile(r"[+-]?(0\d.*|\d*\.\d*0)")
"""Texts of digits that a number of a frame loses: 02139 reads 2139 there, and 1.50 reads 1.5."""
_MOMENT = re.compile(
    r"^(?P<day>\d{4}(?P<mark>[-/. \\]?)\d\d?(?P=mark)\d\d?)"
    r"[T ](?P<hour>[01]?\d|2[0-3])(?::?(?P<minute>[0-5]\d)(?::?(?P<second>[0-5]\d))?)?(?:\.\d+)?"
    r"(?: ?(?:Z|[+-]\d\d?(?::?\d\d){0,2}))?$"
)
"""A day, a time of day and, perhaps, its zone."""
_TRUE, _FALSE = ("true", "1", "1.0", "yes", "t", "y"), ("false", "0", "0.0", "no", "f", "n")


def to_numbers(frame: pd.DataFrame, schema: TableSchema) -> Table:
    """A frame as float64 [n, columns], NaN for missing; the frame's own order of columns does not matter.

    Raises:
        DataError: a column is absent, or holds what its declaration does not allow; no value is quoted.
    """
    return settled(read_frame(frame, schema), schema)


def read_frame(frame: pd.DataFrame, schema: TableSchema) -> Table:
    """The numbers as they stand in the frame, also beyond their bounds."""
    frame = frame.set_axis(list(map(str, frame.columns)), axis=1)
    if absent := sorted(set(schema.names) - set(frame.columns)):
        raise DataError(f"the table has no column {absent}; correct the schema or the frame")
    if twice := sorted(set(frame.columns[frame.columns.duplicated()]) & set(schema.names)):
        raise DataError(f"the table has several columns {twice}; which is meant is not clear: rename all but one")
    out, marks = np.empty((len(frame), len(schema.columns))), tuple(m.strip() for m in schema.missing_marks)
    for j, column in enumerate(schema.columns):
        out[:, j] = _numbers(frame[column.name], column, marks)
    return out + 0.0  # a record with -0 is the one with 0


def _numbers(series: Any, column: Column, marks: tuple[str, ...]) -> NDArray[np.float64]:
    """Numbers [n] of one column, each from its own value alone.

    A frame's dtype hangs on all its records: one text makes texts of all numbers, one gap turns 1 into 1.0. What a
    value means must not, or one record would move all others.
    """
    pd = pandas_()
    series, marks = _in_float64(series), _marks(column, marks)
    missing = series.isna().to_numpy()
    values, as_plain = values_as_read(column)
    is_numeric = pd.api.types.is_numeric_dtype(series.dtype)
    if column.kind == "category" and is_numeric and (not as_plain or any(map(too_long, values))):
        raise DataError(
            f"column '{column.name}' has values with more digits than numbers of a frame keep where one is missing, or "
            "values that differ by .0 alone; give the column as texts: astype(str) where nothing is missing, or a file "
            "with texts"
        )
    strange = pd.api.types.is_bool_dtype(series.dtype) and not {"True", "False"} & set(values)
    if column.kind == "category" and is_numeric and (strange or any(map(_UNSPELT.fullmatch, values))):
        raise DataError(
            f"column '{column.name}' declares values that no {'truth value' if strange else 'number'} of a frame reads "
            "as, such as 02139; give the column as texts (read_csv takes dtype=str), or the path of the file"
        )
    if column.kind in ("integer", "number") and is_numeric:
        x = series.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
        x[np.isin(x, as_numbers(marks))] = np.nan
        return x
    codes, first = _distinct(series[~missing])
    series = series[~missing][first]
    texts = (series.map(_text) if column.kind == "category" else series.astype(str)).str.strip()
    if as_plain:
        texts, marks = texts.str.replace(_WHOLE, r"\1", regex=True), (*marks, *map(_plain, marks))
    if column.kind == "category":
        found = texts.map({v: i for i, v in enumerate(values)}).to_numpy(dtype=np.float64, copy=True)
        if not column.missing and (np.isnan(found) & ~texts.isin(marks).to_numpy()).any():
            raise DataError(
                f"column '{column.name}' holds texts that are not among its declared values; add them to the schema, "
                'or declare "missing": true to count them as missing'
            )
    else:
        known = ~texts.isin(marks).to_numpy()
        found = np.full(len(texts), np.nan)
        found[known] = _parse(texts[known], series[known], column)
        if column.kind in ("integer", "number"):
            found[np.isin(found, as_numbers(marks))] = np.nan
    x = np.full(len(missing), np.nan)
    x[~missing] = found[codes]
    return x


def _marks(column: Column, marks: tuple[str, ...]) -> tuple[str, ...]:
    """The missing marks of a column: numbers that one of numbers may hold are values there, if it never lacks any."""
    if column.missing or column.kind not in ("integer", "number"):
        return marks
    low, high = column.bounds
    return tuple(m for m in marks if not any(low <= x <= high for x in as_numbers((m,))))


def values_as_read(column: Column) -> tuple[tuple[str, ...], bool]:
    """The values of a category as a file's texts are compared with them, and whether 1.0 counts as 1 there."""
    bare = tuple(v.strip() for v in column.values)
    if twice := sorted({v for v in bare if bare.count(v) > 1}):
        raise DataError(
            f"column '{column.name}' declares {twice} several times, with other spaces around; spaces there are not "
            "read: declare each text once"
        )
    plain = tuple(map(_plain, bare))
    differ = len(set(plain)) < len(plain)  # 1 and 1.0 are declared to differ
    return (bare, False) if differ else (plain, True)


def mark_of(column: Column, marks: tuple[str, ...]) -> str:
    """The first text for a missing value that is not read as one of the column's own."""
    values, as_plain = values_as_read(column)
    bare = [m.strip() for m in marks]
    free = [m for m in bare if (_plain(m) if as_plain else m) not in values]
    if column.missing and not free:
        raise DataError(
            f"column '{column.name}' may lack values, but declares each of missing_marks {bare} as a value of its own; "
            "add a mark that is none, e.g. 'missing'"
        )
    return next(iter(free), "")


def _distinct(series: Any) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Which distinct value each record has [n], and where each stands first: few texts are read for many records.

    Values of one text and of several types are kept apart: how they are read hangs on the type.
    """
    texts = series.astype(str)
    if series.dtype == object:
        texts = series.map(lambda v: type(v).__name__) + "\0" + texts
    return pandas_().factorize(texts)[0], ~texts.duplicated().to_numpy()


def _in_float64(series: Any) -> Any:
    """Numbers of few digits as float64 has them: 0.1 in float32 reads otherwise, alone or among others."""
    types = pandas_().api.types
    if isinstance(series.dtype, pandas_().SparseDtype):
        series = series.sparse.to_dense()
    if types.is_complex_dtype(series.dtype):
        raise DataError(f"column '{series.name}' holds complex numbers; give real ones")
    if isinstance(series.dtype, pandas_().CategoricalDtype):
        series = series.astype(object)
    if types.is_float_dtype(series.dtype) and series.dtype.itemsize < 8:
        return series.astype("Float64" if types.is_extension_array_dtype(series.dtype) else "float64")
    if series.dtype == object and types.infer_dtype(series, skipna=True) != "string":
        return series.map(lambda v: v.item() if isinstance(v, np.floating) else v).astype(object)
    return series


def _text(value: object) -> str:
    """A value as a file has it; what float32 holds exactly in few digits, whatever dtype others give its column."""
    if isinstance(value, float) and not value.is_integer() and float(np.float32(value)) == value:
        return str(np.float32(value))
    return str(value)


def too_long(text: str) -> bool:
    """A whole number that float64, which one gap makes of a column, could change."""
    plain = _plain(text)
    return plain.lstrip("+-").isdecimal() and abs(int(plain)) >= 2**53


def _plain(text: str) -> str:
    """A whole number without the .0 that a library may have added."""
    return _WHOLE.sub(r"\1", text)


def as_numbers(marks: tuple[str, ...]) -> list[float]:
    """The missing marks that are numbers."""
    found = pandas_().to_numeric(np.array(marks, dtype=object), errors="coerce")
    return [float(v) for v in found if not np.isnan(v)]


def _parse(texts: Any, series: Any, column: Column) -> NDArray[np.float64]:
    pd = pandas_()
    if column.kind == "boolean":
        lower = texts.str.lower()
        known = {**dict.fromkeys(_TRUE, 1.0), **dict.fromkeys(_FALSE, 0.0)}
        x = lower.map(known).to_numpy(dtype=np.float64)
    elif column.unit:
        x = moments(series if pd.api.types.is_datetime64_any_dtype(series.dtype) else texts, column.unit)
    else:
        x = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64)
    if np.isnan(x).any():
        raise DataError(
            f"column '{column.name}' holds texts that are no {column.kind}; correct the file, or list the text that "
            "stands for a missing value in missing_marks"
        )
    return x


def moments(series: Any, unit: Literal["D", "s"]) -> NDArray[np.float64]:
    """Days ("D") or seconds ("s") since 1970 that texts or stamps name, each by its own clock; NaN for no moment."""
    pd = pandas_()
    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        return _since_1970(series, unit)
    parts = series.str.extract(_MOMENT)
    day = parts["day"].fillna(series)
    day = day.where(day.str.match(r"^[\d\-/. \\]+$"))  # "today" is no fixed day
    days = _since_1970(pd.to_datetime(day, errors="coerce", format="ISO8601"), "D")
    clock = parts[["hour", "minute", "second"]].astype("float64").fillna(0).to_numpy()
    return days if unit == "D" else days * 86400 + clock @ (3600.0, 60.0, 1.0)


def _since_1970(stamps: Any, unit: str) -> NDArray[np.float64]:
    stamps = stamps.dt.tz_localize(None)
    return np.where(stamps.isna(), np.nan, stamps.to_numpy().astype(f"datetime64[{unit}]").astype(np.float64))


def settled(table: Table, schema: TableSchema) -> Table:
    """The records with the nearest values that are allowed, in the declared orders."""
    for x, column in zip(table.T, schema.columns, strict=True):
        missing = np.isnan(x)
        if missing.any() and not column.missing:
            raise DataError(f"column '{column.name}' lacks values; declare \"missing\": true, or fill them in")
        x[~missing] = column.settle(x[~missing])
    return schema.in_order(table)


def to_frame(table: Table, schema: TableSchema) -> pd.DataFrame:
    """Numbers as a frame: the schema's columns in its order, dtypes as declared, missing values as pandas has them."""
    pd = pandas_()
    return pd.DataFrame({c.name: _series(table[:, j], c) for j, c in enumerate(schema.columns)})


def check_dtypes(schema: TableSchema) -> None:
    """Raise unless each dtype can hold what its column declares: synthetic records will be of it.

    Raises:
        DataError: pandas has no such dtype, or it is too narrow, or it knows no missing values.
    """
    for c in schema.columns:
        low, high = c.bounds  # of private ones, the outer limits: those found may be any within
        some = np.arange(high + 1) if c.values else c.settle(np.array([low, 0.618 * low + 0.382 * high, 0.382, high]))
        x = np.array([*some, *([np.nan] if c.missing else [])], float)
        try:
            series = _series(x, c)
            if not _holds(series.dropna(), some, c):
                raise OverflowError
        except Exception as error:  # numpy and pandas refuse in many ways
            raise DataError(
                f"column '{c.name}' has the dtype '{c.dtype}', which cannot hold what the column declares; name a "
                "pandas dtype that can (Int64 for whole numbers that may be missing), or leave dtype out"
                + ("; low and high may narrow private bounds" if c.private_bounds else "")
            ) from error


def _holds(series: Any, x: NDArray[np.float64], column: Column) -> bool:
    """Whether values without gaps are still what they were; moments and booleans may take any form."""
    if column.kind == "category":
        return tuple(_plain(str(v).strip()) for v in series) == tuple(_plain(v.strip()) for v in column.values)
    if column.unit or column.kind == "boolean":
        return True
    return np.allclose(series.to_numpy(np.float64), x, rtol=0 if column.whole else 1e-3, atol=0)


def _series(x: NDArray[np.float64], column: Column) -> Any:
    pd = pandas_()
    missing = np.isnan(x)
    filled = np.where(missing, 0, x)
    if column.kind == "category":
        values = pd.Series(np.array([*column.values, None], dtype=object)[np.where(missing, -1, filled).astype(int)])
        if not column.dtype:
            return values.astype("str")
        if column.dtype == "category":
            return values.astype(pd.CategoricalDtype(list(column.values)))
        if "int" in column.dtype.lower():
            values = pd.to_numeric(values)
        return values.astype(column.dtype)
    if column.unit:
        stamps = pd.Series(filled.astype(f"datetime64[{column.unit}]").astype("datetime64[s]"))
        stamps[missing] = pd.NaT
        return stamps.astype(column.dtype) if column.dtype else stamps
    if column.kind == "number":
        return pd.Series(x.copy(), dtype=column.dtype or "float64")
    whole, nullable = ("boolean", "bool") if column.kind == "boolean" else ("Int64", "int64")
    series = pd.Series(filled.astype(np.int64)).astype(whole)
    series[missing] = pd.NA
    return series.astype(column.dtype or (whole if column.missing else nullable))

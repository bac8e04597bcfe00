"""Tables: read in chunks as the schema declares them, to numbers and back.

Needs pandas (extra `tables`). Nothing is inferred from the rows: a value outside the bounds is moved to the nearest
one, a text that is no declared category counts as missing where the column allows that, and is an error elsewhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpgm.data.errors import DataError
from dpgm.schema import Column, Rows, TableSchema
from dpgm.schema.table import Table

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 50_000
SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
_EPOCH = date(1970, 1, 1).toordinal()
_WHOLE = re.compile(r"^([+-]?\d+)\.0$")
_SEPARATORS = {",": "commas", "\t": "tabs"}
_TRUE, _FALSE = ("true", "1", "1.0", "yes", "t", "y"), ("false", "0", "0.0", "no", "f", "n")


def is_table(path: Path | str) -> bool:
    """Whether the name is that of a table file."""
    return str(path).lower().endswith(SUFFIXES)


@dataclass(frozen=True, kw_only=True, repr=False)
class TableSet:
    """A table file, opened but not read: only `train` and `test` touch rows.

    Attributes:
        path: .csv, .tsv (also .gz) or .parquet, with a header.
        schema: public facts; the file may hold further columns, which are not read.
        test_path: file of the held-out part; None for none.
        test_fraction: share to hold out by a hash of each record alone, where there is no test file.
    """

    path: Path
    schema: TableSchema
    test_path: Path | None = None
    test_fraction: float | None = None
    terms: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if self.test_fraction is not None and not 0 < self.test_fraction < 1:
            raise DataError(f"the test fraction is {self.test_fraction}; allowed is more than 0 and less than 1")
        for path in (self.path, self.test_path):
            if path is not None and not path.is_file():
                raise DataError(f"{path} does not exist; give a file ending in {', '.join(SUFFIXES)}")
            if path is not None and (absent := sorted(set(self.schema.names) - set(header(path, self.schema.names)))):
                raise DataError(
                    f"{path.name} has no column {absent}; correct the schema or the file's header, whose names are "
                    f"separated by {_SEPARATORS[_separator(path)]}"
                )
        check_dtypes(self.schema)

    def __repr__(self) -> str:
        return f"TableSet({self.name}, {len(self.schema.columns)} columns)"

    @property
    def name(self) -> str:
        """The bare file name."""
        return self.path.name

    def facts(self) -> dict[str, Any]:
        """Public facts that tell these records from others, as plain JSON values."""
        return {"data": self.name, "held out": self.test_fraction, "schema": self.schema.to_json()}

    @property
    def has_test(self) -> bool:
        """Whether there is a held-out part."""
        return self.test_path is not None or self.test_fraction is not None

    def train(self) -> Rows:
        """The records to learn from."""
        return self._rows(self.path, None if self.test_path or not self.test_fraction else False)

    def test(self) -> Rows:
        """The held-out records."""
        if not self.has_test:
            raise DataError(f"{self.name} has no test part; give --test FILE or --test-fraction 0.2")
        return self._rows(self.test_path or self.path, None if self.test_path else True)

    def _rows(self, path: Path, held_out: bool | None) -> Rows:
        parts: list[Table] = []
        for frame in chunks(path, self.schema.names):
            part = to_numbers(frame, self.schema)
            parts.append(part if held_out is None else part[self._held_out(part) == held_out])
        whole, end = np.empty((sum(map(len, parts)), len(self.schema.columns))), 0
        for part in _emptied(parts):
            whole[end : end + len(part)] = part
            end += len(part)
        return Rows(table=whole)

    def _held_out(self, part: Table) -> NDArray[np.bool_]:
        bound = int((self.test_fraction or 0) * 2**64)
        digest = [hashlib.blake2b(r.tobytes(), digest_size=8).digest() for r in np.ascontiguousarray(part)]
        return np.array([int.from_bytes(d, "big") < bound for d in digest], dtype=bool)


def _emptied(parts: list[Table]) -> Iterator[Table]:
    """The parts in order, each let go when the next is asked for: they and their copy are never in memory together."""
    parts.reverse()
    while parts:
        yield parts.pop()


def header(path: Path, wanted: tuple[str, ...] | None = None) -> list[str]:
    """Names of the columns; those that are wanted (all, by default) may stand there only once."""
    pd = pandas_()
    try:
        if path.suffix == ".parquet":
            names = list(_parquet(path).schema_arrow.names)
        else:
            options: dict[str, Any] = {"sep": _separator(path), "dtype": str, "na_filter": False, "header": None}
            names = [str(v).removeprefix("\ufeff") for v in pd.read_csv(path, nrows=1, **options).iloc[0]]
    except DataError:
        raise
    except Exception as error:  # gzip, parquet and pandas each have their own kinds
        raise DataError(
            f"{path.name} has no readable header ({type(error).__name__}); it may be empty, damaged, cut short or not "
            "UTF-8; copy it again or write it anew"
        ) from error
    if twice := sorted({n for n in names if names.count(n) > 1 and (wanted is None or n in wanted)}):
        raise DataError(f"{path.name} has several columns {twice}; which is meant is not clear: rename all but one")
    return names


def chunks(path: Path, names: tuple[str, ...]) -> Iterator[pd.DataFrame]:
    """The file as texts (csv) or as it is typed (parquet), piece by piece."""
    try:
        if path.suffix == ".parquet":
            for batch in _parquet(path).iter_batches(batch_size=CHUNK, columns=list(names)):
                yield batch.to_pandas()
            return
        # All columns, as a line with too many fields is found only so; never an index, which one line could bring about
        options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "na_filter": False, "index_col": False}
        with pandas_().read_csv(path, sep=_separator(path), chunksize=CHUNK, **options) as reader:
            while (frame := _next(reader)) is not None:
                yield frame[list(names)]
    except (ValueError, OSError, EOFError, zlib.error, Warning):  # what they say holds bytes and line numbers
        raise DataError(
            f"{path.name} is damaged or cut short, or has a line that is no record, or a text that is not UTF-8; "
            "write the file again"
        ) from None


def _next(reader: Any) -> pd.DataFrame | None:
    """The next piece; a first line with too many fields, of which pandas only warns, is an error like any other."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", pandas_().errors.ParserWarning)
        return next(reader, None)


def _separator(path: Path) -> str:
    return "\t" if ".tsv" in path.suffixes else ","


def _parquet(path: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(f"{path.name} is a parquet file; install pyarrow to read it, or convert it to csv") from error
    return ParquetFile(path)


def pandas_() -> Any:
    """The library, where it is installed."""
    try:
        import pandas
    except ImportError as error:
        raise DataError("tables need pandas; install the extra: pip install 'dpgm[tables]'") from error
    return pandas


# ---------------------------------------------------------------------------------------------------------------------
# Frames to numbers and back


def to_numbers(frame: pd.DataFrame, schema: TableSchema) -> Table:
    """A frame as float64 [n, columns], NaN for missing; the frame's own order of columns does not matter.

    Raises:
        DataError: a column is absent, or holds what its declaration does not allow; no value is quoted.
    """
    if absent := sorted(set(schema.names) - set(map(str, frame.columns))):
        raise DataError(f"the table has no column {absent}; correct the schema or the frame")
    if twice := sorted({str(n) for n in frame.columns[frame.columns.duplicated()]} & set(schema.names)):
        raise DataError(f"the table has several columns {twice}; which is meant is not clear: rename all but one")
    out = np.empty((len(frame), len(schema.columns)))
    for j, column in enumerate(schema.columns):
        out[:, j] = _numbers(frame[column.name], column, schema.missing_marks)
    return schema.in_order(out)


def _numbers(series: Any, column: Column, marks: tuple[str, ...]) -> NDArray[np.float64]:
    """Numbers [n] of one column, each from its own value alone.

    A frame's dtype hangs on all its records: one text makes texts of all numbers, one gap turns 1 into 1.0. What a
    value means must not, or one record would move all others.
    """
    pd = pandas_()
    series = _in_float64(series)
    missing = series.isna().to_numpy()
    if column.kind == "category" and pd.api.types.is_numeric_dtype(series.dtype) and any(map(_too_long, column.values)):
        raise DataError(
            f"column '{column.name}' has values with more digits than numbers of a frame keep where one is missing; "
            "give the column as texts: astype(str) where nothing is missing, or a file with texts"
        )
    if column.kind in ("integer", "number") and pd.api.types.is_numeric_dtype(series.dtype):
        x = series.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
        return _settled(x, np.isnan(x) | np.isin(x, _as_numbers(marks)), column)
    codes, first = _distinct(series[~missing])
    series = series[~missing][first]
    texts = series.astype(str).str.strip()
    plain = tuple(map(_plain, column.values))
    if column.kind != "category" or len(set(plain)) == len(plain):  # else 1 and 1.0 are declared to differ
        texts, marks = texts.str.replace(_WHOLE, r"\1", regex=True), (*marks, *map(_plain, marks))
    else:
        plain = column.values
    if column.kind == "category":
        found = texts.map({v: i for i, v in enumerate(plain)}).to_numpy(dtype=np.float64, copy=True)
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
            found[np.isin(found, _as_numbers(marks))] = np.nan
    x = np.full(len(missing), np.nan)
    x[~missing] = found[codes]
    return _settled(x, np.isnan(x), column)


def _distinct(series: Any) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Which distinct text each value has [n], and where each stands first: few texts are read for many records."""
    texts = series.astype(str)
    return pandas_().factorize(texts)[0], ~texts.duplicated().to_numpy()


def _in_float64(series: Any) -> Any:
    """Numbers of few digits as float64 has them: 0.1 in float32 reads otherwise, alone or among others."""
    types = pandas_().api.types
    if types.is_float_dtype(series.dtype) and series.dtype.itemsize < 8:
        return series.astype("Float64" if types.is_extension_array_dtype(series.dtype) else "float64")
    if series.dtype == object and types.infer_dtype(series, skipna=True) != "string":
        return series.map(lambda v: v.item() if isinstance(v, np.floating) else v).astype(object)
    return series


def _too_long(text: str) -> bool:
    """A whole number that float64, which one gap makes of a column, could change."""
    plain = _plain(text)
    return plain.lstrip("+-").isdecimal() and abs(int(plain)) >= 2**53


def _plain(text: str) -> str:
    """A whole number without the .0 that a library may have added."""
    return _WHOLE.sub(r"\1", text)


def _as_numbers(marks: tuple[str, ...]) -> list[float]:
    """The missing marks that are numbers."""
    found = pandas_().to_numeric(np.array(marks, dtype=object), errors="coerce")
    return [float(v) for v in found if not np.isnan(v)]


def _parse(texts: Any, series: Any, column: Column) -> NDArray[np.float64]:
    pd = pandas_()
    if column.kind == "boolean":
        lower = texts.str.lower()
        known = {**dict.fromkeys(_TRUE, 1.0), **dict.fromkeys(_FALSE, 0.0)}
        x = lower.map(known).to_numpy(dtype=np.float64)
    elif column.kind == "date":
        stamps = pd.to_datetime(series, errors="coerce", format="ISO8601", utc=True).dt.tz_localize(None)
        x = np.where(stamps.isna(), np.nan, stamps.to_numpy().astype("datetime64[D]").astype(np.float64))
    else:
        x = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64)
    if np.isnan(x).any():
        raise DataError(
            f"column '{column.name}' holds texts that are no {column.kind}; correct the file, or list the text that "
            "stands for a missing value in missing_marks"
        )
    return x


def _settled(x: NDArray[np.float64], missing: NDArray[np.bool_], column: Column) -> NDArray[np.float64]:
    if missing.any() and not column.missing:
        raise DataError(f"column '{column.name}' lacks values; declare \"missing\": true, or fill them in")
    x[~missing] = column.settle(x[~missing])
    x[missing] = np.nan
    return x


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
        low, high = c.bounds if not c.private_bounds else (0.0, 1.0)
        some = np.arange(high + 1) if c.values else c.settle(np.array([low, 0.618 * low + 0.382 * high, high]))
        x = np.array([*some, *([np.nan] if c.missing else [])], float)
        try:
            series = _series(x, c)
            if not _holds(series.dropna(), some, c):
                raise OverflowError
        except Exception as error:  # numpy and pandas refuse in many ways
            raise DataError(
                f"column '{c.name}' has the dtype '{c.dtype}', which cannot hold what the column declares; name a "
                "pandas dtype that can (Int64 for whole numbers that may be missing), or leave dtype out"
            ) from error


def _holds(series: Any, x: NDArray[np.float64], column: Column) -> bool:
    """Whether values without gaps are still what they were; dates and booleans may take any form."""
    if column.kind == "category":
        return [_plain(str(v)) for v in series] == [_plain(v) for v in column.values]
    if column.kind in ("date", "boolean"):
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
    if column.kind == "date":
        days = pd.Series(filled.astype("datetime64[D]").astype("datetime64[s]"))
        days[missing] = pd.NaT
        return days.astype(column.dtype) if column.dtype else days
    if column.kind == "number":
        return pd.Series(x.copy(), dtype=column.dtype or "float64")
    whole, nullable = ("boolean", "bool") if column.kind == "boolean" else ("Int64", "int64")
    series = pd.Series(filled.astype(np.int64)).astype(whole)
    series[missing] = pd.NA
    return series.astype(column.dtype or (whole if column.missing else nullable))


def write_csv(table: Table, schema: TableSchema, path: Path) -> None:
    """Write a csv that `TableSet` reads back; missing values as the first missing mark."""
    mark = schema.missing_marks[0] if schema.missing_marks else ""
    plain = [dataclasses.replace(c, dtype="") if c.kind == "date" else c for c in schema.columns]
    frame = to_frame(table, dataclasses.replace(schema, columns=tuple(plain)))
    for c in schema.columns:
        if c.kind == "date":
            frame[c.name] = frame[c.name].dt.strftime("%Y-%m-%d")
    frame.to_csv(path, index=False, na_rep=mark)

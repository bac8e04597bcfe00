"""Drafts of a schema for a person to correct, from a table that is public."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dpgm.data.errors import DataError
from dpgm.data.tables import chunks, header, pandas_
from dpgm.schema import Column, TableSchema


def draft_schema(
    path: Path, *, label: str | None = None, missing_marks: tuple[str, ...] = (), most: int = 100
) -> TableSchema:
    """A schema for a person to correct, from a file that is *public*: every value and bound in it is published.

    Whole numbers of more than 10 values become integers and other numbers numbers, with bounds rounded outwards; texts
    of at most `most` values, and whole numbers of at most 10, become categories. The size is left out.

    Args:
        path: a public file.
        label: the column that a classifier would predict; it becomes a category.
        missing_marks: texts that stand for a missing value, beside the usual ones.
        most: largest number of different texts in a column.

    Raises:
        DataError: a text column has more values than `most`.
    """
    pd = pandas_()
    usual = TableSchema(columns=(Column(name="x", kind="boolean"),)).missing_marks
    marks = tuple(dict.fromkeys((*missing_marks, *usual)))
    frame = pd.concat(list(chunks(path, tuple(header(path)))), ignore_index=True)
    columns = tuple(_draft(frame[n], n == label, marks, most) for n in frame.columns)
    return TableSchema(columns=columns, label=label, missing_marks=marks)


def _draft(series: Any, is_label: bool, marks: tuple[str, ...], most: int) -> Column:
    pd = pandas_()
    name, dtype = str(series.name), series.dtype
    texts = series.astype(str).str.strip()
    missing = series.isna().to_numpy() | texts.isin(marks).to_numpy()
    known = texts[~missing]
    lacks = bool(missing.any()) and not is_label
    numbers = pd.to_numeric(known, errors="coerce")
    distinct = sorted(known.unique())
    if isinstance(dtype, pd.CategoricalDtype):
        return Column(name=name, kind="category", values=tuple(distinct), missing=lacks, dtype="category")
    if set(known.str.lower()) <= {"true", "false"} and len(known):
        return Column(name=name, kind="boolean", missing=lacks)
    if len(numbers) and not numbers.isna().any():
        whole = bool((numbers == numbers.round()).all())
        if whole and (is_label or len(distinct) <= 10):
            whole_dtype = "Int64" if lacks else "int64"
            ordered = tuple(sorted(distinct, key=float))
            return Column(name=name, kind="category", values=ordered, missing=lacks, dtype=whole_dtype)
        low, high = _round_out(float(numbers.min()), float(numbers.max()))
        if whole:
            return Column(name=name, kind="integer", low=math.floor(low), high=math.ceil(high), missing=lacks)
        digits = min(6, int(known.str.partition(".")[2].str.len().max()))
        return Column(name=name, kind="number", low=low, high=high, decimals=digits, missing=lacks)
    if pd.api.types.is_datetime64_any_dtype(dtype) or (len(known) and known.str.match(r"^\d{4}-\d\d-\d\d$").all()):
        return Column(name=name, kind="date", low=min(distinct)[:10], high=max(distinct)[:10], missing=lacks)
    if not 1 <= len(distinct) <= most:
        raise DataError(
            f"column '{name}' has {len(distinct)} different texts; free text and keys have no place in a schema: leave "
            f"the column out of the file, group its values, or raise --most above {most}"
        )
    return Column(name=name, kind="category", values=tuple(distinct), missing=lacks)


def _round_out(low: float, high: float) -> tuple[float, float]:
    """Bounds of two digits around the values: exact extremes are somebody's."""
    unit = 10.0 ** (math.floor(math.log10(max(high - low, 1e-9))) - 1)
    return math.floor(low / unit) * unit, math.ceil(high / unit) * unit

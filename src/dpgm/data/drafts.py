"""Drafts of a schema for a person to correct, from a table that is public."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from dpgm.data.errors import DataError
from dpgm.data.frames import as_numbers, moments
from dpgm.data.table_files import chunks, header, pandas_
from dpgm.schema import Column, TableSchema

_DAY = r"^\d{4}-\d\d-\d\d(?:[ T].*)?$"
_OTHER_DAY = r"\d{1,2}[/.]\d{1,2}[/.]\d{4}"
_AS_DATES = "write days as 2020-01-31, and they are read as dates"
_FEW = 20
_SPELT = ("N/A", "n/a", "null", "NULL", "<NA>")
_NAMELESS = re.compile(r"\s*|__index_level_\d+__")  # as pandas writes an index to csv and to parquet


def draft_schema(
    path: Path, *, label: str | None = None, missing_marks: tuple[str, ...] = (), most: int = 100
) -> TableSchema:
    """A schema for a person to correct, from a file that is *public*: every value and bound in it is published.

    Whole numbers of more than 10 values become integers and other numbers numbers, with bounds rounded outwards; days
    become dates, and datetimes where one has a time of day, with bounds of whole years; texts of at most `most` values,
    and whole numbers of at most 10, become categories, as do codes such as 02139. The size is left out.

    Args:
        path: a public file.
        label: the column that a classifier would predict; it becomes a category.
        missing_marks: texts that stand for a missing value, beside the usual ones.
        most: largest number of different texts in a column.

    Raises:
        DataError: a text column has more values than `most`, a column has none or an infinite one, or no name, the
            label lacks some, or the file is not separated by commas or tabs.
    """
    frame, usual = _public(path), TableSchema(columns=(Column(name="x", kind="boolean"),)).missing_marks
    # The first mark stands for missing values in synthetic tables, so it must not be somebody's -9.
    marks = tuple(dict.fromkeys((*usual, *_SPELT, *(m.strip() for m in missing_marks))))
    columns = tuple(_draft(frame[n], n == label, marks, most) for n in frame.columns)
    return TableSchema(columns=columns, label=label, missing_marks=marks)


def doubts(path: Path, schema: TableSchema) -> list[str]:
    """What to look at before a draft of the same public file is used, a sentence for each column."""
    frame = _public(path)
    return [f"{c.name}: {said}" for c in schema.columns if (said := _doubt(c, frame[c.name], schema.missing_marks))]


def _doubt(column: Column, series: Any, marks: tuple[str, ...]) -> str:
    texts = series.astype(str).str.strip()
    known = texts[~(series.isna() | texts.isin(marks))]
    if column.kind == "integer" or column.decimals == 0:
        keys = len(known) >= _FEW and known.is_unique
        return "all its values differ; if it is a key, leave it out of the file" if keys else ""
    numbers = pandas_().to_numeric(known, errors="coerce").notna()
    if column.kind == "category" and 0.8 <= numbers.mean() < 1:
        others = ", ".join(sorted(known[~numbers].unique())[:3])
        return f"most of its texts are numbers; those that stand for missing values go to --missing: {others}"
    return _AS_DATES if column.kind == "category" and known.str.fullmatch(_OTHER_DAY).all() else ""


def _public(path: Path) -> Any:
    names = header(path)
    if any(_NAMELESS.fullmatch(n) for n in names):
        raise DataError(
            f"{path.name} has a column without a name, such as an index that pandas wrote; write the file without it "
            "(to_csv and to_parquet take index=False), or give it a name in the header"
        )
    if len(names) == 1 and {";", "\t", "|"} & set(names[0]):
        raise DataError(f"{path.name} has one column, '{names[0]}'; write it with commas, or with tabs as .tsv")
    return pandas_().concat(list(chunks(path, tuple(names))), ignore_index=True)


def _draft(series: Any, is_label: bool, marks: tuple[str, ...], most: int) -> Column:
    pd = pandas_()
    name = str(series.name)
    texts = series.astype(str).str.strip()
    missing = series.isna().to_numpy() | texts.isin(marks).to_numpy()
    missing |= pd.to_numeric(texts, errors="coerce").isin(as_numbers(marks)).to_numpy()  # -9.0 is -9
    known = texts[~missing]
    lacks = bool(missing.any())
    distinct = sorted(known.unique())
    if not distinct:
        raise DataError(
            f"column '{name}' holds no value; leave it out of the file, or draft from one where it is filled"
        )
    if is_label and lacks:
        raise DataError(f"the label '{name}' lacks values; leave those records out of the file, or name another label")
    if isinstance(series.dtype, pd.CategoricalDtype):
        return Column(name=name, kind="category", values=tuple(distinct), missing=lacks, dtype="category")
    if set(known.str.lower()) <= {"true", "false"}:
        return Column(name=name, kind="boolean", missing=lacks)
    numbers = pd.to_numeric(known, errors="coerce")
    if not numbers.isna().any() and not known.str.match(r"[+-]?0\d").any():  # 02139 is a code
        return _of_numbers(name, known, numbers, lacks, is_label)
    if known.str.match(_DAY).all() and not np.isnan(seconds := moments(known, "s")).any():
        low, high, timed = f"{distinct[0][:4]}-01-01", f"{distinct[-1][:4]}-12-31", bool((seconds % 86400).any())
        high += " 23:59:59" * timed
        return Column(name=name, kind="datetime" if timed else "date", low=low, high=high, missing=lacks)
    if len(distinct) > most:
        raise DataError(
            f"column '{name}' has {len(distinct)} different texts; free text and keys have no place in a schema: leave "
            f"the column out of the file, group its values, or raise --most above {most}"
            + (f"; {_AS_DATES}" if known.str.fullmatch(_OTHER_DAY).all() else "")
        )
    return Column(name=name, kind="category", values=tuple(distinct), missing=lacks)


def _of_numbers(name: str, known: Any, numbers: Any, lacks: bool, is_label: bool) -> Column:
    """A column of numbers; `known` are their texts."""
    low, high = float(numbers.min()), float(numbers.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(
            f"column '{name}' holds an infinite number; correct the file, or count it as missing: --missing inf"
        )
    whole = bool((numbers == numbers.round()).all()) and max(-low, high) < 2**53
    distinct = sorted(known.unique(), key=float)
    if whole and (is_label or len(distinct) <= 10):
        dtype = "Int64" if lacks else "int64"
        return Column(name=name, kind="category", values=tuple(distinct), missing=lacks, dtype=dtype)
    low, high = _round_out(low, high)
    if whole:
        return Column(name=name, kind="integer", low=math.floor(low), high=math.ceil(high), missing=lacks)
    digits = 6 + max(0, -math.floor(math.log10(high - low)))  # six that count, or as many as are written
    if not known.str.contains("[eE]").any():
        digits = min(digits, int(known.str.partition(".")[2].str.len().max()))
    decimals = digits if digits <= 12 else None
    return Column(name=name, kind="number", low=low, high=high, decimals=decimals, missing=lacks)


def _round_out(low: float, high: float) -> tuple[float, float]:
    """Bounds of two digits around the values: exact extremes are somebody's."""
    coarse = max(abs(low), abs(high)) * 1e-10  # of a few among large ones, twelve digits are written
    unit = 10.0 ** (math.floor(math.log10(max(high - low, coarse) or 1.0)) - 1)
    first = math.floor(low / unit)
    last = max(math.ceil(high / unit), first + 1)
    return float(f"{first * unit:.12g}"), float(f"{last * unit:.12g}")

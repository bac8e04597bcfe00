"""Public facts about the columns of a table, and what they mean as numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from dpgm.schema.plain import Kinds, entries, texts
from dpgm.schema.rows import Rows, SchemaError, check_size, plain_number

Kind: TypeAlias = Literal["category", "integer", "number", "date", "datetime", "boolean"]
Table: TypeAlias = NDArray[np.float64]
"""Records as numbers [n, columns]: a category's position, 0 or 1, days or seconds since 1970, or the value; NaN is
missing."""

_UNITS: Mapping[str, Literal["D", "s"]] = {"date": "D", "datetime": "s"}
WIDEST = 2.0**50
"""No number of a table may lie further from 0, where nothing else is declared."""
_NONE = type(None)
_KINDS: Kinds = {
    "kind": (str,),
    "columns": (list,),
    "label": (str, _NONE),
    "missing_marks": (list,),
    "size": (int, _NONE),
    "ordered": (list,),
}
_COLUMN_KINDS: Kinds = {
    "name": (str,),
    "kind": (str,),
    "values": (list,),
    "low": (float, str, _NONE),
    "high": (float, str, _NONE),
    "decimals": (int, _NONE),
    "missing": (bool,),
    "private_bounds": (bool,),
    "dtype": (str,),
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """Public facts about one column.

    Attributes:
        name: its header.
        kind: "category", "integer", "number", "date" (a day), "datetime" (a second of some day) or "boolean".
        values: the categories, in the order of their numbers; for kind "category" only.
        low: smallest value allowed (a date as "2020-01-31", a datetime as "2020-01-31 13:45:00"); smaller ones are
            raised to it.
        high: largest value allowed; larger ones are lowered to it.
        decimals: digits after the point that numbers are rounded to; None leaves them.
        missing: whether a value may be missing.
        private_bounds: nobody can declare the bounds: a step that is charged finds them, within `low` and `high`
            where these are given.
        dtype: pandas dtype on the way out; "" chooses by kind.
    """

    name: str
    kind: Kind
    values: tuple[str, ...] = ()
    low: float | str | None = None
    high: float | str | None = None
    decimals: int | None = None
    missing: bool = False
    private_bounds: bool = False
    dtype: str = ""

    def __post_init__(self) -> None:
        where = f"column '{self.name}'"
        for name in ("low", "high"):
            object.__setattr__(self, name, _plain_bound(getattr(self, name), self.kind))
        if not all(isinstance(v, str) for v in self.values):
            raise SchemaError(f"{where} lists values that are no texts; write each as it stands in a file, e.g. '0'")
        if not self.name or self.kind not in get_args(Kind):
            raise SchemaError(f"{where} has the kind {self.kind!r}; allowed are {', '.join(get_args(Kind))}")
        if (self.kind == "category") != bool(self.values) or len(set(self.values)) != len(self.values):
            raise SchemaError(f"{where} lists {len(self.values)} values; a category lists each of its values once")
        if self.kind not in ("category", "boolean"):
            low, high = self.bounds  # raises where a date is no date
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise SchemaError(
                    f"{where} has the bounds {self.low} to {self.high}; give public bounds low < high: they are never "
                    "taken from private rows"
                )
            if self.kind == "integer" and not (low.is_integer() and high.is_integer()):
                raise SchemaError(f"{where} has the bounds {self.low} to {self.high}; those of integers are whole")
        elif self.low is not None or self.high is not None or self.private_bounds:
            raise SchemaError(f"{where} is a {self.kind}; it has no bounds")
        if self.decimals is not None and (self.kind != "number" or not 0 <= self.decimals <= 12):
            raise SchemaError(f"{where} has decimals {self.decimals}; allowed is 0 to 12, for numbers")

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest number that the column may hold."""
        if self.kind == "category":
            return 0.0, len(self.values) - 1.0
        if self.kind == "boolean":
            return 0.0, 1.0
        low, high = self.low, self.high
        if self.private_bounds:
            widest = ("1600-01-01", "2399-12-31") if self.unit else (-WIDEST, WIDEST)
            low, high = widest[0] if low is None else low, widest[1] if high is None else high
        if low is None or high is None:
            raise SchemaError(
                f"column '{self.name}' is a {self.kind} without bounds; give low and high from public knowledge, or "
                '"private_bounds": true to have them found under a share of the budget'
            )
        return self._number(low), self._number(high)

    def _number(self, bound: float | str) -> float:
        where = f"column '{self.name}' has the bound {bound!r}"
        if not self.unit:
            if isinstance(bound, str):
                raise SchemaError(f"{where}; give a number")
            return float(bound)
        try:
            kind = date if self.unit == "D" else datetime
            moment = kind.fromisoformat(str(bound))
            if isinstance(moment, datetime) and moment.tzinfo:
                raise ValueError("a zone")
            return float(np.datetime64(moment, self.unit).astype(np.int64))
        except ValueError as error:
            how = "dates as 2020-01-31" if self.unit == "D" else "datetimes as 2020-01-31 13:45:00, without a zone"
            raise SchemaError(f"{where}; write {how}") from error

    def moment(self, x: float) -> str:
        """A number of a date or datetime as a file has it."""
        assert self.unit
        return str(np.datetime64(int(x), self.unit)).replace("T", " ")

    @property
    def unit(self) -> Literal["D", "s"] | None:
        """What numbers of dates ("D") and datetimes ("s") count since 1970, as numpy calls it; None of others."""
        return _UNITS.get(self.kind)

    @property
    def whole(self) -> bool:
        """Whether only whole numbers occur."""
        return self.kind != "number"

    def settle(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The nearest allowed numbers: within the bounds, whole or rounded where the column is."""
        low, high = self.bounds
        x = np.round(x) if self.whole else x if self.decimals is None else np.round(x, self.decimals)
        return np.clip(x, low, high)

    def at_least(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The least allowed numbers that are not below `x`, or the largest allowed one."""
        near = self.settle(x)
        step = 1.0 if self.whole else 0.0 if self.decimals is None else 10.0**-self.decimals
        return np.where(near < x, self.settle(near + step), near)

    def to_json(self) -> dict[str, Any]:
        """The facts as plain JSON values, without those that are not set."""
        value = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        value["values"] = list(self.values)
        return {k: v for k, v in value.items() if v is not None and v is not False and v not in ([], "")}


@dataclass(frozen=True, kw_only=True)
class TableSchema:
    """Public facts about a table.

    Attributes:
        columns: in the order of the file.
        label: name of the column that a classifier would predict, a category or boolean; None for none.
        missing_marks: texts that stand for a missing value, where a column does not list them as a category.
        size: the *declared* number of records, a public round figure; None when nobody declared one.
        ordered: pairs (a, b) of columns of numbers, dates or datetimes with a <= b wherever neither is missing.
    """

    columns: tuple[Column, ...]
    label: str | None = None
    missing_marks: tuple[str, ...] = ("", "NA", "NaN", "nan", "?")
    size: int | None = None
    ordered: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", plain_number(self.size))
        names = self.names
        if not names or len(set(names)) != len(names):
            raise SchemaError(f"the columns are {list(names)}; give at least one, each name once")
        if self.label is not None:
            if self.label not in names:
                raise SchemaError(f"the label is '{self.label}'; allowed are the columns {', '.join(names)}")
            column = self[self.label]
            if column.kind not in ("category", "boolean") or column.missing:
                raise SchemaError(f"the label '{self.label}' must be a category or boolean that is never missing")
        if not self.missing_marks and any(c.missing for c in self.columns):
            raise SchemaError("values may be missing, but missing_marks is empty; give at least one text, e.g. ''")
        check_size(self.size)
        for pair in self.ordered:
            if len(pair) != 2 or not set(pair) <= set(names) or pair[0] == pair[1]:
                raise SchemaError(f"ordered has {list(pair)}; write pairs of two of the columns, the smaller one first")
            a, b = (self[name] for name in pair)
            if {"category", "boolean"} & {a.kind, b.kind} or a.unit != b.unit:
                raise SchemaError(
                    f"ordered has {list(pair)}; only two columns of numbers, of dates or of datetimes have an order"
                )
        self._check_orders()

    def _check_orders(self) -> None:
        """Raise where a column cannot reach the least value that those below it can have."""
        least = {c.name: c.bounds[0] for c in self.columns}
        for a, b in self.ordered * len(self.ordered):
            reached = float(self[b].at_least(np.array(least[a])))
            if reached < least[a]:
                raise SchemaError(f"ordered puts '{a}' below '{b}', but '{a}' begins where '{b}' has ended")
            least[b] = max(least[b], reached)

    def __getitem__(self, name: str) -> Column:
        return self.columns[self.names.index(name)]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(c.name for c in self.columns)

    @property
    def label_index(self) -> int | None:
        """Position of the label column."""
        return None if self.label is None else self.names.index(self.label)

    @property
    def classes(self) -> tuple[str, ...]:
        """Values of the label; a table without one is of a single class."""
        if self.label is None:
            return ("all",)
        return self[self.label].values or ("false", "true")

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def labels(self, table: Table) -> NDArray[np.int64]:
        """Class of each record [n]."""
        index = self.label_index
        return np.zeros(len(table), np.int64) if index is None else table[:, index].astype(np.int64)

    def to_json(self) -> dict[str, Any]:
        """The schema as plain JSON values."""
        return {
            "kind": "table",
            "columns": [c.to_json() for c in self.columns],
            "label": self.label,
            "missing_marks": list(self.missing_marks),
            "size": self.size,
        } | ({"ordered": [list(pair) for pair in self.ordered]} if self.ordered else {})

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> TableSchema:
        """Read back what `to_json` wrote, or what a person did; unknown keys are refused."""
        found = entries(value, _KINDS, "the schema")
        if "columns" not in found:
            raise SchemaError('the schema lacks "columns"; write a list like [{"name": "age", "kind": "integer", ...}]')
        fields = {k: v for k, v in found.items() if k not in ("kind", "columns")}
        if "missing_marks" in fields:
            fields["missing_marks"] = texts(fields["missing_marks"], "'missing_marks'")
        if bad := [pair for pair in fields.get("ordered", ()) if not isinstance(pair, list)]:
            raise SchemaError(f"ordered has {bad[0]!r}; write pairs of two of the columns, the smaller one first")
        fields["ordered"] = tuple(tuple(map(str, pair)) for pair in fields.get("ordered", ()))
        return TableSchema(columns=tuple(map(_column, found["columns"])), **fields)

    def disordered(self, table: Table) -> NDArray[np.bool_]:
        """Which records [n] break an order."""
        broken = np.zeros(len(table), bool)
        for a, b in self.ordered:
            broken |= table[:, self.names.index(a)] > table[:, self.names.index(b)]  # false where one is missing
        return broken

    def in_order(self, table: Table) -> Table:
        """The records with the larger column of each order raised to the smaller one, as far as bounds allow.

        Where they do not, the smaller one is lowered. All are raised first: one that was lowered in between would be
        raised again. A chain of orders needs as many passes as it has links.
        """
        table = table.copy()
        pairs = [(self.names.index(a), self.names.index(b)) for a, b in self.ordered]
        for i, j in pairs * len(pairs):
            bad = table[:, i] > table[:, j]
            table[bad, j] = self.columns[j].at_least(table[bad, i])
        for i, j in list(reversed(pairs)) * len(pairs):
            bad = table[:, i] > table[:, j]
            table[bad, i] = np.floor(table[bad, j]) if self.columns[i].whole else table[bad, j]
        return table

    def check(self, rows: Rows) -> None:
        """Raise `SchemaError` unless `rows` fit: `table` float64 [n, columns] of allowed numbers."""
        table = rows["table"]
        if table.dtype != np.float64 or table.shape[1:] != (len(self.columns),):
            raise SchemaError(f"the table is {table.dtype} [n, {table.shape[1:]}]; allowed is float64, a column each")
        self.check_table(table)

    def check_table(self, table: Table) -> None:
        """Raise `SchemaError` unless every number is allowed in its column."""
        for j, column in enumerate(self.columns):
            x = table[:, j]
            missing, (low, high) = np.isnan(x), column.bounds
            if missing.any() and not column.missing:
                raise SchemaError(f"column '{column.name}' lacks values; declare \"missing\": true, or fill them in")
            x = x[~missing]
            if not ((x >= low) & (x <= high)).all() or (column.whole and (x != np.round(x)).any()):
                raise SchemaError(f"column '{column.name}' holds values that its declaration does not allow")
        if self.disordered(table).any():
            raise SchemaError(f"records break one of the orders {[list(pair) for pair in self.ordered]}")


def _plain_bound(value: Any, kind: str) -> Any:
    """A number, a day or a moment as a file can hold it."""
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[s]").item()
    if not isinstance(value, date):  # a Timestamp is a date, too
        return plain_number(value)
    text = value.isoformat().replace("T", " ")
    return text[:10] if kind == "date" else text


def _column(value: Any) -> Column:
    name = value.get("name") if isinstance(value, Mapping) else None
    where = f"column {name!r}" if isinstance(name, str) else "a column"
    fields = entries(value, _COLUMN_KINDS, where)
    if missing := sorted({"name", "kind"} - set(fields)):
        raise SchemaError(f"{where} lacks {missing}")
    return Column(**{**fields, "values": texts(fields.get("values", []), f"{where}, 'values',")})

"""Table files: read in chunks as the schema declares them, split into parts, and written."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpgm.data.errors import DataError
from dpgm.data.frames import check_dtypes, mark_of, read_frame, settled, to_frame, too_long, values_as_read
from dpgm.data.table_files import SUFFIXES, chunks, header, is_parquet, pyarrow_, separator
from dpgm.schema import Rows, TableSchema
from dpgm.schema.table import Table

if TYPE_CHECKING:
    pass


_SEPARATORS = {",": "commas", "\t": "tabs"}


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
        if self.test_fraction is not None and self.test_path is not None:
            raise DataError(f"{self.name} has a test part of its own; leave out --test-fraction")
        for path in (self.path, self.test_path):
            if path is not None and not path.is_file():
                raise DataError(f"{path} does not exist; give a file ending in {', '.join(SUFFIXES)}")
            if path is not None and (absent := sorted(set(self.schema.names) - set(header(path, self.schema.names)))):
                told = "" if is_parquet(path) else f", whose names are separated by {_SEPARATORS[separator(path)]}"
                raise DataError(f"{path.name} has no column {absent}; correct the schema or the file's header{told}")
        for column in self.schema.columns:
            values_as_read(column)
            mark_of(column, self.schema.missing_marks)  # synthetic records will be written
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
            part = read_frame(frame, self.schema)
            part = part if held_out is None else part[self._held_out(part) == held_out]
            parts.append(settled(part, self.schema))
        whole, end = np.empty((sum(map(len, parts)), len(self.schema.columns))), 0
        for part in _emptied(parts):
            whole[end : end + len(part)] = part
            end += len(part)
        return Rows(table=whole)

    def _held_out(self, part: Table) -> NDArray[np.bool_]:
        """Which records are held out, whatever their bounds: those that a run finds must not change the parts."""
        bound = int((self.test_fraction or 0) * 2**64)
        digest = [hashlib.blake2b(r.tobytes(), digest_size=8).digest() for r in np.ascontiguousarray(part)]
        return np.array([int.from_bytes(d, "big") < bound for d in digest], dtype=bool)


def _emptied(parts: list[Table]) -> Iterator[Table]:
    """The parts in order, each let go when the next is asked for: they and their copy are never in memory together."""
    parts.reverse()
    while parts:
        yield parts.pop()


def write_table(table: Table, schema: TableSchema, path: Path) -> None:
    """Write a file of the kind that the name of `path` tells; `TableSet` reads the same numbers back."""
    if is_parquet(path):
        pyarrow_(path)
        short = [dataclasses.replace(c, dtype="") if any(map(too_long, c.values)) else c for c in schema.columns]
        to_frame(table, dataclasses.replace(schema, columns=tuple(short))).to_parquet(path, index=False)
    else:
        write_csv(table, schema, path)


def write_csv(table: Table, schema: TableSchema, path: Path) -> None:
    """Write texts, with tabs for .tsv; missing values as the first missing mark that is no value of the column."""
    plain = [dataclasses.replace(c, dtype="") if c.kind == "category" or c.unit else c for c in schema.columns]
    frame = to_frame(table, dataclasses.replace(schema, columns=tuple(plain)))
    for c in schema.columns:
        if c.unit:
            frame[c.name] = frame[c.name].dt.strftime("%Y-%m-%d" if c.unit == "D" else "%Y-%m-%d %H:%M:%S")
        elif c.kind == "category" and c.missing:
            frame[c.name] = frame[c.name].fillna(mark_of(c, schema.missing_marks))
    mark = schema.missing_marks[0].strip() if schema.missing_marks else ""
    frame.to_csv(path, sep=separator(path), index=False, na_rep=mark)

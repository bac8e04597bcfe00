"""Sums over the records of a table: weighted marginals on cells that the schema or earlier noisy answers define."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dpgm.privacy.guarantee import PrivacyError, Relation
from dpgm.privacy.mechanism import Array
from dpgm.schema import Column, Rows, TableSchema

_NUMBERS = 4_000_000
"""Numbers in a block of rows, about."""


@dataclass(frozen=True, kw_only=True)
class Cells:
    """How one column falls into cells: an interval of `edges`, then the group of that interval.

    Attributes:
        edges: increasing; interval i is edges[i] <= x < edges[i + 1], the last one is closed. Values outside fall into
            no cell.
        missing: whether missing values have an interval, behind all others; otherwise they fall into no cell.
        groups: the cell 0, 1, ... of each interval; () makes each a cell of its own.
    """

    edges: tuple[float, ...]
    missing: bool = False
    groups: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.edges) < 2 or any(a >= b for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise PrivacyError(f"{len(self.edges)} edges of cells; give two or more, increasing")
        if self.groups and (len(self.groups) != self.intervals or set(self.groups) != set(range(self.count))):
            raise PrivacyError(f"groups must name the cells 0, 1, ... of {self.intervals} intervals; got {self.groups}")

    @property
    def intervals(self) -> int:
        """Number of intervals, with that of missing values."""
        return len(self.edges) - 1 + self.missing

    @property
    def count(self) -> int:
        """Number of cells."""
        return max(self.groups) + 1 if self.groups else self.intervals

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.int64]:
        """The cell of each value [n]; -1 for none."""
        edges, last = np.array(self.edges), len(self.edges) - 2
        index = np.searchsorted(edges, x, side="right") - 1
        index[x == edges[-1]] = last
        index[(index > last) | (index < 0)] = -1
        index[np.isnan(x)] = last + 1 if self.missing else -1
        if self.groups:
            index = np.where(index < 0, -1, np.array(self.groups)[index])
        return index.astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Marginals:
    """Weighted marginals of the column `table`: for each block, w times the number of records in each of its cells.

    Proof: docs/proofs/marginals.md.

    Attributes:
        cells: for each column of the table, how it falls into cells.
        blocks: sets of columns, by position; a block's cells are the products of its columns' cells.
        weights: w of each block, above 0; a larger one buys less noise for the block.
    """

    cells: tuple[Cells, ...]
    blocks: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.blocks or len(self.blocks) != len(self.weights):
            raise PrivacyError(f"{len(self.blocks)} blocks have {len(self.weights)} weights; give one to each")
        if not all(w > 0 and math.isfinite(w) for w in self.weights):
            raise PrivacyError("a weight is not a finite number above 0; leave the block out instead")
        if any(not b or len(set(b)) < len(b) or not 0 <= min(b) <= max(b) < len(self.cells) for b in self.blocks):
            raise PrivacyError(f"a block names a column outside 0 to {len(self.cells) - 1}, twice, or none")

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of cells of each block."""
        return tuple(math.prod(self.cells[j].count for j in block) for block in self.blocks)

    @property
    def shape(self) -> tuple[int, ...]:
        """(number of all cells,): the blocks one after the other."""
        return (sum(self.sizes),)

    @property
    def block(self) -> int:
        """Rows in one partial sum: a row needs a number a column, but every sum is as long as the answer."""
        return max(1000, _NUMBERS // len(self.cells))

    def partial(self, rows: Rows) -> Array:
        """Weighted counts of one block of rows."""
        table = rows["table"]
        if table.ndim != 2 or table.shape[1] != len(self.cells):
            raise PrivacyError(
                f"the table has shape [n, {table.shape[1:]}]; the query is for {len(self.cells)} columns"
            )
        codes = {j: self.cells[j](table[:, j]) for j in {j for block in self.blocks for j in block}}
        outside = {j for j, code in codes.items() if (code < 0).any()}
        parts: list[Array] = []
        for block, size, weight in zip(self.blocks, self.sizes, self.weights, strict=True):
            index = codes[block[0]]
            for j in block[1:]:
                index = index * self.cells[j].count + codes[j]
            if not outside.isdisjoint(block):
                index = index[np.all([codes[j] >= 0 for j in block], axis=0)]
            parts.append(weight * np.bincount(index, minlength=size).astype(np.float64))
        return np.concatenate(parts)

    def split(self, answer: Array) -> list[Array]:
        """An answer as one array of counts for each block, its columns as axes; the weights are divided out."""
        ends = np.cumsum(self.sizes)[:-1]
        parts = np.split(answer, ends)
        shapes = [[self.cells[j].count for j in block] for block in self.blocks]
        return [p.reshape(s) / w for p, s, w in zip(parts, shapes, self.weights, strict=True)]

    def sensitivity(self, relation: Relation, norm: int = 2) -> float:
        """One record adds w to one cell of a block: |w| under ADD_REMOVE; sqrt(2) |w|_2 or 2 |w|_1 under REPLACE."""
        if norm not in (1, 2):
            raise PrivacyError(f"norm is {norm}; allowed is 1 or 2")
        size = math.fsum(self.weights) if norm == 1 else math.hypot(*self.weights)
        if relation is Relation.ADD_REMOVE:
            return size
        return 2 * size if norm == 1 else math.sqrt(2) * size

    def assumptions(self) -> tuple[str, ...]:
        """None: cells are declared or come from earlier noisy answers."""
        return ()


@dataclass(frozen=True, kw_only=True)
class TableVectors:
    """Records of a table as vectors of norm 1 without negative entries, for the row-wise releases.

    Every column has the same norm, but for the label, whose norm is `label` times theirs: a category is one-hot, a
    number v in [0, 1] of its bounds becomes (cos, sin)(pi v/2), and a value that may be missing has one more axis for
    that.

    Attributes:
        schema: public facts.
        label: norm of the label's axes over that of another column, above 0.
    """

    schema: TableSchema
    label: float = 1.0

    def __post_init__(self) -> None:
        if not (self.label > 0 and math.isfinite(self.label)):
            raise PrivacyError(f"label is {self.label}; allowed is a finite number above 0")

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of axes of each column."""
        return tuple(_axes(c) + c.missing for c in self.schema.columns)

    @property
    def dim(self) -> int:
        """Number of axes."""
        return sum(self.sizes)

    @cached_property
    def norms(self) -> tuple[float, ...]:
        """Norm of each column's axes; their squares sum to 1."""
        raw = [self.label if j == self.schema.label_index else 1.0 for j in range(len(self.sizes))]
        return tuple(r / math.hypot(*raw) for r in raw)

    def axes(self, j: int, x: Array) -> Array:
        """Axes of values [n] of column j before its norm, [n, sizes[j]]."""
        column, out = self.schema.columns[j], np.zeros((len(x), self.sizes[j]))
        known = ~np.isnan(x)
        if column.kind in ("category", "boolean"):
            out[known, x[known].astype(int)] = 1.0
        else:
            low, high = column.bounds
            angle = np.pi / 2 * (np.clip(x[known], low, high) - low) / (high - low)
            out[known, 0], out[known, 1] = np.cos(angle), np.sin(angle)
        if column.missing:
            out[~known, -1] = 1.0
        return out

    def __call__(self, rows: Rows) -> Array:
        """Vectors [n, dim]."""
        table = rows["table"]
        return np.concatenate([norm * self.axes(j, table[:, j]) for j, norm in enumerate(self.norms)], axis=1)


def _axes(column: Column) -> int:
    return len(column.values) or 2  # booleans are one-hot, numbers have a cosine and a sine

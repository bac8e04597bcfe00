"""Tables from noisy marginals: two rounds of one-hot slices, a mixture of products trained on them, records from it.

Round one releases the one-way marginals on fine intervals. They decide, for free, which intervals are joined to cells:
each cell holds enough records to stand out of the noise, and a single crowded value stays a cell of its own. Round two
releases all two-way marginals of the cells, with the label in each of them or beside them.
"""

from __future__ import annotations

import itertools
import math
import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpgm.mechanisms.tables import Cells, Marginals
from dpgm.methods.base import Model, Release, Tensors
from dpgm.methods.options import check_count, check_seed
from dpgm.methods.table_batch import TableBatch, table_batch
from dpgm.nets.mixture import ProductMixture, Targets
from dpgm.schema import Column, SchemaError, TableSchema
from dpgm.schema.table import Table

FINE = 256
"""Intervals of a numeric column in the first round, at most about."""
_REDRAWS = 10
"""Times that records which break a declared order are drawn again, before they are put in order."""
_STANDS_OUT = 3.0
"""Standard deviations of noise above which a count is taken for real."""


# ---------------------------------------------------------------------------------------------------------------------
# Cells


def fine_cells(column: Column) -> Cells:
    """Intervals of a column by its declaration alone: each category and small whole number, else a linear and a
    logarithmic grid laid over one another, with zero apart.
    """
    low, high = column.bounds
    if column.kind in ("category", "boolean"):
        return Cells(edges=tuple(np.arange(low, high + 2)), missing=column.missing)
    if column.whole and high - low < FINE:
        return Cells(edges=tuple(np.arange(low, high + 2) - 0.5), missing=column.missing)
    zero = min(max(0.0, low), high)
    unit = 1.0 if column.whole else max((high - low) * 1e-5, 10.0 ** -(column.decimals or 12))
    tiny = max(1e-8 * (high - low), 0.0 if column.decimals is None else 0.5 * 10.0**-column.decimals)
    points = [np.linspace(low, high, FINE // 2 + 1), np.array([zero, zero + tiny])]  # many columns are often just 0
    for end in (low, high):
        if abs(end - zero) > unit:
            points.append(zero + math.copysign(1, end - zero) * np.geomspace(unit, abs(end - zero), FINE // 4))
    edges = np.concatenate(points)
    if column.whole:
        edges = np.concatenate([np.round(edges), [zero + 1, high + 1]]) - 0.5
        low, high = low - 0.5, high + 0.5
    edges = np.unique(np.clip(edges, low, high))
    wide_enough = np.r_[True, np.diff(edges) > 1e-9 * (high - low)]
    return Cells(edges=tuple(float(e) for e in edges[wide_enough]), missing=column.missing)


def join_cells(fine: Cells, counts: NDArray[np.float64], *, least: float, std: float, ordered: bool) -> Cells:
    """Join intervals of too few records.

    Neighbouring intervals of an ordered column are joined until they hold `least` records; an interval that holds as
    many alone is a cell of its own. Categories within the noise are joined to one cell. Missing values stay apart.

    Args:
        fine: the intervals.
        counts: their noisy counts.
        least: records that a cell should hold.
        std: standard deviation of the noise.
        ordered: whether neighbours belong together.
    """
    m = len(fine.edges) - 1
    groups = np.zeros(fine.intervals, np.int64)
    if ordered:
        cell, held = 0, 0.0
        for i in range(m):
            alone = counts[i] >= least and held >= least / 3
            if i and (held >= least or alone):
                cell, held = cell + 1, 0.0
            groups[i] = cell
            held += max(counts[i], 0.0)
        if cell and held < least / 3:
            groups[:m][groups[:m] == cell] = cell - 1
    else:
        small = counts[:m] < _STANDS_OUT * std
        if small.sum() > 1:
            groups[:m] = np.where(small, (~small).sum(), np.cumsum(~small) - 1)
        else:
            groups[:m] = np.arange(m)
    if fine.missing:
        groups[-1] = groups[:m].max() + 1
    return replace(fine, groups=tuple(groups.tolist()))


def most_kept(categories: int, size: int | None, std: float) -> int:
    """About how many categories of `size` records can stand out of the noise, those that the noise makes among them."""
    return (
        categories if size is None else min(categories, math.ceil(size / (_STANDS_OUT * std) + 0.002 * categories + 2))
    )


# ---------------------------------------------------------------------------------------------------------------------
# The two rounds


def one_way(schema: TableSchema) -> Marginals:
    """Round one: every column on its fine intervals."""
    q = len(schema.columns)
    blocks = tuple((j,) for j in range(q))
    return Marginals(cells=tuple(map(fine_cells, schema.columns)), blocks=blocks, weights=(1.0,) * q)


def choose_cells(schema: TableSchema, one: NDArray[np.float64], std: float, most: int) -> list[Cells]:
    """What round one makes of the intervals; the label keeps its classes.

    Args:
        schema: public facts.
        one: the noisy answer of `one_way`.
        std: standard deviation of its noise.
        most: cells of a numeric column, about.
    """
    counts = one_way(schema).split(one)
    n = max(1.0, float(np.median([c.sum() for c in counts])))
    least = max(n / most, _STANDS_OUT * std)
    cells: list[Cells] = []
    for j, column in enumerate(schema.columns):
        fine, ordered = fine_cells(column), column.kind not in ("category", "boolean")
        joined = join_cells(fine, counts[j], least=least, std=std, ordered=ordered)
        cells.append(fine if j == schema.label_index else joined)
    return cells


def two_way(schema: TableSchema, cells: Sequence[Cells], *, pair: float, label: float, triple: float) -> Marginals:
    """Round two: pairs of features, features with the label, and pairs of features with the label.

    Args:
        schema: public facts.
        cells: cells of each column.
        pair: weight of the pairs without the label; 0 leaves them out.
        label: weight of each feature with the label, above 0; of each feature alone where there is no label.
        triple: weight of the pairs with the label; 0 leaves them out.
    """
    index = schema.label_index
    features = [j for j in range(len(schema.columns)) if j != index]
    plain = pair if index is not None else max(pair, triple)
    found: list[tuple[tuple[int, ...], float]] = []
    for i, j in itertools.combinations(features, 2):
        if plain > 0:
            found.append(((i, j), plain))
        if triple > 0 and index is not None:
            found.append(((i, j, index), triple))
    found += [((j,) if index is None else (j, index), label) for j in features]
    blocks, weights = zip(*found, strict=True)
    return Marginals(cells=tuple(cells), blocks=blocks, weights=weights)


@dataclass(frozen=True, kw_only=True)
class Released:
    """Both answers, read as counts.

    Attributes:
        schema: public facts.
        cells: cells of each column, by round one.
        one: noisy counts of the intervals of each column.
        one_std: their standard deviation of noise.
        query: the second round's query.
        two: noisy counts of the second round's blocks.
        two_std: standard deviation of noise on the answer of the second round (before weights are divided out).
    """

    schema: TableSchema
    cells: tuple[Cells, ...]
    one: list[NDArray[np.float64]]
    one_std: float
    query: Marginals
    two: list[NDArray[np.float64]]
    two_std: float

    @property
    def size(self) -> float:
        """Noisy number of records: every block counts them all; less noisy ones weigh more."""
        known = [(c.sum(), c.size * self.one_std**2) for c in self.one]
        pairs = zip(self.two, self.query.weights, strict=True)
        known += [(c.sum(), c.size * (self.two_std / w) ** 2) for c, w in pairs]
        sums, variances = np.array(known).T
        return max(1.0, float((sums / variances).sum() / (1 / variances).sum()))

    def targets(self) -> tuple[list[int], Targets]:
        """Cells of each feature, and what the mixture should match."""
        schema, n = self.schema, self.size
        index = schema.label_index
        features = [j for j in range(len(schema.columns)) if j != index]
        counts = [self.cells[j].count for j in features]
        ends = np.cumsum([0, *counts])
        at = {j: slice(int(ends[k]), int(ends[k + 1])) for k, j in enumerate(features)}
        classes, d = schema.n_classes, int(ends[-1])
        first, first_precision = np.zeros((classes, d)), np.zeros(d)
        second, second_precision = np.zeros((classes, d, d), np.float32), np.zeros((d, d))
        pooled, pooled_precision = np.zeros((d, d)), np.zeros((d, d))
        for block, weight, count in zip(self.query.blocks, self.query.weights, self.two, strict=True):
            share, precision = count / n, (n * weight / self.two_std) ** 2
            a, b = at[block[0]], at.get(block[1]) if len(block) > 1 else None
            if b is None:
                first[:, a] = share.T
                first_precision[a] = precision
            elif len(block) == 2:
                pooled[a, b], pooled[b, a] = share, share.T
                pooled_precision[a, b] = pooled_precision[b, a] = precision
            else:
                by_class = np.moveaxis(share, 2, 0)
                second[:, a, b], second[:, b, a] = by_class, by_class.transpose(0, 2, 1)
                second_precision[a, b] = second_precision[b, a] = precision
        arrays = (first, first_precision, second, second_precision, pooled, pooled_precision)
        names = ("first", "first_precision", "second", "second_precision", "pooled", "pooled_precision")
        return counts, Targets(**{k: torch.from_numpy(v).float() for k, v in zip(names, arrays, strict=True)})


# ---------------------------------------------------------------------------------------------------------------------
# Records


class TableModel(Model):
    """What models of tables share: classes are drawn as they were released, unless they are asked for."""

    @property
    def table_schema(self) -> TableSchema:
        """Public facts about the columns."""
        schema: Any = self.release.schema
        assert isinstance(schema, TableSchema)
        return schema

    @abstractmethod
    def class_shares(self) -> NDArray[np.float64]:
        """Share of each class [classes], as released."""

    @abstractmethod
    def records(self, labels: NDArray[np.int64], rng: np.random.Generator) -> Table:
        """One record for each label."""

    def sample(self, n: int, *, labels: Any = None, seed: int | None = None) -> TableBatch:
        """Draw synthetic records; as often as you like, it is free.

        Args:
            n: how many, 0 or more.
            labels: the class of each by its value, [n], or by its position where no class is a whole number; without
                them classes are as frequent as released.
            seed: makes the draw reproducible.

        Raises:
            SchemaError: labels of another length or that are no class.
        """
        check_count(n, "n")
        check_seed(0 if seed is None else seed)
        schema, rng = self.table_schema, np.random.default_rng(seed)
        if labels is None:
            shares = np.maximum(self.class_shares(), 0)
            chosen = rng.choice(schema.n_classes, size=n, p=shares / shares.sum())
        else:
            chosen = _positions(labels, schema)
        if chosen.shape != (n,):
            raise SchemaError(f"labels have shape {chosen.shape}; give one for each of the {n} records")
        if not n:
            return table_batch(np.zeros((0, len(schema.columns))), schema)
        return self._sample(chosen.astype(np.int64), rng)

    def _sample(self, labels: NDArray[np.int64], rng: np.random.Generator) -> TableBatch:
        schema, table = self.table_schema, self.records(labels, rng)
        for _ in range(_REDRAWS):
            bad = schema.disordered(table)
            if not bad.any():
                break
            table[bad] = self.records(labels[bad], rng)
        return table_batch(schema.in_order(table), schema)


def _positions(labels: Any, schema: TableSchema) -> NDArray[np.int64]:
    """Positions of classes that are given by value, or by position where no class is a whole number."""
    values, classes = np.asarray(labels), [_plain(c) for c in schema.classes]
    numbered = any(c.lstrip("+-").isdecimal() for c in classes)
    if numbered or not np.issubdtype(values.dtype, np.integer):
        known = {c: i for i, c in enumerate(classes)} | {c: i for i, c in enumerate(schema.classes)}
        found = [known.get(str(v), known.get(_plain(v), -1)) for v in values.ravel()]
        values = np.array(found, dtype=np.int64).reshape(values.shape)
    if ((values < 0) | (values >= schema.n_classes)).any():
        positions = "" if numbered else ", or their positions from 0"
        raise SchemaError(f"labels must be among {', '.join(schema.classes)}{positions}")
    return values.astype(np.int64)


def _plain(value: Any) -> str:
    """A class as it is declared: truth values in small letters, and 3.0, as pandas has a 3 beside a gap, as 3."""
    text = str(value)
    return text.lower() if text in ("True", "False") else re.sub(r"^([+-]?\d+)\.0$", r"\1", text)


class MixtureModel(TableModel):
    """Records from a mixture of products: a cell of each column, then a value within the cell."""

    def __init__(
        self,
        release: Release,
        net: ProductMixture,
        cells: Sequence[Cells],
        counts: Sequence[NDArray[np.float64]],
        std: float = 0.0,
    ) -> None:
        """A model of `net`; what is in a cell is drawn by noisy `counts` of each column's intervals and their `std`."""
        super().__init__(release)
        self.net, self.cells, self.counts, self.std = net, tuple(cells), tuple(counts), std

    def tensors(self) -> Tensors:
        """The mixture's weights."""
        return {k: v.detach().numpy() for k, v in self.net.state_dict().items()}

    def class_shares(self) -> NDArray[np.float64]:
        """Weights of the classes' mixtures."""
        return self.net.shares()[0].sum(1).detach().double().numpy()

    def records(self, labels: NDArray[np.int64], rng: np.random.Generator) -> Table:
        """One record for each label."""
        schema, index = self.table_schema, self.table_schema.label_index
        noise = torch.Generator().manual_seed(int(rng.integers(2**63)))
        cells = self.net.sample(torch.from_numpy(labels), rng=noise).numpy()
        out = np.empty((len(labels), len(schema.columns)))
        features = [j for j in range(out.shape[1]) if j != index]
        if index is not None:
            out[:, index] = labels
        for k, j in enumerate(features):
            out[:, j] = draw_values(cells[:, k], schema.columns[j], self.cells[j], self.counts[j], self.std, rng)
        return out


def draw_values(
    chosen: NDArray[np.int64],
    column: Column,
    cells: Cells,
    counts: NDArray[np.float64],
    std: float,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """A value in each chosen cell: an interval by its noisy count, then uniform in it."""
    groups = np.array(cells.groups or range(cells.intervals))
    interval = np.empty(len(chosen), np.int64)
    for cell in range(cells.count):
        mine, options = np.flatnonzero(chosen == cell), np.flatnonzero(groups == cell)
        mass = np.where(counts[options] > std, counts[options], 0.0)  # what is within the noise is not worth a value
        mass = mass if mass.any() else np.ones(len(options))
        interval[mine] = rng.choice(options, size=len(mine), p=mass / mass.sum())
    edges = np.array([*cells.edges, np.nan, np.nan])
    if column.kind in ("category", "boolean"):
        x = edges[interval]
    else:
        x = column.settle(edges[interval] + rng.random(len(chosen)) * (edges[interval + 1] - edges[interval]))
    return np.where(interval == len(cells.edges) - 1, np.nan, x)

"""Public features of table records: a fixed map of each record alone, made of the declared columns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpgm.schema import TableSchema
from dpgm.schema.table import Table

_LEVELS = 8
"""Thresholds on each of a number's two scales."""


class ColumnFeatures:
    """Records as vectors of norm at most 1: categories one-hot, numbers by the thresholds that they pass.

    A number passes thresholds on a linear and on a logarithmic scale between its declared bounds; what is missing is a
    category of its own. A constant is added, and the vector is divided by the root of the number of its parts.

    Args:
        schema: public facts; the label is no feature.
    """

    def __init__(self, schema: TableSchema) -> None:
        self.columns = [(i, c) for i, c in enumerate(schema.columns) if i != schema.label_index]
        sizes = [len(c.values) or (2 if c.kind == "boolean" else 2 * _LEVELS) for _, c in self.columns]
        self.dim = 1 + sum(size + 1 for size in sizes)
        self._sizes = sizes

    def __call__(self, table: Table) -> NDArray[np.float32]:
        """Features [n, dim] of records [n, columns]."""
        parts = [np.ones((len(table), 1))]
        for (i, column), size in zip(self.columns, self._sizes, strict=True):
            x, missing = table[:, i], np.isnan(table[:, i])
            if column.kind in ("category", "boolean"):
                part = np.eye(size + 1)[np.where(missing, size, x).astype(int)]
            else:
                low, high = column.bounds
                u = (np.where(missing, low, x) - low) / (high - low)
                v = np.log1p(999 * u) / np.log(1000)
                steps = (np.arange(_LEVELS) + 0.5) / _LEVELS
                passed = np.concatenate([s[:, None] > steps for s in (u, v)], axis=1) / np.sqrt(2 * _LEVELS)
                part = np.concatenate([np.where(missing[:, None], 0, passed), missing[:, None]], axis=1)
            parts.append(part)
        return (np.concatenate(parts, axis=1) / np.sqrt(len(parts))).astype(np.float32)

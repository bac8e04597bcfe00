"""Synthetic records of a table; apart from the models that draw them, as reading them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dpgm.methods.base import Batch
from dpgm.schema import TableSchema
from dpgm.schema.table import Table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class TableBatch(Batch):
    """Synthetic records of a table.

    Attributes:
        table: float64 [n, columns], as `dpgm.schema.table.Table`.
        schema: what the numbers mean.
    """

    table: Table
    schema: TableSchema

    def frame(self) -> pd.DataFrame:
        """The records as a pandas frame: declared columns, order and dtypes; missing values as pandas has them."""
        from dpgm.data.frames import to_frame

        return to_frame(self.table, self.schema)


def table_batch(table: Table, schema: TableSchema) -> TableBatch:
    """Records that fit the schema, as a batch; its images are empty.

    Raises:
        SchemaError: a number is not allowed in its column.
    """
    schema.check_table(table)
    empty = np.zeros((len(table), 0, 0, 1), np.uint8)
    return TableBatch(table=table, schema=schema, images=empty, labels=schema.labels(table))

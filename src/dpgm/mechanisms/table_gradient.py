"""Clipped per-record gradients on records of a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpgm.mechanisms.gradient import foreign_task
from dpgm.mechanisms.per_record import Loss, clipped_gradient_sum
from dpgm.privacy.guarantee import Evidence
from dpgm.privacy.mechanism import NoiseSource
from dpgm.schema import Rows, TableSchema
from dpgm.schema.table import Table


@dataclass(frozen=True, kw_only=True, eq=False)
class TableGradient:
    """Clipped gradients of a module's loss on public features of table records, and their labels: a `Task`.

    Attributes:
        module: the net; it must treat each record alone.
        loss: `loss(module, features [b, d], labels [b])` -> one loss for each row.
        clip_norm: C.
        schema: says which column is the label.
        features: a public map of records [b, columns] to [b, d], each of its own row only.
    """

    module: nn.Module
    loss: Loss
    clip_norm: float
    schema: TableSchema
    features: Callable[[Table], NDArray[np.float32]]

    @property
    def evidence(self) -> Evidence:
        """Proved, given the assumptions: the clip bounds whatever the features do."""
        return Evidence.PROVED

    def assumptions(self) -> tuple[str, ...]:
        """That each record is treated alone, where this project did not make what treats it."""
        return foreign_task(self.module, self.loss, self.features)

    @property
    def bound(self) -> float:
        """C."""
        return self.clip_norm

    def clipped_sum(self, rows: Rows, chosen: NDArray[np.intp], noise: NoiseSource) -> Tensor:
        """The sum over the chosen records, `[p]`."""
        table = rows["table"][chosen]
        inputs = (torch.from_numpy(self.features(table)), torch.from_numpy(self.schema.labels(table)))
        return clipped_gradient_sum(self.loss, self.module, inputs, clip_norm=self.clip_norm)

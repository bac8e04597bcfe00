"""A generator of table records as vectors: Gumbel-softmax for categories, an angle for numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpgm.nets.generators import initialise, one_hot


class TableGenerator(nn.Module):
    """Records [n, D] from a normal latent vector and a class, each column of its own norm.

    Categories, and whether a value is missing, are drawn by straight-through Gumbel-softmax: exactly one-hot forwards,
    smooth backwards. A number is sigmoid(a) in [0, 1] of its bounds, as (cos, sin)(pi v/2).

    Args:
        columns: for each column (number of categories, or 0 for a number; whether it may be missing).
        label: position of the label column, whose value is the class; None for none.
        n_classes: number of classes.
        latent: length of the latent vector.
        hidden: units of the two hidden layers.
        norms: norm of each column's axes; None is 1/sqrt(columns) for all.
        rng: source of the first weights.
    """

    def __init__(
        self,
        columns: Sequence[tuple[int, bool]],
        *,
        label: int | None,
        n_classes: int,
        latent: int,
        hidden: int,
        rng: torch.Generator,
        norms: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.norms = tuple(norms or [1 / math.sqrt(len(columns))] * len(columns))
        self.columns, self.label, self.n_classes, self.latent = tuple(columns), label, n_classes, latent
        self.widths = [(k or 1) + (2 * m if not k else m) for k, m in self.columns]
        self.net = nn.Sequential(
            nn.Linear(latent + n_classes, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, sum(self.widths)),
        )
        initialise(self, rng)

    def start(self, shares: Tensor) -> None:
        """Begin at given one-hot means [D] of the categories: the last layer's biases."""
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            at, axis = 0, 0
            for (k, m), width, norm in zip(self.columns, self.widths, self.norms, strict=True):
                size = (k or 2) + m
                if k:
                    last.bias[at : at + size] = (shares[axis : axis + size] / norm).clamp(1e-3).log()
                at, axis = at + width, axis + size

    def draw(self, y: Tensor, *, rng: torch.Generator, temperature: float = 0.7) -> tuple[Tensor, Tensor]:
        """Vectors [n, D] and values [n, columns] (the position of a category, v in [0, 1] or NaN) for classes [n]."""
        z = torch.randn(len(y), self.latent, generator=rng)
        parts = self.net(torch.cat([z, one_hot(y, self.n_classes)], 1)).split(self.widths, 1)
        vectors: list[Tensor] = []
        values: list[Tensor] = []
        for j, ((k, missing), a) in enumerate(zip(self.columns, parts, strict=True)):
            if j == self.label:
                vectors.append(one_hot(y, self.n_classes))
                values.append(y.float())
            elif k:
                hot = _gumbel(a, temperature, rng)
                vectors.append(hot)
                code = hot.detach().argmax(1).float()
                values.append(torch.where(code == k, torch.nan, code))
            else:
                v = a[:, 0].sigmoid()
                there = _gumbel(a[:, 1:], temperature, rng) if missing else None
                pair = torch.stack([(math.pi / 2 * v).cos(), (math.pi / 2 * v).sin()], 1)
                vectors.append(pair if there is None else torch.cat([pair * there[:, :1], there[:, 1:]], 1))
                gone = torch.zeros(len(y), dtype=torch.bool) if there is None else there[:, 1] > 0.5
                values.append(torch.where(gone, torch.nan, v.detach()))
        scaled = [norm * v for norm, v in zip(self.norms, vectors, strict=True)]
        return torch.cat(scaled, 1), torch.stack(values, 1)


def _gumbel(logits: Tensor, temperature: float, rng: torch.Generator) -> Tensor:
    """One-hot draws [n, k] that are differentiated as softmax((logits + Gumbel)/temperature)."""
    u = torch.rand(logits.shape, generator=rng).clamp(1e-9, 1 - 1e-7)
    soft = ((logits - (-u.log()).log()) / temperature).softmax(1)
    hard = functional.one_hot(soft.argmax(1), soft.shape[1]).float()
    return hard + soft - soft.detach()

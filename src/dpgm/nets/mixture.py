"""A mixture of products for tables of cells: its two-way marginals are exact, so training sees no sampling noise.

p(y, x) = sum_k pi_yk prod_j theta_ykj(x_j): within a component the columns are independent, and enough components
describe any dependence. Nothing here knows of privacy: targets are released, already noisy marginals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Noisy marginals as shares of all records, with the precision (1/variance) of each number; D cells in all.

    Attributes:
        first: share of each class and cell, [classes, D].
        first_precision: [D], 0 where nothing is known.
        second: share of each class and pair of cells, [classes, D, D], symmetric.
        second_precision: [D, D], 0 where nothing is known, as for cells of one column.
        pooled: share of each pair of cells over all classes, [D, D].
        pooled_precision: [D, D].
    """

    first: Tensor
    first_precision: Tensor
    second: Tensor
    second_precision: Tensor
    pooled: Tensor
    pooled_precision: Tensor


class ProductMixture(nn.Module):
    """Mixtures of products, one for each class.

    With `axes` A, cells are known by A features only: the law of a column is the exponential family exp(logits . A),
    the one of greatest entropy among those of its moments, and moments are means of A.

    Args:
        counts: number of cells of each column (without the class).
        n_classes: number of classes.
        components: products in the mixture of one class.
        rng: source of the first weights.
        axes: features of each cell [D, d], 0 beyond its own column's; None makes each cell its own.
    """

    def __init__(
        self,
        counts: Sequence[int],
        n_classes: int,
        components: int,
        *,
        rng: torch.Generator,
        axes: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.counts, self.n_classes, self.components = tuple(counts), n_classes, components
        d = sum(counts) if axes is None else axes.shape[1]
        self.logits = nn.Parameter(torch.randn(n_classes, components, d, generator=rng))
        self.axes: Tensor | None
        self.register_buffer("axes", axes, persistent=False)
        self.prior = nn.Parameter(torch.zeros(n_classes, components))
        columns = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        self.member: Tensor
        self.register_buffer("member", nn.functional.one_hot(columns, len(counts)).float(), persistent=False)

    def start(self, first: Tensor) -> None:
        """Begin at given shares of cells [classes, D]; components differ by their random first weights."""
        with torch.no_grad():
            shares = first.clamp(min=0) + 1e-6
            shares = shares / (shares @ self.member @ self.member.T)
            self.logits += shares.log()[:, None]
            column = self.member.sum(0).argmin()  # any column sums to the class
            weight = (first.clamp(min=1e-6) * self.member[:, column]).sum(1)
            self.prior += weight.log()[:, None]

    def shares(self) -> tuple[Tensor, Tensor]:
        """(pi [classes, components], theta [classes, components, D])."""
        weight = self.prior.flatten().softmax(0).view_as(self.prior)
        logits = self.logits if self.axes is None else self.logits @ self.axes.T
        scale = (logits - logits.amax(2, keepdim=True).detach()).clamp(min=-60).exp()
        return weight, scale / (scale @ self.member @ self.member.T)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Shares of classes and cells [classes, D], and of classes and pairs of cells [classes, D, D]; of axes, d."""
        weight, theta = self.shares()
        theta = theta if self.axes is None else theta @ self.axes
        weighted = theta * weight[:, :, None]
        return weighted.sum(1), weighted.transpose(1, 2) @ theta

    @torch.no_grad()
    def sample(self, labels: Tensor, *, rng: torch.Generator) -> Tensor:
        """A cell of each column [n, columns] for each class in `labels` [n]."""
        weight, theta = self.shares()
        out = torch.empty(len(labels), len(self.counts), dtype=torch.long)
        for y in labels.unique().tolist():
            mine = (labels == y).nonzero()[:, 0]
            component = torch.multinomial(weight[y], len(mine), replacement=True, generator=rng)
            for j, part in enumerate(theta[y].split(self.counts, 1)):
                edges = part.cumsum(1)
                u = torch.rand(len(mine), 1, generator=rng) * edges[component, -1:]
                out[mine, j] = torch.searchsorted(edges[component], u, right=True)[:, 0].clamp(max=part.shape[1] - 1)
        return out


def fit_mixture(
    net: ProductMixture,
    targets: Targets,
    *,
    steps: int,
    lr: float = 0.1,
    on_step: Callable[[int, float], None] | None = None,
) -> float:
    """Least squares of all marginals, each number in units of its noise; returns the last loss per number.

    A value near 1 means that what is left looks like noise. Adam with a cosine rate.

    Args:
        net: the mixture, after `start`.
        targets: what its moments should be.
        steps: optimiser steps.
        lr: highest learning rate.
        on_step: called with the step's number and the loss per number.
    """
    numbers = float(
        net.n_classes * ((targets.first_precision > 0).sum() + (targets.second_precision > 0).sum() / 2)
        + (targets.pooled_precision > 0).sum() / 2
    )
    optimiser = torch.optim.Adam(net.parameters(), lr=lr, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda t: 0.5 + 0.5 * math.cos(math.pi * t / steps))
    value = math.nan
    for step in range(steps):
        first, second = net.moments()
        loss = (targets.first_precision * (first - targets.first).square()).sum()
        loss = loss + (targets.second_precision * (second - targets.second).square()).sum() / 2
        if targets.pooled_precision.any():
            loss = loss + (targets.pooled_precision * (second.sum(0) - targets.pooled).square()).sum() / 2
        optimiser.zero_grad(set_to_none=True)
        (loss / numbers).backward()
        optimiser.step()
        schedule.step()
        value = float(loss.detach()) / numbers
        if on_step:
            on_step(step, value)
    return value

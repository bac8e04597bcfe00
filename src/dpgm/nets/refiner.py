"""A net that puts back what a picture loses when only its low frequencies are kept; learnt from made-up pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dpgm.nets.classifiers import to_unit
from dpgm.nets.coordinates import Coordinates
from dpgm.nets.generators import initialise
from dpgm.nets.procedural import procedural_images

_WIDTH, _PICTURES, _BATCH, _LR = 24, 1500, 64, 3e-3


class Refiner(nn.Module):
    """R(x) = x + F(x), F three convolutions that begin at zero; each picture is treated alone.

    Args:
        channels: colour channels.
        rng: source of the first weights; None leaves them to be loaded.
    """

    def __init__(self, channels: int, *, rng: torch.Generator | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, _WIDTH, 5, padding=2)
        self.middle = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=2, dilation=2)
        self.last = nn.Conv2d(_WIDTH, channels, 3, padding=1)
        if rng is not None:
            initialise(self, rng)
            nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Sharper pictures [b, c, h, w] of blurred ones."""
        out = functional.relu(self.middle(functional.relu(self.first(x - 0.5))))
        return x + self.last(out)

    @torch.no_grad()
    def refined(self, x: Tensor, *, batch: int = 500) -> Tensor:
        """The same in batches, without gradients."""
        return torch.cat([self(part) for part in x.split(batch)])


def train_refiner(
    coordinates: Coordinates, *, steps: int, seed: int, on_step: Callable[[int, float], None] | None = None
) -> Refiner:
    """A refiner for pictures that have the frequencies of `coordinates` only.

    Made-up pictures are set upright as the records are, and the net learns to make them of what `coordinates` keep of
    them, by mean absolute error (whose optimum is an edge where the mean would be a blur). Adam, cosine rate. No record
    and no release enters.

    Args:
        coordinates: what is kept of a picture.
        steps: optimiser steps, 1 or more.
        seed: of pictures, weights and order.
        on_step: called with the step's number and its loss.
    """
    rng, coins = np.random.default_rng([seed, 1]), torch.Generator().manual_seed(seed)
    size = {"height": coordinates.height, "width": coordinates.width, "channels": coordinates.channels}
    sharp = coordinates.straight(to_unit(procedural_images(_PICTURES, **size, rng=rng)))[0]
    blurred = coordinates.synthesise(coordinates.analyse(sharp))
    net = Refiner(coordinates.channels, rng=coins)
    optimiser = torch.optim.Adam(net.parameters(), lr=_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        index = torch.randint(len(sharp), (_BATCH,), generator=coins)
        loss = (net(blurred[index]) - sharp[index]).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if on_step:
            on_step(step, float(loss.detach()))
    return net.eval().requires_grad_(False)


def refiner_from(tensors: Mapping[str, NDArray[Any]], channels: int) -> Refiner:
    """The refiner with given weights."""
    net = Refiner(channels)
    net.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()})
    return net.eval().requires_grad_(False)

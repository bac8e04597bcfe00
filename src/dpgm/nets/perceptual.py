"""A small VGG that learns perceptual features from public pictures, and is folded into plain convolutions."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dpgm.nets.classifiers import to_unit
from dpgm.nets.generators import initialise
from dpgm.nets.layers import LayerNet
from dpgm.nets.looks import move

WIDTHS = ((16, 16), (32, 32), (64, 64), (96,))
"""Channels of the 3x3 convolutions; sides are halved between the groups. About 156,000 weights in all."""


class Tower(LayerNet):
    """3x3 convolutions in groups, with max pooling between them; returns every map after its ReLU.

    Args:
        channels: of the images, 1 or 3.
        widths: channels of each convolution, by group.
        norm: whether batch normalisation follows each convolution: only while it is trained.
        rng: source of the initial weights; None leaves them to be loaded.
    """

    def __init__(
        self,
        channels: int,
        widths: tuple[tuple[int, ...], ...] = WIDTHS,
        *,
        norm: bool,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.widths, self.channels = widths, channels
        self.convolutions = nn.ModuleList()
        self.norms = nn.ModuleList()
        inside = channels
        for width in (w for group in widths for w in group):
            self.convolutions.append(nn.Conv2d(inside, width, 3, padding=1))
            self.norms.append(nn.BatchNorm2d(width) if norm else nn.Identity())
            inside = width
        self.last = inside
        if rng is not None:
            initialise(self, rng)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps `[b, c_l, h_l, w_l]` of images `[b, c, h, w]` in [0, 1]."""
        h, maps = x - 0.5, list[Tensor]()
        layers = iter(zip(self.convolutions, self.norms, strict=True))
        for i, group in enumerate(self.widths):
            h = functional.max_pool2d(h, 2) if i else h
            for _ in group:
                convolution, norm = next(layers)
                h = functional.relu(norm(convolution(h)))
                maps.append(h)
        return maps


def fold(tower: Tower) -> Tower:
    """The same function as `tower` in evaluation mode, without batch normalisation.

    gamma (conv(x) - m) / s + beta = conv'(x) with weights W gamma / s and biases beta + (b - m) gamma / s.
    """
    plain = Tower(tower.channels, tower.widths, norm=False)
    with torch.no_grad():
        for old, norm, new in zip(tower.convolutions, tower.norms, plain.convolutions, strict=True):
            assert isinstance(old, nn.Conv2d)
            assert isinstance(new, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert old.bias is not None
            assert new.bias is not None
            gain = norm.weight / (norm.running_var + norm.eps).sqrt()
            new.weight.copy_(old.weight * gain[:, None, None, None])
            new.bias.copy_(norm.bias + (old.bias - norm.running_mean) * gain)
    return plain.eval().requires_grad_(False)


def tower_from(tensors: Mapping[str, NDArray[np.float32]], channels: int, widths: tuple[tuple[int, ...], ...]) -> Tower:
    """The folded tower with the given weights."""
    tower = Tower(channels, widths, norm=False)
    tower.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in tensors.items()})
    return tower.eval().requires_grad_(False)


def train_tower(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    n_classes: int,
    steps: int,
    rng: np.random.Generator,
    batch: int = 128,
    lr: float = 4e-3,
    movement: float = 2.0,
    flip: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> tuple[Tower, float]:
    """Train a tower to tell public classes apart, and fold it; returns it with its accuracy over the last tenth.

    AdamW with one cycle, label smoothing 0.1, dropout 0.3; every picture is moved, turned, slanted and scaled, and its
    contrast changed, anew at each step.

    Args:
        images: public images uint8 `[n, h, w, c]`.
        labels: classes `[n]`; where there are none, give each image a class of its own.
        n_classes: number of classes.
        steps: optimiser steps, 2 or more.
        rng: source of every draw.
        batch: images a step.
        lr: highest learning rate.
        movement: of the augmentation, see `looks.move`.
        flip: mirror half of the pictures: right for photographs, wrong for signs.
        on_step: called with the step's number and its loss.
    """
    draws = torch.Generator().manual_seed(int(rng.integers(2**63)))
    tower = Tower(images.shape[3], norm=True, rng=draws)
    head = nn.Linear(2 * tower.last, n_classes)
    initialise(head, draws)
    both = nn.ModuleList([tower, head]).train()
    optimiser = torch.optim.AdamW(both.parameters(), lr=lr, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=max(0.2, 1.2 / steps))
    right: list[float] = []
    for step in range(steps):
        index = rng.integers(0, len(images), batch)
        x = _look(to_unit(images[index]), movement, flip, rng)
        y = torch.from_numpy(labels[index])
        with torch.autocast("cpu", torch.bfloat16):
            top = tower(x)[-1]
            h = torch.cat([top.mean((2, 3)), top.amax((2, 3))], 1)
            h = h * (torch.rand(h.shape, generator=draws) > 0.3) / 0.7
            logits = head(h)
        loss = functional.cross_entropy(logits.float(), y, label_smoothing=0.1)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if step >= int(0.9 * steps):
            right.append(float((logits.argmax(1) == y).float().mean()))
        if on_step:
            on_step(step, float(loss.detach()))
    return fold(copy.deepcopy(tower).eval()), math.fsum(right) / len(right)


def _look(x: Tensor, movement: float, flip: bool, rng: np.random.Generator) -> Tensor:
    x = move(x, amount=movement, rng=rng)
    if flip:
        x = torch.where(torch.from_numpy(rng.random(len(x)) < 0.5)[:, None, None, None], x.flip(3), x)
    gain, lift = (torch.from_numpy(rng.uniform(a, b, (len(x), 1, 1, 1))).float() for a, b in ((0.6, 1.2), (-0.1, 0.1)))
    return (x * gain + lift).clamp(0, 1)

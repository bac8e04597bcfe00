"""Class-conditional image generators: a small residual upsampling net for 8 to 64 pixels, grey or colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


def initialise(module: nn.Module, rng: torch.Generator) -> nn.Module:
    """Draw every weight anew from `rng` (He-normal, zero biases; rows of embeddings standard normal), so that nothing
    hangs on global state.
    """
    for part in module.modules():
        weight = getattr(part, "weight", None)
        if isinstance(part, nn.Linear | nn.Conv2d) and isinstance(weight, Tensor):
            nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=rng)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding) and isinstance(weight, Tensor):
            nn.init.normal_(weight, generator=rng)
    return module


def one_hot(y: Tensor, n_classes: int) -> Tensor:
    """Turn class numbers `[b]` into rows `[b, k]`; soft labels `[b, k]` pass unchanged."""
    return functional.one_hot(y.long(), n_classes).float() if y.dim() == 1 else y.float()


def follow(mean: nn.Module, net: nn.Module, decay: float) -> None:
    """Move the averaged weights a share 1 - decay towards the present ones."""
    with torch.no_grad():
        for old, new in zip(mean.parameters(), net.parameters(), strict=True):
            old.lerp_(new, 1 - decay)


class LabelledGenerator(nn.Module):
    """Images from a normal latent vector and a class: subclasses define `forward(z [b, latent], y) -> [b, c, h, w]`."""

    def __init__(self, n_classes: int, latent: int) -> None:
        super().__init__()
        self.n_classes, self.latent = n_classes, latent

    def draw(self, y: Tensor, *, rng: torch.Generator, temperature: float = 1.0) -> Tensor:
        """Images `[b, c, h, w]` for the labels y, with fresh latent vectors of variance `temperature` from `rng`."""
        return self(math.sqrt(temperature) * torch.randn(len(y), self.latent, generator=rng), y)

    @torch.no_grad()
    def sample(self, y: Tensor, *, rng: torch.Generator, temperature: float = 1.0, batch: int = 500) -> Tensor:
        """Like `draw`, without gradients and in batches of bounded memory."""
        return torch.cat([self.draw(part, rng=rng, temperature=temperature) for part in y.split(batch)])


class Ensemble(LabelledGenerator):
    """Several generators of the same classes: each makes its share of the images, which ones is chance.

    Args:
        nets: the generators, one or more.
    """

    def __init__(self, nets: Sequence[LabelledGenerator]) -> None:
        super().__init__(nets[0].n_classes, nets[0].latent)
        self.nets = nn.ModuleList(nets)

    def draw(self, y: Tensor, *, rng: torch.Generator, temperature: float = 1.0) -> Tensor:
        """Images `[b, c, h, w]` for the labels y, in their order."""
        # Equal shares: convolutions keep what they set up for each size of batch, which by chance would be many.
        first = torch.randint(len(self.nets), (1,), generator=rng)  # so that single images come from all nets, too
        which = (torch.randperm(len(y), generator=rng) + first) % len(self.nets)
        nets = cast("list[LabelledGenerator]", list(self.nets))
        parts = [net.draw(y[which == i], rng=rng, temperature=temperature) for i, net in enumerate(nets)]
        return torch.cat(parts)[torch.argsort(torch.argsort(which, stable=True))]


class _Block(nn.Module):
    """Residual upsampling by 2 with class-conditional scale and shift."""

    def __init__(self, inside: int, outside: int, code: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(min(8, inside), inside, affine=False)
        self.style = nn.Linear(code, 2 * inside)
        self.first = nn.Conv2d(inside, outside, 3, padding=1)
        self.second = nn.Conv2d(outside, outside, 3, padding=1)
        self.skip = nn.Conv2d(inside, outside, 1)

    def forward(self, h: Tensor, code: Tensor) -> Tensor:
        scale, shift = self.style(code)[:, :, None, None].chunk(2, 1)
        r = functional.relu(self.norm(h) * (1 + scale) + shift)
        r = functional.interpolate(r, scale_factor=2, mode="nearest")
        r = self.second(functional.relu(self.first(r)))
        return functional.interpolate(self.skip(h), scale_factor=2, mode="bilinear", align_corners=False) + r


class ConvGenerator(LabelledGenerator):
    """Images from a latent vector and a class: dense layers to a small grid, then residual upsampling, then a sigmoid.

    No layer couples the records of a batch, so an image depends on its own latent vector and label only.

    Args:
        height: image height in pixels, 8 to 64.
        width: image width in pixels, 8 to 64.
        channels: colour channels of the output.
        n_classes: number of classes k.
        latent: length of the latent vector.
        width_base: channels of the last block; each block before has twice as many.
        hidden: units of the dense layer.
        rng: source of the initial weights.
    """

    def __init__(
        self,
        *,
        height: int,
        width: int,
        channels: int,
        n_classes: int,
        latent: int = 32,
        width_base: int = 16,
        hidden: int = 256,
        rng: torch.Generator,
    ) -> None:
        super().__init__(n_classes, latent)
        self.height, self.width, self.channels = height, width, channels
        ups = max(1, round(math.log2(min(height, width) / 7)))
        self.grid = (-(-height // 2**ups), -(-width // 2**ups))
        widths = [width_base * 2 ** (ups - i) for i in range(ups + 1)]
        code = latent + n_classes
        self.dense = nn.Linear(code, hidden)
        self.spread = nn.Linear(hidden, widths[0] * self.grid[0] * self.grid[1])
        self.blocks = nn.ModuleList(_Block(a, b, code) for a, b in pairwise(widths))
        self.norm = nn.GroupNorm(1, widths[-1])  # keeps the sigmoid out of saturation, where nothing is learned
        self.last = nn.Conv2d(widths[-1], channels, 3, padding=1)
        initialise(self, rng)
        with torch.no_grad():
            self.last.weight.mul_(0.2)  # start from greys
        for part in self.modules():
            if isinstance(part, _Block):
                nn.init.normal_(part.style.weight, std=0.1, generator=rng)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Map latent vectors `[b, latent]` and labels `[b]` or `[b, k]` to images `[b, c, h, w]` in [0, 1]."""
        code = torch.cat([z, one_hot(y, self.n_classes)], 1)
        h = self.spread(functional.relu(self.dense(code))).unflatten(1, (-1, *self.grid))
        for block in self.blocks:
            h = block(h, code)
        top, left = (h.shape[2] - self.height) // 2, (h.shape[3] - self.width) // 2
        h = self.last(functional.relu(self.norm(h)))[:, :, top : top + self.height, left : left + self.width]
        return torch.sigmoid(h)


def _interpolation(coarse: int, fine: int) -> Tensor:
    """The band-limited (cosine series) interpolation `[coarse, fine]` of `coarse` values to `fine` points."""

    def basis(points: int) -> Tensor:
        t = (torch.arange(points, dtype=torch.float64) + 0.5) / points
        return torch.stack([torch.cos(math.pi * k * t) * math.sqrt(1 + (k > 0)) for k in range(coarse)])

    return (basis(coarse).T @ basis(fine) / coarse).float()


class DenseGenerator(LabelledGenerator):
    """Images from dense layers alone: logits on a coarse grid, band-limited interpolation, then a sigmoid.

    About thirty times cheaper a step on a CPU than `ConvGenerator`, so it gets far closer to its target in the same
    time; the interpolation keeps single pixels from flickering. Each class has its own linear map of the latent vector
    and its own mean logits, so that no class starts from the shapes of another.

    Args:
        height: image height in pixels.
        width: image width in pixels.
        channels: colour channels of the output.
        n_classes: number of classes k.
        latent: length of the latent vector.
        hidden: units of each of the three dense layers.
        coarse: points a side of the coarse grid; None for 3/4 of them up to 16 pixels, half above, at most 24.
        rng: source of the initial weights.
    """

    def __init__(
        self,
        *,
        height: int,
        width: int,
        channels: int,
        n_classes: int,
        latent: int = 8,
        hidden: int = 512,
        coarse: int | None = None,
        rng: torch.Generator,
    ) -> None:
        super().__init__(n_classes, latent)
        points = [-(-3 * side // 4) if side <= 16 else min(24, side // 2) for side in (height, width)]
        rows, columns = (min(p, coarse or p) for p in points)
        self.rows: Tensor
        self.columns: Tensor
        self.register_buffer("rows", _interpolation(rows, height))
        self.register_buffer("columns", _interpolation(columns, width))
        self.grid = (channels, rows, columns)
        self.first = nn.Linear(latent * n_classes + n_classes, hidden)
        self.middle = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(2))
        self.last = nn.Linear(hidden, channels * rows * columns)
        self.prototype = nn.Linear(n_classes, channels * rows * columns, bias=False)
        initialise(self, rng)
        nn.init.normal_(self.first.weight, std=math.sqrt(2 / (latent + 1)), generator=rng)
        nn.init.zeros_(self.prototype.weight)
        with torch.no_grad():
            self.last.weight.mul_(0.3)  # start from greys: a saturated sigmoid learns nothing
            self.last.bias.fill_(-1.0)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Map latent vectors `[b, latent]` and labels `[b]` or `[b, k]` to images `[b, c, h, w]` in [0, 1]."""
        label = one_hot(y, self.n_classes)
        h = functional.relu(self.first(torch.cat([(label[:, :, None] * z[:, None]).flatten(1), label], 1)))
        for layer in self.middle:
            h = h + functional.relu(layer(h))
        coarse = (self.last(h) + self.prototype(label)).unflatten(1, self.grid)
        logits = (coarse @ self.columns).transpose(2, 3) @ self.rows
        return torch.sigmoid(logits.transpose(2, 3))

"""A small U-shaped score network of images with the class painted in, and a place for a code in its middle."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpgm.nets.generators import initialise


class _Stage(nn.Module):
    """Norm, activation, 3 x 3 convolution, twice, around a shortcut."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(min(8, c), c) for c in (inside, outside)])
        self.first = nn.Conv2d(inside, outside, 3, padding=1)
        self.second = nn.Conv2d(outside, outside, 3, padding=1)
        self.short = nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, inside, h, w] to [b, outside, h, w]."""
        out = self.first(functional.silu(self.norms[0](x)))
        return self.short(x) + self.second(functional.silu(self.norms[1](out)))


class ScoreNet(nn.Module):
    """q(x, y, code): a score field on images, halving the size twice and going back, with short cuts.

    Args:
        channels: colour channels of the images.
        n_classes: number of classes; the label is painted as one more constant channel.
        code: length of the code that is added to the middle features; 0 for none.
        width: channels at full size, a multiple of 8.
        rng: source of the first weights.
    """

    def __init__(self, *, channels: int, n_classes: int, code: int = 0, width: int = 16, rng: torch.Generator) -> None:
        super().__init__()
        self.n_classes, self.code = n_classes, code
        self.enter = nn.Conv2d(channels + 1, width, 3, padding=1)
        self.down = nn.ModuleList([_Stage(width, 2 * width), _Stage(2 * width, 2 * width)])
        self.middle = _Stage(2 * width, 2 * width)
        self.up = nn.ModuleList([_Stage(4 * width, 2 * width), _Stage(3 * width, width)])
        self.leave = nn.Conv2d(width, channels, 3, padding=1)
        self.embed = nn.Linear(code, 2 * width) if code else None
        initialise(self, rng)

    def forward(self, x: Tensor, y: Tensor, code: Tensor | None = None) -> Tensor:
        """Map images [b, c, h, w], labels [b] and codes [b, code] to the field [b, c, h, w]."""
        paint = ((y.to(x.dtype) + 0.5) / self.n_classes).reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        levels = [self.enter(torch.cat([x, paint], 1))]
        for stage in self.down:
            levels.append(stage(functional.avg_pool2d(levels[-1], 2, ceil_mode=True)))
        out = levels.pop()
        if self.embed is not None and code is not None:
            out = out + self.embed(code)[:, :, None, None]
        out = self.middle(out)
        for stage in self.up:
            skip = levels.pop()
            out = stage(torch.cat([functional.interpolate(out, size=skip.shape[2:], mode="nearest"), skip], 1))
        return self.leave(functional.silu(out))

"""Score networks of images: how they are told the class, where a code enters, and a small U-shaped one."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpgm.nets.generators import initialise

Label: TypeAlias = Literal["painted", "onehot", "learned"]
"""How a network is told the class: one constant plane (y + 0.5) / K beside the colours, K planes of which one is 1,
or a learned vector for each class that is added inside.
"""


def label_planes(label: Label, n_classes: int) -> int:
    """Number of planes that `paint` adds."""
    return {"painted": 1, "onehot": n_classes, "learned": 0}[label]


def paint(x: Tensor, y: Tensor, label: Label, n_classes: int) -> Tensor:
    """Images [b, c, h, w] with the planes of their labels [b]."""
    if label == "learned":
        return x
    value = functional.one_hot(y, n_classes) if label == "onehot" else (y[:, None] + 0.5) / n_classes
    return torch.cat([x, value.to(x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1)


def add_code(features: Tensor, embed: nn.Module | None, code: Tensor | None) -> Tensor:
    """Features [b, d, h, w] plus embedded codes, brought to their size; unchanged without a code."""
    if embed is None or code is None:
        return features
    return features + functional.interpolate(embed(code), size=features.shape[2:], mode="nearest")


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

    About 95 thousand weights: for runs without the extra `diffusion`, and for audits that train thousands of networks.

    Args:
        channels: colour channels of the images.
        n_classes: number of classes.
        label: how the network is told the class.
        code: channels of the codes that are added to the middle features; 0 for none.
        width: channels at full size, a multiple of 8.
        rng: source of the first weights.
    """

    def __init__(
        self,
        *,
        channels: int,
        n_classes: int,
        label: Label = "painted",
        code: int = 0,
        width: int = 16,
        rng: torch.Generator,
    ) -> None:
        super().__init__()
        self.n_classes, self.code = n_classes, code
        self.label: Label = label
        self.enter = nn.Conv2d(channels + label_planes(label, n_classes), width, 3, padding=1)
        self.down = nn.ModuleList([_Stage(width, 2 * width), _Stage(2 * width, 2 * width)])
        self.middle = _Stage(2 * width, 2 * width)
        self.up = nn.ModuleList([_Stage(4 * width, 2 * width), _Stage(3 * width, width)])
        self.leave = nn.Conv2d(width, channels, 3, padding=1)
        self.embed = nn.Conv2d(code, 2 * width, 1) if code else None
        self.told = nn.Embedding(n_classes, 2 * width) if label == "learned" else None
        initialise(self, rng)

    def forward(self, x: Tensor, y: Tensor, code: Tensor | None = None) -> Tensor:
        """Map images [b, c, h, w], labels [b] and codes [b, code, h', w'] to the field [b, c, h, w]."""
        levels = [self.enter(paint(x, y, self.label, self.n_classes))]
        for stage in self.down:
            levels.append(stage(functional.avg_pool2d(levels[-1], 2, ceil_mode=True)))
        out = add_code(levels.pop(), self.embed, code)
        if self.told is not None:
            out = out + self.told(y)[:, :, None, None]
        out = self.middle(out)
        for stage in self.up:
            skip = levels.pop()
            out = stage(torch.cat([functional.interpolate(out, size=skip.shape[2:], mode="nearest"), skip], 1))
        return self.leave(functional.silu(out))

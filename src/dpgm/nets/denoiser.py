"""A small U-shaped denoiser of labelled images for every noise level, and its two losses.

Convention: images are [b, c, h, w] in [-1, 1], noise levels sigma [b]; D(x, sigma, y) is the expected clean image, and
the score of the density smoothed by N(0, sigma^2 I) is (D - x) / sigma^2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpgm.nets.generators import initialise, one_hot

SPREAD = 0.5
"""Public guess of the standard deviation of pixels in [-1, 1]."""
_WAVES = 8


class _Stage(nn.Module):
    """Norm, scale and shift by the code, activation, 3 x 3 convolution, twice, around a shortcut."""

    def __init__(self, inside: int, outside: int, code: int) -> None:
        super().__init__()
        self.groups = min(8, inside)
        self.style = nn.Linear(code, 2 * inside)
        self.first = nn.Conv2d(inside, outside, 3, padding=1)
        self.second = nn.Conv2d(outside, outside, 3, padding=1)
        self.short = nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """Map [b, inside, h, w] and codes [b, code] to [b, outside, h, w]."""
        scale, shift = self.style(code)[:, :, None, None].chunk(2, 1)
        out = self.first(functional.silu(functional.group_norm(x, self.groups) * (1 + scale) + shift))
        out = self.second(functional.silu(functional.group_norm(out, min(8, out.shape[1]))))
        return self.short(x) + out


class Denoiser(nn.Module):
    """D(x, sigma, y) = c_skip x + c_out F(c_in x, sigma, y), F a U-net that halves the size twice and goes back.

    No layer couples the records of a batch.

    **Source**: Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", table 1, for
    c_skip, c_out and c_in.
    **Differs from the paper**: the net is small, without attention and dropout.

    Args:
        channels: colour channels of the images.
        n_classes: number of classes.
        width: channels at full size, a multiple of 8.
        rng: source of the first weights.
    """

    waves: Tensor

    def __init__(self, *, channels: int, n_classes: int, width: int = 16, rng: torch.Generator) -> None:
        super().__init__()
        self.n_classes, code = n_classes, 4 * width
        self.register_buffer("waves", 2.0 ** torch.arange(_WAVES).float() * math.pi / 16)
        self.level = nn.Linear(2 * _WAVES + n_classes, code)
        self.code = nn.Linear(code, code)
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList([_Stage(width, 2 * width, code), _Stage(2 * width, 3 * width, code)])
        self.middle = _Stage(3 * width, 3 * width, code)
        self.up = nn.ModuleList([_Stage(5 * width, 2 * width, code), _Stage(3 * width, width, code)])
        self.leave = nn.Conv2d(width, channels, 3, padding=1)
        initialise(self, rng)
        with torch.no_grad():
            self.leave.weight.mul_(0.1)

    def forward(self, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        """The expected clean images [b, c, h, w] of noisy ones, their noise levels [b] and labels [b]."""
        s = sigma.reshape(-1, 1, 1, 1)
        total = (s**2 + SPREAD**2).sqrt()
        raw = self._raw(x / total, sigma, y)
        return (SPREAD / total) ** 2 * x + s * SPREAD / total * raw.float()

    def _raw(self, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        angle = (sigma.log() / 4)[:, None] * self.waves
        told = torch.cat([angle.sin(), angle.cos(), one_hot(y, self.n_classes)], 1)
        code = functional.silu(self.code(functional.silu(self.level(told))))
        levels = [self.enter(x)]
        for stage in self.down:
            levels.append(stage(functional.avg_pool2d(levels[-1], 2, ceil_mode=True), code))
        out = self.middle(levels.pop(), code)
        for stage in self.up:
            skip = levels.pop()
            out = functional.interpolate(out, size=skip.shape[2:], mode="nearest")
            out = stage(torch.cat([out, skip], 1), code)
        return self.leave(functional.silu(out))


def denoising_loss(net: nn.Module, x: Tensor, noise: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
    """((sigma^2 + s^2) / (sigma s)^2) mean |D(x + sigma noise) - x|^2 of each record [b], s the spread of pixels."""
    s = sigma.reshape(-1, 1, 1, 1)
    wrong = (net(x + s * noise, sigma, y) - x).square().flatten(1).mean(1)
    return wrong * (sigma**2 + SPREAD**2) / (sigma * SPREAD) ** 2


def sliced_loss(net: nn.Module, x: Tensor, noise: Tensor, sigma: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """Sliced score matching at noise level sigma, per pixel and times sigma^2, by a central difference [b].

    sigma^2 (v^T (s(z + h v) - s(z - h v)) / 2 h + |s(z)|^2 / 2) / d with z = x + sigma noise, h = sigma / 10,
    s(z) = (D(z) - z) / sigma^2, and |s(z)|^2 taken as the inner product of s at both ends, so that two evaluations do.

    Args:
        net: the denoiser.
        x: clean images [b, c, h, w].
        noise: standard normal, shaped as `x`.
        sigma: noise levels [b].
        y: labels [b].
        v: directions of unit variance, shaped as `x`.
    """
    s = sigma.reshape(-1, 1, 1, 1)
    middle, step = x + s * noise, 0.1 * s * v
    ends = [(net(z, sigma, y) - z) / s for z in (middle + step, middle - step)]  # sigma times the score
    slope = (v * (ends[0] - ends[1])).flatten(1).mean(1) / 0.2
    return slope + (ends[0] * ends[1]).flatten(1).mean(1) / 2

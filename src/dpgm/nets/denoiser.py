"""A known denoiser of labelled images with a small U-net that corrects it, and its two losses.

Convention: images are [b, c, h, w] in [-1, 1], noise levels sigma [b]; D(x, sigma, y) is the expected clean image, and
the score of the density smoothed by N(0, sigma^2 I) is (D - x) / sigma^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpgm.nets.generators import initialise, one_hot

SPREAD = 0.5
"""Public guess of the standard deviation of pixels in [-1, 1]."""
_WAVES = 8
Known = Callable[[Tensor, Tensor, Tensor], Tensor]


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
    """D(x, sigma, y) = D0(x, sigma, y) + c_out F(c_in x, D0, sigma, y): a known denoiser D0 and a U-net's correction.

    F works at half the size (each 2 x 2 pixels are one with four times the channels) and at a quarter of it. It begins
    at zero, so D begins as D0. No layer couples the records of a batch.

    **Source**: Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", table 1, for
    c_out and c_in.
    **Differs from the paper**: D0 stands in the place of c_skip x; the net is small, without attention and dropout.

    Args:
        known: D0(x, sigma, y), without parameters that are trained.
        channels: colour channels of the images.
        n_classes: number of classes.
        width: channels at half size, a multiple of 8.
        rng: source of the first weights.
    """

    waves: Tensor

    def __init__(self, *, known: Known, channels: int, n_classes: int, width: int, rng: torch.Generator) -> None:
        super().__init__()
        self.known = known
        self.n_classes, code = n_classes, 2 * width
        self.register_buffer("waves", 2.0 ** torch.arange(_WAVES).float() * math.pi / 16)
        self.level = nn.Linear(2 * _WAVES + n_classes, code)
        self.code = nn.Linear(code, code)
        self.enter = nn.Conv2d(8 * channels, width, 3, padding=1)
        self.down = _Stage(width, 2 * width, code)
        self.middle = _Stage(2 * width, 2 * width, code)
        self.up = _Stage(3 * width, width, code)
        self.leave = nn.Conv2d(width, 4 * channels, 3, padding=1)
        initialise(self, rng)
        nn.init.zeros_(self.leave.weight)

    def forward(self, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        """The expected clean images [b, c, h, w] of noisy ones, their noise levels [b] and labels [b]."""
        s, known = sigma.reshape(-1, 1, 1, 1), self.known(x, sigma, y)
        total = (s**2 + SPREAD**2).sqrt()
        return known + s * SPREAD / total * self._raw(torch.cat([x / total, known], 1), sigma, y).float()

    def _raw(self, seen: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        height, width = seen.shape[2:]
        angle = (sigma.log() / 4)[:, None] * self.waves
        told = torch.cat([angle.sin(), angle.cos(), one_hot(y, self.n_classes)], 1)
        code = functional.silu(self.code(functional.silu(self.level(told))))
        wide = self.enter(functional.pixel_unshuffle(functional.pad(seen, (0, width % 2, 0, height % 2)), 2))
        out = self.middle(self.down(functional.avg_pool2d(wide, 2, ceil_mode=True), code), code)
        out = functional.interpolate(out, size=wide.shape[2:], mode="nearest")
        out = self.leave(functional.silu(self.up(torch.cat([out, wide], 1), code)))
        return functional.pixel_shuffle(out, 2)[:, :, :height, :width]


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

"""Feature maps of two more kernels: the neural tangent kernel, and Gaussian kernels by Hermite polynomials."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dpgm.nets.features import FeatureMap, normalise


class TangentFeatures(FeatureMap):
    """The gradient of a random two-layer net by its weights, scaled to unit norm.

    For f(x) = sum_j a_j relu(w_j x) it is (relu(w_j x), a_j 1[w_j x > 0] x) for every unit j.

    **Source**: DP-NTK (Yang, Adamczewski, Sutherland, Li, Park 2023).
    **Differs from the paper**: fewer units (the paper has 800), one sum over all records.

    Args:
        height: image height in pixels.
        width: image width in pixels.
        channels: colour channels.
        units: units of the net.
        seed: public seed of its weights.
    """

    def __init__(self, *, height: int, width: int, channels: int, units: int = 16, seed: int = 0) -> None:
        pixels = height * width * channels
        super().__init__("ntk", units * (pixels + 1))
        rng = torch.Generator().manual_seed(seed)
        self.weight: Tensor
        self.outer: Tensor
        self.register_buffer("weight", torch.randn(units, pixels, generator=rng) / math.sqrt(pixels))
        self.register_buffer("outer", torch.randn(units, generator=rng))
        self.freeze()

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[b, c, h, w]` to `[b, units (pixels + 1)]`, each row of norm at most 1."""
        flat = (x - 0.5).flatten(1)
        drive = flat @ self.weight.T
        inner = ((drive > 0) * self.outer)[:, :, None] * flat[:, None]
        return normalise(torch.cat([drive.relu(), inner.flatten(1)], 1), 0)


class HermiteFeatures(FeatureMap):
    """Hermite features of each pixel, and products of those of two pixels: sums of Gaussian kernels, cut off early.

    By Mehler's formula exp(-r (x - y)² / (1 - r²)) = sum_c l_c f_c(x) f_c(y), with l_c = (1 - r) r^c and
    f_c(x) = h_c(x) exp(-r x² / (1 + r)) (1 + r)^(1/4) / (1 - r)^(1/4), h_c the normalised Hermite polynomials. As the
    kernel is 1 at x = y, the features of a pixel have norm at most 1, and so have the averages that are used here.

    **Source**: DP-HP (Vinaroz, Charusaie, Harder, Adamczewski, Park 2022).
    **Differs from the paper**: products over fixed pairs of near pixels in the same release, instead of over pixels
    drawn anew for releases of their own.

    Args:
        height: image height in pixels.
        width: image width in pixels.
        channels: colour channels.
        order: highest degree.
        pairs: number of pairs of pixels.
        rho: r, in (0, 1): the closer to 1 the narrower the kernel.
        seed: public seed of the pairs.
    """

    def __init__(
        self,
        *,
        height: int,
        width: int,
        channels: int,
        order: int = 4,
        pairs: int = 300,
        rho: float = 0.7,
        seed: int = 0,
    ) -> None:
        pixels, terms = height * width * channels, order + 1
        super().__init__("hermite", pixels * terms + pairs * terms**2)
        self.order, self.rho, self.pixels, self.pairs = order, rho, pixels, pairs
        rng = torch.Generator().manual_seed(seed)
        row, column, colour = (torch.randint(n, (pairs,), generator=rng) for n in (height, width, channels))
        down, right = (torch.randint(-4, 5, (pairs,), generator=rng) for _ in range(2))
        near = (row + down).clamp(0, height - 1), (column + right).clamp(0, width - 1)
        self.one: Tensor
        self.two: Tensor
        self.register_buffer("one", (colour * height + row) * width + column)
        self.register_buffer("two", (colour * height + near[0]) * width + near[1])
        self.freeze()

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[b, c, h, w]` to `[b, dim]`, each row of norm at most 1."""
        with torch.autocast("cpu", enabled=False):
            v, r = 4 * x.float().flatten(1) - 2, self.rho
            polynomials = [torch.ones_like(v), math.sqrt(2) * v]
            for c in range(1, self.order):
                polynomials.append(
                    math.sqrt(2 / (c + 1)) * v * polynomials[c] - math.sqrt(c / (c + 1)) * polynomials[c - 1]
                )
            scale = torch.exp(-r / (1 + r) * v.square()) * ((1 + r) / (1 - r)) ** 0.25
            terms = [math.sqrt((1 - r) * r**c) * p * scale for c, p in enumerate(polynomials[: self.order + 1])]
            each = torch.stack(terms, 2)
            both = each[:, self.one, :, None] * each[:, self.two, None, :]
            parts = [each.flatten(1) / math.sqrt(2 * self.pixels), both.flatten(1) / math.sqrt(2 * self.pairs)]
            return torch.cat(parts, 1)

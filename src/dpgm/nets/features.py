"""Public feature maps of images: fixed, record by record, differentiable, without training data.

Every map takes images `[b, c, h, w]` in [0, 1] and returns `[b, dim]`. It is a frozen module in evaluation mode, uses
no statistics of the batch, and is rebuilt bit for bit from its public arguments (seeds included).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

TINY = 1e-6


def normalise(z: Tensor, groups: int = 1) -> Tensor:
    """Standardise each record within consecutive groups of coordinates, then scale it to unit L2 norm.

    z_g <- (z_g - mean z_g) / (std z_g + 1e-3) for each group g, then z <- z / (|z| + 1e-6); so |z| < 1, and a constant
    record maps to (almost) zero. With `groups=0` only the last step is done.

    Args:
        z: features `[b, D]`.
        groups: number of groups, a divisor of D; 0 for none.

    Raises:
        ValueError: if D is not a multiple of groups.
    """
    if groups:
        if z.shape[1] % groups:
            raise ValueError(f"{z.shape[1]} features cannot be split into {groups} equal groups; give a divisor")
        parts = z.unflatten(1, (groups, -1))
        parts = parts - parts.mean(2, keepdim=True)
        z = (parts / ((parts.square().mean(2, keepdim=True) + TINY**2).sqrt() + 1e-3)).flatten(1)
    return z / ((z.square().sum(1, keepdim=True) + TINY**4).sqrt() + TINY)


class FeatureMap(nn.Module):
    """A public feature map: `forward(x [b, c, h, w]) -> [b, dim]`.

    Attributes:
        name: what to call it in reports.
        dim: number of features of one record.
        provenance: the public data that it was fitted on, or "none".
        sizes: lengths of the parts of a vector that differ in kind, such as layers.
    """

    sizes: tuple[int, ...]

    def __init__(self, name: str, dim: int, provenance: str = "none") -> None:
        super().__init__()
        self.name, self.dim, self.provenance = name, dim, provenance
        self.sizes = (dim,)

    def freeze(self) -> FeatureMap:
        """Switch to evaluation mode and stop gradients into the weights (not into the pixels)."""
        return self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> FeatureMap:
        """Stay in evaluation mode: a public feature map has nothing to learn."""
        return super().train(False)


class Normalised(FeatureMap):
    """`normalise(features(x), groups)`: a feature map of norm at most 1."""

    def __init__(self, features: FeatureMap, groups: int = 1) -> None:
        super().__init__(features.name, features.dim, features.provenance)
        self.features, self.groups = features, groups
        self.freeze()

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[b, c, h, w]` to `[b, dim]`, each row of norm at most 1."""
        return normalise(self.features(x), self.groups)


class RandomFourier(FeatureMap):
    """Random Fourier features of the pixels: phi(x) = sqrt(2/D) (cos Wx, sin Wx), W_ij ~ N(0, 1/b_i²), |phi| = 1.

    The rows of W share the bandwidths b out evenly, so the inner product of two records estimates the average over b of
    the Gaussian kernels exp(-|x - x'|² / (2 b²)). A wide kernel draws a bad image towards the data from afar; a
    narrow one tells whole shapes apart.

    **Source**: DP-MERF (Harder, Adamczewski, Park 2021); Rahimi, Recht 2007.
    **Differs from the paper**: the bandwidths are public numbers, not the median distance of the private records:
    sqrt(0.134 height width channels), which is 10.2 for 28x28 grey, the paper's value, times each of `scales`.

    Args:
        height: image height in pixels.
        width: image width in pixels.
        channels: colour channels.
        dim: number of features, even.
        bandwidth: width of the kernel at scale 1, in pixel units; None for the formula above.
        scales: factors of the bandwidth; (1,) is the paper's single kernel.
        seed: public seed of W.
    """

    def __init__(
        self,
        *,
        height: int,
        width: int,
        channels: int,
        dim: int = 8_000,
        bandwidth: float | None = None,
        scales: tuple[float, ...] = (1.0,),
        seed: int = 0,
    ) -> None:
        if dim < 2 or dim % 2:
            raise ValueError(f"dim is {dim}; give an even number of at least 2")
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales is {scales}; give at least one number, all above 0")
        super().__init__("rff", dim)
        pixels = height * width * channels
        self.bandwidth = math.sqrt(0.134 * pixels) if bandwidth is None else bandwidth
        rng = torch.Generator().manual_seed(seed)
        widths = self.bandwidth * torch.tensor(scales).repeat(-(-dim // 2 // len(scales)))[: dim // 2]
        self.weight: Tensor
        self.register_buffer("weight", torch.randn(dim // 2, pixels, generator=rng) / widths[:, None])
        self.freeze()

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[b, c, h, w]` to unit vectors `[b, dim]`."""
        angle = x.flatten(1) @ self.weight.T
        return torch.cat([angle.cos(), angle.sin()], 1) * math.sqrt(2 / self.dim)


class Mixture(FeatureMap):
    """Several feature maps in one vector, (w_1 phi_1(x), ..., w_m phi_m(x)) with sum w² = 1: of norm at most 1.

    Args:
        parts: feature maps, each of norm at most 1.
        weights: their weights, >= 0; they are scaled to sum w² = 1. None for equal ones.
    """

    def __init__(self, *parts: FeatureMap, weights: tuple[float, ...] | None = None) -> None:
        weights = weights or (1.0,) * len(parts)
        size = math.sqrt(sum(w * w for w in weights))
        if len(weights) != len(parts) or min(weights, default=-1) < 0 or size == 0:
            raise ValueError(f"{len(parts)} maps with weights {weights}; give one weight >= 0 a map, one positive")
        seen = {part.provenance for part in parts} - {"none"}
        super().__init__("+".join(p.name for p in parts), sum(p.dim for p in parts), ", ".join(sorted(seen)) or "none")
        self.parts, self.weights = nn.ModuleList(parts), tuple(w / size for w in weights)
        self.sizes = tuple(n for part in parts for n in part.sizes)
        self.freeze()

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[b, c, h, w]` to `[b, dim]`, each row of norm at most 1."""
        return torch.cat([w * part(x) for w, part in zip(self.weights, self.parts, strict=True)], 1)


def _morlet(size: int, sigma: float, frequency: float, angle: float, slant: float = 0.5) -> NDArray[Any]:
    """A complex Morlet wavelet of zero mean and unit energy, `[size, size]`."""
    r = (size - 1) / 2
    y, x = np.mgrid[-r : r + 1, -r : r + 1]
    u, v = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    envelope = np.exp(-(u**2 + (slant * v) ** 2) / (2 * sigma**2))
    wave = np.exp(1j * frequency * u)
    wavelet = envelope * (wave - (envelope * wave).sum() / envelope.sum())
    return wavelet / np.sqrt((abs(wavelet) ** 2).sum())


def _blur(size: int, out: int, sigma: float) -> NDArray[Any]:
    """The matrix `[out, size]` of Gaussian averages of `size` pixels at `out` equally spaced centres; rows sum to 1."""
    centres = (np.arange(out) + 0.5) * size / out - 0.5
    weights = np.exp(-((np.arange(size)[None] - centres[:, None]) ** 2) / (2 * sigma**2))
    return weights / weights.sum(1, keepdims=True)


class Scattering(FeatureMap):
    """Wavelet scattering: local averages of x, |x * psi|, and ||x * psi| * psi'|, on a grid.

    One 7x7 Morlet bank of L angles serves every scale j = 0..J-1, applied to the image at resolution 2^-j. Order 1
    has J L channels, order 2 (pairs j < j') L² J (J - 1) / 2, order 0 one; times the colour channels. Averages are
    Gaussian of width sigma = 2^J / 2 pixels at ceil(h / 2^J) x ceil(w / 2^J) centres. For 28x28 grey, J = 2, L = 8:
    81 x 7 x 7 = 3,969. The features are not normalised; the coordinates of one channel are consecutive.

    **Source**: Bruna, Mallat 2013; Oyallon, Mallat 2015.

    Args:
        height: image height in pixels, 8 to 64.
        width: image width in pixels, 8 to 64.
        channels: colour channels.
        scales: J; None for 1 below 16 pixels, 2 below 48, 3 from there.
        angles: L.
        order: 1 or 2, the number of wavelets in a row.
    """

    def __init__(
        self, *, height: int, width: int, channels: int, scales: int | None = None, angles: int = 8, order: int = 2
    ) -> None:
        short = min(height, width)
        scales = (1 if short < 16 else 2 if short < 48 else 3) if scales is None else scales
        if scales < 1 or short < 2**scales:
            raise ValueError(f"scales is {scales}; a {height} x {width} image allows 1 to {int(math.log2(short))}")
        if order not in (1, 2):
            raise ValueError(f"order is {order}; allowed is 1 or 2")
        self.grid = (-(-height // 2**scales), -(-width // 2**scales))
        maps = 1 + scales * angles + (order == 2) * angles**2 * scales * (scales - 1) // 2
        super().__init__("scattering", channels * maps * self.grid[0] * self.grid[1])
        self.scales, self.angles, self.order = scales, angles, order
        bank = [_morlet(7, 0.8, 3 * math.pi / 4, math.pi * t / angles) for t in range(angles)]
        self.bank: Tensor
        stacked = np.stack([np.real(w) for w in bank] + [np.imag(w) for w in bank])[:, None]
        self.register_buffer("bank", torch.tensor(stacked, dtype=torch.float32))
        for j in range(scales):
            for axis, size in enumerate((height, width)):
                pool = _blur(-(-size // 2**j), self.grid[axis], 2 ** (scales - j) / 2)
                self.register_buffer(f"pool{j}{axis}", torch.tensor(pool.T, dtype=torch.float32))
        self.freeze()

    def _average(self, u: Tensor, level: int) -> Tensor:
        """Local averages on the grid, by two plain matrix products: `[n, c, h, w] -> [n, c, h' w']`."""
        rows, columns = self.get_buffer(f"pool{level}0"), self.get_buffer(f"pool{level}1")
        v = (u.reshape(-1, u.shape[3]) @ columns).view(-1, u.shape[2], columns.shape[1])
        v = v.transpose(1, 2).reshape(-1, u.shape[2]) @ rows
        return v.view(len(u), -1, columns.shape[1] * rows.shape[1])

    def _modulus(self, u: Tensor) -> Tensor:
        """|u * psi| over the angles: `[n, h, w] -> [n, L, h, w]`; smooth, and exactly 0 at 0."""
        real, imaginary = functional.conv2d(u[:, None], self.bank, padding=3).chunk(2, 1)
        return (real.square() + imaginary.square() + TINY).sqrt() - math.sqrt(TINY)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[b, c, h, w]` to `[b, dim]`."""
        level = x.flatten(0, 1)[:, None]
        n, out = len(level), [self._average(level, 0)]
        finer: list[Tensor] = []
        for j in range(self.scales):
            if j:
                level = functional.avg_pool2d(level, 2, ceil_mode=True)
                finer = [functional.avg_pool2d(u, 2, ceil_mode=True) for u in finer]
            u = self._modulus(level[:, 0])
            out.append(self._average(u, j))
            if self.order == 2:
                paths = [self._modulus(v.flatten(0, 1)) for v in finer]
                out += [self._average(w.reshape(n, -1, *w.shape[2:]), j) for w in paths]
            finer.append(u)
        return torch.cat(out, 1).reshape(len(x), -1)

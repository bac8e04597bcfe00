"""Images as low frequencies and wavelet moduli, and back: what has edges and textures there has them as a picture, too.

A Gaussian law of pixels draws soft clouds. Moduli of wavelets say where edges and grain are whatever their phase, so a
Gaussian law of *them* draws seams and prints; low frequencies say the phase. Nothing here is fitted to a record.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpgm.nets.classifiers import to_unit
from dpgm.nets.coordinates import Array, Coordinates
from dpgm.nets.features import Scattering
from dpgm.nets.procedural import procedural_images
from dpgm.nets.whitened import signed_alike

_BATCH = 250
_PICTURES = 2000
_SHARE = 0.7
"""Spread of all moduli beside that of the pixels: what a picture owes to its moduli when it is clipped and drawn."""
_UNIT = 1.4
"""Coordinates are longer than those of cosines alone by about this factor, and clipped at the same radius."""
_STEPS, _RATE, _BETAS, _REST = 16, 0.09, (0.6, 0.99), 0.1
"""Steps of the descent, its first rate, Adam's memories, and the weight of the moduli beyond the axes."""


class ScatteringCoordinates(Coordinates):
    """The map x -> z = (low cosine frequencies of x, V^T (w S(x) - m), slant), and pictures whose z is a given one.

    S are the moduli of the scattering transform, V their first principal axes over made-up pictures (`Axes`). A picture
    of z = (a, b, .) is found by descent on its pixels, from the one with frequencies a alone, on

        |C(x) - a|^2 + |V^T G(x) - b|^2 + 0.1 |G(x) - V V^T G(x)|^2,  G(x) = w S(x) - m,

    each picture by itself. On what `encode` gives of a picture this comes back close to it.

    **Source**: Bruna, Mallat 2013, for the transform and for drawing textures by descent on it.

    Args:
        height: of the images, in pixels, 8 to 64.
        width: of the images, in pixels, 8 to 64.
        channels: colour channels.
        block: frequencies kept along each axis.
        directions: number of axes in V; all of them where there are fewer.
        upright: set each picture upright by its slant, which becomes the last coordinate.
    """

    def __init__(
        self, *, height: int, width: int, channels: int, block: int = 14, directions: int = 200, upright: bool = False
    ) -> None:
        super().__init__(height=height, width=width, channels=channels, block=block, upright=upright)
        scattering = Scattering(height=height, width=width, channels=channels)
        moduli = scattering.dim - channels * math.prod(scattering.grid)
        self._waves, self._directions = self.dim - upright, min(directions, moduli, _PICTURES - 1)
        order = 2.5 + np.floor(np.sqrt(2 * np.arange(self._directions)))  # as many below an order as there are waves
        self.frequency = np.r_[self.frequency[: self._waves], order, [2.0] * upright]
        self.unit = _UNIT

    @property
    def _axes(self) -> Axes:
        return public_axes(self.height, self.width, self.channels, self._directions)

    def analyse(self, field: Tensor) -> Tensor:
        """Kept frequencies and axes [n, m] of fields [n, c, h, w]."""
        waves = super().analyse(field)
        moduli = [self._axes(x.float()).to(waves) for x in field.split(_BATCH) if len(x)]
        return torch.cat([waves, torch.cat([waves.new_zeros(0, self._directions), *moduli])], 1)

    def picture(self, z: Array) -> Tensor:
        """Pictures [n, c, h, w] of coordinates, upright."""
        kept = torch.from_numpy(z[:, : self._waves + self._directions]).float()
        drawn = [self._descend(part) for part in kept.split(_BATCH) if len(part)]
        return torch.cat([torch.zeros(0, self.channels, self.height, self.width), *drawn])

    def _descend(self, z: Tensor) -> Tensor:
        waves, moduli = z.split([self._waves, self._directions], 1)
        with torch.enable_grad():
            x = self.synthesise(waves).clamp(0, 1).requires_grad_()
            optimiser = torch.optim.Adam([x], lr=_RATE, betas=_BETAS)
            for step in range(_STEPS):
                optimiser.param_groups[0]["lr"] = _RATE * (0.1 + 0.9 * math.cos(math.pi / 2 * step / _STEPS))
                with torch.autocast("cpu", torch.bfloat16):  # half the time, and pictures as near
                    gap = self._axes.centred(x)
                    inside = gap @ self._axes.basis
                inside = inside.float()
                rest = gap.square().sum() - inside.square().sum()
                loss = (super().analyse(x) - waves).square().sum() + (inside - moduli).square().sum() + _REST * rest
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                x.data.clamp_(0, 1)
        return x.detach()


@dataclass(frozen=True, kw_only=True)
class Axes:
    """V^T (w S(x) - m) for images x [n, c, h, w] in [0, 1]: `basis` V [D, k], `weight` w and `mean` m [D].

    S is the scattering transform without its blurred picture (the cosines know that). w divides each channel by the
    square root of its spread over made-up pictures, and gives all of them 0.7 of the pictures' own spread.
    """

    scattering: Scattering
    weight: Tensor
    mean: Tensor
    basis: Tensor

    def moduli(self, x: Tensor) -> Tensor:
        """The weighted moduli w S(x), [n, D]."""
        blurred = x.shape[1] * math.prod(self.scattering.grid)
        return self.scattering(x)[:, blurred:] * self.weight

    def centred(self, x: Tensor) -> Tensor:
        """The same about the mean of made-up pictures, w S(x) - m, [n, D]."""
        return self.moduli(x) - self.mean

    def __call__(self, x: Tensor) -> Tensor:
        """V^T (w S(x) - m), [n, k]."""
        return self.centred(x) @ self.basis


@functools.lru_cache(4)
def public_axes(height: int, width: int, channels: int, count: int) -> Axes:
    """`count` axes for a size of image, from made-up pictures (3 s, once in a process)."""
    shown = procedural_images(_PICTURES, height=height, width=width, channels=channels, rng=np.random.default_rng(0))
    x = to_unit(shown)
    scattering = Scattering(height=height, width=width, channels=channels)
    cells = math.prod(scattering.grid)
    with torch.no_grad():
        found = torch.cat([scattering(part)[:, channels * cells :] for part in x.split(_BATCH)])
        spread = found.unflatten(1, (-1, cells)).std((0, 2))
        weight = spread.clamp(min=1e-3 * float(spread.max())).rsqrt().repeat_interleave(cells)
        weight *= _SHARE * math.sqrt(_variance(x.flatten(1)) / _variance(found * weight))
        found *= weight
        mean = found.mean(0)
        basis = _principal((found - mean).double(), count).float()
    return Axes(scattering=scattering, weight=weight, mean=mean, basis=basis)


def _principal(x: Tensor, count: int) -> Tensor:
    """The first principal axes [d, count] of centred x [n, d]."""
    values, left = torch.linalg.eigh(x @ x.T)
    return signed_alike(x.T @ (left.flip(1)[:, :count] / values.flip(0)[:count].sqrt()))


def _variance(x: Tensor) -> float:
    """Sum of the variances of the columns of x [n, d]."""
    return float((x - x.mean(0)).square().sum()) / len(x)

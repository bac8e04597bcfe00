"""Images as a few public coordinates and back: cosine frequencies of the picture or of its distance field.

Nothing here is fitted to data. Each record is treated alone; a picture of strokes may first be set upright by its own
slant, which then is one more coordinate.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional

Array = NDArray[np.float64]

SLANT_LIMIT = 0.8
_SLANT_WEIGHT = 1.5
_FINE = 2


class Coordinates:
    """The map x -> z = (low cosine frequencies of F(x), slant), and its left inverse on what it keeps.

    F is the picture itself, or the signed distance to the outline {x = 1/2} in pixels, inside positive, cut off at
    +-`reach` and divided by it. Means of distance fields are shapes again, means of pictures are blurs.

    Args:
        height: of the images, in pixels.
        width: of the images, in pixels.
        channels: colour channels; several are first turned to mean and differences.
        block: frequencies kept along each axis, at most the size of the image.
        upright: set each picture upright by its slant, which becomes the last coordinate.
        outline: describe the distance field instead of the picture.
        reach: where distances are cut off, in pixels.
    """

    def __init__(
        self,
        *,
        height: int,
        width: int,
        channels: int,
        block: int = 10,
        upright: bool = False,
        outline: bool = False,
        reach: float = 3.0,
    ) -> None:
        if block < 1 or reach <= 0:
            raise ValueError(f"block is {block}, reach {reach}; allowed are 1 or more, and above 0")
        self.height, self.width, self.channels, self.reach = height, width, channels, reach
        self.upright, self.outline = upright, outline
        self._rows = _cosines(height)[: min(block, height)]
        self._columns = _cosines(width)[: min(block, width)]
        self._colours = _cosines(channels)
        down, across = np.arange(len(self._rows)), np.arange(len(self._columns))
        plane = (down[:, None] + across).ravel().astype(np.float64)
        self.frequency: Array = np.r_[np.tile(plane, channels), [2.0] * upright]
        """Order of each coordinate [dim]: 0 is the mean; the slant counts as 2."""
        self.unit = 1.0
        """All coordinates are divided by this before clipping, so that radii fit any kind of them."""

    @property
    def scale(self) -> Array:
        """What each coordinate [dim] is divided by before clipping: the fourth root of its usual variance."""
        return self.unit * (1 + self.frequency / 2) ** -0.25

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return len(self.frequency)

    def encode(self, images: NDArray[np.uint8]) -> Array:
        """Coordinates [n, dim] of images [n, height, width, channels]."""
        x, slant = self.straight(torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255)
        field = (_distance(x, self.reach) if self.outline else x.numpy()).astype(np.float64)
        z = self.analyse(torch.from_numpy(field)).numpy()
        return np.concatenate([z, _SLANT_WEIGHT * slant], axis=1)

    def straight(self, x: Tensor) -> tuple[Tensor, Array]:
        """Pictures [n, c, h, w] set upright, each by its own slant, and that slant [n, 1]; [n, 0] if none is."""
        if not self.upright:
            return x, np.zeros((len(x), 0))
        slant = _slant(x.mean(1).double().numpy())
        return _warp(x, _sheared(torch.eye(2).repeat(len(x), 1, 1), slant)), slant[:, None]

    def analyse(self, field: Tensor) -> Tensor:
        """Kept frequencies [n, m] of fields [n, c, h, w]."""
        rows, columns, colours = (torch.from_numpy(b).to(field) for b in (self._rows, self._columns, self._colours))
        return torch.einsum("nchb,kc->nkhb", rows @ field @ columns.T, colours).flatten(1)

    def synthesise(self, z: Tensor) -> Tensor:
        """Fields [n, c, h, w] of kept frequencies [n, m]."""
        rows, columns, colours = (torch.from_numpy(b).to(z) for b in (self._rows, self._columns, self._colours))
        planes = z.reshape(len(z), self.channels, len(rows), len(columns))
        return torch.einsum("nkhb,kc->nchb", rows.T @ planes @ columns, colours)

    def decode(
        self,
        z: Array,
        *,
        wobble: float = 0.0,
        contrast: float = 1.5,
        rng: np.random.Generator | None = None,
    ) -> NDArray[np.uint8]:
        """Images [n, height, width, channels] of coordinates [n, dim].

        Args:
            z: coordinates.
            wobble: strength of the random turn, stretch, shift and bend that each picture gets; 0 is none, 1 is like
                handwriting: 8 degrees, 8 %, half a pixel and 0.7 pixels (standard deviations, at 28 pixels).
            contrast: slope about the middle grey, 1 leaves grey values as they are. Distances turn from black to white
                over 2 / contrast pixels or so.
            rng: coins of wobble.
        """
        return self.finish(self.picture(z), z, wobble=wobble, contrast=contrast, rng=rng)

    def picture(self, z: Array) -> Tensor:
        """Fields [n, c, h, w] of coordinates, upright."""
        return self.synthesise(torch.from_numpy(z[:, : self.dim - self.upright])).float()

    def finish(
        self, x: Tensor, z: Array, *, wobble: float, contrast: float, rng: np.random.Generator | None
    ) -> NDArray[np.uint8]:
        """Images of fields [n, c, h, w] with the slant in `z`, as `decode` makes them."""
        n = len(x)
        turn, shift, bend = torch.eye(2).repeat(n, 1, 1), torch.zeros(n, 2), None
        if wobble > 0:
            turn, shift, bend = _wobble(n, wobble, rng or np.random.default_rng())
        if self.upright:
            slant = np.clip(z[:, -1] / _SLANT_WEIGHT, -SLANT_LIMIT, SLANT_LIMIT)
            turn = _sheared(turn, -slant)
        ground = float(self.outline)  # far from any outline the field is -1, elsewhere the ground is black
        if self.upright or wobble > 0:
            x = _warp(x + ground, turn, shift, bend) - ground
        slope, middle = (0.45 * self.reach, 0.0) if self.outline else (1.0, 0.5)
        x = (0.5 + contrast * slope * (x - middle)).clamp(0, 1)
        return (x * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def _cosines(n: int) -> Array:
    """The orthonormal cosine basis [n, n], lowest frequency first."""
    k, i = np.arange(n)[:, None], np.arange(n)[None]
    basis = np.cos(np.pi * (i + 0.5) * k / n) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis


def _slant(x: Array) -> Array:
    """How far the picture leans, [n], from its second moments: covariance of the axes over the vertical variance."""
    down, across = np.linspace(-1, 1, x.shape[1]), np.linspace(-1, 1, x.shape[2])
    mass = x.sum((1, 2)) + 1e-6
    columns, rows = x.sum(1) @ across / mass, x.sum(2) @ down / mass
    mixed = np.einsum("nij,i,j->n", x, down, across) / mass - rows * columns
    return np.clip(mixed / np.maximum(x.sum(2) @ down**2 / mass - rows**2, 1e-4), -SLANT_LIMIT, SLANT_LIMIT)


def _sheared(turn: Tensor, slant: Array) -> Tensor:
    """`turn` [n, 2, 2] followed by x <- x + slant y."""
    shear = torch.eye(2).repeat(len(slant), 1, 1)
    shear[:, 0, 1] = torch.from_numpy(slant).float()
    return shear @ turn


def _warp(x: Tensor, turn: Tensor, shift: Tensor | None = None, bend: Tensor | None = None) -> Tensor:
    """Pictures [n, c, h, w] read at turn (place) + shift + bend (place), in units of half an image."""
    if len(x) == 0:
        return x
    shift = torch.zeros(len(x), 2) if shift is None else shift
    places = functional.affine_grid(torch.cat([turn, shift[:, :, None]], 2), list(x.shape), align_corners=False)
    if bend is not None:
        smooth = functional.interpolate(bend, size=x.shape[2:], mode="bicubic", align_corners=True)
        places = places + smooth.permute(0, 2, 3, 1)
    return functional.grid_sample(x, places, padding_mode="zeros", align_corners=False)


def _wobble(n: int, strength: float, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random linear maps [n, 2, 2], shifts [n, 2] and coarse bends [n, 2, 4, 4]."""
    angle = strength * math.radians(8) * rng.normal(size=n)
    wide, high = np.exp(strength * 0.08 * rng.normal(size=(2, n)))
    turn = np.array([[np.cos(angle) * wide, -np.sin(angle) * high], [np.sin(angle) * wide, np.cos(angle) * high]])
    shift = strength * 0.5 / 14 * rng.normal(size=(n, 2))
    bend = strength * 0.7 / 14 * rng.normal(size=(n, 2, 4, 4))
    made = (turn.transpose(2, 0, 1), shift, bend)
    first, second, third = (torch.from_numpy(np.ascontiguousarray(a)).float() for a in made)
    return first, second, third


def _distance(x: Tensor, reach: float) -> NDArray[np.float32]:
    """Signed distance fields in [-1, 1] of pictures [n, c, h, w]; a picture without an outline is all -1 or all 1."""
    fine = functional.interpolate(x, scale_factor=_FINE, mode="bilinear", align_corners=False).numpy() > 0.5
    out = np.empty(fine.shape, np.float32)
    for index in np.ndindex(*fine.shape[:2]):
        inside = fine[index]
        if inside.all() or not inside.any():
            out[index] = reach if inside.all() else -reach
            continue
        gap = distance_transform_edt(inside) - distance_transform_edt(~inside)
        out[index] = (gap - np.sign(gap) / 2) / _FINE
    coarse = out.reshape(*x.shape[:3], _FINE, x.shape[3], _FINE).mean((3, 5))
    return np.clip(coarse / reach, -1, 1)

"""Pooled pixels as per-record vectors, and codes along their released principal components."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dpgm.mechanisms.latents import Encode
from dpgm.mechanisms.moments import unpack
from dpgm.mechanisms.queries import clip_rows
from dpgm.nets.classifiers import to_unit
from dpgm.privacy.mechanism import Array
from dpgm.schema import ImageSchema, Rows

MOST = 3072
"""Pixels that are kept at most: their second moment has the square of this many entries."""


@dataclass(frozen=True, kw_only=True)
class PooledPixels:
    """Pixels averaged over squares until there are at most 3,072 numbers; a public map.

    Attributes:
        schema: public facts about the images.
    """

    schema: ImageSchema

    @property
    def factor(self) -> int:
        """Side of the squares, in pixels."""
        height, width, channels = self.schema.shape
        return next(f for f in range(1, height + width) if channels * -(-height // f) * -(-width // f) <= MOST)

    @property
    def dim(self) -> int:
        """Number of pooled pixels d."""
        height, width, channels = self.schema.shape
        return channels * -(-height // self.factor) * -(-width // self.factor)

    @property
    def radius(self) -> float:
        """A public bound on the length of the vectors: that of pixels of root mean square 0.35."""
        return 0.35 * math.sqrt(self.dim)

    def __call__(self, rows: Rows) -> Array:
        """Vectors [b, dim] of a block of rows."""
        return self.of(to_unit(rows["image"])).double().numpy()

    def of(self, x: Tensor) -> Tensor:
        """Vectors `[b, dim]` of images `[b, c, h, w]` in [0, 1]."""
        return functional.avg_pool2d(x, self.factor, ceil_mode=True).flatten(1)

    def codes(self, packed: NDArray[Any], latent: int) -> Encode:
        """A map from images to codes `[b, latent]` along the leading eigenvectors, of mean square about 1; free.

        Args:
            packed: released second moment of the clipped vectors over `radius`^2, as `moments.pack` makes it.
            latent: number of components, at most `dim`.
        """
        matrix = torch.from_numpy(unpack(packed, self.dim)) / (self.schema.size or 1)
        values, vectors = torch.linalg.eigh(matrix)  # in rising order
        values, vectors = values.flip(0)[:latent], vectors.flip(1)[:, :latent]
        scale = vectors / (self.radius * values.clamp(min=1e-4).sqrt())

        def encode(x: Tensor, _: Tensor) -> Tensor:
            return (torch.from_numpy(clip_rows(self.of(x).numpy(), self.radius)) @ scale).float()

        return encode

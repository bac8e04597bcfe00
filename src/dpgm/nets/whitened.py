"""Features whose covariance over made-up pictures is flattened, so that small noise hurts no direction more."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dpgm.nets.classifiers import to_unit
from dpgm.nets.features import TINY, FeatureMap, normalise
from dpgm.nets.procedural import procedural_images

_BATCH = 250


class Whitened(FeatureMap):
    """z(x) = u / |u| with u = A^T (r(x) - m): centred, partly whitened, cut to `dim` directions, of norm below 1.

    r(x) is f(x)^power (negative features count as 0, or keep their sign), standardised in groups and scaled to unit
    norm. m and the eigenpairs (l_j, v_j) are mean and covariance of r over procedural pictures, and
    A_j = v_j (l_j + ridge * mean l)^(-1/2). No record is involved. A linear classifier trained with isotropic noise has
    the best of its signal where the features are large: whitening puts it there.

    Args:
        features: the map f; the coordinates of one group are consecutive.
        height: image height in pixels.
        width: image width in pixels.
        channels: colour channels.
        groups: number of groups that are standardised apart; 0 leaves that step out.
        signed: features may be negative, and keep their sign: sign(f) |f|^power.
        power: exponent; 0.5 evens out large and small features.
        dim: directions kept; at most the number of pictures less one.
        ridge: share of the mean eigenvalue added to all; 0 whitens fully, large values not at all.
        pictures: number of procedural pictures.
        seed: public seed of the pictures.

    Raises:
        ValueError: if there are too few pictures or features for `dim`.
    """

    def __init__(
        self,
        features: FeatureMap,
        *,
        height: int,
        width: int,
        channels: int,
        groups: int = 1,
        signed: bool = False,
        power: float = 0.5,
        dim: int = 1500,
        ridge: float = 0.3,
        pictures: int = 4000,
        seed: int = 0,
    ) -> None:
        most = min(features.dim, pictures - 1)
        if not 1 <= dim <= most:
            raise ValueError(f"dim is {dim}; {pictures} pictures of {features.dim} features allow 1 to {most}")
        super().__init__(f"whitened-{features.name}", dim, features.provenance)
        self.features, self.groups, self.power, self.signed = features, groups, power, signed
        shown = procedural_images(
            pictures, height=height, width=width, channels=channels, rng=np.random.default_rng(seed)
        )
        with torch.no_grad():
            found = torch.cat([self._raw(to_unit(shown[i : i + _BATCH])) for i in range(0, pictures, _BATCH)])
            self.mean: Tensor
            self.register_buffer("mean", found.mean(0))
            self.basis: Tensor
            self.register_buffer("basis", _whitening(found - self.mean, dim, ridge))
        self.freeze()

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[b, c, h, w]` to `[b, dim]`, each row of norm at most 1."""
        return normalise((self._raw(x) - self.mean) @ self.basis, 0)

    def _raw(self, x: Tensor) -> Tensor:
        f = self.features(x)
        if self.signed:
            return normalise(f.sign() * (f.abs() + TINY).pow(self.power), self.groups)
        return normalise((f.clamp(min=0) + TINY).pow(self.power), self.groups)


def _whitening(centred: Tensor, dim: int, ridge: float) -> Tensor:
    """The matrix A `[D, dim]` for centred features `[n, D]`, by the smaller of the two Gram matrices."""
    n, total = centred.shape
    if n < total:
        values, left = torch.linalg.eigh(centred @ centred.T)
        values, left = values.flip(0)[:dim].clamp(min=0), left.flip(1)[:, :dim]
        directions = centred.T @ (left / values.sqrt().clamp(min=1e-12))
    else:
        values, directions = torch.linalg.eigh(centred.T @ centred)
        values, directions = values.flip(0)[:dim].clamp(min=0), directions.flip(1)[:, :dim]
    floor = ridge * centred.square().sum() / total
    return signed_alike(directions) * (values + floor).rsqrt() * n**0.5


def signed_alike(axes: Tensor) -> Tensor:
    """Axes `[D, k]` with the largest entry of each positive: eigenvectors come with either sign, by machine."""
    return axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()

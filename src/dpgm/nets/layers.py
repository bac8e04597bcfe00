"""Per-layer maps of a frozen network as public features: centred and bounded, with first and second moments."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpgm.nets.features import TINY, FeatureMap

_BATCH = 250


class LayerNet(nn.Module):
    """A network whose `forward(x [b, c, h, w] in [0, 1])` returns the non-negative maps `[b, c_l, h_l, w_l]` of its
    layers; it treats each record alone.
    """


def unit(z: Tensor) -> Tensor:
    """Rows of `[b, D]` scaled to unit norm; a row of zeros stays zero."""
    return z / ((z.square().sum(1, keepdim=True) + TINY**4).sqrt() + TINY)


def layer_moments(net: LayerNet, x: Tensor, grid: int, second: bool) -> list[Tensor]:
    """Unit vectors u_l = e_l / |e_l| of the layers, then (with `second`) those of e_l²; e_l is averaged down to at most
    `grid` points a side.
    """
    flat: list[Tensor] = []
    for m in net(x):
        size = (min(m.shape[2], grid), min(m.shape[3], grid))
        m = m if m.shape[2:] == size else functional.adaptive_avg_pool2d(m, size)
        flat.append(m.float().flatten(1))
    return [unit(e) for e in flat] + ([unit(e.square()) for e in flat] if second else [])


class Layered(FeatureMap):
    """phi(x) = (w_l min(1, r_l / |v_l|) v_l / r_l)_l with v_l = u_l(x) - c_l: of norm at most 1, as sum w_l² = 1.

    u_l are the unit vectors of `layer_moments`; c_l and r_l are public numbers. Post-ReLU vectors lie in a narrow cone:
    without the centre most of each record's norm, which the noise is proportional to, would say nothing.

    **Source**: DP-MEPF (Harder, Jalali, Sutherland, Park 2023) for e and e².
    **Differs from the paper**: layers are scaled one by one instead of together, so that the wide first layers do not
    drown the others; a public centre is subtracted, and what lies beyond a public radius is clipped.

    Args:
        name: what to call the features.
        net: layers.
        centres: c_l, one vector a layer, first moments before second ones.
        radii: r_l > 0 of each.
        weights: w_l >= 0 of each; they are scaled to sum w_l² = 1.
        grid: points a side that maps are averaged down to.
        second: whether second moments follow the first ones.
        provenance: the public data that net, centres and radii came from, or "none".
    """

    def __init__(
        self,
        name: str,
        net: LayerNet,
        *,
        centres: Sequence[Tensor],
        radii: Tensor,
        weights: Sequence[float],
        grid: int,
        second: bool,
        provenance: str = "none",
    ) -> None:
        if len({len(centres), len(radii), len(weights)}) != 1:
            raise ValueError(f"{len(centres)} centres, {len(radii)} radii, {len(weights)} weights; give one of each")
        super().__init__(name, sum(len(c) for c in centres), provenance)
        self.net, self.grid, self.second = net, grid, second
        size = math.sqrt(sum(w * w for w in weights))
        self.sizes = tuple(len(c) for c in centres)
        self.weights = tuple(w / size for w in weights)
        self.centre: Tensor
        self.radii: Tensor
        self.register_buffer("centre", torch.cat([c.float() for c in centres]))
        self.register_buffer("radii", radii.float().clamp(min=1e-3))
        self.freeze()

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[b, c, h, w]` to `[b, dim]`, each row of norm at most 1."""
        parts: list[Tensor] = []
        layers = layer_moments(self.net, x, self.grid, self.second)
        for u, c, r, w in zip(layers, self.centre.split(self.sizes), self.radii, self.weights, strict=True):
            v = (u - c) / r
            norm = (v.square().sum(1, keepdim=True) + TINY**4).sqrt()
            parts.append(v * (w / norm.clamp(min=1)))
        return torch.cat(parts, 1)


@torch.no_grad()
def public_statistics(
    net: LayerNet, images: Tensor, *, grid: int, second: bool, share: float = 0.9
) -> tuple[list[Tensor], Tensor]:
    """Centres (means) and radii (the `share` quantile of the distances from them) of the layers over public images.

    Args:
        net: layers.
        images: public images `[n, c, h, w]` in [0, 1].
        grid: as for `Layered`.
        second: as for `Layered`.
        share: part of the public images that the radius keeps whole.
    """
    parts = list(images.split(_BATCH))
    sums: list[Tensor] = []
    for x in parts:
        found = [u.double().sum(0) for u in layer_moments(net, x, grid, second)]
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
    centres = [(s / len(images)).float() for s in sums]
    away = [
        torch.stack([(u - c).norm(dim=1) for u, c in zip(layer_moments(net, x, grid, second), centres, strict=True)], 1)
        for x in parts
    ]
    return centres, torch.cat(away).quantile(share, dim=0)

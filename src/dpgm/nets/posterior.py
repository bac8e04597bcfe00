"""The optimal denoiser of labelled pictures whose low frequencies follow a known mixture of Gaussians in each class."""

from __future__ import annotations

import torch
from torch import Tensor

from dpgm.nets.coordinates import Array, Coordinates


class MixtureDenoiser:
    """E[x | x + sigma noise, y] for x = 2 u - 1 in closed form; no record meets another.

    The kept coordinates of the picture u of class y follow sum_k w_yk N(m_yk, temperature S_yk), all others N(0, rest).
    In the eigenbasis Q of S_yk, with s = sigma / 2, the mean of component k is m + Q l / (l + s^2) Q' (a - m); the
    components are weighed by w_k N(a; m_k, temperature S_k + s^2 I).

    Args:
        coordinates: of pictures; those behind the picture's own (a slant) are left out.
        weights: w [k, per].
        means: m [k, per, dim].
        factors: Cholesky factors of S [k, per, dim, dim].
        temperature: factor on the covariances.
        rest: variance of each frequency that is not kept.
    """

    def __init__(
        self,
        coordinates: Coordinates,
        weights: Array,
        means: Array,
        factors: Array,
        *,
        temperature: float = 1.0,
        rest: float = 0.015,
    ) -> None:
        d = coordinates.dim - coordinates.upright
        inside = factors[:, :, :d].astype(float)
        values, turn = torch.linalg.eigh(torch.from_numpy(inside @ inside.swapaxes(2, 3)))
        self._coordinates, self._rest = coordinates, rest
        self._weights = torch.from_numpy(weights).float().log()
        self._means = torch.from_numpy(means[:, :, :d]).float()
        self._spread = temperature * values.clamp(min=1e-6).float()
        self._turn = turn.float()

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        """Expected clean pictures [b, c, h, w] of noisy ones, their noise levels [b] and labels [b]."""
        with torch.autocast("cpu", enabled=False):
            seen, noise = (x.float() + 1) / 2, (sigma.float() / 2).square()
            kept = self._coordinates.analyse(seen)
            found = torch.empty_like(kept)
            for label in y.unique():
                mine = (y == label).nonzero()[:, 0]
                found[mine] = self._mean(kept[mine], noise[mine, None], int(label))
            share = (self._rest / (self._rest + noise))[:, None]
            low = self._coordinates.synthesise(found - share * kept)
            return 2 * (low + share[:, :, None, None] * seen) - 1

    def _mean(self, a: Tensor, noise: Tensor, label: int) -> Tensor:
        means, turn, spread = self._means[label], self._turn[label], self._spread[label][:, None]
        away = (a - means[:, None]) @ turn  # [per, b, dim]
        total = spread + noise
        logits = self._weights[label][:, None] - (away.square() / total + total.log()).sum(2) / 2
        inner = means[:, None] + (spread / total * away) @ turn.transpose(1, 2)
        return (logits.softmax(0)[:, :, None] * inner).sum(0)

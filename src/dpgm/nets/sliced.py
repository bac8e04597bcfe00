"""Slices of images as features, and losses between noisy slices of real records and slices of generated ones.

Nothing here knows of privacy: what the losses compare with is released and already noisy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dpgm.nets.features import FeatureMap


def cosines(size: int, count: int) -> Tensor:
    """The first `count` vectors of the orthonormal cosine basis, [count, size]."""
    t = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    rows = [torch.cos(math.pi * k * t) * math.sqrt((1 + (k > 0)) / size) for k in range(count)]
    return torch.stack(rows).float()


class SlicedHistogram(FeatureMap):
    """Soft histograms of random smooth projections: phi(x)_{jb} = max(0, 1 - |u_j.x - c_b|/h)/sqrt(m), |phi| <= 1.

    The directions u_j are random combinations of low cosine waves, of norm 1. Centres c_b are spaced h apart; beyond
    the outermost centre the whole weight falls on it, so the weights of a projection always sum to 1.

    Args:
        height: image height in pixels.
        width: image width in pixels.
        channels: colour channels.
        slices: number m of projections.
        bins: centres of a projection, 2 or more.
        waves: cosine waves on each side that directions are made of.
        seed: public seed of the directions.
    """

    def __init__(
        self,
        *,
        height: int,
        width: int,
        channels: int,
        slices: int = 500,
        bins: int = 12,
        waves: int = 12,
        seed: int = 0,
    ) -> None:
        super().__init__("sliced-histogram", slices * bins)
        rng = torch.Generator().manual_seed(seed)
        rows, columns = min(waves, height), min(waves, width)
        weight = torch.randn(slices, channels, rows, columns, generator=rng)
        weight = cosines(height, rows).T @ weight @ cosines(width, columns)
        weight = weight.flatten(1)
        self.weight: Tensor
        self.register_buffer("weight", weight / weight.norm(dim=1, keepdim=True))
        # 0.134 is a public guess of the mean square of a pixel; most of it lies in the low waves.
        reach = 2.5 * math.sqrt(0.134 * height * width / (rows * columns))
        self.centres: Tensor
        self.register_buffer("centres", torch.linspace(-reach, reach, bins))
        self.slices = slices
        self.freeze()

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[b, c, h, w]` to `[b, slices bins]`."""
        p = x.flatten(1) @ self.weight.T.to(x.dtype)
        p = p.clamp(float(self.centres[0]), float(self.centres[-1]))
        step = float(self.centres[1] - self.centres[0])
        hat = (1 - (p[:, :, None] - self.centres).abs() / step).clamp(min=0)
        return hat.flatten(1) / math.sqrt(self.slices)


# ---------------------------------------------------------------------------------------------------------------------
# Losses: (generated records [b, d], step) -> number

SliceLoss = Callable[[Tensor, torch.Generator], Tensor]
Divergence = Literal["chi2", "kl"]


def noisy_characteristic(
    values: Tensor, directions: Tensor | None, noise_std: float, *, count: int, rng: torch.Generator
) -> SliceLoss:
    """Characteristic functions in the noisy domain: mean |T_l - a_l E exp(i w_l.x)|^2 / a_l.

    T_l is the mean of exp(i w_l.z) over *all* released rows z, computed once; generated records carry no noise but its
    factor a_l = exp(-noise_std^2 |w_l|^2/2), so neither noise nor a small batch of real rows enters a step.

    Args:
        values: released rows [n, p].
        directions: [d, p], or None where the rows are whole records.
        noise_std: standard deviation of the noise on each released number.
        count: number of frequencies.
        rng: source of the frequencies.
    """
    p = values.shape[1]
    size = torch.tensor([0.3, 0.7, 1.2]).repeat(-(-count // 3))[:count] / noise_std
    w = torch.randn(p, count, generator=rng)
    w = w / w.norm(dim=0) * size
    angles = (b.float() @ w for b in values.split(8192))
    sums = [torch.stack([a.cos().sum(0), a.sin().sum(0)]).double() for a in angles]
    target = (torch.stack(sums).sum(0) / len(values)).float()
    factor = (-0.5 * noise_std**2 * w.square().sum(0)).exp()
    inward = w if directions is None else directions @ w

    def loss(x: Tensor, rng: torch.Generator) -> Tensor:
        angle = x @ inward
        found = torch.stack([angle.cos().mean(0), angle.sin().mean(0)]) * factor
        return ((found - target).square() / factor).sum() / count

    return loss


def wasserstein(
    values: Tensor, directions: Tensor | None, noise_std: float, *, slices: int, slice_dim: int
) -> SliceLoss:
    """Squared sliced Wasserstein distance of a batch of released rows and generated rows with fresh noise."""

    def loss(x: Tensor, rng: torch.Generator) -> Tensor:
        real, fake = _slices(values, directions, noise_std, x, slices, slice_dim, rng)
        theta = torch.randn(*real.shape[::2], generator=rng)
        theta = theta / theta.norm(dim=1, keepdim=True)
        a, b = (torch.einsum("sbk,sk->sb", v, theta).sort(1)[0] for v in (real, fake))
        return (a - b).square().mean()

    return loss


def density_ratio(
    values: Tensor,
    directions: Tensor | None,
    noise_std: float,
    *,
    divergence: Divergence,
    slices: int,
    slice_dim: int,
    ridge: float = 1e-2,
) -> SliceLoss:
    """The smoothed-sliced f-divergence by kernel mean matching: mean f(r), r = (K_qq + tau I)^-1 K_qp 1.

    q are released rows, p generated rows with fresh noise; f = (t - 1)^2 or t ln t - t + 1, both 0 at 1 and positive
    elsewhere (t ln t alone would reward mass that runs away). Ratios of several bandwidths are averaged.

    Args:
        values: released rows [n, p].
        directions: [d, p], or None where the rows are whole records.
        noise_std: standard deviation of the noise on each released number.
        divergence: f.
        slices: slices looked at in a step.
        slice_dim: dimension k of a slice.
        ridge: tau over the size of a batch.
    """

    def loss(x: Tensor, rng: torch.Generator) -> Tensor:
        real, fake = _slices(values, directions, noise_std, x, slices, slice_dim, rng)
        b = real.shape[1]
        with torch.no_grad():
            square = torch.cdist(real, real).square()
            middle = square.flatten(1).median(1)[0].clamp(min=1e-12)
        cross = _squares(real, fake)
        ratios = torch.zeros(real.shape[:2])
        widths = (0.3, 1.0, 3.0)
        for width in widths:
            scale = -0.5 / (width * middle)[:, None, None]
            with torch.no_grad():
                inside = (square * scale).exp() + ridge * b * torch.eye(b)
                factor = torch.linalg.cholesky(inside)
            outside = (cross * scale).exp().sum(2, keepdim=True) * (b / fake.shape[1])
            ratios = ratios + torch.cholesky_solve(outside, factor)[..., 0] / len(widths)
        r = ratios.clamp(min=0)
        r = r / r.mean(1, keepdim=True).clamp(min=1e-6)
        if divergence == "chi2":
            return (r - 1).square().mean()
        return (r * r.clamp(min=1e-10).log() - r + 1).mean()

    return loss


def ridge(
    values: Tensor,
    directions: Tensor | None,
    noise_std: float,
    *,
    slices: int,
    slice_dim: int,
    rng: torch.Generator,
    centres: int = 32,
    tau: float = 1e-3,
) -> SliceLoss:
    """Squared ratio of densities by ridge regression on fixed centres: (h - h0)^T (H + tau I)^-1 (h - h0).

    phi are Gaussian kernels of three bandwidths around `centres` released points of a slice. H = mean phi phi^T and
    h0 = mean phi over *all* released rows, once; h = mean E phi(x + noise) over generated rows, in closed form: the
    kernel widened by the noise and lowered by (b^2/(b^2 + noise_std^2))^(k/2). So a step needs no noise, no released
    rows and no solve that grows with the batch.

    Args:
        values: released rows [n, p].
        directions: [d, p], or None where the rows are whole records.
        noise_std: standard deviation of the noise on each released number.
        slices: slices that are looked at, the same in every step.
        slice_dim: dimension k of a slice.
        rng: source of slices and centres.
        centres: points of a slice.
        tau: ridge, in units of the mean eigenvalue of H.
    """
    inward, outward = _fixed_slices(values, directions, slices, slice_dim, rng)
    k, count = inward.shape[2], min(centres, len(values))
    points = torch.einsum("np,spk->snk", values[_pick(len(values), count, rng)].float(), outward)
    middle = torch.cdist(points, points).square().flatten(1).median(1)[0].clamp(min=1e-6)
    width = middle[:, None] * torch.tensor([0.3, 1.0, 3.0])  # [slices, bandwidths], squared

    def phi(y: Tensor, spread: float) -> Tensor:
        """Kernels [slices, rows, bandwidths * centres] of points [slices, rows, k] under noise of that variance."""
        square = _squares(y, points)[:, :, None]
        wide = width + spread
        lower = (width / wide) ** (k / 2)
        found = lower[:, None, :, None] * (-0.5 * square / wide[:, None, :, None]).exp()
        return found.flatten(2)

    size = 3 * count
    inside, h0 = torch.zeros(len(inward), size, size, dtype=torch.float64), torch.zeros(len(inward), size)
    for block in values.split(4096):
        f = phi(torch.einsum("np,spk->snk", block.float(), outward), 0.0)
        inside += (f.transpose(1, 2) @ f).double()
        h0 += f.sum(1)
    inside, h0 = inside / len(values), h0 / len(values)
    scale = inside.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    factor = torch.linalg.cholesky(inside + tau * scale * torch.eye(size)).float()

    def loss(x: Tensor, rng: torch.Generator) -> Tensor:
        h = phi(torch.einsum("nd,sdk->snk", x, inward), noise_std**2).mean(1)
        difference = (h - h0)[:, :, None]
        return (difference * torch.cholesky_solve(difference, factor)).sum(1).mean()

    return loss


def _pick(n: int, count: int, rng: torch.Generator) -> Tensor:
    return torch.randperm(n, generator=rng)[:count].sort()[0]


def _fixed_slices(
    values: Tensor, directions: Tensor | None, slices: int, slice_dim: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Maps to slices, of generated records [s, d, k] and of released rows [s, p, k]."""
    p = values.shape[1]
    if directions is None:
        theta = torch.linalg.qr(torch.randn(slices, p, min(slice_dim, p), generator=rng))[0]
        return theta, theta
    chosen = torch.randperm(directions.shape[1] // slice_dim, generator=rng)[:slices]
    columns = chosen[:, None] * slice_dim + torch.arange(slice_dim)
    outward = torch.nn.functional.one_hot(columns, p).transpose(1, 2).float()
    return directions[:, columns].permute(1, 0, 2), outward


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances [s, n, m]; cheaper to differentiate than cdist."""
    inner = a @ b.transpose(1, 2)
    return (a.square().sum(2)[:, :, None] + b.square().sum(2)[:, None] - 2 * inner).clamp(min=0)


def _slices(
    values: Tensor,
    directions: Tensor | None,
    noise_std: float,
    x: Tensor,
    slices: int,
    slice_dim: int,
    rng: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Slices [slices, b, slice_dim] of released rows, and of generated rows with noise of the same law."""
    pick = torch.from_numpy(np.sort(torch.randint(len(values), (len(x),), generator=rng).numpy()))
    z = values[pick].float()
    if directions is None:  # fresh orthonormal slices of whole records
        d = x.shape[1]
        k = min(slice_dim, d)
        theta = torch.linalg.qr(torch.randn(slices, d, k, generator=rng))[0]
        noise = noise_std * torch.randn(slices, len(x), k, generator=rng)
        return z @ theta, x @ theta + noise
    total = directions.shape[1] // slice_dim
    chosen = torch.randperm(total, generator=rng)[:slices]
    columns = (chosen[:, None] * slice_dim + torch.arange(slice_dim)).flatten()
    fake = x @ directions[:, columns] + noise_std * torch.randn(len(x), len(columns), generator=rng)
    shape = (len(x), -1, slice_dim)
    return z[:, columns].view(shape).transpose(0, 1), fake.view(shape).transpose(0, 1)

"""Low-frequency second moments of images: as features, and as the start of a generator.

Class-wise means of z and z z' fix a Gaussian law of the smooth part of the images in closed form, so a generator that
begins there has most of the shapes before its first step.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from torch import Tensor, nn
from torch.nn import functional

from dpgm.nets.features import FeatureMap
from dpgm.nets.generators import LabelledGenerator, initialise, one_hot

_LEAK = 0.05
_PACE, _COLOURS, _BEND = 0.3, 3.0, 0.1
"""Changes by one unit: of a weight of the law, in grey and in colour (in spreads of the coefficient there), and of the
dense layers (in spreads, too). Adam moves all weights alike, so these decide what moves first; in colour, spreads
differ by a factor of a hundred, and one pace for all buries the fainter waves in noise."""


def cosine_basis(height: int, width: int, channels: int, count: int) -> Tensor:
    """The `count` smoothest orthonormal cosine waves of an image, [count, channels * height * width].

    Colour is turned into brightness and two differences first, which come later at the same frequency.
    """
    turn = np.ones((1, 1)) if channels == 1 else np.linalg.qr(np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1.0]]).T)[0].T
    rows, columns = _waves(height), _waves(width)
    order = _smoothest(height, width, channels, count)
    waves = [np.multiply.outer(turn[c], np.outer(rows[a], columns[b])).ravel() for c, a, b in order]
    return torch.tensor(np.stack(waves), dtype=torch.float32)


def _smoothest(height: int, width: int, channels: int, count: int) -> list[tuple[int, int, int]]:
    """Colour, row and column frequency of the `count` smoothest waves, smoothest first."""
    order = sorted(
        (a / height + b / width + (0.1 if c else 0.0), c, a, b)
        for c in range(channels)
        for a in range(height)
        for b in range(width)
    )
    return [(c, a, b) for _, c, a, b in order[:count]]


def _waves(size: int) -> NDArray[np.float64]:
    k, i = np.arange(size)[:, None], np.arange(size)[None]
    waves = np.cos(np.pi * (i + 0.5) * k / size) * math.sqrt(2 / size)
    waves[0] /= math.sqrt(2)
    return waves


class CosineMoments(FeatureMap):
    """phi(x) = (z, z z') / sqrt(2), z the smooth cosine coefficients of x - level over a public radius, with |z| <= 1.

    The upper triangle of z z' is kept, off-diagonal entries times sqrt(2), so |z z'| = |z|^2 and |phi| <= 1.

    Args:
        height: image height in pixels.
        width: image width in pixels.
        channels: colour channels.
        count: number m of coefficients; None for 150 or half of the pixel values, whichever is less.
        radius: norm of an image that is mapped to |z| = 1; None for sqrt(0.134 height width channels).
        level: grey that is subtracted first; None for 0.5 in colour, where pictures fill their frame, and for 0 in
            grey, where most are drawn on black.
    """

    def __init__(
        self,
        *,
        height: int,
        width: int,
        channels: int,
        count: int | None = None,
        radius: float | None = None,
        level: float | None = None,
    ) -> None:
        values = height * width * channels
        count = min(150, values // 2) if count is None else count
        super().__init__("cosine-moments", count + count * (count + 1) // 2)
        self.count = count
        self.level = (0.5 if channels == 3 else 0.0) if level is None else level
        self.radius = math.sqrt(0.134 * values) if radius is None else radius
        self.basis: Tensor
        self.pairs: Tensor
        self.factor: Tensor
        self.register_buffer("basis", cosine_basis(height, width, channels, count))
        self.colours = np.array([c for c, _, _ in _smoothest(height, width, channels, count)])
        pairs = torch.triu_indices(count, count)
        self.register_buffer("pairs", pairs)
        self.register_buffer("factor", torch.where(pairs[0] == pairs[1], 1.0, math.sqrt(2)))
        self.freeze()

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[b, c, h, w]` to `[b, m + m (m + 1) / 2]`."""
        with torch.autocast("cpu", enabled=False):  # products of products need the digits
            z = (x.float().flatten(1) - self.level) @ self.basis.T / self.radius
            z = z / z.norm(dim=1, keepdim=True).clamp(min=1)
            return torch.cat([z, z[:, self.pairs[0]] * z[:, self.pairs[1]] * self.factor], 1) / math.sqrt(2)

    def gaussians(self, target: Tensor, noise_std: Tensor) -> Tensor:
        """Means and factors L (covariance L L') of the coefficients by class, from noisy class means of phi.

        The average covariance of the classes and the deviations from it are each cleared of noise by their
        eigenvalues: below the largest that noise alone would have, E = 2 s sqrt(m), nothing is left; above it,
        (l + sqrt(l² - E²)) / 2. What variance is lost so, beyond its own noise, is put back: in grey falling as 1 / j
        over the coefficients, in colour as the released variances themselves say, by isotonic regression.

        **Source**: Benaych-Georges and Nadakuditi 2011 for the eigenvalues of a matrix plus noise.

        Args:
            target: noisy class means of phi, [k, m + m (m + 1) / 2].
            noise_std: standard deviation of their noise, [k].

        Returns:
            [k, m, 1 + m]: the mean, then L by falling variance.
        """
        k, m = len(target), self.count
        first, second = target[:, :m].double() * math.sqrt(2), target[:, m:].double() * math.sqrt(2) / self.factor
        moment = torch.zeros(k, m, m, dtype=torch.float64)
        moment[:, self.pairs[0], self.pairs[1]] = second
        moment = moment + moment.transpose(1, 2) - torch.diag_embed(moment.diagonal(dim1=1, dim2=2))
        own = moment - first[:, :, None] * first[:, None]
        edge = 2 * noise_std.double() * math.sqrt(m)
        shared = own.mean(0, keepdim=True)
        clean = _cleared(shared, edge.square().mean(0, keepdim=True).sqrt() / math.sqrt(k))
        if k > 1:
            clean = clean + _cleared(own - shared, edge * math.sqrt(1 - 1 / k))
        if self.colours.any():
            clean = self._balanced(clean, own.diagonal(dim1=1, dim2=2), float(noise_std.norm()) * math.sqrt(2) / k)
        else:
            doubt = noise_std.double() * math.sqrt(2 * m)
            lost = ((own.diagonal(dim1=1, dim2=2) - clean.diagonal(dim1=1, dim2=2)).sum(1) - doubt).clamp(min=0)
            fall = 1 / torch.arange(1, m + 1, dtype=torch.float64)
            clean = clean + torch.diag(fall / fall.sum()) * lost[:, None, None]
        values, vectors = torch.linalg.eigh(clean)
        factors = (vectors * values.clamp(min=1e-12).sqrt()[:, None]).flip(2)
        return torch.cat([first[:, :, None], factors], 2).float()

    def _balanced(self, clean: Tensor, variances: Tensor, doubt: float) -> Tensor:
        """Covariances `[k, m, m]` with the noisy `variances` [k, m] on their average diagonal, up to its `doubt`.

        What is missing, less with frequency within a colour, is added; what is too much is scaled away. Differences of
        colours vary a hundred times less than brightness does, so no common share would fit both. All classes are
        changed alike: what noise makes of a class alone would tell it apart, but in no real picture.
        """
        found = clean.diagonal(dim1=1, dim2=2).mean(0)
        missing, lost = (variances.mean(0) - found).numpy(), np.zeros(len(found))
        for of in (self.colours == c for c in np.unique(self.colours)):
            fit = isotonic_regression(missing[of], increasing=False)
            noise = doubt / np.sqrt(np.repeat(fit.weights, fit.weights.astype(int)))
            lost[of] = np.minimum(fit.x, (fit.x - noise).clip(min=0))
        back = torch.from_numpy(lost)
        scale = ((found + back) / found.clamp(min=1e-12)).clamp(0.25, 1).sqrt()
        return clean * scale[:, None] * scale + torch.diag(back.clamp(min=0))


def _cleared(matrices: Tensor, edge: Tensor) -> Tensor:
    """Symmetric matrices `[k, m, m]` without what noise with eigenvalues up to `edge` [k] has added."""
    values, vectors = torch.linalg.eigh(matrices)
    size, edge = values.abs(), edge[:, None]
    true = torch.where(size > edge, (size + (size.square() - edge.square()).clamp(min=0).sqrt()) / 2, 0.0)
    return (vectors * (true * values.sign())[:, None]) @ vectors.transpose(1, 2)


class MomentGenerator(LabelledGenerator):
    """A Gaussian law of the smooth coefficients of each class, bent by dense layers, drawn, finished by convolutions.

    x = clip(b + conv(b, texture noise, class)) with b = basis' (mu_y + L_y z + dense(z, y)); dense layers and
    convolutions begin at zero.

    Args:
        moments: the features whose basis is used.
        height: image height in pixels.
        width: image width in pixels.
        channels: colour channels of the output.
        n_classes: number of classes k.
        rank: columns of L.
        hidden: channels of the convolutions.
        bend: units of the dense layers; 0 leaves the law Gaussian.
        rng: source of the initial weights.
    """

    def __init__(
        self,
        moments: CosineMoments,
        *,
        height: int,
        width: int,
        channels: int,
        n_classes: int,
        rank: int = 40,
        hidden: int = 16,
        bend: int = 0,
        rng: torch.Generator,
    ) -> None:
        rank, grain = min(rank, moments.count), (-(-height // 4), -(-width // 4))
        super().__init__(n_classes, rank + grain[0] * grain[1])
        self.rank, self.grain, self.size, self.level = rank, grain, (channels, height, width), moments.level
        self.basis: Tensor
        self.law: Tensor
        self.register_buffer("basis", moments.basis * moments.radius)
        self.spread: Tensor
        self.register_buffer("law", torch.zeros(n_classes, moments.count, 1 + rank))
        self.register_buffer("spread", torch.full((moments.count,), 0.1))
        self.change = nn.Parameter(torch.zeros(n_classes, moments.count, 1 + rank))
        self.first = nn.Conv2d(channels + 1, hidden, 5, padding=2)
        self.second = nn.Conv2d(hidden, hidden, 5, padding=2)
        self.last = nn.Conv2d(hidden, channels, 5, padding=2)
        self.styles = nn.Linear(n_classes, 2 * hidden)
        self.bent = bend > 0
        bend = max(bend, 1)
        self.inward = nn.Linear(n_classes * (rank + 1), bend)
        self.across = nn.Linear(bend, bend)
        self.outward = nn.Linear(bend, moments.count)
        initialise(self, rng)
        nn.init.zeros_(self.last.weight)
        nn.init.normal_(self.inward.weight, std=math.sqrt(2 / (rank + 1)), generator=rng)
        nn.init.zeros_(self.outward.weight)

    def begin(self, law: Tensor) -> None:
        """Start from means and factors, [k, m, 1 + m], as `CosineMoments.gaussians` returns them."""
        self.law.copy_(law[:, :, : 1 + self.rank])
        self.spread.copy_(law[:, :, 1:].square().sum(2).mean(0).sqrt())

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Map latent vectors `[b, latent]` and labels `[b]` or `[b, k]` to images `[b, c, h, w]` in [0, 1].

        In training, values outside [0, 1] are pushed back softly instead of cut, so that gradients pass.
        """
        label = one_hot(y, self.n_classes)
        pace = _PACE if self.size[0] == 1 else _COLOURS * self.spread[:, None]
        law = torch.einsum("bk,kmr->bmr", label, self.law + pace * self.change)
        code = law[:, :, 0] + torch.einsum("bmr,br->bm", law[:, :, 1:], z[:, : self.rank])
        if self.bent:
            h = (label[:, :, None] * functional.pad(z[:, None, : self.rank], (0, 1), value=1.0)).flatten(1)
            h = functional.relu(self.inward(h))
            code = code + _BEND * self.spread * self.outward(h + functional.relu(self.across(h)))
        smooth = self.level + (code @ self.basis).unflatten(1, self.size)
        grain = z[:, self.rank :].view(-1, 1, *self.grain)
        grain = functional.interpolate(grain, size=self.size[1:], mode="bilinear", align_corners=False)
        style, other = self.styles(label)[:, :, None, None].chunk(2, 1)
        h = functional.relu(self.first(torch.cat([smooth, grain], 1)) + style)
        x = smooth + self.last(functional.relu(self.second(h) + other))
        inside = x.clamp(0, 1)
        return inside + _LEAK * (x - inside) if self.training else inside

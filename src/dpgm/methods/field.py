"""The score field of PGE's one-shot form: its laws from the releases, and a model that samples it by exact HMC."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpgm.mechanisms.moments import unpack
from dpgm.methods.base import Batch, Model, Release, Tensors
from dpgm.methods.composed import part
from dpgm.methods.laws import Array, Moments, class_laws, public_cells, shrink_means
from dpgm.nets.coordinates import Coordinates
from dpgm.nets.posterior import MixtureDenoiser
from dpgm.nets.refiner import refiner_from
from dpgm.privacy.mechanism import Json
from dpgm.samplers import Kernel, hmc, run, tune_step_size

SECOND_WEIGHT, COUNT_WEIGHT = 3.0, 0.3
COUNT_SHARE = 0.1
_PART = 10_000
"""Pictures that are finished at a time: bounded memory, however many there are."""
_RADIUS = {"means": 10.0, "spreads": 7.0, "cells": 5.6}


def radius(stage: str, numbers: int) -> float:
    """Clipping norm of a stage for images of `numbers` values: set at 28 x 28, growing with the square root."""
    return _RADIUS[stage] * math.sqrt(numbers / 784)


def public_centre(coordinates: Coordinates, grey: float) -> Array:
    """Coordinates [dim] of an even grey picture (of distance 0 to any outline, for distance fields)."""
    centre = np.zeros(coordinates.dim)
    centre[0] = (
        0.0 if coordinates.outline else grey * math.sqrt(coordinates.height * coordinates.width * coordinates.channels)
    )
    return centre


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """Public facts about a kind of picture.

    Attributes:
        grey: usual mean brightness, 0 to 1; means are looked for around it.
        upright: records are set upright by their own slant, samples get a slant back.
        temperature: covariances are multiplied by it in sampling.
        wobble: strength of the random distortion of finished pictures.
        contrast: slope about the middle grey.
    """

    grey: float
    upright: bool
    temperature: float
    wobble: float
    contrast: float


class Fit:
    """What the noisy answers say about the laws of the classes; free.

    Args:
        coordinates: of images.
        centre: public centre [dim] that was subtracted from them.
        n_classes: k.
        answers: "means", "spreads" and, with several components, "cells" and "centres"; as far as they are there.
        details: of the plan: noise, components, number of kept coordinates, radii.
    """

    def __init__(
        self,
        coordinates: Coordinates,
        centre: Array,
        n_classes: int,
        answers: Mapping[str, NDArray[np.generic]],
        details: Mapping[str, Json],
    ) -> None:
        self._answers, self._details, self._classes, self._centre = answers, details, n_classes, centre
        self._pure = bool(details["pure"])
        self._frequency = coordinates.frequency
        self._scale = coordinates.scale
        self._prior = (1 + self._frequency / 2) ** -2 / self._scale**2

    def first_means(self) -> Array:
        """Class means [k, d] from the first answer, in scaled coordinates."""
        m = self._moments("means")
        return shrink_means(m.means, m.mean_std, self._frequency)[0]

    def _classwise(self) -> tuple[Array, Array, Array]:
        """Means, what is uncertain about them, and covariances of the classes."""
        second = self._moments("spreads")
        both = self.first_means() + second.means
        means, uncertain = shrink_means(both, second.mean_std, self._frequency)
        return means, uncertain, class_laws(second, self._prior, groups=self._classes, uncertain=uncertain)

    def public_centres(self, rng: np.random.Generator) -> Array:
        """Centres [k, per, d] of public cells about the first class means."""
        per = int(self._details["components"])
        return np.stack([public_cells(c, per, rng=rng) for c in self._classwise()[2]])

    def laws(self) -> tuple[Array, Array, Array]:
        """Weights [k, per], means [k, per, dim] and covariances [k, per, dim, dim] of coordinates."""
        means, _, covariances = self._classwise()
        weights = np.ones((self._classes, 1))
        means, covariances = means[:, None], covariances[:, None]
        if "cells" in self._answers:
            cells, centres = self._moments("cells"), np.asarray(self._answers["centres"], np.float64)
            per = centres.shape[1]
            spread = np.maximum(0, (cells.means**2).mean(1) - cells.mean_std**2)
            share = (spread / (spread + cells.mean_std**2))[:, None]
            inner = cells.means * share
            assert cells.seconds is not None
            moments = Moments(
                counts=cells.counts,
                means=inner,
                seconds=cells.seconds - inner[:, :, None] * inner[:, None, :],
                mean_std=cells.mean_std,
                second_std=cells.second_std,
                certain=cells.certain,
            )
            uncertain = np.broadcast_to(share * (cells.mean_std**2)[:, None], inner.shape)
            covariances = class_laws(moments, self._prior, groups=self._classes, uncertain=uncertain)
            d = inner.shape[1]
            covariances = covariances.reshape(self._classes, per, d, d)
            means = self.first_means()[:, None] + centres + inner.reshape(self._classes, per, d)
            weights = (cells.counts * cells.certain).reshape(self._classes, per)
            weights[weights.sum(1) == 0] = 1.0
        means = self._centre + means * self._scale
        return weights / weights.sum(1, keepdims=True), means, covariances * np.outer(self._scale, self._scale)

    def _moments(self, stage: str) -> Moments:
        """One noisy answer, divided by its own noisy counts."""
        answer = np.asarray(self._answers[stage], np.float64)
        std, reach = float(self._details["noise_std"][stage]), float(self._details["radius"][stage])
        d = len(self._frequency)
        if self._pure and stage == "spreads":
            return self._scattered(answer, std, reach)
        least = max(1.0, 2 * std / COUNT_WEIGHT)
        counts = np.maximum(answer[:, -1] / COUNT_WEIGHT, least)
        seconds = None
        if answer.shape[1] > d + 1:
            seconds = unpack(answer[:, d:-1], d) * (reach**2 / SECOND_WEIGHT) / counts[:, None, None]
        return Moments(
            counts=counts,
            means=answer[:, :d] * reach / counts[:, None],
            seconds=seconds,
            mean_std=std * reach / counts,
            second_std=std * reach**2 / SECOND_WEIGHT / counts,
            certain=counts > least,
        )

    def _scattered(self, answer: Array, std: float, reach: float) -> Moments:
        """The same from matrices that hold second moments, means and counts; `std` is that of a diagonal entry."""
        every, a = unpack(answer, len(self._frequency) + 1), COUNT_SHARE
        least = max(1.0, 2 * std / a)
        counts = np.maximum(every[:, -1, -1] / a, least)
        mean, second = reach / math.sqrt(a * (1 - a)) / counts, reach**2 / (1 - a) / counts
        return Moments(
            counts=counts,
            means=every[:, :-1, -1] * mean[:, None],
            seconds=every[:, :-1, :-1] * second[:, None, None],
            mean_std=std / math.sqrt(2) * mean,
            second_std=std * second,
            certain=counts > least,
        )


class FieldModel(Model):
    """A class-conditional score field with its energy; samples by exact HMC.

    Args:
        release: what it was made from.
        tensors: "weights" [k, per], "means" [k, per, dim], "factors" [k, per, dim, dim] (Cholesky) and "step_size" [k]
            or [1]; and, if pictures are sharpened, "refiner." and the name of each weight.
        coordinates: of images.
        look: kind of picture.
        rounds: rounds of dynamics, and leapfrog steps in each.
        copies: samples that share a drawn point, each moved by a chance of its own.
    """

    def __init__(
        self,
        release: Release,
        tensors: Tensors,
        coordinates: Coordinates,
        look: Appearance,
        rounds: tuple[int, int],
        *,
        copies: int = 1,
    ) -> None:
        super().__init__(release)
        self._tensors, self._coordinates, self._look, self._copies = tensors, coordinates, look, copies
        self._rounds, self._n_leapfrog = rounds
        weights = part(tensors, "refiner.")
        self._refiner = refiner_from(weights, coordinates.channels) if weights else None

    def tensors(self) -> Tensors:
        """Weights, means and factors of the laws, and the step size."""
        return dict(self._tensors)

    def tuned(self, seed: int, *, n: int = 100) -> NDArray[np.float32]:
        """Step sizes [k] at which `n` chains of each class accept four moves in five.

        Classes of one Gaussian have one law in their frames, so they share a search; those of mixtures differ tenfold.
        """
        _, per = self._tensors["weights"].shape
        rng, sizes, guess = torch.Generator().manual_seed(seed), list[float](), 0.3
        for label in range(self.schema.n_classes if per > 1 else 1):
            frame = self._frame(label)
            start = frame.start(n, rng)
            guess, _ = tune_step_size(
                lambda h, f=frame: self._kernel(f, h), start, rng=rng, step_size=guess, n_steps=40
            )
            sizes.append(guess)
        return np.resize(np.array(sizes, np.float32), self.schema.n_classes)

    def _kernel(self, frame: Frame, step_size: float) -> Kernel:
        return hmc(frame.energy, score=frame.score, step_size=step_size, n_leapfrog=self._n_leapfrog, jitter=0.2)

    def _frame(self, label: int) -> Frame:
        parts = (torch.from_numpy(self._tensors[name][label]).double() for name in ("weights", "means", "factors"))
        return Frame(*parts, temperature=self._look.temperature, dtype=torch.float32)

    def _sample(self, labels: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        drawn, of = shared(labels, self._copies)
        z = self.draw(drawn, rng)
        x = self.picture(z)
        if self._refiner is not None:
            x = self._refiner.refined(x)
        images = [self.finish(x[i], z[i], rng) for i in np.split(of, range(_PART, len(of), _PART))]
        return Batch(images=np.concatenate(images), labels=labels)

    def draw(self, labels: NDArray[np.int64], rng: np.random.Generator) -> Array:
        """Coordinates [n, dim] of new samples."""
        coins = torch.Generator().manual_seed(int(rng.integers(2**62)))
        z = np.zeros((len(labels), self._coordinates.dim))
        sizes = np.broadcast_to(self._tensors["step_size"], self.schema.n_classes)  # old models have one for all
        for label in np.unique(labels):
            mine = labels == label
            frame = self._frame(int(label))
            kernel = self._kernel(frame, float(sizes[label]))
            out = run(kernel, frame.start(int(mine.sum()), coins), n_steps=self._rounds, rng=coins)
            z[mine] = frame.back(out.x).double().numpy()
        return z

    def picture(self, z: Array) -> Tensor:
        """Pictures [n, c, h, w] of coordinates, before they are finished: blurred, and upright."""
        return self._coordinates.picture(z)

    def finish(self, x: Tensor, z: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Images of such pictures: moved by chance, slanted as `z` says, with the contrast of their kind."""
        return self._coordinates.finish(x, z, wobble=self._look.wobble, contrast=self._look.contrast, rng=rng)

    def straight(self, x: Tensor) -> Tensor:
        """Images [n, c, h, w] as `picture` has them; each is treated alone."""
        return self._coordinates.straight(x)[0]

    def denoiser(self, *, hot: bool) -> MixtureDenoiser:
        """The exact denoiser of `picture`, of the laws as they were released or, if hot, as they are drawn from."""
        laws = (self._tensors[name] for name in ("weights", "means", "factors"))
        return MixtureDenoiser(self._coordinates, *laws, temperature=self._look.temperature if hot else 1.0)


def shared(labels: NDArray[np.int64], copies: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which points to draw so that `copies` samples share each: their labels [m], and the point of every sample [n].

    Samples of one point stand as far apart as they can: the first n / copies of a class all differ.
    """
    drawn, of, m = [], np.empty(len(labels), np.int64), 0
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        points = -(-len(mine) // copies)
        of[mine] = m + np.arange(len(mine)) % points
        drawn.append(np.full(points, label))
        m += points
    return np.concatenate(drawn), of


class Frame:
    """One class in coordinates x where its average law is about N(0, I): z = middle + factor x.

    U(x) = -log sum_k w_k N(z; m_k, temperature S_k): each component is heated by itself, since heating the whole would
    leave almost all weight to the component of largest volume.
    """

    def __init__(
        self, weights: Tensor, means: Tensor, factors: Tensor, *, temperature: float, dtype: torch.dtype = torch.float64
    ) -> None:
        self._weights, factors = weights, factors * math.sqrt(temperature)
        middle = weights @ means
        away = means - middle
        covariance = torch.einsum("k,kij,klj->il", weights, factors, factors)
        covariance = covariance + torch.einsum("k,ki,kj->ij", weights, away, away)
        factor = torch.linalg.cholesky(covariance)
        inverse = torch.linalg.solve_triangular(factors, factor.expand_as(factors), upper=False)
        bias = weights.log() - factors.diagonal(dim1=1, dim2=2).log().sum(1)
        self.middle, self.factor = middle.to(dtype), factor.to(dtype)
        self._centres = torch.linalg.solve_triangular(factor, away.T, upper=False).T.to(dtype)
        self._spreads = torch.linalg.solve_triangular(factor.expand_as(factors), factors, upper=False).to(dtype)
        self._roots, self._bias = inverse.transpose(1, 2).to(dtype), bias.to(dtype)

    def start(self, n: int, rng: torch.Generator) -> Tensor:
        """Points [n, dim] drawn from the law itself: from its centres few moves would be accepted."""
        of = torch.multinomial(self._weights, n, replacement=True, generator=rng)
        x = torch.randn(n, self._centres.shape[1], generator=rng, dtype=self._centres.dtype)
        for k, spread in enumerate(self._spreads):
            x[of == k] = self._centres[k] + x[of == k] @ spread.T
        return x

    def back(self, x: Tensor) -> Tensor:
        """Coordinates z of points x [n, dim]."""
        return self.middle + x @ self.factor.T

    def _logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log of w_k N(z; m_k, S_k) up to a constant [k, n], and residuals in units of each law [k, n, dim]."""
        residual = (x - self._centres[:, None]) @ self._roots
        return self._bias[:, None] - residual.square().sum(2) / 2, residual

    def energy(self, x: Tensor) -> Tensor:
        """U [n] of points [n, dim]."""
        return -self._logits(x)[0].logsumexp(0)

    def score(self, x: Tensor) -> Tensor:
        """-grad U [n, dim] of points [n, dim]."""
        logits, residual = self._logits(x)
        pull = residual @ self._roots.transpose(1, 2)
        return -(logits.softmax(0)[:, :, None] * pull).sum(0)

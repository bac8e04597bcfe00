"""A released decoder, and the laws of the codes that it is given: what DP²-VAE draws from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dpgm.mechanisms.moments import CodeMoments
from dpgm.mechanisms.noise import Gaussian
from dpgm.methods.base import Batch, Model, Release, Tensors
from dpgm.nets.classifiers import to_bytes
from dpgm.nets.generators import LabelledGenerator
from dpgm.nets.looks import move, sharpen
from dpgm.privacy.guarantee import Relation
from dpgm.privacy.mechanism import Array, Mechanism


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixtures:
    """A mixture of Gaussians for each class.

    Attributes:
        weights: [k, per], each row adding to 1.
        means: [k, per, d].
        roots: R with covariance R R', [k, per, d, d].
    """

    weights: Array
    means: Array
    roots: Array

    def draw(self, labels: NDArray[np.int64], temperature: float, rng: np.random.Generator) -> Array:
        """Codes [n, d] of classes [n]; each Gaussian is heated by itself."""
        of = np.zeros(len(labels), np.int64)
        if self.weights.shape[1] > 1:
            edges = self.weights[labels].cumsum(1)[:, :-1]
            of = (rng.random((len(labels), 1)) > edges).sum(1)
        z = rng.normal(size=(len(labels), self.means.shape[2]))
        return self.means[labels, of] + math.sqrt(temperature) * np.einsum("nij,nj->ni", self.roots[labels, of], z)


@dataclass(frozen=True, kw_only=True, eq=False)
class CodeLaws:
    """Laws of codes from the noisy answers to one query; all of it post-processing.

    Attributes:
        query: what was asked.
        relation: which data sets are neighbours.
        noise_multiplier: noise of the answer over the query's sensitivity.
    """

    query: CodeMoments
    relation: Relation
    noise_multiplier: float

    @classmethod
    def of(cls, query: CodeMoments, release: Release, name: str) -> CodeLaws:
        """Those of the answer that the plan calls `name`."""
        shares: Any = release.details["shares"]
        return cls(query=query, relation=release.guarantee.relation, noise_multiplier=shares[name])

    def _laws(self, noisy: NDArray[Any]) -> tuple[Array, Array, Array]:
        return self.query.laws(noisy, self.noise_multiplier * self.query.sensitivity(self.relation))

    def whole(self, noisy: NDArray[Any]) -> Mixtures:
        """One Gaussian a class."""
        _, means, covariances = self._laws(noisy)
        return Mixtures(weights=np.ones((len(means), 1)), means=means[:, None], roots=_roots(covariances)[:, None])

    def frames(self, noisy: NDArray[Any]) -> tuple[Array, Array]:
        """Means m [k, d] and maps A [k, d, d] that make A (z - m) standard, widest axis first."""
        _, means, covariances = self._laws(noisy)
        values, vectors = (a[..., ::-1] for a in np.linalg.eigh(covariances))
        return means, np.asarray(np.swapaxes(vectors, 1, 2) / np.sqrt(values)[:, :, None], np.float64)

    def inside(self, first: Mixtures, frames: NDArray[Any], noisy: NDArray[Any]) -> Mixtures:
        """Several Gaussians a class, from moments of cells in `frames` about the first means."""
        counts, means, covariances = self._laws(noisy)
        k, per, d = len(frames), self.query.cells, means.shape[1]
        back = np.linalg.inv(frames)[:, None]
        roots = back @ _roots(covariances).reshape(k, per, d, d)
        middle = first.means + (back @ means.reshape(k, per, d, 1))[..., 0]
        weights = counts.reshape(k, per)
        return Mixtures(weights=weights / weights.sum(1, keepdims=True), means=middle, roots=roots)


def _roots(covariances: Array) -> Array:
    return np.asarray(np.linalg.cholesky(covariances), np.float64)


def with_codes(mechanism: Mechanism[Any], codes: Callable[[Any], NDArray[Any]]) -> Mechanism[Any]:
    """The planned release of code moments, with the codes."""
    assert isinstance(mechanism, Gaussian)
    assert isinstance(mechanism.query, CodeMoments)
    return dataclasses.replace(mechanism, query=dataclasses.replace(mechanism.query, codes=codes))


class Looks(Protocol):
    """Options of drawing and finishing pictures; see `DP2VAE`."""

    @property
    def temperature(self) -> float:
        """Factor of the variance of codes."""
        ...

    @property
    def jitter(self) -> float:
        """Noise on codes."""
        ...

    @property
    def sharpness(self) -> float:
        """Exponent of sharpening."""
        ...

    @property
    def movement(self) -> float:
        """Strength of movements."""
        ...


class DecoderModel(Model):
    """A decoder and the Gaussian law of each class's codes.

    Args:
        release: what they were made from.
        looks: says how codes are drawn and pictures finished.
        decoder: maps codes and labels to images.
        laws: of the codes of each class.
    """

    def __init__(
        self,
        release: Release,
        looks: Looks,
        decoder: LabelledGenerator,
        laws: Mixtures,
    ) -> None:
        super().__init__(release)
        self.looks, self.decoder, self.laws = looks, decoder, laws

    def tensors(self) -> Tensors:
        """None: all of it stands in the release."""
        return {}

    @torch.no_grad()
    def _sample(self, labels: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        images = np.empty((len(labels), *self.schema.shape), np.uint8)
        for at in np.array_split(np.arange(len(labels)), -(-len(labels) // 500)):
            y = labels[at]
            z = self.laws.draw(y, self.looks.temperature, rng)
            z = z + self.looks.jitter * rng.normal(size=z.shape)  # what the decoder was trained with
            x = self.decoder(torch.from_numpy(z).float(), torch.from_numpy(y))
            x = move(sharpen(x, self.looks.sharpness), amount=self.looks.movement, rng=rng)
            images[at] = to_bytes(x)
        return Batch(images=images, labels=labels)

"""Mean embeddings: release the class-wise mean of public features once, then train a generator to match it.

DP-MERF (random Fourier features) and DP-MEPF (perceptual features) are the same method with other features. Everything
about the private rows is in ONE release of the stacked sums with riding class counts, so there is no composition, no
public number of records and no exact class count.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpgm.mechanisms.noise import Gaussian, KNorm
from dpgm.mechanisms.queries import MeanEmbedding
from dpgm.methods.base import Batch, Method, Model, OnNote, Plan, Release, Resume, Talk, Tensors, reporter
from dpgm.methods.encoder import TorchEncoder, check_encoder
from dpgm.nets.classifiers import to_bytes
from dpgm.nets.cosine import CosineMoments, MomentGenerator
from dpgm.nets.features import FeatureMap, Mixture, Normalised, RandomFourier, Scattering
from dpgm.nets.generators import DenseGenerator, LabelledGenerator
from dpgm.nets.matching import train_generator
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, Relation, Source
from dpgm.schema import ImageSchema, Schema

_SMALL = 16
"""Images of at most this many pixels a side get the settings for small images."""


@dataclass(frozen=True, kw_only=True)
class Embedding(Method):
    """What the mean-embedding methods share.

    The release is sum_i onehot(y_i) (x) (phi(x_i), c0) + noise with |phi| <= 1; the generator g minimises
    sum_c w_c |T_c - E phi(g(z, c))|^2 with T_c the released class mean, by unbiased gradients.

    **Guarantee**: one Gaussian release, or for delta = 0 one l2 K-norm release (docs/proofs/mean-embedding.md).

    Attributes:
        count_weight: c0, the weight of the riding class counts; 0.2 costs 2 % more noise.
        steps: training steps of the generator (free).
        batch: images a step, at least two a class.
        lr: highest learning rate.
    """

    count_weight: float = 0.2
    steps: int = 800
    batch: int = 100
    lr: float = 2e-3

    free: ClassVar[frozenset[str]] = frozenset({"steps", "batch", "lr"})

    @abstractmethod
    def feature_map(self, schema: ImageSchema) -> FeatureMap:
        """The public features phi, each of norm at most 1."""

    @abstractmethod
    def generator(self, schema: ImageSchema, features: FeatureMap, rng: torch.Generator) -> LabelledGenerator:
        """An untrained generator."""

    def start(self, net: LabelledGenerator, features: FeatureMap, target: Tensor, noise_std: Tensor) -> None:
        """Set the generator's first weights from released means [k, D] and their noise [k], where there is a way."""

    def encoder(self, schema: ImageSchema) -> TorchEncoder:
        """The features as the query wants them."""
        return TorchEncoder(module=self.feature_map(schema))

    def plan(self, schema: Schema, *, relation: Relation, budget: Budget) -> Plan:
        """One release; its noise is the smallest that the budget allows."""
        encoder = self.encoder(schema)
        check_encoder(encoder, schema)
        query = MeanEmbedding(encoder=encoder, n_classes=schema.n_classes, count_weight=self.count_weight)
        sensitivity = query.sensitivity(relation)
        label = f"{self.name}-embedding"
        if budget.delta > 0:
            noise_std = sensitivity / accountant.gaussian_mu(budget)
            mechanism = Gaussian(query=query, noise_std=noise_std, name=label)
        else:
            noise_std = sensitivity / budget.epsilon
            mechanism = KNorm(query=query, scale=noise_std, name=label)
            noise_std *= np.sqrt(np.prod(query.shape))  # |Z| is about dim x scale: per coordinate sqrt(dim) x scale
        return Plan(
            schema=schema,
            relation=relation,
            budget=budget,
            items=((mechanism, 1),),
            details={
                "features": encoder.name,
                "dim": encoder.dim,
                "sensitivity": sensitivity,
                "noise_std": float(noise_std),
                "noise_multiplier": float(noise_std / sensitivity),
            },
            seconds=5e-8 * encoder.dim * ((schema.size or 0) + 3 * self.steps * self.batch),
            memory_mb=600 + 8e-6 * (encoder.dim * schema.n_classes * 3 + 1000 * encoder.dim * 3),
        )

    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume) -> Talk:
        """Ask once."""
        sums = yield plan.items[0][0]
        return {"sums": sums}

    def train(self, release: Release, *, seed: int, on_note: OnNote | None = None) -> GeneratorModel:
        """Train a generator on the released embedding."""
        schema = release.schema
        target, noise_std, weights = self._means(release)
        rng = torch.Generator().manual_seed(seed)
        features = self.feature_map(schema)
        net = self.generator(schema, features, rng)
        self.start(net, features, target, noise_std)
        train_generator(
            net,
            features,
            target,
            weights,
            steps=self.steps,
            batch=max(self.batch, 2 * schema.n_classes),
            lr=self.lr,
            rng=rng,
            on_step=reporter(on_note, "train", self.steps),
        )
        return GeneratorModel(release, net)

    def restore(self, release: Release, tensors: Tensors) -> GeneratorModel:
        """The generator from its saved weights."""
        features = self.feature_map(release.schema)
        net = self.generator(release.schema, features, torch.Generator().manual_seed(0))
        net.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()})
        return GeneratorModel(release, net.eval())

    def _means(self, release: Release) -> tuple[Tensor, Tensor, Tensor]:
        """Released class means [k, D], the standard deviation of their noise [k], and weights of the classes [k]."""
        sums, noise_std = torch.from_numpy(release.tensors["sums"]), float(release.details["noise_std"])
        counts, doubt = sums[:, -1] / self.count_weight, noise_std / self.count_weight
        # Noisy counts are drawn towards their average as far as noise alone would spread them (James and Stein 1961).
        spread = counts.var(unbiased=False).clamp(min=doubt**2)
        counts = counts.mean() + (1 - doubt**2 / spread) * (counts - counts.mean())
        counts = counts.clamp(min=1.0)  # a class may be empty or lost in noise
        return sums[:, :-1] / counts[:, None], noise_std / counts, counts / (counts + doubt)


@dataclass(frozen=True, kw_only=True)
class DPMERF(Embedding):
    """DP-MERF: mean embedding of random Fourier features, without any public data.

    **Guarantee**: as `Embedding`.
    **Source**: Harder, Adamczewski and Park 2021.
    **Differs from the paper**: the bandwidths are public numbers, not the median distance of private rows, and there
    are several; counts ride in the same release instead of a second one; gradients are unbiased.

    Attributes:
        dim: number of random features, even; None for 8,000, or 2,000 for images of at most 16 pixels a side.
        latent: length of the latent vector.
        hidden: units of the generator's layers.
    """

    dim: int | None = None
    latent: int = 8
    hidden: int = 512

    name: ClassVar[str] = "merf"
    free: ClassVar[frozenset[str]] = Embedding.free | {"latent", "hidden"}
    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            key="harder2021dpmerf",
            title="DP-MERF: Differentially Private Mean Embeddings with Random Features for Practical "
            "Privacy-Preserving Data Generation",
            authors="Harder, Frederik and Adamczewski, Kamil and Park, Mijung",
            year=2021,
            where="AISTATS 2021, arXiv 2002.11603",
        ),
    )

    def feature_map(self, schema: ImageSchema) -> FeatureMap:
        """Random Fourier features of the pixels; wide kernels only where images are small and records few."""
        small = max(schema.height, schema.width) <= _SMALL
        return RandomFourier(
            **_size(schema), dim=self.dim or (2000 if small else 8000), scales=(1.0,) if small else (0.6, 0.4, 0.3)
        )

    def generator(self, schema: ImageSchema, features: FeatureMap, rng: torch.Generator) -> LabelledGenerator:
        """Dense layers, band-limited."""
        return DenseGenerator(
            **_size(schema), n_classes=schema.n_classes, latent=self.latent, hidden=self.hidden, rng=rng
        )


@dataclass(frozen=True, kw_only=True)
class DPMEPF(Embedding):
    """DP-MEPF: mean embedding of perceptual features, with second moments.

    phi = (w1 s, w2 q, w3 r) of norm at most 1: normalised wavelet scattering s, which needs no training data; first and
    second moments q of smooth cosine coefficients; random Fourier features r. The generator begins at the Gaussian law
    that the released q stand for.

    **Guarantee**: as `Embedding`.
    **Source**: Harder, Jalali, Sutherland and Park 2023.
    **Differs from the paper**: one stacked release instead of one a moment and class; noisy counts instead of exact
    ones; features without training data and without batch statistics; second moments of cosine coefficients instead of
    squares of features; unbiased gradients instead of a learnt moving average; a start in closed form.

    Attributes:
        scattering: weight w1.
        moments: weight w2.
        fourier: weight w3.
        angles: angles of the wavelets.
        rank: directions of each class in the generator's first law.
        hidden: channels of the generator's convolutions.
    """

    features: Literal["scattering"] = "scattering"
    steps: int = 400
    lr: float = 1e-3
    scattering: float = 0.5
    moments: float = 1.0
    fourier: float = 0.5
    angles: int = 8
    rank: int = 40
    hidden: int = 16

    name: ClassVar[str] = "mepf"
    free: ClassVar[frozenset[str]] = Embedding.free | {"rank", "hidden"}
    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            key="harder2023dpmepf",
            title="Pre-trained Perceptual Features Improve Differentially Private Image Generation",
            authors="Harder, Fredrik and Jalali, Milad and Sutherland, Danica J. and Park, Mijung",
            year=2023,
            where="TMLR 2023, arXiv 2205.12900",
        ),
    )

    def feature_map(self, schema: ImageSchema) -> FeatureMap:
        """The parts of positive weight, moments first."""
        size = _size(schema)
        parts: list[tuple[float, FeatureMap]] = [(self.moments, CosineMoments(**size))]
        if self.scattering:
            wavelets = Scattering(**size, angles=self.angles)
            maps = wavelets.dim // (wavelets.grid[0] * wavelets.grid[1])
            parts.append((self.scattering, Normalised(wavelets, maps)))
        if self.fourier:
            parts.append((self.fourier, RandomFourier(**size, dim=4000, scales=(0.6, 0.4, 0.3))))
        return Mixture(*(part for _, part in parts), weights=tuple(weight for weight, _ in parts))

    def generator(self, schema: ImageSchema, features: FeatureMap, rng: torch.Generator) -> LabelledGenerator:
        """A Gaussian law of each class, finished by convolutions."""
        moments, _ = _moments(features)
        return MomentGenerator(
            moments, **_size(schema), n_classes=schema.n_classes, rank=self.rank, hidden=self.hidden, rng=rng
        )

    def start(self, net: LabelledGenerator, features: FeatureMap, target: Tensor, noise_std: Tensor) -> None:
        """Begin at the Gaussian law of the released moments."""
        assert isinstance(net, MomentGenerator)
        moments, weight = _moments(features)
        net.begin(moments.gaussians(target[:, : moments.dim] / weight, noise_std / weight))


def _size(schema: ImageSchema) -> dict[str, int]:
    return {"height": schema.height, "width": schema.width, "channels": schema.channels}


def _moments(features: FeatureMap) -> tuple[CosineMoments, float]:
    """The first part of a mixture, and its weight."""
    assert isinstance(features, Mixture)
    first = features.parts[0]
    assert isinstance(first, CosineMoments)
    return first, features.weights[0]


class GeneratorModel(Model):
    """A class-conditional generator network."""

    def __init__(self, release: Release, net: LabelledGenerator) -> None:
        super().__init__(release)
        self.net = net

    def tensors(self) -> Tensors:
        """The network's weights."""
        return {k: v.numpy() for k, v in self.net.state_dict().items()}

    def _sample(self, labels: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        noise = torch.Generator().manual_seed(int(rng.integers(2**63)))
        return Batch(images=to_bytes(self.net.sample(torch.from_numpy(labels), rng=noise)), labels=labels)

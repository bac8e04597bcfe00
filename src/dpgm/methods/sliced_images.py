"""Aggregated slices of images: class-wise statistics of public projections, in one release with the counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from dpgm.mechanisms.projection import SlicedProjection
from dpgm.methods.embedding import Embedding
from dpgm.methods.encoder import TorchEncoder
from dpgm.methods.options import AtLeast1
from dpgm.nets.cosine import CosineMoments, MomentGenerator
from dpgm.nets.features import FeatureMap, Mixture, RandomFourier
from dpgm.nets.generators import DenseGenerator, LabelledGenerator
from dpgm.nets.sliced import SlicedHistogram
from dpgm.privacy.guarantee import Source
from dpgm.schema import ImageSchema

if TYPE_CHECKING:
    from dpgm.methods.slicing import Slicing


@dataclass(frozen=True, kw_only=True)
class SlicedEmbedding(Embedding):
    """The mean embedding whose features describe slices of the image; the label is inside the record's sum.

    "moments": first and second moments of slices along smooth cosine waves and along the diagonals between any two of
    them, beside characteristic functions; the generator begins at the Gaussian law that they stand for.
    "characteristic": characteristic functions of random slices at several frequencies, which are random Fourier
    features; "histogram": soft histograms of random smooth slices.

    **Guarantee**: as `Embedding`, with features of norm at most 1.
    **Source**: this project; slices after Greenewald, Yu, Wang and Xu 2024.
    **Differs from the paper**: sums over records instead of one row for each.

    Attributes:
        slices: number of random projections.
        bins: centres of the soft histogram of a projection.
        statistic: what is released of a slice.
        latent: length of the latent vector, without moments.
        hidden: units of the generator's layers, without moments.
        rank: directions of each class in the generator's first law, with moments.
    """

    slices: AtLeast1 = 500
    bins: int = 12
    statistic: Literal["moments", "characteristic", "histogram"] = "moments"
    latent: AtLeast1 = 8
    hidden: AtLeast1 = 512
    rank: int = 40

    name: ClassVar[str] = "slicing"
    sources: ClassVar[tuple[Source, ...]] = (SlicedProjection.source,)

    def feature_map(self, schema: ImageSchema, tensors: Mapping[str, Any] | None = None) -> FeatureMap:
        """Moments, characteristic functions or soft histograms of slices."""
        size = {"height": schema.height, "width": schema.width, "channels": schema.channels}
        if self.statistic == "histogram":
            return SlicedHistogram(**size, slices=self.slices, bins=self.bins)
        waves = RandomFourier(**size, dim=2 * self.slices, scales=(0.6, 0.4, 0.3))
        if self.statistic == "characteristic":
            return waves
        return Mixture(CosineMoments(**size), waves, weights=(1.0, 0.5))

    def generator(self, schema: ImageSchema, rng: torch.Generator) -> LabelledGenerator:
        """A Gaussian law of each class finished by convolutions; without moments dense layers, band-limited."""
        if self.statistic == "moments":
            size = {"height": schema.height, "width": schema.width, "channels": schema.channels}
            return MomentGenerator(
                CosineMoments(**size),
                **size,
                n_classes=schema.n_classes,
                rank=self.rank,
                hidden=16,
                rng=rng,
            )
        return DenseGenerator(
            height=schema.height,
            width=schema.width,
            channels=schema.channels,
            n_classes=schema.n_classes,
            latent=self.latent,
            hidden=self.hidden,
            rng=rng,
        )

    def start(self, net: LabelledGenerator, features: FeatureMap, target: Tensor, noise_std: Tensor) -> None:
        """Begin at the Gaussian law of the released moments, where there are any."""
        if isinstance(net, MomentGenerator):
            moments, weight = _moments(features), self._weight(features)
            net.begin(moments.gaussians(target[:, : moments.dim] / weight, noise_std / weight))

    @staticmethod
    def _weight(features: FeatureMap) -> float:
        assert isinstance(features, Mixture)
        return features.weights[0]

    def encoder(self, schema: ImageSchema) -> TorchEncoder:
        """The features; histograms are never negative."""
        return TorchEncoder(module=self.feature_map(schema), nonnegative=self.statistic == "histogram")


def _moments(features: FeatureMap) -> CosineMoments:
    """The first part of a mixture."""
    assert isinstance(features, Mixture)
    first = features.parts[0]
    assert isinstance(first, CosineMoments)
    return first


def embedding(method: Slicing) -> SlicedEmbedding:
    """The embedding method behind `Slicing(mode="aggregated")` on images."""
    return SlicedEmbedding(
        slices={"moments": 80, "characteristic": 160, "histogram": 20}[method.statistic] * method.slices,
        statistic=method.statistic,
        steps=method.steps or (400 if method.statistic == "moments" else 1200),
        batch=min(method.batch, 100),
        lr=method.lr or 1e-3,
        temperature=method.temperature,
        movement=method.movement,
        ensemble=method.ensemble,
    )

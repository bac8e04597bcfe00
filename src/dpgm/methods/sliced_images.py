"""Aggregated slices of images: class-wise statistics of public projections, in one release with the counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from dpgm.mechanisms.projection import SlicedProjection
from dpgm.methods.embedding import Embedding
from dpgm.methods.encoder import TorchEncoder
from dpgm.nets.features import FeatureMap, RandomFourier
from dpgm.nets.generators import DenseGenerator, LabelledGenerator
from dpgm.nets.sliced import SlicedHistogram
from dpgm.privacy.guarantee import Source
from dpgm.schema import ImageSchema

if TYPE_CHECKING:
    from dpgm.methods.slicing import Slicing


@dataclass(frozen=True, kw_only=True)
class SlicedEmbedding(Embedding):
    """The mean embedding whose features describe slices of the pixels; the label is inside the record's sum.

    "characteristic": characteristic functions of slices at several frequencies, which are random Fourier features;
    "histogram": soft histograms of smooth slices.

    **Guarantee**: as `Embedding`, with features of norm at most 1.
    **Source**: this project; slices after Greenewald, Yu, Wang and Xu 2024.
    **Differs from the paper**: sums over records instead of one row for each.

    Attributes:
        slices: number of projections.
        bins: centres of the soft histogram of a projection.
        statistic: what is released of a slice.
        latent: length of the latent vector.
        hidden: units of the generator's layers.
    """

    slices: int = 500
    bins: int = 12
    statistic: Literal["characteristic", "histogram"] = "characteristic"
    latent: int = 8
    hidden: int = 512

    name: ClassVar[str] = "slicing"
    sources: ClassVar[tuple[Source, ...]] = (SlicedProjection.source,)

    def feature_map(self, schema: ImageSchema) -> FeatureMap:
        """Characteristic functions or soft histograms of slices of the pixels."""
        if self.statistic == "characteristic":
            dim = 2 * self.slices
            return RandomFourier(
                height=schema.height, width=schema.width, channels=schema.channels, dim=dim, scales=(0.6, 0.4, 0.3)
            )
        return SlicedHistogram(
            height=schema.height, width=schema.width, channels=schema.channels, slices=self.slices, bins=self.bins
        )

    def generator(self, schema: ImageSchema, features: FeatureMap, rng: torch.Generator) -> LabelledGenerator:
        """Dense layers, band-limited."""
        return DenseGenerator(
            height=schema.height,
            width=schema.width,
            channels=schema.channels,
            n_classes=schema.n_classes,
            latent=self.latent,
            hidden=self.hidden,
            rng=rng,
        )

    def encoder(self, schema: ImageSchema) -> TorchEncoder:
        """The features; histograms are never negative."""
        return TorchEncoder(module=self.feature_map(schema), nonnegative=self.statistic == "histogram")


def embedding(method: Slicing) -> SlicedEmbedding:
    """The embedding method behind `Slicing(mode="aggregated")` on images."""
    return SlicedEmbedding(
        slices=(160 if method.statistic == "characteristic" else 20) * method.slices,
        statistic=method.statistic,
        steps=method.steps or 1200,
        batch=min(method.batch, 100),
        lr=method.lr or 1e-3,
    )

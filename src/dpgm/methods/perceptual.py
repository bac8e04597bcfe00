"""DP-MEPF: the mean embedding of perceptual features, beside second moments of smooth coefficients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from dpgm.methods import features as public
from dpgm.methods.base import Method, Tensors
from dpgm.methods.embedding import Embedding
from dpgm.methods.options import AtLeast1
from dpgm.nets.classifiers import to_unit
from dpgm.nets.cosine import CosineMoments, MomentGenerator
from dpgm.nets.features import FeatureMap, Mixture
from dpgm.nets.generators import ConvGenerator, LabelledGenerator
from dpgm.nets.matching import train_generator
from dpgm.nets.procedural import procedural_images
from dpgm.privacy.guarantee import Source
from dpgm.privacy.mechanism import Json
from dpgm.schema import ImageSchema, SchemaError

_PICTURES = 1000
"""Made-up pictures that a warm start looks at."""


@dataclass(frozen=True, kw_only=True)
class DPMEPF(Embedding):
    """DP-MEPF: mean embedding of perceptual features, with second moments.

    phi = (w0 q, w1 f1, w2 f2, ...) of norm at most 1: first and second moments q of smooth cosine coefficients, then
    the features that are named: wavelet scattering and random Fourier features need no training data, `trained:FILE`
    are the layers of a small network that `dpgm features train` fitted to public images. The generator begins at the
    Gaussian law that the released q stand for.

    **Guarantee**: as `Embedding`.
    **Source**: Harder, Jalali, Sutherland and Park 2023.
    **Differs from the paper**: one stacked release instead of one a moment and class; noisy counts instead of exact
    ones; features without training data and without batch statistics; second moments of cosine coefficients instead of
    squares of features; unbiased gradients instead of a learnt moving average; a start in closed form.

    Attributes:
        features: public features joined by +: scattering, rff, ntk, hermite, trained:FILE (which 'dpgm features train'
            wrote), file:WEIGHTS (SqueezeNet 1.1 or MobileNetV2), torchvision:NAME.
        weights: weight of each; None for equal ones of square sum 0.5.
        layers: weight of each layer of the network, from the image up; None for equal ones.
        moments: weight w0.
        second: weight of the second moments of a network's layers, beside 1 for the first.
        angles: angles of the wavelets.
        rank: directions of each class in the generator's first law.
        hidden: channels of the generator's convolutions.
        waves: number of cosine coefficients; None for 150 or half of the pixel values, whichever is less.
        bend: units of the dense layers that bend its law; 0 leaves it Gaussian.
        net: "moments" begins at the Gaussian law of the released moments, "conv" draws by residual upsampling.
        warm: steps with the same loss on made-up pictures before the first on the release, for "conv".
    """

    features: str = "scattering+rff"
    weights: tuple[float, ...] | None = None
    layers: tuple[float, ...] | None = None
    steps: int = 400
    lr: float = 1e-3
    moments: float = 1.0
    second: float = 0.0
    angles: int = 8
    waves: int | None = None
    rank: int = 40
    hidden: AtLeast1 = 16
    bend: int = 0
    net: Literal["moments", "conv"] = "moments"
    warm: int = 0

    name: ClassVar[str] = "mepf"
    free: ClassVar[frozenset[str]] = Embedding.free | {"rank", "hidden", "bend", "net", "warm"}
    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            key="harder2023dpmepf",
            title="Pre-trained Perceptual Features Improve Differentially Private Image Generation",
            authors="Harder, Fredrik and Jalali, Milad and Sutherland, Danica J. and Park, Mijung",
            year=2023,
            where="TMLR 2023, arXiv 2205.12900",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.angles < 1 or self.waves == 0:
            raise SchemaError(
                f"angles is {self.angles}, waves {self.waves}; allowed is 1 or more (or no waves, the default)"
            )
        if self.net == "moments" and self.moments == 0:
            raise SchemaError(
                "moments is 0, but the net 'moments' begins at the law of the released moments; give --moments above "
                "0, or --net conv"
            )
        kinds = public.split(self.features)
        if self.layers is not None and not all(0 <= w < math.inf for w in self.layers):
            raise SchemaError(f"layers are {self.layers}; allowed are numbers of 0 or more")
        if self.weights is None:
            return
        if len(self.weights) != len(kinds) or not all(0 <= w < math.inf for w in self.weights):
            raise SchemaError(
                f"--weights are {self.weights}; give one number of 0 or more for each of the features '{self.features}'"
            )
        if self.moments == 0 and not any(self.weights):
            raise SchemaError("moments and all --weights are 0; give one of them a weight above 0")

    def to_json(self) -> dict[str, Json]:
        """The configuration as plain JSON values, files by their last names."""
        return {**super().to_json(), "features": public.short(self.features)}

    def retrained(self, other: Method) -> Self:
        """As for any method; the features travel in the release, so the place of their files does not matter."""
        if not isinstance(other, type(self)):
            return super().retrained(other)
        other = replace(other, features=public.short(other.features))
        Method.retrained(replace(self, features=public.short(self.features)), other)
        return other

    def public_sets(self) -> tuple[str, ...]:
        """Names of the sets that the features were fitted on."""
        return tuple(name for recipe in public.recipes_of(self) for name in recipe.public)

    def reopened(self, tensors: Tensors) -> Self:
        """The method with the features in its release."""
        return public.holding(self, tensors)

    def enclosed(self) -> Tensors:
        """Weights of the features that came from files."""
        return public.pack(public.recipes_of(self))

    def feature_map(self, schema: ImageSchema, tensors: Mapping[str, Any] | None = None) -> FeatureMap:
        """Moments first, then the features that are named."""
        if self.waves is not None and self.waves > math.prod(schema.shape):
            raise SchemaError(f"waves is {self.waves}; these images have {math.prod(schema.shape)} cosine coefficients")
        found = public.recipes_of(self) if tensors is None else public.unpack(self.features, tensors)
        if tensors is None and (self.second or self.layers) and not any(recipe.layered for recipe in found):
            raise SchemaError(
                f"second is {self.second}, layers {self.layers}, but none of the features '{self.features}' has "
                "layers; leave them out, or name a network: trained:FILE, file:WEIGHTS, torchvision:NAME"
            )
        look = public.Look(layers=self.layers, second=self.second, angles=self.angles)
        weights = self.weights or (math.sqrt(0.5 / max(1, len(found))),) * len(found)
        return Mixture(
            CosineMoments(**_size(schema), count=self.waves),
            *(public.build(recipe, schema, look) for recipe in found),
            weights=(self.moments, *weights),
        )

    def generator(self, schema: ImageSchema, rng: torch.Generator) -> LabelledGenerator:
        """A Gaussian law of each class, finished by convolutions; or residual upsampling."""
        size = _size(schema)
        if self.net == "conv":
            return ConvGenerator(**size, n_classes=schema.n_classes, width_base=self.hidden, rng=rng)
        moments = CosineMoments(**size, count=self.waves)
        return MomentGenerator(
            moments,
            **size,
            n_classes=schema.n_classes,
            rank=self.rank,
            hidden=self.hidden,
            bend=self.bend,
            rng=rng,
        )

    def start(self, net: LabelledGenerator, features: FeatureMap, target: Tensor, noise_std: Tensor) -> None:
        """Begin at the Gaussian law of the released moments, or at made-up pictures."""
        if isinstance(net, MomentGenerator):
            moments, weight = _moments(features)
            net.begin(moments.gaussians(target[:, : moments.dim] / weight, noise_std / weight))
        elif self.warm and isinstance(net, ConvGenerator):
            size = {"height": net.height, "width": net.width, "channels": net.channels}
            pictures = to_unit(procedural_images(_PICTURES, **size, rng=np.random.default_rng(0)))
            with torch.no_grad():
                mean = torch.cat([features(part) for part in pictures.split(100)]).mean(0)
            train_generator(
                net,
                features,
                mean.expand(net.n_classes, -1),
                steps=self.warm,
                batch=max(self.batch, 2 * net.n_classes),
                lr=self.lr,
                rng=torch.Generator().manual_seed(0),
            )


def _size(schema: ImageSchema) -> dict[str, int]:
    return {"height": schema.height, "width": schema.width, "channels": schema.channels}


def _moments(features: FeatureMap) -> tuple[CosineMoments, float]:
    """The first part of a mixture, and its weight."""
    assert isinstance(features, Mixture)
    first = features.parts[0]
    assert isinstance(first, CosineMoments)
    return first, features.weights[0]

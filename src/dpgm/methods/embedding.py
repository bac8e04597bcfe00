"""Mean embeddings: release the class-wise mean of public features once, then train a generator to match it.

DP-MERF (random Fourier features) and DP-MEPF (perceptual features) are the same method with other features. Everything
about the private rows is in ONE release of the stacked sums with riding class counts, so there is no composition, no
public number of records and no exact class count.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpgm.mechanisms.noise import Gaussian, KNorm
from dpgm.mechanisms.queries import MeanEmbedding
from dpgm.methods.base import Batch, Method, Model, OnNote, Plan, Release, Resume, Talk, Tensors, reporter
from dpgm.methods.encoder import TorchEncoder, check_encoder
from dpgm.methods.options import AtLeast1
from dpgm.nets.classifiers import to_bytes
from dpgm.nets.features import FeatureMap, Mixture, RandomFourier
from dpgm.nets.generators import DenseGenerator, Ensemble, LabelledGenerator
from dpgm.nets.looks import check_sampling, move
from dpgm.nets.matching import shrink, train_generator
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, Relation, Source
from dpgm.schema import ImageSchema, Schema, SchemaError

_JUDGES, _JUDGED = 1000, 2000
"""Validation coordinates, and images drawn for a check."""
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
        loss: how the generated mean is estimated: "pairs" without bias, "running" as a moving average, "adam" as the
            published code of DP-MEPF does.
        shrink: draw noisy class means towards their average, each layer as far as its noise asks (James and Stein).
        validation: weight of extra coordinates in the same release, beside 1 for the others, that choose when to stop.
        temperature: variance of the latent vectors in sampling (free); above 1 samples vary more than the records,
            which pays beside a labeller.
        movement: small public shifts, turns and slants of drawn pictures (free); 0 for none, 1 suits strokes.
        ensemble: generators that are trained on the release, each from a start of its own (free); each record comes
            from one of them, so samples vary more.
    """

    count_weight: float = 0.2
    steps: int = 800
    batch: AtLeast1 = 100
    lr: float = 2e-3
    loss: Literal["pairs", "running", "adam"] = "pairs"
    shrink: bool = False
    validation: float = 0.0
    temperature: float = 1.0
    movement: float = 0.0
    ensemble: AtLeast1 = 1

    free: ClassVar[frozenset[str]] = frozenset(
        {"steps", "batch", "lr", "loss", "shrink", "temperature", "movement", "ensemble"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sampling(temperature=self.temperature, movement=self.movement)

    @abstractmethod
    def feature_map(self, schema: ImageSchema, tensors: Mapping[str, Any] | None = None) -> FeatureMap:
        """The public features phi, each of norm at most 1; from what a release holds of them, where it is given."""

    @abstractmethod
    def generator(self, schema: ImageSchema, rng: torch.Generator) -> LabelledGenerator:
        """An untrained generator."""

    def start(self, net: LabelledGenerator, features: FeatureMap, target: Tensor, noise_std: Tensor) -> None:
        """Set the generator's first weights from released means [k, D] and their noise [k], where there is a way."""

    def all_features(self, schema: ImageSchema, tensors: Mapping[str, Any] | None = None) -> FeatureMap:
        """The features, then the validation coordinates, if any: random Fourier features that training never sees."""
        features = self.feature_map(schema, tensors)
        if self.validation < 0:
            raise SchemaError(f"validation is {self.validation}; allowed is 0 or a weight above it, e.g. 0.1")
        if not self.validation:
            return features
        judge = RandomFourier(height=schema.height, width=schema.width, channels=schema.channels, dim=_JUDGES, seed=1)
        return Mixture(features, judge, weights=(1.0, self.validation))

    def encoder(self, schema: ImageSchema) -> TorchEncoder:
        """The features as the query wants them."""
        return TorchEncoder(module=self.all_features(schema))

    def plan(self, schema: Schema, *, relation: Relation, budget: Budget) -> Plan:
        """One release; its noise is the smallest that the budget allows."""
        encoder = self.encoder(schema)
        check_encoder(encoder, schema, bound=1.0)
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
            seconds=5e-8 * encoder.dim * ((schema.size or 0) + 3 * self.ensemble * self.steps * self.batch),
            memory_mb=600 + 8e-6 * (encoder.dim * schema.n_classes * 3 + 1000 * encoder.dim * 3),
        )

    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume) -> Talk:
        """Ask once."""
        sums = yield plan.items[0][0]
        return {"sums": sums, **self.enclosed()}

    def enclosed(self) -> Tensors:
        """Public tensors that the features are rebuilt from, for the release."""
        return {}

    def train(self, release: Release, *, seed: int, on_note: OnNote | None = None) -> GeneratorModel:
        """Train a generator on the released embedding."""
        schema = release.schema
        target, noise_std, weights = self._means(release)
        rng = torch.Generator().manual_seed(seed)
        features, judge = self.all_features(schema, release.tensors), None
        if self.validation:
            judge = _Judge(features, target, weights, seed)
            target, features = target[:, :-_JUDGES] / judge.weight, judge.others
            noise_std = noise_std / judge.weight
        wanted = shrink(target, noise_std, features.sizes) if self.shrink else target
        report = reporter(on_note, "train", self.ensemble * self.steps)
        nets: list[LabelledGenerator] = []
        for done in range(self.ensemble):
            net = self.generator(schema, rng)
            self.start(net, features, target, noise_std)
            train_generator(
                net,
                features,
                wanted,
                weights,
                steps=self.steps,
                batch=max(self.batch, 2 * schema.n_classes),
                lr=self.lr,
                rng=rng,
                loss=self.loss,
                judge=judge,
                on_step=lambda step, loss, done=done: report(done * self.steps + step, loss),
            )
            nets.append(net)
        return self._model(release, nets)

    def restore(self, release: Release, tensors: Tensors) -> GeneratorModel:
        """The generator from its saved weights."""
        rng = torch.Generator().manual_seed(0)
        model = self._model(release, [self.generator(release.schema, rng) for _ in range(self.ensemble)])
        model.net.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()})
        model.net.eval()
        return model

    def _model(self, release: Release, nets: Sequence[LabelledGenerator]) -> GeneratorModel:
        net = Ensemble(nets) if len(nets) > 1 else nets[0]
        return GeneratorModel(release, net, temperature=self.temperature, movement=self.movement)

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
    latent: AtLeast1 = 8
    hidden: AtLeast1 = 512

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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim is not None and (self.dim < 2 or self.dim % 2):
            raise SchemaError(f"dim is {self.dim}; allowed is an even number of 2 or more (half cosines, half sines)")

    def feature_map(self, schema: ImageSchema, tensors: Mapping[str, Any] | None = None) -> FeatureMap:
        """Random Fourier features of the pixels; wide kernels only where images are small and records few."""
        small = max(schema.height, schema.width) <= _SMALL
        return RandomFourier(
            **_size(schema), dim=self.dim or (2000 if small else 8000), scales=(1.0,) if small else (0.6, 0.4, 0.3)
        )

    def generator(self, schema: ImageSchema, rng: torch.Generator) -> LabelledGenerator:
        """Dense layers, band-limited."""
        return DenseGenerator(
            **_size(schema), n_classes=schema.n_classes, latent=self.latent, hidden=self.hidden, rng=rng
        )


def _size(schema: ImageSchema) -> dict[str, int]:
    return {"height": schema.height, "width": schema.width, "channels": schema.channels}


class _Judge:
    """The error of a generator by the validation coordinates: sum_c w_c |T_c - E phi(g(z, c))|² over those alone."""

    def __init__(self, features: FeatureMap, target: Tensor, weights: Tensor, seed: int) -> None:
        assert isinstance(features, Mixture)
        others, self.features = features.parts
        assert isinstance(others, FeatureMap)
        self.others, self.weight, self.share, self.seed = others, features.weights[0], weights, seed
        self.target = target[:, -_JUDGES:] / features.weights[1]

    @torch.no_grad()
    def __call__(self, net: LabelledGenerator) -> float:
        """The error on images that are the same at every check."""
        y = torch.arange(net.n_classes).repeat_interleave(_JUDGED // net.n_classes + 2)
        drawn = net.eval().sample(y, rng=torch.Generator().manual_seed(self.seed))
        mean = self.features(drawn).view(net.n_classes, -1, _JUDGES).mean(1)
        return float((self.share[:, None] * (mean - self.target).square()).sum())


class GeneratorModel(Model):
    """A class-conditional generator network.

    Args:
        release: what it was trained on.
        net: makes images of latent vectors.
        temperature: variance of the latent vectors, above 0.
        movement: strength of the public movements of drawn pictures, 0 or more.
    """

    def __init__(self, release: Release, net: LabelledGenerator, *, temperature: float, movement: float) -> None:
        super().__init__(release)
        self.net, self._temperature, self._movement = net, temperature, movement

    def tensors(self) -> Tensors:
        """The network's weights."""
        return {k: v.numpy() for k, v in self.net.state_dict().items()}

    def _sample(self, labels: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        noise = torch.Generator().manual_seed(int(rng.integers(2**63)))
        images = np.empty((len(labels), *self.schema.shape), np.uint8)
        for at in (slice(i, i + 500) for i in range(0, len(labels), 500)):
            drawn = self.net.sample(torch.from_numpy(labels[at]), rng=noise, temperature=self._temperature)
            images[at] = to_bytes(move(drawn, amount=self._movement, rng=rng))
        return Batch(images=images, labels=labels)

"""A small convolutional net trained by DP-SGD on the pixels: the private classifier that generators must beat."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dpgm.mechanisms.gradient import ModuleGradient, PoissonGradient
from dpgm.methods.base import Method, OnNote, Plan, Release, Resume, Talk, Tensors
from dpgm.methods.classifier import ClassifierModel, gradient_plan
from dpgm.methods.descent import Descent, descend
from dpgm.methods.options import ClipNorm
from dpgm.nets.classifiers import BoundedCNN, to_unit
from dpgm.privacy.guarantee import Budget, Relation, Source
from dpgm.schema import Schema


@dataclass(frozen=True, kw_only=True)
class DPCNN(Method):
    """A convolutional classifier trained by DP-SGD: the reference row beside generators; it draws no records.

    **Guarantee**: `steps` Poisson-sampled Gaussian gradients (docs/proofs/poisson-gradient.md).
    **Source**: Abadi et al. 2016; bounded activations after Papernot et al. 2021.
    **Differs from the paper**: Poisson sampling is really done; momentum, a cosine rate and averaged weights.

    Attributes:
        steps: number of gradients.
        rate: probability of a record in each of them.
        lr: highest learning rate, of clipped gradients with momentum 0.9.
        clip_norm: bound C on a record's gradient.
    """

    name: ClassVar[str] = "dp-cnn"
    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            key="papernot2021tempered",
            title="Tempered Sigmoid Activations for Deep Learning with Differential Privacy",
            authors="Papernot, Nicolas and Thakurta, Abhradeep and Song, Shuang and Chien, Steve and Erlingsson, Ulfar",
            year=2021,
            where="AAAI 2021, arXiv 2007.14191",
        ),
    )

    generates: ClassVar[bool] = False

    steps: int = 300
    rate: float = 0.04
    lr: float = 2.0
    clip_norm: ClipNorm = 0.1

    def plan(self, schema: Schema, *, relation: Relation, budget: Budget) -> Plan:
        """The gradients with the smallest noise that the budget allows."""
        plan = gradient_plan(
            schema, relation=relation, budget=budget, rate=self.rate, steps=self.steps, name="dp-cnn-gradient"
        )
        visits = self.steps * self.rate * (schema.size or 0)
        return dataclasses.replace(plan, seconds=4e-7 * visits * np.prod(schema.shape), memory_mb=700)

    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume) -> Talk:
        """Train on released gradients; returns the averaged weights."""
        [(mechanism, calls)] = plan.items
        assert isinstance(mechanism, PoissonGradient)
        net = _net(plan.schema, torch.Generator().manual_seed(int(rng.integers(2**62))))
        task = ModuleGradient(module=net, loss=_cross_entropy, clip_norm=self.clip_norm)
        descent = Descent(net, steps=calls, lr=self.lr / self.clip_norm, rule="momentum")
        asked = dataclasses.replace(mechanism, task=task)
        used = resume.used.get(0, 0)
        yield from descend(descent, asked, calls=calls, used=used, state=resume.state, stage="dp-cnn")
        descent.finish()
        return {name: t.numpy().copy() for name, t in net.state_dict().items()}

    def train(self, release: Release, *, seed: int, on_note: OnNote | None = None) -> ClassifierModel:
        """The released classifier, as it is."""
        return self.restore(release, {})

    def restore(self, release: Release, tensors: Tensors) -> ClassifierModel:
        """The classifier; all of it stands in the release."""
        net = _net(release.schema, torch.Generator().manual_seed(0))
        net.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in release.tensors.items()})
        return ClassifierModel(release, _Reader(net.eval()))


class _Reader:
    """Class probabilities of images by a net."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    @torch.no_grad()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = [self.net(to_unit(images[i : i + 500])).softmax(1) for i in range(0, max(1, len(images)), 500)]
        return torch.cat(parts).numpy()


def _net(schema: Schema, rng: torch.Generator) -> BoundedCNN:
    return BoundedCNN(
        height=schema.height, width=schema.width, channels=schema.channels, n_classes=schema.n_classes, rng=rng
    )


def _cross_entropy(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(net(x), y, reduction="none")

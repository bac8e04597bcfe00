"""A differentially private labeller: a linear classifier on public features, trained on the real records.

It reads images better than any generator under the same budget draws them, so a share of the budget that is spent on it
comes back as better labels of synthetic images (see `labelled.py`).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dpgm.mechanisms.gradient import ModuleGradient, PoissonGradient
from dpgm.mechanisms.local_state import LocalState
from dpgm.methods import features as public
from dpgm.methods.base import Method, OnNote, Plan, Release, Resume, Talk, Tensors
from dpgm.methods.classifier import ClassifierModel, gradient_plan
from dpgm.methods.descent import Descent, descend
from dpgm.methods.encoder import TorchEncoder, check_encoder
from dpgm.methods.options import ClipNorm
from dpgm.nets.classifiers import to_unit
from dpgm.nets.features import FeatureMap, Mixture, Scattering
from dpgm.nets.whitened import Whitened
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, Relation, Source
from dpgm.privacy.mechanism import Json
from dpgm.schema import ImageSchema, Schema, SchemaError


@dataclass(frozen=True, kw_only=True)
class Labeller(Method):
    """A linear softmax classifier on whitened public features, trained by DP-SGD with momentum.

    **Guarantee**: `steps` Poisson-sampled Gaussian gradients (docs/proofs/poisson-gradient.md).
    **Source**: Tramèr and Boneh 2021 (linear classifiers on scattering features).
    **Differs from the paper**: the features are square roots of scattering coefficients, whitened by the covariance of
    procedural pictures, so no private statistic normalises them; Poisson sampling is really done; weights are averaged;
    the rate follows from the noise.

    Attributes:
        steps: number of gradients T.
        rate: probability q of a record in each step, above 0 and at most 1; None takes 0.2 where mu of its own budget
            is 1 or more, and 0.05 below, where larger batches cost more and bring nothing.
        clip_norm: bound C on a record's gradient.
        wander: the learning rate is chosen so that noise alone moves a logit by this standard deviation.
        top_lr: largest learning rate, in units of 1 / C.
        features: public features joined by +, as for `mepf`: scattering, rff, ntk, hermite, trained:FILE, file:WEIGHTS,
            torchvision:NAME.
        dim: directions of the features that are kept, at most as many as there are; None takes 3,000 where mu of its
            own budget is 1 or more, and 1,500 below, where further ones hold more noise than signal.
        pictures: procedural pictures that the features are whitened with.
    """

    name: ClassVar[str] = "labeller"
    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            key="tramer2021differentially",
            title="Differentially Private Learning Needs Better Features (or Much More Data)",
            authors="Tramèr, Florian and Boneh, Dan",
            year=2021,
            where="ICLR 2021, arXiv 2011.11660",
        ),
    )

    generates: ClassVar[bool] = False

    steps: int = 300
    rate: float | None = None
    clip_norm: ClipNorm = 0.1
    wander: float = 1.4
    top_lr: float = 60.0
    features: str = "scattering"
    dim: int | None = None
    pictures: int = 4000

    MOMENTUM: ClassVar[float] = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not public.split(self.features):
            raise SchemaError(f"features is '{self.features}'; name one or more of {public.KINDS}")

    def to_json(self) -> dict[str, Json]:
        """The configuration as plain JSON values, files by their last names."""
        return {**super().to_json(), "features": public.short(self.features)}

    def retrained(self, other: Method) -> Self:
        """As for any method; the features travel in the release, so the place of their files does not matter."""
        if not isinstance(other, type(self)):
            return super().retrained(other)
        mine, its = (dataclasses.replace(m, features=public.short(m.features)) for m in (self, other))
        Method.retrained(mine, its)
        return other

    def public_sets(self) -> tuple[str, ...]:
        """Names of the sets that the features were fitted on."""
        return tuple(name for recipe in public.recipes_of(self) for name in recipe.public)

    def reopened(self, tensors: Tensors) -> Self:
        """The method with the features in its release."""
        return public.holding(self, tensors)

    def plan(self, schema: Schema, *, relation: Relation, budget: Budget) -> Plan:
        """The gradients with the smallest noise that the budget allows."""
        if (self.dim is not None and self.dim < 1) or self.pictures < 2:
            raise SchemaError(f"dim is {self.dim}, pictures {self.pictures}; allowed are 1 or more, and 2 or more")
        if schema.n_classes < 2:
            raise SchemaError("the records have one class, which leaves a labeller nothing to tell; leave it out")
        found = public.recipes_of(self)
        rate, dim = _FINE if budget.delta > 0 and accountant.gaussian_mu(budget) >= 1 else _COARSE
        dim = dim if self.dim is None else self.dim
        plan = gradient_plan(
            schema,
            relation=relation,
            budget=budget,
            rate=rate if self.rate is None else self.rate,
            steps=self.steps,
            name="labeller-gradient",
            rests_on=tuple(
                f"the labeller's {recipe.kind} {recipe.fingerprint()} features saw public data only: "
                + ", ".join(recipe.public)
                for recipe in found
                if recipe.public
            ),
        )
        size = schema.size or 0
        return dataclasses.replace(
            plan,
            details={**plan.details, "dim": dim},
            seconds=60 + 6e-7 * size * dim,
            memory_mb=1000 + 2e-6 * size * dim,
        )

    def learning_rate(self, mechanism: PoissonGradient) -> float:
        """The rate lr with lr sqrt(3 T / 8) s C / (q n (1 - momentum)) = wander, at most top_lr / C.

        The left side is the standard deviation that the noise gives every weight over a cosine schedule; features have
        norm 1, so it is that of a logit too.
        """
        noise_std = mechanism.noise_multiplier * self.clip_norm / (mechanism.rate * mechanism.size)
        even = self.wander * (1 - self.MOMENTUM) / (noise_std * math.sqrt(3 * self.steps / 8))
        return min(even, self.top_lr / self.clip_norm)

    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume) -> Talk:
        """Train on released gradients; returns {"weight" [k, dim]}, and the features that came from files."""
        [(mechanism, calls)], schema = plan.items, plan.schema
        assert isinstance(mechanism, PoissonGradient)
        found = public.recipes_of(self)
        encoder = TorchEncoder(module=self._whitened(schema, found, cast("int", plan.details["dim"])))
        check_encoder(encoder, schema)
        net = _linear(encoder.dim, schema.n_classes)
        task = ModuleGradient(
            module=net, loss=_cross_entropy, clip_norm=self.clip_norm, encoder=encoder, state=_state(encoder.module)
        )
        descent = Descent(net, steps=calls, lr=self.learning_rate(mechanism), rule="momentum", beta=self.MOMENTUM)
        asked = dataclasses.replace(mechanism, task=task)
        used = resume.used.get(0, 0)
        yield from descend(descent, asked, calls=calls, used=used, state=resume.state, stage="labeller")
        descent.finish()
        return {"weight": net.weight.detach().numpy().copy(), **public.pack(found)}

    def train(self, release: Release, *, seed: int, on_note: OnNote | None = None) -> ClassifierModel:
        """The released classifier, as it is."""
        return self.restore(release, {})

    def restore(self, release: Release, tensors: Tensors) -> ClassifierModel:
        """The classifier; all of it stands in the release."""
        return ClassifierModel(release, self.trained(release.schema, release.tensors))

    def trained(self, schema: Schema, tensors: Tensors) -> TrainedLabeller:
        """The labeller whose release holds `tensors`."""
        weight = torch.from_numpy(tensors["weight"])
        return TrainedLabeller(self._whitened(schema, public.unpack(self.features, tensors), weight.shape[1]), weight)

    def _whitened(self, schema: ImageSchema, found: list[public.Recipe], dim: int) -> Whitened:
        """At most `dim` features for images of this shape; the last four are kept, for they take seconds to make."""
        base, options = _features(schema, found)
        options |= {"dim": min(dim, base.dim, self.pictures - 1), "pictures": self.pictures}
        key = (schema.shape, *options.items(), *((r.kind, r.fingerprint()) for r in found))
        if key not in _made:
            if len(_made) == _MOST:
                _made.pop(next(iter(_made)))
            _made[key] = Whitened(base, **options)
        return _made[key]


class TrainedLabeller:
    """Class probabilities for images; made of releases, so asking it is free.

    Args:
        features: public features.
        weight: [k, D].
    """

    def __init__(self, features: Whitened, weight: Tensor) -> None:
        self.features, self.weight = features, weight

    @torch.no_grad()
    def __call__(self, images: NDArray[np.uint8], *, batch: int = 500) -> NDArray[np.float32]:
        """Probabilities [n, k] of uint8 images [n, h, w, c]."""
        odds = np.empty((len(images), len(self.weight)), np.float32)
        for at in (slice(i, i + batch) for i in range(0, len(images), batch)):
            odds[at] = (self.features(to_unit(images[at])) @ self.weight.T).softmax(1).numpy()
        return odds


_FINE, _COARSE = (0.2, 3000), (0.05, 1500)
"""Rate and directions where noise is small, and where it is not."""
_made: dict[tuple[Any, ...], Whitened] = {}
_MOST = 4
_states: WeakKeyDictionary[FeatureMap, LocalState] = WeakKeyDictionary()


def _state(module: FeatureMap) -> LocalState:
    """Where the rows' features are kept: with the map, so that the next fit to the same rows finds them."""
    return _states.setdefault(module, LocalState())


def _features(schema: ImageSchema, found: list[public.Recipe]) -> tuple[FeatureMap, dict[str, Any]]:
    """The features before they are whitened, and how they are."""
    size: dict[str, Any] = {"height": schema.height, "width": schema.width, "channels": schema.channels}
    if [recipe.kind for recipe in found] != ["scattering"]:
        several = Mixture(*(public.build(recipe, schema, public.Look()) for recipe in found))
        return several, {**size, "groups": 0, "signed": True}
    base = Scattering(**size)
    maps = base.dim // (base.grid[0] * base.grid[1])
    together = next(d for d in range(3, maps + 1) if maps % d == 0)  # channels standardised as one group
    return base, {**size, "groups": maps // together}


def _cross_entropy(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(net(x.float()), y, reduction="none")


def _linear(dim: int, n_classes: int) -> nn.Linear:
    net = nn.Linear(dim, n_classes, bias=False)
    nn.init.zeros_(net.weight)
    return net

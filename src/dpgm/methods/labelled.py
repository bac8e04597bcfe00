"""A generator whose images are labelled by a differentially private labeller."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self, cast

import numpy as np
from numpy.typing import NDArray

from dpgm.methods.base import Batch, Method, Model, Note, OnNote, Plan, Release, Resume, Talk, Tensors
from dpgm.methods.composed import part, prefixed, with_prefix
from dpgm.methods.embedding import DPMERF
from dpgm.methods.labeller import Labeller, TrainedLabeller
from dpgm.methods.options import LabelMode, check_takes
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, PrivacyError, Relation, Source
from dpgm.privacy.mechanism import Cost, Json
from dpgm.schema import Schema, SchemaError

_ROUNDS = 20
"""Draws of one image until the labeller agrees with the wanted class."""


@dataclass(frozen=True, kw_only=True)
class Labelled(Method):
    """Any generator, with a share of the budget spent on a labeller that corrects its labels.

    **Guarantee**: the composition of the generator's mechanisms and the labeller's gradients.
    **Source**: ours; the labeller after Tramèr and Boneh 2021.
    **Differs from the paper**: there is none for the combination.

    Attributes:
        generator: makes the images.
        share: part of mu^2 (the squared Gaussian-DP parameter of the whole budget) that the labeller gets, in (0, 1).
        mode: "filter" draws again until the labeller agrees with the wanted class; "soft" does so too, and its class
            probabilities stand beside each label, for classifiers that learn from them; "relabel" keeps every image and
            writes down the labeller's class instead of the wanted one.
        labeller: how the labeller is trained.
    """

    name: ClassVar[str] = "labelled"
    sources: ClassVar[tuple[Source, ...]] = Labeller.sources

    generator: Method = field(default_factory=DPMERF)
    share: float = 0.3
    mode: LabelMode = "filter"
    labeller: Labeller = field(default_factory=Labeller)

    free: ClassVar[frozenset[str]] = frozenset({"mode"})

    def public_sets(self) -> tuple[str, ...]:
        """Those of the generator, and of the labeller."""
        return (*self.generator.public_sets(), *self.labeller.public_sets())

    def reopened(self, tensors: Tensors) -> Self:
        """Generator and labeller with what the release encloses of each."""
        return dataclasses.replace(
            self,
            generator=self.generator.reopened(part(tensors, "generator.")),
            labeller=self.labeller.reopened(part(tensors, "labeller.")),
        )

    def retrained(self, other: Method) -> Self:
        """`other`, if it differs from this method in free options only, those of the generator included."""
        if not isinstance(other, type(self)):
            return super().retrained(other)
        super().retrained(dataclasses.replace(other, generator=self.generator, labeller=self.labeller))
        self.generator.retrained(other.generator)
        self.labeller.retrained(other.labeller)
        return other

    def plan(self, schema: Schema, *, relation: Relation, budget: Budget) -> Plan:
        """The labeller's plan at its share, and the generator's at the most that then fits the budget."""
        check_takes(self.generator, schema)
        if not 0 < self.share < 1:
            raise PrivacyError(f"share is {self.share}; allowed is a part of the budget above 0 and below 1, e.g. 0.3")
        if not self.generator.generates:
            raise SchemaError(f"'{self.generator.name}' draws no records that a labeller could read; name a generator")
        mu = accountant.gaussian_mu(budget)
        its = accountant.gaussian_epsilon(math.sqrt(self.share) * mu, budget.delta)
        labels = self.labeller.plan(schema, relation=relation, budget=Budget(epsilon=its, delta=budget.delta))
        [(step, calls)] = labels.items
        rest = accountant.gaussian_epsilon(math.sqrt(1 - self.share) * mu, budget.delta)
        labelling = (step.cost(relation), calls)
        plan, rest = self._fit(schema, relation, budget, rest, labelling)
        return dataclasses.replace(
            plan,
            budget=budget,
            items=(*plan.items, (step, calls)),
            details={
                "generator": dict(plan.details),
                "generator_epsilon": rest,
                "labeller_epsilon": its,
                "labeller": dict(labels.details),
            },
            seconds=plan.seconds + labels.seconds,
            memory_mb=max(plan.memory_mb, labels.memory_mb),
        )

    def _fit(
        self, schema: Schema, relation: Relation, budget: Budget, epsilon: float, labelling: tuple[Cost, int]
    ) -> tuple[Plan, float]:
        """The generator's plan with the largest epsilon, about, that fits the budget beside the labeller's price.

        Composed curves differ a little from Gaussian ones, so `epsilon` is only where the search begins.
        """
        best, low, high = None, 0.0, budget.epsilon
        for _ in range(12):
            plan = self.generator.plan(schema, relation=relation, budget=Budget(epsilon=epsilon, delta=budget.delta))
            total = accountant.epsilon_of([*plan.costs(), labelling], delta=budget.delta, relation=relation)
            if total <= budget.epsilon:
                best, low = (plan, epsilon), epsilon
                if total > 0.99 * budget.epsilon:
                    break
            else:
                high = epsilon
            guess = epsilon * 0.997 * budget.epsilon / total
            epsilon = guess if low < guess < high else (low + high) / 2
        if best is None:
            raise PrivacyError(f"share {self.share} leaves the generator no budget; give the labeller less")
        return best

    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume) -> Talk:
        """First the generator's talk, then the labeller's."""
        last = len(plan.items) - 1
        details, its = (cast("Mapping[str, Json]", plan.details[who]) for who in ("generator", "labeller"))
        state = resume.state or {}
        if "labeller.done" in state or part(state, "released."):
            out = part(state, "released.")
        else:
            inner = self.generator.talk(
                dataclasses.replace(plan, items=plan.items[:last], details=details),
                rng=rng,
                resume=Resume(used=resume.used, state=part(state, "generator.") or None),
            )
            out = yield from prefixed(inner, "generator.", {})
            yield Note(stage="generator", step=1, total=1, state=with_prefix(out, "released."))
        talk = self.labeller.talk(
            dataclasses.replace(plan, items=plan.items[last:], details=its),
            rng=rng,
            resume=Resume(used={0: resume.used.get(last, 0)}, state=part(state, "labeller.") or None),
        )
        trained = yield from prefixed(talk, "labeller.", with_prefix(out, "released."))
        return {**with_prefix(out, "generator."), **with_prefix(trained, "labeller.")}

    def train(self, release: Release, *, seed: int, on_note: OnNote | None = None) -> LabelledModel:
        """Train the generator; the labeller is finished."""
        return self._model(release, self.generator.train(self._inner(release), seed=seed, on_note=on_note))

    def restore(self, release: Release, tensors: Tensors) -> LabelledModel:
        """The generator from its tensors, and the labeller from the release."""
        return self._model(release, self.generator.restore(self._inner(release), tensors))

    def _inner(self, release: Release) -> Release:
        details = cast("Mapping[str, Json]", release.details["generator"])
        tensors = part(release.tensors, "generator.")
        return dataclasses.replace(release, method=self.generator, tensors=tensors, details=details)

    def _model(self, release: Release, inner: Model) -> LabelledModel:
        trained = self.labeller.trained(release.schema, part(release.tensors, "labeller."))
        return LabelledModel(release, inner, trained, self.mode)


class LabelledModel(Model):
    """A generator and the labeller that corrects it.

    Args:
        release: what both were made from.
        generator: draws the images.
        labeller: reads them.
        mode: see `Labelled`.
    """

    def __init__(self, release: Release, generator: Model, labeller: TrainedLabeller, mode: str) -> None:
        super().__init__(release)
        self.generator, self.labeller, self.mode = generator, labeller, mode

    def tensors(self) -> Tensors:
        """The generator's tensors; the labeller's stand in the release."""
        return self.generator.tensors()

    def classify(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The labeller's class probabilities."""
        return self.labeller(images)

    def _sample(self, labels: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        drawn = self._draw(labels, rng)
        if self.mode == "relabel":
            return Batch(images=drawn.images, labels=self.labeller(drawn.images).argmax(1).astype(np.int64))
        images = drawn.images.copy()
        kept = np.full((len(labels), self.schema.n_classes), -1, np.float32)
        todo = np.arange(len(labels))
        for _ in range(_ROUNDS):
            odds = self.labeller(drawn.images)
            wanted = odds[np.arange(len(todo)), labels[todo]]
            better = wanted > kept[todo, labels[todo]]  # where the labeller never agrees, the likeliest draw stays
            images[todo[better]], kept[todo[better]] = drawn.images[better], odds[better]
            todo = todo[odds.argmax(1) != labels[todo]]
            if len(todo) == 0:
                break
            drawn = self._draw(labels[todo], rng)
        return Batch(images=images, labels=labels, odds=kept if self.mode == "soft" else None)

    def _draw(self, labels: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        return self.generator.sample(len(labels), labels=labels, seed=int(rng.integers(2**63)))

"""Private classifiers as releases of their own: they read images and draw none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dpgm.mechanisms.gradient import PoissonGradient
from dpgm.methods.base import Batch, Model, Plan, Release, Tensors
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, Relation
from dpgm.schema import Schema, SchemaError

Classify = Callable[[Any], NDArray[np.float32]]
"""Class probabilities [n, k] of images [n, h, w, c], or of the records of a frame."""


class ClassifierModel(Model):
    """A private classifier, free to publish; it makes no records.

    Args:
        release: all that it was made from.
        classifier: reads images.
    """

    def __init__(self, release: Release, classifier: Classify) -> None:
        super().__init__(release)
        self.classifier = classifier

    @property
    def reader(self) -> str:
        """The method's name, with underscores."""
        return self.release.method.name.replace("-", "_")

    def tensors(self) -> Tensors:
        """None: all of it stands in the release."""
        return {}

    def classify(self, images: Any) -> NDArray[np.float32]:
        """Class probabilities [n, k] of images [n, h, w, c]; of a table's classifier, of a frame with its columns (the
        label may be absent) or of numbers [n, columns].
        """
        return self.classifier(images)

    def sample(self, n: int, *, labels: Sequence[int] | NDArray[Any] | None = None, seed: int | None = None) -> Batch:
        """Refused: a classifier has nothing to draw from.

        Raises:
            SchemaError: always.
        """
        self._refuse()

    def _sample(self, labels: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise SchemaError(
            f"'{self.release.method.name}' releases a classifier, which draws no records; ask it with "
            "model.classify(records). For records whose labels it checks, fit a generator with --labeller 0.3 "
            "(Labelled(generator=...) in Python)"
        )


def gradient_plan(
    schema: Schema, *, relation: Relation, budget: Budget, rate: float, steps: int, name: str, **task: Any
) -> Plan:
    """`steps` Poisson-sampled gradients with the smallest noise that the budget allows.

    Args:
        schema: public facts; the declared number of records is needed.
        relation: which data sets are neighbours.
        budget: what may be spent.
        rate: probability of a record in each gradient.
        steps: how many gradients.
        name: what ledger and guarantee call them.
        task: further fields of `PoissonGradient`.

    Raises:
        SchemaError: the schema declares no size.
    """
    if schema.size is None:
        raise SchemaError(f"'{name}' needs the declared number of records; give the schema a size (--size)")
    size = schema.size

    def step(noise_multiplier: float) -> PoissonGradient:
        return PoissonGradient(rate=rate, noise_multiplier=noise_multiplier, size=size, name=name, **task)

    noise = accountant.calibrate(lambda s: [(step(s).cost(relation), steps)], budget, relation=relation, low=0.3)
    return Plan(
        schema=schema,
        relation=relation,
        budget=budget,
        items=((step(noise), steps),),
        details={"noise_multiplier": noise},
    )

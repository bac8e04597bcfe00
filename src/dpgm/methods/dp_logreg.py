"""Logistic regression by DP-SGD on a table: the private classifier that synthetic tables must beat."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dpgm.mechanisms.gradient import PoissonGradient
from dpgm.mechanisms.table_gradient import TableGradient
from dpgm.methods.base import Method, OnNote, Plan, Release, Resume, Talk, Tensors
from dpgm.methods.classifier import ClassifierModel, gradient_plan
from dpgm.methods.descent import Descent, descend
from dpgm.methods.options import ClipNorm
from dpgm.nets.columns import ColumnFeatures
from dpgm.privacy.guarantee import Budget, Relation, Source
from dpgm.schema import SchemaError, TableSchema


@dataclass(frozen=True, kw_only=True)
class DPLogReg(Method):
    """Logistic regression trained by DP-SGD: the reference row beside generators of tables; it draws no records.

    **Guarantee**: `steps` Poisson-sampled Gaussian gradients (docs/proofs/poisson-gradient.md).
    **Source**: Abadi et al. 2016.
    **Differs from the paper**: Poisson sampling is really done; public features of the declared columns; momentum, a
    cosine rate and averaged weights.

    Attributes:
        steps: number of gradients.
        rate: probability of a record in each of them.
        lr: highest learning rate, of clipped gradients with momentum 0.9; chosen on the train part of Adult.
        clip_norm: bound C on a record's gradient, whose norm is below sqrt(2) for features of norm 1.
    """

    name: ClassVar[str] = "dp-logreg"
    sources: ClassVar[tuple[Source, ...]] = (PoissonGradient.source,)
    takes: ClassVar[tuple[type[Any], ...]] = (TableSchema,)
    generates: ClassVar[bool] = False

    steps: int = 200
    rate: float = 0.05
    lr: float = 8.0
    clip_norm: ClipNorm = 1.0

    def plan(self, schema: Any, *, relation: Relation, budget: Budget) -> Plan:
        """The gradients with the smallest noise that the budget allows."""
        if schema.label is None:
            raise SchemaError("the schema names no label, so there is nothing to classify; give label in the schema")
        plan = gradient_plan(
            schema, relation=relation, budget=budget, rate=self.rate, steps=self.steps, name="dp-logreg-gradient"
        )
        visits = self.steps * self.rate * (schema.size or 0)
        return dataclasses.replace(plan, seconds=5 + 1e-6 * visits * len(schema.columns), memory_mb=400)

    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume) -> Talk:
        """Train on released gradients; returns {"weight" [k, d]}."""
        [(mechanism, calls)] = plan.items
        assert isinstance(mechanism, PoissonGradient)
        schema: Any = plan.schema
        features = ColumnFeatures(schema)
        net = _linear(features.dim, schema.n_classes)
        task = TableGradient(
            module=net, loss=_cross_entropy, clip_norm=self.clip_norm, schema=schema, features=features
        )
        descent = Descent(net, steps=calls, lr=self.lr / self.clip_norm, rule="momentum")
        asked = dataclasses.replace(mechanism, task=task)
        used = resume.used.get(0, 0)
        yield from descend(descent, asked, calls=calls, used=used, state=resume.state, stage=self.name)
        descent.finish()
        return {"weight": net.weight.detach().numpy().copy()}

    def train(self, release: Release, *, seed: int, on_note: OnNote | None = None) -> ClassifierModel:
        """The released classifier, as it is."""
        return self.restore(release, {})

    def restore(self, release: Release, tensors: Tensors) -> ClassifierModel:
        """The classifier; all of it stands in the release."""
        schema: Any = release.schema
        features, weight = ColumnFeatures(schema), release.tensors["weight"]

        def classify(records: Any) -> NDArray[np.float32]:
            table = _table_of(records, schema)
            return (torch.from_numpy(features(table)) @ torch.from_numpy(weight).T).softmax(1).numpy()

        return ClassifierModel(release, classify)


def _table_of(records: Any, schema: TableSchema) -> NDArray[np.float64]:
    """Records as numbers; a frame may lack the label, which the features leave out."""
    if not hasattr(records, "columns"):
        return records
    from dpgm.data.frames import to_numbers

    lacks = schema.label is not None and schema.label not in set(map(str, records.columns))
    return to_numbers(records.assign(**{str(schema.label): schema.classes[0]}) if lacks else records, schema)


def _linear(dim: int, n_classes: int) -> nn.Linear:
    net = nn.Linear(dim, n_classes, bias=False)
    nn.init.zeros_(net.weight)
    return net


def _cross_entropy(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(net(x), y, reduction="none")

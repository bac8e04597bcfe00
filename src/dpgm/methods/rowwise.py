"""The row-wise modes of the slicing mechanism: one noisy row for each record, and any generator trained on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpgm.mechanisms.projection import NoisyRecords, ShuffledRecords, SlicedProjection
from dpgm.mechanisms.tables import TableVectors
from dpgm.methods import table_moments
from dpgm.methods.base import Batch, Model, OnNote, Plan, Release, Tensors, reporter
from dpgm.methods.tabular import TableModel
from dpgm.nets.classifiers import to_bytes, to_unit
from dpgm.nets.generators import ConvGenerator, follow, one_hot
from dpgm.nets.sliced import SliceLoss, cosines, density_ratio, noisy_characteristic, ridge, wasserstein
from dpgm.nets.table_generator import TableGenerator
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, PrivacyError, Relation
from dpgm.privacy.sliced import sliced_multiplier
from dpgm.schema import ImageSchema, SchemaError, TableSchema
from dpgm.schema.table import Table

if TYPE_CHECKING:
    from dpgm.methods.slicing import Slicing

_WAVES = 8
"""Cosine waves on a side that an image is described by."""


@dataclass(frozen=True, kw_only=True)
class ImageVectors:
    """Labelled images as vectors of norm at most 1: low cosine waves over a public scale, and the label one-hot.

    Attributes:
        schema: public facts.
    """

    schema: ImageSchema

    @property
    def waves(self) -> tuple[int, int]:
        """Cosine waves down and across."""
        return min(_WAVES, self.schema.height), min(_WAVES, self.schema.width)

    @property
    def dim(self) -> int:
        """Number of axes."""
        return self.schema.channels * math.prod(self.waves) + self.schema.n_classes

    def __call__(self, rows: Any) -> NDArray[np.float64]:
        """Vectors [n, dim]."""
        label = torch.from_numpy(np.clip(rows["label"], 0, self.schema.n_classes - 1))
        return self.encode(to_unit(rows["image"]), label).double().numpy()

    def encode(self, x: Tensor, y: Tensor) -> Tensor:
        """Vectors of images [b, c, h, w] in [0, 1] and labels [b]; longer ones are cut to norm 1."""
        rows, columns = self.waves
        scale = math.sqrt(0.134 * self.schema.channels * self.schema.height * self.schema.width)  # a public guess
        flat = (cosines(x.shape[2], rows) @ x @ cosines(x.shape[3], columns).T).flatten(1) / scale / math.sqrt(2)
        flat = flat / (flat.norm(dim=1, keepdim=True) * math.sqrt(2)).clamp(min=1)
        return torch.cat([flat, one_hot(y, self.schema.n_classes) / math.sqrt(2)], 1)


def _vectors(method: Slicing, schema: Any) -> TableVectors | ImageVectors:
    return _table_vectors(method, schema) if isinstance(schema, TableSchema) else ImageVectors(schema=schema)


def _table_vectors(method: Slicing, schema: TableSchema) -> TableVectors:
    return TableVectors(schema=schema, label=method.label if method.mode == "full-rank" else 1.0)


def _by_moments(method: Slicing, schema: Any) -> bool:
    fits = isinstance(schema, TableSchema) and method.mode == "full-rank"
    if method.loss == "moments" and not fits:
        raise SchemaError("--loss moments is for tables; take --loss cf")
    return fits and method.loss in ("auto", "moments")


def plan(method: Slicing, schema: Any, *, relation: Relation, budget: Budget) -> Plan:
    """One release of a row for each record; its noise is the smallest that the budget allows."""
    _by_moments(method, schema)
    vectors = _vectors(method, schema)
    facts: dict[str, Any] = {
        "vectors": vectors,
        "dim": vectors.dim,
        "nonnegative": isinstance(schema, TableSchema),
        "noise_std": 1.0,
    }
    mechanism: SlicedProjection | NoisyRecords
    if method.mode == "paper":
        sliced = SlicedProjection(**facts, slices=method.slices, slice_dim=method.slice_dim, name="slices-of-records")
        shift = sliced.shift(relation)  # refuses add/remove before anything is computed
        multiplier = sliced_multiplier(budget.epsilon, budget.delta, method.slices * method.slice_dim)
        facts["noise_std"] = multiplier * shift / math.sqrt(vectors.dim)
        mechanism = SlicedProjection(**facts, slices=method.slices, slice_dim=method.slice_dim, name=sliced.name)
    elif method.shuffled:
        if schema.size is None:
            raise PrivacyError("shuffled records hide among a declared number: add --size, a public lower bound")
        shift = NoisyRecords(**facts).shift(relation)
        facts["noise_std"] = shift / accountant.shuffled_mu(budget, schema.size)
        mechanism = ShuffledRecords(**facts, records=schema.size)
    else:
        shift = NoisyRecords(**facts).shift(relation)
        facts["noise_std"] = shift / accountant.gaussian_mu(budget)
        mechanism = NoisyRecords(**facts)
    return Plan(
        schema=schema,
        relation=relation,
        budget=budget,
        items=((mechanism, 1),),
        details={"mode": method.mode, "noise_std": mechanism.noise_std, "shift": shift, "dim": vectors.dim},
        seconds=30 + 1e-7 * (schema.size or 0) * vectors.dim,
        memory_mb=700 + 4e-6 * (schema.size or 0) * vectors.dim,
    )


def train(method: Slicing, release: Release, *, seed: int, on_note: OnNote | None = None) -> Model:
    """A generator whose noisy slices are those of the release."""
    schema: Any = release.schema
    if _by_moments(method, schema):
        return table_moments.train(method, release, seed=seed, on_note=on_note)
    rng = torch.Generator().manual_seed(seed)
    values = torch.from_numpy(release.tensors["values"])
    given = release.tensors.get("directions")
    directions = None if given is None else torch.from_numpy(given)
    std = float(release.details["noise_std"])
    net = _net(method, schema, rng)
    mean = _mean(values, directions)
    shares = _class_shares(mean, schema)
    steps, lr = method.steps or 1000, method.lr or 1e-3
    if isinstance(net, TableGenerator):
        net.start(mean)
    if len(values):
        _descend(net, _loss(method, values, directions, std, rng), shares, method, steps, lr, rng, schema, on_note)
    return _model(release, net.eval(), shares)


def _descend(
    net: TableGenerator | ConvGenerator,
    loss: SliceLoss,
    shares: Tensor,
    method: Slicing,
    steps: int,
    lr: float,
    rng: torch.Generator,
    schema: Any,
    on_note: OnNote | None,
) -> None:
    import copy

    encode = None if isinstance(net, TableGenerator) else ImageVectors(schema=schema).encode
    mean = copy.deepcopy(net).requires_grad_(False)
    optimiser = torch.optim.Adam(net.parameters(), lr=lr, betas=(0.5, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    report = reporter(on_note, "train", steps)
    for step in range(steps):
        y = torch.multinomial(shares, method.batch, replacement=True, generator=rng)
        x = net.draw(y, rng=rng)
        value = loss(x[0] if isinstance(x, tuple) else encode(x, y) if encode else x, rng)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        follow(mean, net, min(0.99, step / (step + 10)))
        report(step, float(value.detach()))
    net.load_state_dict(mean.state_dict())


def restore(method: Slicing, release: Release, tensors: Tensors) -> Model:
    """The model from its saved weights."""
    if _by_moments(method, release.schema):
        return table_moments.restore(method, release, tensors)
    net = _net(method, release.schema, torch.Generator().manual_seed(0))
    weights = {k: torch.from_numpy(v) for k, v in tensors.items() if k != "class_shares"}
    net.load_state_dict(weights)
    return _model(release, net.eval(), torch.from_numpy(tensors["class_shares"]))


def _loss(method: Slicing, values: Tensor, directions: Tensor | None, std: float, rng: torch.Generator) -> SliceLoss:
    if method.loss == "ridge":
        return ridge(values, directions, std, slices=16, slice_dim=method.slice_dim, rng=rng)
    if method.loss in ("auto", "moments", "cf"):
        return noisy_characteristic(values, directions, std, count=3000, rng=rng)
    if method.loss == "wasserstein":
        return wasserstein(values, directions, std, slices=32, slice_dim=method.slice_dim)
    return density_ratio(values, directions, std, divergence=method.loss, slices=16, slice_dim=method.slice_dim)


def _mean(values: Tensor, directions: Tensor | None) -> Tensor:
    """Mean of the vectors, by least squares from random slices."""
    if not len(values):
        return torch.zeros(values.shape[1] if directions is None else len(directions))
    mean = torch.stack([b.double().sum(0) for b in values.split(8192)]).sum(0) / len(values)
    if directions is not None:
        mean = torch.linalg.pinv(directions.double().T, rtol=1e-3) @ mean
    return mean.float()


def _class_shares(mean: Tensor, schema: Any) -> Tensor:
    """Share of each class, from the mean of the label's axes; never below a hundredth of an even share."""
    k = schema.n_classes
    if isinstance(schema, TableSchema):
        sizes, index = TableVectors(schema=schema).sizes, schema.label_index
        start = sum(sizes[:index]) if index is not None else 0
        found = mean[start : start + k] if index is not None else torch.ones(1)
    else:
        found = mean[-k:]
    found = found.clamp(min=0)
    found = found / found.sum() if found.sum() > 0 else torch.full((k,), 1 / k)
    return (found + 0.01 / k) / (1 + 0.01)


def _net(method: Slicing, schema: Any, rng: torch.Generator) -> TableGenerator | ConvGenerator:
    if isinstance(schema, TableSchema):
        columns = [(c.kind in ("category", "boolean") and (len(c.values) or 2), c.missing) for c in schema.columns]
        return TableGenerator(
            [(int(k), m) for k, m in columns],
            label=schema.label_index,
            n_classes=schema.n_classes,
            latent=method.latent,
            hidden=8 * method.width,
            rng=rng,
            norms=_table_vectors(method, schema).norms,
        )
    return ConvGenerator(
        height=schema.height,
        width=schema.width,
        channels=schema.channels,
        n_classes=schema.n_classes,
        latent=method.latent,
        width_base=method.width,
        rng=rng,
    )


def _model(release: Release, net: TableGenerator | ConvGenerator, shares: Tensor) -> Model:
    if isinstance(net, TableGenerator):
        return TableNet(release, net, shares)
    return ImageNet(release, net, shares)


def _weights(net: torch.nn.Module, shares: Tensor) -> Tensors:
    return {**{k: v.detach().numpy() for k, v in net.state_dict().items()}, "class_shares": shares.numpy()}


class TableNet(TableModel):
    """A generator network of table records."""

    def __init__(self, release: Release, net: TableGenerator, shares: Tensor) -> None:
        super().__init__(release)
        self.net, self.shares = net, shares

    def tensors(self) -> Tensors:
        """The network's weights and the class shares."""
        return _weights(self.net, self.shares)

    def class_shares(self) -> NDArray[np.float64]:
        """Share of each class, as released."""
        return self.shares.double().numpy()

    def records(self, labels: NDArray[np.int64], rng: np.random.Generator) -> Table:
        """One record for each label."""
        noise = torch.Generator().manual_seed(int(rng.integers(2**63)))
        with torch.no_grad():
            parts = [self.net.draw(y, rng=noise)[1] for y in torch.from_numpy(labels).split(5000)]
        out = torch.cat(parts).double().numpy()
        for j, column in enumerate(self.table_schema.columns):
            if column.kind not in ("category", "boolean"):
                low, high = column.bounds
                known = ~np.isnan(out[:, j])
                out[known, j] = column.settle(low + out[known, j] * (high - low))
        return out


class ImageNet(Model):
    """A generator network of labelled images."""

    def __init__(self, release: Release, net: ConvGenerator, shares: Tensor) -> None:
        super().__init__(release)
        self.net, self.shares = net, shares

    def tensors(self) -> Tensors:
        """The network's weights and the class shares."""
        return _weights(self.net, self.shares)

    def _sample(self, labels: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        noise = torch.Generator().manual_seed(int(rng.integers(2**63)))
        return Batch(images=to_bytes(self.net.sample(torch.from_numpy(labels), rng=noise)), labels=labels)

"""Broken twins: small mechanisms with one fault each, beside the sound form, under the same attack.

A guard counts only if it fails on these. Every function returns two audits, (twin, sound form), against one claim.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpgm.evaluation.audit.bound import Array, Audit
from dpgm.evaluation.audit.mechanisms import audit
from dpgm.mechanisms.gradient import ModuleGradient, PoissonGradient
from dpgm.mechanisms.noise import Gaussian
from dpgm.mechanisms.projection import ShuffledRecords, SlicedProjection
from dpgm.mechanisms.queries import ClippedSum, clip_rows, total
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, Evidence, Relation
from dpgm.privacy.mechanism import Cost, NoiseSource, SeededNoise
from dpgm.schema import Rows

Pair = tuple[Audit, Audit]
_DIM, _WIDE = 16, 256
_CROWD = 200


def half_noise(budget: Budget, **options: Any) -> Pair:
    """Half of the noise that the price asks for."""
    sound = _gaussian(budget)
    return _both(
        dataclasses.replace(sound, noise_std=sound.noise_std / 2),
        sound,
        *_POINTS,
        delta=budget.delta,
        name="half noise",
        pair=_ONE_MORE,
        options=options,
    )


def missing_clip(budget: Budget, **options: Any) -> Pair:
    """DP-SGD whose gradients are not clipped, though the noise counts on it."""
    net = nn.Linear(_DIM, 1, bias=False)
    nn.init.zeros_(net.weight)
    parts: dict[str, Any] = {"module": net, "loss": _square, "clip_norm": 1.0, "inputs": _flat}
    price = PoissonGradient(rate=0.5, noise_multiplier=1.0, size=2)

    def step(scale: float, kind: type[ModuleGradient] = ModuleGradient) -> PoissonGradient:
        return dataclasses.replace(price, noise_multiplier=scale, task=kind(**parts))

    scale = accountant.calibrate(lambda s: [(step(s).cost(_ADD), 1)], budget, relation=_ADD)
    rows = Rows(image=np.full((2, 4, 4, 1), 255, np.uint8), label=np.zeros(2, np.int64))
    return _both(
        step(scale, _Unclipped),
        step(scale),
        rows,
        rows.take(slice(0, 1)),
        delta=budget.delta,
        name="missing clip",
        pair="a white picture; a second one",
        options=options,
    )


def seeded_noise(budget: Budget, **options: Any) -> Pair:
    """Noise from a seed that the attacker knows: the exact answer is one subtraction away."""
    sound = _gaussian(budget)
    rows, neighbour = _POINTS
    guess = sound(rows, SeededNoise(0))
    return _both(
        _Seeded(sound),
        sound,
        rows,
        neighbour,
        delta=budget.delta,
        name="seeded noise",
        pair=_ONE_MORE,
        score=lambda answer: float(np.allclose(answer, guess)),
        options=options,
    )


def true_counts(budget: Budget, **options: Any) -> Pair:
    """A noisy class sum divided by the exact class count, which scales the noise too."""
    sound = _gaussian(budget)
    rows, neighbour = Rows(x=np.zeros((2, _DIM))), Rows(x=np.zeros((1, _DIM)))
    return _both(
        _TrueCounts(sound),
        sound,
        rows,
        neighbour,
        delta=budget.delta,
        name="true class counts",
        pair="two records of a class, both zero; one of them removed",
        score=lambda answer: -float((answer**2).sum()),
        options=options,
    )


def known_slices(budget: Budget, **options: Any) -> Pair:
    """Slices whose directions are known before the records are fixed: a record is put along the worst of them."""
    sound = _sliced(budget)
    twin = _KnownSlices(**{f.name: getattr(sound, f.name) for f in dataclasses.fields(sound)})
    worst = np.linalg.svd(twin.known())[0][:, 0]
    return _both(
        twin,
        sound,
        Rows(x=worst[None]),
        Rows(x=-worst[None]),
        delta=budget.delta,
        relation=Relation.REPLACE,
        name="slices known in advance",
        pair="one record along the directions' largest singular vector, or its opposite",
        options=options,
    )


def rows_in_order(budget: Budget, **options: Any) -> Pair:
    """Noisy records that keep their order, at the price of a random one: one knows where to look, and nothing hides."""

    def release(kind: type[ShuffledRecords], records: int) -> ShuffledRecords:
        std = 2 / accountant.shuffled_mu(budget, records)
        return kind(vectors=_x, dim=2, noise_std=std, records=records)

    one, other = np.eye(2)[:1], -np.eye(2)[:1]
    shared: dict[str, Any] = {"delta": budget.delta, "relation": Relation.REPLACE, "options": options}
    broken, sound = release(_InOrder, 1_000_000), release(ShuffledRecords, _CROWD)
    cost = dataclasses.replace(broken.cost(Relation.REPLACE), evidence=Evidence.REFUTED)
    # In order, the other rows say nothing of a record, so they need not be drawn.
    score: Callable[[Any], float] = lambda answer: float(answer["values"][0, 0])  # noqa: E731
    twin = _run(broken, Rows(x=one), Rows(x=other), cost=cost, score=score, name="rows that keep their order",
                pair="one record of a million, or its opposite", **shared)  # fmt: skip
    crowd = other.repeat(_CROWD - 1, 0)
    pair = (Rows(x=np.concatenate([crowd, last])) for last in (one, other))
    return twin, _run(sound, *pair, cost=sound.cost(Relation.REPLACE), name="the sound form",
                      pair=f"{_CROWD - 1} equal records, and their opposite or one more", **shared)  # fmt: skip


def slicing_add_remove(budget: Budget, **options: Any) -> Pair:
    """Random slices, a noisy row for each record, sold under add/remove, where the number of records is a secret."""
    release = _sliced(budget)
    price = release.cost(Relation.REPLACE)  # it refuses one under add/remove
    score: Callable[[Any], float] = lambda answer: float(len(answer["values"]))  # noqa: E731
    shared: dict[str, Any] = {"delta": budget.delta, "options": options}
    both, alone = (Rows(x=np.zeros((n, _WIDE))) for n in (2, 1))
    twin = _run(release, both, alone, cost=dataclasses.replace(price, evidence=Evidence.REFUTED), score=score,
                name="slicing, sold under add/remove", pair="two records at zero; one of them removed", relation=_ADD,
                **shared)  # fmt: skip
    one, other = np.eye(_WIDE)[:1], -np.eye(_WIDE)[:1]
    sound = _run(release, Rows(x=one), Rows(x=other), cost=price, relation=Relation.REPLACE,
                 name="slicing, under replace", pair="one record, or its opposite", **shared)  # fmt: skip
    return twin, sound


def batch_norm(budget: Budget, **options: Any) -> Pair:
    """Features normalised by the batch's own mean and spread, then clipped: one record moves all of them."""
    sound = _gaussian(budget)
    assert isinstance(sound.query, ClippedSum)
    query = _BatchNormSum(**{f.name: getattr(sound.query, f.name) for f in dataclasses.fields(sound.query)})
    x = np.zeros((51, _DIM))
    x[-1, 0] = 1000.0
    return _both(
        dataclasses.replace(sound, query=query),
        sound,
        Rows(x=x),
        Rows(x=x[:-1]),
        delta=budget.delta,
        name="batch norm before the clip",
        pair="50 equal records, and one far away",
        options=options,
    )


def absent_noise(budget: Budget, **options: Any) -> Pair:
    """Noise added to the value of a loss as a constant: it scales the generator's gradient and never turns it.

    The release is the direction of the gradient of (|mu - g|^2 + noise)^2 by g, as an optimiser that divides by the
    gradient's size sees it; mu is the private sum, g the generated one. The sound form adds the noise to mu.
    """
    sound = _gaussian(budget)
    rows, neighbour = _POINTS
    expected = _Direction(sound, inside=False)(rows, NoiseSource())

    def score(direction: Array) -> float:
        return abs(float(direction @ expected))

    return _both(
        _Direction(sound, inside=False),
        _Direction(sound, inside=True),
        rows,
        neighbour,
        delta=budget.delta,
        name="noise that never reaches the gradient",
        pair=_ONE_MORE,
        score=score,
        options=options,
    )


TWINS: dict[str, Callable[..., Pair]] = {
    "half-noise": half_noise,
    "missing-clip": missing_clip,
    "seeded-noise": seeded_noise,
    "true-counts": true_counts,
    "known-slices": known_slices,
    "rows-in-order": rows_in_order,
    "slicing-add-remove": slicing_add_remove,
    "batch-norm": batch_norm,
    "absent-noise": absent_noise,
}

# ---------------------------------------------------------------------------------------------------------------------
# Parts

_ADD = Relation.ADD_REMOVE
_POINTS = (
    Rows(x=np.vstack([np.zeros((1, _DIM)), np.eye(_DIM)[:1]])),
    Rows(x=np.zeros((1, _DIM))),
)
_ONE_MORE = "a record at zero; a second one of norm 1"


def _x(rows: Rows) -> NDArray[Any]:
    return rows["x"]


def _gaussian(budget: Budget) -> Gaussian:
    query = ClippedSum(vectors=_x, dim=_DIM, clip_norm=1.0)
    return Gaussian(query=query, noise_std=1 / accountant.gaussian_mu(budget), name="clipped sum")


def _sliced(budget: Budget) -> SlicedProjection:
    def release(std: float) -> SlicedProjection:
        return SlicedProjection(vectors=_x, dim=_WIDE, noise_std=std, slices=1, slice_dim=2)

    def costs(std: float) -> list[tuple[Cost, int]]:
        return [(release(std).cost(Relation.REPLACE), 1)]

    return release(accountant.calibrate(costs, budget, relation=Relation.REPLACE))


def _run(mechanism: Any, rows: Rows, neighbour: Rows, *, options: dict[str, Any], **terms: Any) -> Audit:
    return audit(mechanism, rows, neighbour, weakest=False, **terms, **options)


def _both(
    twin: Any, sound: Any, *rows: Rows, name: str, relation: Relation = _ADD, options: dict[str, Any], **terms: Any
) -> Pair:
    price = sound.cost(relation)
    void = dataclasses.replace(price, evidence=Evidence.REFUTED)
    one = _run(twin, *rows, cost=void, relation=relation, name=name, options=options, **terms)
    return one, _run(sound, *rows, cost=price, relation=relation, name="the sound form", options=options, **terms)


@dataclass(frozen=True)
class _Broken:
    """A twin that states the price of its sound form."""

    sound: Gaussian

    def cost(self, relation: Relation) -> Cost:
        return self.sound.cost(relation)


class _Seeded(_Broken):
    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        return self.sound(rows, SeededNoise(0))


class _TrueCounts(_Broken):
    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        return self.sound(rows, noise) / max(1, len(rows))


@dataclass(frozen=True)
class _Direction:
    """Direction of a generator's gradient, with the noise inside the private sum or beside the loss."""

    sound: Gaussian
    inside: bool

    def cost(self, relation: Relation) -> Cost:
        return self.sound.cost(relation)

    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        inner = self.sound(rows, noise) if self.inside else total(self.sound.query, rows)
        generated = torch.full((_DIM,), 0.5, dtype=torch.float64, requires_grad=True)
        value = (torch.from_numpy(inner) - generated).square().sum()
        if not self.inside:
            value = value + float(noise.normal(1, self.sound.noise_std)[0])
        (g,) = torch.autograd.grad(value.square(), generated)
        return (g / g.norm()).numpy()


class _Unclipped(ModuleGradient):
    """Claims the bound C, and clips nothing."""

    @property
    def bound(self) -> float:
        return 1.0

    def clipped_sum(self, rows: Rows, chosen: NDArray[np.intp], noise: NoiseSource) -> Tensor:
        free = ModuleGradient(module=self.module, loss=self.loss, clip_norm=1e9, inputs=self.inputs)
        return free.clipped_sum(rows, chosen, noise)


def _flat(x: Tensor, y: Tensor, coins: np.random.Generator) -> tuple[Tensor, ...]:
    return x.flatten(1), y


def _square(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (net(x)[:, 0] - 1 - y).square()


@dataclass(frozen=True, kw_only=True)
class _KnownSlices(SlicedProjection):
    """Directions that were published before the records came."""

    def known(self) -> Array:
        return np.random.default_rng(0).normal(size=(self.dim, self.slices * self.slice_dim)) / np.sqrt(self.dim)

    def __call__(self, rows: Rows, noise: NoiseSource) -> dict[str, NDArray[np.float32]]:
        u = self.known()
        values = clip_rows(self.vectors(rows), self.clip_norm) @ u
        values = values + noise.normal(values.shape, self.noise_std)
        return {"directions": u.astype(np.float32), "values": values.astype(np.float32)}


class _InOrder(ShuffledRecords):
    """Every row lies where its record lay."""

    def __call__(self, rows: Rows, noise: NoiseSource) -> dict[str, NDArray[Any]]:
        x = clip_rows(self.vectors(rows), self.clip_norm)
        return {"values": x + noise.normal(x.shape, self.noise_std)}


class _BatchNormSum(ClippedSum):
    def partial(self, rows: Rows) -> Array:
        x = np.asarray(self.vectors(rows), np.float64)
        if len(x) == 0:
            return np.zeros(self.shape)
        return clip_rows((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), self.clip_norm).sum(0)

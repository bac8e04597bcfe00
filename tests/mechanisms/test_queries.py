"""Queries: sensitivities against hostile neighbours, and a broken twin for every guard."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from dpgm.mechanisms.cells import AboutCentres, CellMoments
from dpgm.mechanisms.gradient import ModuleGradient, PoissonGradient
from dpgm.mechanisms.latents import DecoderGradient, FixedEncoder, LocalInference
from dpgm.mechanisms.moments import CodeMoments, SecondMoment
from dpgm.mechanisms.pixels import PooledPixels
from dpgm.mechanisms.queries import RECORD_ALONE, ClippedSum, Histogram, MeanEmbedding, clip_rows, total
from dpgm.mechanisms.scatter import CellScatter
from dpgm.methods.encoder import TorchEncoder
from dpgm.nets.whitened import Whitened
from dpgm.privacy.guarantee import PrivacyError, Relation
from dpgm.privacy.mechanism import REAL_ARITHMETIC, Array, Query
from dpgm.schema import ImageSchema, Rows
from dpgm.testing import check_query, images, vectors

ADD, REPLACE = Relation.ADD_REMOVE, Relation.REPLACE
SCHEMA = ImageSchema(height=2, width=2, channels=1, classes=("a", "b", "c"))


def x_of(rows: Rows) -> NDArray[Any]:
    return rows["x"]


def both(n: int, rng: np.random.Generator) -> Rows:
    """Images whose pixels a toy encoder reads as hostile vectors."""
    rows = images(SCHEMA, strange_labels=True)(n, rng)
    return Rows(image=rows["image"], label=rows["label"])


@dataclass(frozen=True)
class Toy:
    """Images -> vectors of any sign and size; some of them NaN or infinite."""

    name: str = "toy"
    dim: int = 4
    nonnegative: bool = False
    assumptions: tuple[str, ...] = ("toys are public",)

    def __call__(self, images: NDArray[np.uint8], /) -> Array:
        flat = images.reshape(len(images), -1).astype(np.float64)
        out = (flat - 127) * 10.0 ** (flat[:, :1] % 7 - 3)
        out[flat[:, 0] == 254] = np.inf
        out[flat[:, 0] == 253] = np.nan
        return np.abs(out) if self.nonnegative else out


SUM = ClippedSum(vectors=x_of, dim=3, clip_norm=1.5)

SOUND: dict[str, tuple[Query, Callable[..., Rows]]] = {
    "clipped sum": (SUM, vectors(3)),
    "clipped sum, one number": (ClippedSum(vectors=x_of, dim=1, clip_norm=0.1), vectors(1)),
    "clipped sum, non-negative": (ClippedSum(vectors=x_of, dim=3, clip_norm=2.0, nonnegative=True), vectors(3)),
    "histogram": (Histogram(column="label", bins=3), vectors(2, n_classes=3)),
    "mean embedding": (MeanEmbedding(encoder=Toy(), n_classes=3), both),
    "mean embedding, non-negative": (MeanEmbedding(encoder=Toy(nonnegative=True), n_classes=3, bound=3.0), both),
    "mean embedding, heavy counts": (MeanEmbedding(encoder=Toy(), n_classes=3, count_weight=5.0), both),
}


@pytest.mark.parametrize("name", SOUND)
def test_queries_keep_the_contract_and_their_sensitivity_is_reached(name: str) -> None:
    query, draw = SOUND[name]
    for (relation, norm), ratio in check_query(query, draw).items():
        # L1 bounds are sqrt(dim) times the L2 ones: reached by constant rows only, but for histograms.
        assert ratio > (0.95 if norm == 2 else 0.5), (relation, norm, ratio)


# --- broken twins: each differs from a sound query in one line --------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NoClip(ClippedSum):
    def partial(self, rows: Rows) -> Array:
        return np.nan_to_num(self.vectors(rows), nan=0, posinf=0, neginf=0).clip(-1e9, 1e9).sum(axis=0)


@dataclass(frozen=True, kw_only=True)
class ClipsEachNumber(ClippedSum):
    def partial(self, rows: Rows) -> Array:
        return np.nan_to_num(self.vectors(rows)).clip(-self.clip_norm, self.clip_norm).sum(axis=0)


@dataclass(frozen=True, kw_only=True)
class WrongRelation(ClippedSum):
    """Prices a replaced record like an added one."""

    def sensitivity(self, relation: Relation, norm: int = 2) -> float:
        return super().sensitivity(ADD, norm)


@dataclass(frozen=True, kw_only=True)
class WrongNorm(ClippedSum):
    """Hands the L2 bound to Laplace noise."""

    def sensitivity(self, relation: Relation, norm: int = 2) -> float:
        return super().sensitivity(relation, 2)


@dataclass(frozen=True, kw_only=True)
class PretendsNonNegative(ClippedSum):
    """Takes the cheaper price without cutting negative values off."""

    def partial(self, rows: Rows) -> Array:
        return clip_rows(self.vectors(rows), self.clip_norm).sum(axis=0)


@dataclass(frozen=True, kw_only=True)
class LetsNaNThrough(ClippedSum):
    def partial(self, rows: Rows) -> Array:
        out = np.where(np.isinf(v := self.vectors(rows)), 0, v).clip(-1e100, 1e100)
        norm = np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-300)
        return (out * np.minimum(1, self.clip_norm / norm)).sum(axis=0)


@dataclass(frozen=True, kw_only=True)
class MeanByTrueCount(ClippedSum):
    """Divides by the true number of rows of the block, but keeps the sensitivity C / n for a typed n."""

    def partial(self, rows: Rows) -> Array:
        return super().partial(rows) / max(1, len(rows))

    def sensitivity(self, relation: Relation, norm: int = 2) -> float:
        return super().sensitivity(relation, norm) / 4


@dataclass(frozen=True, kw_only=True)
class MeanByClassCount(MeanEmbedding):
    """Divides each class by its true count."""

    def partial(self, rows: Rows) -> Array:
        out = super().partial(rows)
        return out / np.maximum(out[:, -1:] / self.count_weight, 1)


@dataclass(frozen=True, kw_only=True)
class CentredOnTheBlock(ClippedSum):
    """A batch statistic: each record's term depends on the others."""

    def partial(self, rows: Rows) -> Array:
        v = np.nan_to_num(self.vectors(rows), nan=0, posinf=0, neginf=0).clip(-1e9, 1e9)
        return clip_rows(v - v.mean(axis=0) if len(v) else v, self.clip_norm).sum(axis=0)


@dataclass(frozen=True, kw_only=True)
class CountsTwice(Histogram):
    """Counts a label that lies outside in every bin."""

    def partial(self, rows: Rows) -> Array:
        label = rows[self.column]
        return super().partial(rows) + ((label < 0) | (label >= self.bins)).sum()


@dataclass(frozen=True, kw_only=True)
class AddsOneABlock(Histogram):
    """The answer tells into how many blocks the rows were cut."""

    def partial(self, rows: Rows) -> Array:
        return super().partial(rows) + 1


@dataclass(frozen=True, kw_only=True)
class WritesIntoRows(ClippedSum):
    def partial(self, rows: Rows) -> Array:
        rows["x"][...] = clip_rows(rows["x"], self.clip_norm)
        return super().partial(rows)


@dataclass(kw_only=True)
class NotFrozen(Histogram.__mro__[1]):  # a plain object
    column: str = "label"


BROKEN: dict[str, tuple[Query, Callable[..., Rows], str]] = {
    "missing clip": (NoClip(vectors=x_of, dim=3, clip_norm=1.0), vectors(3), "moves the answer"),
    "clip of each number": (ClipsEachNumber(vectors=x_of, dim=3, clip_norm=1.0), vectors(3), "moves the answer"),
    "wrong relation": (WrongRelation(vectors=x_of, dim=3, clip_norm=1.0), vectors(3), "replace one"),
    "wrong norm": (WrongNorm(vectors=x_of, dim=3, clip_norm=1.0), vectors(3), "L1 norm"),
    "not non-negative": (
        PretendsNonNegative(vectors=x_of, dim=3, clip_norm=1.0, nonnegative=True),
        vectors(3),
        "replace one",
    ),
    "NaN": (LetsNaNThrough(vectors=x_of, dim=3, clip_norm=1.0), vectors(3), "noise hides no such value"),
    "true n as divisor": (MeanByTrueCount(vectors=x_of, dim=3, clip_norm=1.0), vectors(3), "same rows give|moves"),
    "true class count as divisor": (MeanByClassCount(encoder=Toy(), n_classes=3), both, "same rows give|moves"),
    "batch statistic": (CentredOnTheBlock(vectors=x_of, dim=3, clip_norm=9.0), vectors(3), "alone|moves"),
    "label out of range counted": (CountsTwice(column="label", bins=3), vectors(2, n_classes=3), "moves the answer"),
    "not a sum": (AddsOneABlock(column="label", bins=3), vectors(2), "same rows give|moves"),
    "rows changed": (WritesIntoRows(vectors=x_of, dim=3, clip_norm=1.0), vectors(3), "changes the column"),
    "short vectors": (ClippedSum(vectors=lambda r: r["x"][:, :1], dim=3, clip_norm=1.0), vectors(3), "fails on some"),
    "two vectors a record": (
        ClippedSum(vectors=lambda r: np.tile(r["x"], (2, 1)), dim=3, clip_norm=1.0),
        vectors(3),
        "fails",
    ),
    "two labels a record": (Histogram(column="x", bins=3), vectors(2), "fails on some"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_query_is_caught(name: str) -> None:
    query, draw, message = BROKEN[name]
    with pytest.raises(AssertionError, match=message):
        check_query(query, draw)


def test_query_that_can_change_is_caught() -> None:
    with pytest.raises(AssertionError, match="must be frozen"):
        check_query(NotFrozen(), vectors(2))  # pyright: ignore[reportArgumentType]


# --- clipping ---------------------------------------------------------------------------------------------------------

ANY = hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=5))


@given(ANY, st.floats(1e-300, 1e300))
def test_clipped_rows_never_exceed_the_bound(vectors: Array, bound: float) -> None:
    out = clip_rows(vectors, bound)
    # exact arithmetic on the numbers as they are; math.hypot neither overflows nor vanishes
    assert all(math.hypot(*row) <= bound for row in out.tolist())
    assert np.isfinite(out).all()
    assert (clip_rows(vectors, bound, nonnegative=True) >= 0).all()


def test_rows_within_the_bound_come_back_as_they_are() -> None:
    v = np.random.default_rng(0).normal(size=(500, 4))
    inside = v[np.linalg.norm(v, axis=1) < 1.999]
    assert np.array_equal(clip_rows(inside, 2.0), inside)
    assert np.array_equal(clip_rows(v.astype(np.float32), 100.0), v.astype(np.float32))


def test_clipping_keeps_the_direction() -> None:
    v = np.array([[3.0, -4.0], [3e300, -4e300], [3e-300, -4e-300], [0.0, 0.0]])
    expected = np.array([[0.6, -0.8], [0.6, -0.8], [3e-300, -4e-300], [0.0, 0.0]])
    assert np.allclose(clip_rows(v, 1.0), expected, rtol=1e-11, atol=0)
    assert not clip_rows(np.array([[np.nan, 1.0], [np.inf, 0.0], [1.0, -np.inf]]), 1.0).any()


# --- values -----------------------------------------------------------------------------------------------------------


def test_sensitivities_have_their_closed_forms() -> None:
    root = math.sqrt(2)
    assert [SUM.sensitivity(r) for r in Relation] == [1.5, 3.0]
    assert SUM.sensitivity(ADD, 1) == pytest.approx(1.5 * math.sqrt(3))
    assert SOUND["clipped sum, non-negative"][0].sensitivity(REPLACE) == pytest.approx(2 * root)
    histogram = Histogram(column="label", bins=3)
    assert [histogram.sensitivity(r, n) for r in Relation for n in (1, 2)] == [1, 1, 2, root]
    one = math.hypot(1.0, 0.1)
    signed, cut = MeanEmbedding(encoder=Toy(), n_classes=3), MeanEmbedding(encoder=Toy(nonnegative=True), n_classes=3)
    assert [signed.sensitivity(r) for r in Relation] == [one, 2.0]
    assert [cut.sensitivity(r) for r in Relation] == [one, root * one]
    with pytest.raises(PrivacyError, match="L2 sensitivity only"):
        signed.sensitivity(ADD, 1)
    with pytest.raises(PrivacyError, match="allowed is 1 or 2"):
        SUM.sensitivity(ADD, 3)


def test_labels_outside_the_classes_count_nowhere() -> None:
    label = np.array([-1, 0, 0, 2, 3, 2**62, -(2**62)], dtype=np.int64)
    rows = Rows(image=np.full((7, 2, 2, 1), 130, np.uint8), label=label)
    assert total(Histogram(column="label", bins=3), rows).tolist() == [2, 0, 1]
    embedded = total(MeanEmbedding(encoder=Toy(), n_classes=3), rows)
    assert embedded[:, -1] == pytest.approx([0.2, 0, 0.1])
    assert np.linalg.norm(embedded[:, :-1], axis=1) == pytest.approx([2, 0, 1])


def test_embedding_gives_class_means() -> None:
    rng = np.random.default_rng(0)
    rows = Rows(image=rng.integers(100, 140, (50, 2, 2, 1), dtype=np.uint8), label=rng.integers(0, 3, 50))
    out = total(MeanEmbedding(encoder=Toy(), n_classes=3, count_weight=0.5), rows, block=7)
    phi = clip_rows(Toy()(rows["image"]), 1.0)
    for k in range(3):
        assert np.allclose(out[k, :-1] * 0.5 / out[k, -1], phi[rows["label"] == k].mean(axis=0))


def test_partial_sums_may_come_from_another_engine() -> None:
    rows = vectors(3)(100, np.random.default_rng(0))
    backwards = total(SUM, rows, block=7, map_fn=lambda f, blocks: [f(b) for b in reversed(list(blocks))])
    assert np.allclose(backwards, total(SUM, rows))


def test_options_are_checked() -> None:
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(PrivacyError, match="clip_norm"):
            ClippedSum(vectors=x_of, dim=3, clip_norm=bad)
        with pytest.raises(PrivacyError, match="count_weight"):
            MeanEmbedding(encoder=Toy(), n_classes=3, count_weight=bad)
    with pytest.raises(PrivacyError, match="bins"):
        Histogram(column="label", bins=0)
    with pytest.raises(PrivacyError, match="declares"):
        total(SUM, vectors(3)(5, np.random.default_rng(0)), map_fn=lambda f, blocks: [f(b)[:1] for b in blocks])


def test_a_map_from_outside_is_assumed_to_treat_each_record_alone() -> None:
    """No clipping sees a record that moves the vectors of others; what is built in was read."""
    said = RECORD_ALONE
    assert MeanEmbedding(encoder=Toy(), n_classes=3).assumptions() == ("toys are public", said)
    for vectors_of in (x_of, lambda rows: rows["x"], lambda rows: rows["x"] - rows["x"].mean(0)):
        assert ClippedSum(vectors=vectors_of, dim=3, clip_norm=1.0).assumptions() == (said,)
        assert SecondMoment(vectors=vectors_of, dim=3, radius=1.0).assumptions() == (said,)
    schema = ImageSchema(height=8, width=8, channels=1, classes=("a", "b"))
    assert SecondMoment(vectors=PooledPixels(schema=schema), dim=64, radius=1.0).assumptions() == ()
    assert CodeMoments(codes=lambda rows: rows["x"], latent=3, n_classes=2, radius=1.0).assumptions() == (said,)
    assert CodeMoments(codes=None, latent=3, n_classes=2, radius=1.0).assumptions() == ()
    own: Any = PooledPixels(schema=schema)
    for kind in (CellMoments, CellScatter):
        one: dict[str, Any] = {"dim": 64, "n_cells": 2, "radius": 1.0, "rests_on": ("so it is",)}
        assert kind(look=lambda rows: (rows["label"], rows["x"]), **one).assumptions() == ("so it is", said)
        other = AboutCentres(encoder=lambda images: images.astype(float))
        assert kind(look=other, **one).assumptions() == ("so it is", said)
        assert kind(look=AboutCentres(encoder=own), **one).assumptions() == ("so it is",)


class Foreign(nn.Module):
    def forward(self, x: Any) -> Any:
        return x - x.mean(0)


def test_a_task_assumes_what_comes_before_its_net() -> None:
    said = RECORD_ALONE
    own: dict[str, Any] = {"module": nn.Linear(4, 3), "loss": functional.cross_entropy, "clip_norm": 1.0}
    coupled = ModuleGradient(**own, inputs=lambda x, y, coins: (x.flatten(1) - x.flatten(1).mean(0), y))
    assert coupled.assumptions() == (said,)
    assert ModuleGradient(**own).assumptions() == ()
    step = PoissonGradient(rate=0.1, noise_multiplier=1.0, size=100, task=coupled)
    assert step.cost(ADD).assumptions == (REAL_ARITHMETIC, said)
    priced = PoissonGradient(rate=0.1, noise_multiplier=1.0, size=100, rests_on=(said,))
    assert priced.cost(ADD) == step.cost(ADD), "who plans it says so beforehand"
    coupled_net: Any = own | {"module": nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=0))}
    assert ModuleGradient(**coupled_net).assumptions() == (said,)
    assert ModuleGradient(**coupled_net, engine="vmap").assumptions() == (said,), "it may keep something of each"
    other_loss: dict[str, Any] = own | {"loss": lambda net, x, y: net(x)[:, 0]}
    assert ModuleGradient(**other_loss).assumptions() == (said,)
    wrapped: Any = TorchEncoder(module=nn.Linear(4, 3))  # pyright: ignore
    assert ClippedSum(vectors=wrapped, dim=3, clip_norm=1.0).assumptions() == (said,)
    wrapper = Whitened.__new__(Whitened)
    nn.Module.__init__(wrapper)
    wrapper.inner = Foreign()  # a net of this project's around one that is not
    assert ModuleGradient(**own | {"module": wrapper}).assumptions() == (said,)  # pyright: ignore
    wrapped = TorchEncoder(module=wrapper)
    assert ClippedSum(vectors=wrapped, dim=3, clip_norm=1.0).assumptions() == (said,)
    theirs = FixedEncoder(encode=lambda x, y: x, provenance="a colleague's weights")
    colleagues = DecoderGradient(decoder=nn.Linear(2, 4), source=theirs, clip_norm=1.0).assumptions()
    assert "a colleague's weights" in " ".join(colleagues)
    for source, found in ((LocalInference(latent=2, start=lambda x, y: x), (said,)), (LocalInference(latent=2), ())):
        assert DecoderGradient(decoder=nn.Linear(2, 4), source=source, clip_norm=1.0).assumptions() == found


def test_bounds_below_what_a_float_can_bound_are_refused() -> None:
    assert np.linalg.norm(clip_rows(np.ones((1, 3)), 1e-300)) <= 1e-300
    with pytest.raises(PrivacyError, match="too few digits"):
        clip_rows(np.ones((1, 3)), 5e-324)


def test_what_runs_counts_and_not_what_it_is_called() -> None:
    own: dict[str, Any] = {"loss": functional.cross_entropy, "clip_norm": 1.0}

    @functools.wraps(functional.cross_entropy)
    def coupled(net: Any, x: Any, y: Any) -> Any:
        return functional.cross_entropy(net(x - x.mean(0)), y, reduction="none")

    net = nn.Sequential(nn.Linear(4, 3))
    assert ModuleGradient(module=net, **own).assumptions() == ()
    assert ModuleGradient(module=net, **{**own, "loss": coupled}).assumptions() == (RECORD_ALONE,)
    net[0].register_forward_pre_hook(lambda layer, x: (x[0] - x[0].mean(0),))
    assert ModuleGradient(module=net, **own).assumptions() == (RECORD_ALONE,)

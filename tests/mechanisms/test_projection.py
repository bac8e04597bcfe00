"""Row-wise releases: prices, laws, and the three broken twins of the slicing mechanism."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dpgm.mechanisms import projection
from dpgm.mechanisms.projection import NoisyRecords, SlicedProjection
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import PrivacyError, Relation
from dpgm.privacy.mechanism import GaussianEvent, NoiseSource, SeededNoise, SlicedGaussianEvent
from dpgm.privacy.sliced import sliced_delta
from dpgm.schema import Rows

ADD, REPLACE = Relation.ADD_REMOVE, Relation.REPLACE


def x_of(rows: Rows) -> NDArray[Any]:
    return rows["x"]


def rows(n: int, dim: int = 6, seed: int = 0) -> Rows:
    return Rows(x=np.random.default_rng(seed).normal(size=(n, dim)) * 3)


SLICED = SlicedProjection(vectors=x_of, dim=6, noise_std=0.5, slices=4, slice_dim=2)
WHOLE = NoisyRecords(vectors=x_of, dim=6, noise_std=0.5)


# --- what a sound mechanism must pass --------------------------------------------------------------------------------


def check_shape_is_public(mechanism: Any, relation: Relation) -> None:
    """If a price is stated, neighbours give answers of the same shape."""
    mechanism.cost(relation)
    neighbour = 5 if relation is ADD else 4
    a, b = (mechanism(rows(n), NoiseSource()) for n in (4, neighbour))
    assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}, "the answer tells the row count"


def check_directions_are_fresh(mechanism: Any) -> None:
    """No two releases share directions: nobody could know them before the records were fixed."""
    a, b = (mechanism(rows(3), NoiseSource())["directions"] for _ in range(2))
    assert not (a == b).any(), "the directions are known in advance"


class Spliced(NoiseSource):
    """The bits of one seed up to a point, then those of another."""

    def __init__(self, first: int, then: int, until: int) -> None:
        self.streams, self.left = (SeededNoise(first), SeededNoise(then)), until

    def bits(self, n: int) -> NDArray[np.uint64]:
        head = self.streams[0].bits(min(n, self.left))
        self.left -= len(head)
        return np.concatenate([head, self.streams[1].bits(n - len(head))])


def check_noise_is_its_own(mechanism: Any, words: int) -> None:
    """With the same directions, other entropy gives other noise: it cannot be computed from what is published."""
    a, b = (mechanism(rows(1), Spliced(0, seed, words)) for seed in (1, 2))
    assert (a["directions"] == b["directions"]).all()
    assert not (a["values"] == b["values"]).all(), "the noise follows from the directions"


# --- twins -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class KnownDirections(SlicedProjection):
    def __call__(self, rows: Rows, noise: NoiseSource) -> dict[str, Any]:
        width = self.slices * self.slice_dim
        u = np.random.default_rng(0).normal(size=(self.dim, width)) / math.sqrt(self.dim)
        return {
            "directions": u,
            "values": self._clipped(rows) @ u + noise.normal((len(rows), width), self.noise_std),
        }


@dataclass(frozen=True, kw_only=True)
class OneSeed(SlicedProjection):
    def __call__(self, rows: Rows, noise: NoiseSource) -> dict[str, Any]:
        width = self.slices * self.slice_dim
        rng = np.random.default_rng(int(noise.bits(1)[0]))
        u = rng.normal(size=(self.dim, width)) / math.sqrt(self.dim)
        return {
            "directions": u,
            "values": self._clipped(rows) @ u + self.noise_std * rng.normal(size=(len(rows), width)),
        }


@dataclass(frozen=True, kw_only=True)
class CountsHidden(SlicedProjection):
    def shift(self, relation: Relation) -> float:
        return self.clip_norm


FACTS: dict[str, Any] = {"vectors": x_of, "dim": 6, "noise_std": 0.5, "slices": 4, "slice_dim": 2}
WORDS = 4 * 6 * 8 + 1  # four terms a variate, and the order of one row


def test_sliced_projection_keeps_what_its_twins_break() -> None:
    check_shape_is_public(SLICED, REPLACE)
    check_directions_are_fresh(SLICED)
    check_noise_is_its_own(SLICED, WORDS - 1)


def test_twin_with_directions_known_in_advance_is_caught() -> None:
    with pytest.raises(AssertionError, match="in advance"):
        check_directions_are_fresh(KnownDirections(**FACTS))


def test_known_directions_beat_the_stated_price() -> None:
    """The attack behind the rule: a record along the largest singular vector."""
    dim, width, s = 64, 32, 14.0
    twin = KnownDirections(**{**FACTS, "dim": dim, "noise_std": s / math.sqrt(dim), "slices": width, "slice_dim": 1})
    u = twin(rows(1, dim), NoiseSource())["directions"]
    worst = 2 * np.linalg.svd(u, compute_uv=False)[0] / twin.noise_std
    stated = twin.cost(REPLACE).event
    assert isinstance(stated, SlicedGaussianEvent)
    epsilon = 1.0
    honest = sliced_delta(stated.noise_multiplier, width, epsilon)
    assert accountant.gaussian_delta(float(worst), epsilon) > 2 * honest


def test_twin_with_one_seed_is_caught() -> None:
    with pytest.raises(AssertionError, match="follows from"):
        check_noise_is_its_own(OneSeed(**FACTS), 1)


def test_twin_that_prices_add_remove_is_caught() -> None:
    with pytest.raises(AssertionError, match="row count"):
        check_shape_is_public(CountsHidden(**FACTS), ADD)


@pytest.mark.parametrize("mechanism", [SLICED, WHOLE])
def test_add_remove_is_refused_with_the_reason(mechanism: Any) -> None:
    with pytest.raises(PrivacyError, match=r"tells how many records.*aggregated"):
        mechanism.cost(ADD)


# --- prices and laws -------------------------------------------------------------------------------------------------


def test_prices() -> None:
    event = SLICED.cost(REPLACE).event
    assert event == SlicedGaussianEvent(0.5 * math.sqrt(6) / 2, 8)
    assert replace(SLICED, nonnegative=True).shift(REPLACE) == pytest.approx(math.sqrt(2))
    assert WHOLE.cost(REPLACE).event == GaussianEvent(0.25)
    assert replace(WHOLE, clip_norm=3.0).cost(REPLACE).event == GaussianEvent(0.5 / 6)
    assert SLICED.cost(REPLACE).assumptions[1] == "the number of records is public"


@pytest.mark.parametrize("n", [0, 1, 3000, 5000])
def test_sliced_values_are_clipped_projections_plus_noise(n: int) -> None:
    data = rows(n)
    out = SLICED(data, NoiseSource())
    u, values = out["directions"], out["values"]
    assert (u.shape, values.shape, values.dtype) == ((6, 8), (n, 8), np.float16)
    if n >= 3000:
        x = data["x"]
        exact = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1)) @ u
        assert np.allclose(values.mean(0), exact.mean(0), atol=6 * 0.5 / math.sqrt(n))  # the order is random
        second, values = exact.T @ exact / n + 0.25 * np.eye(8), values.astype(float)
        assert np.allclose(values.T @ values / n, second, atol=0.06)


def test_large_releases_lie_on_disk_and_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "_IN_MEMORY", 1000)
    for mechanism in (SLICED, WHOLE):
        on_disk = mechanism(rows(300), SeededNoise(1))["values"]
        monkeypatch.setattr(projection, "_IN_MEMORY", 1 << 28)
        in_memory = mechanism(rows(300), SeededNoise(1))["values"]
        monkeypatch.setattr(projection, "_IN_MEMORY", 1000)
        assert isinstance(on_disk, np.memmap)
        assert not isinstance(in_memory, np.memmap)
        assert (on_disk == in_memory).all()


@pytest.mark.parametrize(("noise_std", "kind"), [(0.5, np.float16), (1e-3, np.float32), (1e4, np.float32)])
def test_half_precision_only_where_the_noise_hides_it_and_none_overflows(noise_std: float, kind: Any) -> None:
    values = replace(WHOLE, noise_std=noise_std)(rows(2000), NoiseSource())["values"]
    assert values.dtype == kind
    assert np.isfinite(values).all()


def test_monte_carlo_of_the_mechanism_agrees_with_its_price() -> None:
    """Two neighbours at the largest distance; the exact likelihood ratio of what is released, U included."""
    d, width, s, epsilon, trials = 4, 8, 4.0, 3.0, 30_000
    mechanism = SlicedProjection(vectors=x_of, dim=d, noise_std=s / math.sqrt(d), slices=4, slice_dim=2)
    x = np.zeros((1, d))
    x[0, 0] = 5.0  # clipped to norm 1; the neighbour is -x
    data, noise = Rows(x=x), NoiseSource()
    gain = np.empty(trials)
    for i in range(trials):
        out = mechanism(data, noise)
        u, v = out["directions"][0].astype(float), out["values"][0].astype(float)
        loss = ((v + u) ** 2 - (v - u) ** 2).sum() / (2 * mechanism.noise_std**2)
        gain[i] = max(0.0, -math.expm1(epsilon - loss))
    event = mechanism.cost(REPLACE).event
    assert isinstance(event, SlicedGaussianEvent)
    stated = sliced_delta(event.noise_multiplier, width, epsilon)
    assert stated == pytest.approx(0.04697, rel=5e-4)
    assert gain.mean() == pytest.approx(stated, abs=5 * gain.std() / math.sqrt(trials))


def test_whole_records_cost_less_than_slices_of_the_same_signal() -> None:
    """Per direction of a tight frame the noise is s/sqrt(p); random directions cost more."""
    p, s = 50, 30.0
    sliced = accountant.epsilon_of(
        [(replace(SLICED, noise_std=s / math.sqrt(6), slices=25).cost(REPLACE), 1)], delta=1e-5, relation=REPLACE
    )
    whole = accountant.epsilon_of(
        [(replace(WHOLE, noise_std=s / math.sqrt(p)).cost(REPLACE), 1)], delta=1e-5, relation=REPLACE
    )
    assert whole < sliced


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(PrivacyError, match="declared is"):
        replace(SLICED, dim=5)(rows(3), NoiseSource())
    with pytest.raises(PrivacyError, match="noise_std"):
        replace(WHOLE, noise_std=0.0)
    with pytest.raises(PrivacyError, match="slices"):
        replace(SLICED, slices=0)

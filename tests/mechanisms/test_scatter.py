"""Matrix Laplace noise: the law of its entries, the inequality behind its price, and twins that must be caught."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from dpgm.mechanisms.moments import pack, unpack
from dpgm.mechanisms.queries import total
from dpgm.mechanisms.scatter import CellScatter, MatrixLaplace
from dpgm.privacy.guarantee import PrivacyError, Relation
from dpgm.privacy.mechanism import PureEvent, SeededNoise
from dpgm.schema import Rows
from dpgm.testing import check_mechanism, check_query


def draw(n, rng):
    """Hostile records: shared or opposed directions of all lengths, cells outside the range included."""
    value = rng.choice([-1.0, 1.0], (n, 1)) * np.eye(3)[rng.integers(0, 3, n)] * rng.choice([0, 0.5, 1, 100.0], (n, 1))
    return Rows(value=value, label=rng.integers(-1, 3, n).astype(np.int64))


def look(rows):
    return rows["label"], rows["value"][:, :2]


def scatter(kind=CellScatter, **kw):
    return kind(**{"look": look, "dim": 2, "n_cells": 2, "radius": 2.0, "count_share": 0.2, **kw})


def test_sensitivities_hold_and_are_nearly_reached():
    seen = check_query(scatter(), draw)
    assert seen[Relation.ADD_REMOVE, 2] > 0.99
    assert seen[Relation.REPLACE, 2] > 0.7


def test_what_a_record_adds_is_of_rank_one_and_of_trace_at_most_one():
    rows = draw(40, np.random.default_rng(0))
    for i in range(len(rows)):
        for values in np.linalg.eigvalsh(unpack(scatter().partial(rows.take(slice(i, i + 1))), 3)):
            assert values.sum() <= 1 + 1e-12
            np.testing.assert_allclose(values[:-1], 0, atol=1e-12)


def test_the_answer_is_what_it_says():
    rng = np.random.default_rng(0)
    rows = Rows(value=rng.normal(size=(50, 3)) * 0.3, label=rng.integers(0, 2, 50))
    answer = unpack(total(scatter(), rows), 3)
    for cell in (0, 1):
        v = rows["value"][rows["label"] == cell][:, :2]
        np.testing.assert_allclose(answer[cell, :2, :2], 0.8 * v.T @ v / 4)
        np.testing.assert_allclose(answer[cell, :2, 2], math.sqrt(0.2 * 0.8) * v.sum(0) / 2)
        assert answer[cell, 2, 2] == pytest.approx(0.2 * len(v))


class Twice(CellScatter):
    """Counts every record in its own cell and in the first."""

    def partial(self, rows):
        return super().partial(rows) + np.eye(self.n_cells)[0][:, None] * super().partial(rows).sum(0)


def test_twins_that_move_further_are_caught(monkeypatch):
    with pytest.raises(AssertionError, match="moves the answer"):
        check_query(scatter(Twice), draw)
    monkeypatch.setattr("dpgm.mechanisms.scatter.clip_rows", lambda v, _: v)
    with pytest.raises(AssertionError, match="moves the answer"):
        check_query(scatter(), draw)


def test_prices_and_numbers():
    mechanism = MatrixLaplace(query=scatter(look=None), scale=2.0)
    assert mechanism.cost(Relation.ADD_REMOVE).event == PureEvent(0.5)
    assert mechanism.cost(Relation.REPLACE).event == PureEvent(1.0)
    with pytest.raises(PrivacyError, match="scale"):
        MatrixLaplace(query=scatter(), scale=0.0)
    for bad in ({"radius": 0.0}, {"count_share": 0.0}, {"count_share": 1.0}):
        with pytest.raises(PrivacyError, match=next(iter(bad))):
            scatter(CellScatter, **bad)
    with pytest.raises(PrivacyError, match="only states a price"):
        scatter(look=None).partial(draw(2, np.random.default_rng(0)))
    with pytest.raises(PrivacyError, match="one cell for each record"):
        scatter(dim=3).partial(draw(2, np.random.default_rng(0)))
    with pytest.raises(PrivacyError, match="L2 sensitivity only"):
        scatter().sensitivity(Relation.REPLACE, norm=1)


# ------------------------------------------------------------------------------------------------ the noise


def difference_of_gammas(x):
    """Distribution function of G - G' for G, G' ~ Gamma(2, 1): what D = 3 says of a diagonal entry."""
    tail = np.exp(-np.abs(x)) * (2 + np.abs(x)) / 4
    return np.where(x < 0, tail, 1 - tail)


def law(relation, mechanism):
    event = mechanism.cost(relation).event
    scale = (1 if relation is Relation.ADD_REMOVE else 2) / event.epsilon
    at = np.flatnonzero(pack(np.eye(3)))
    return lambda z, factor: difference_of_gammas(z.reshape(-1, 6)[:, at] / (factor * scale))


class HalfNoise(MatrixLaplace):
    def __call__(self, rows, noise):
        exact = total(self.query, rows)
        return exact + (super().__call__(rows, noise) - exact) / 2


class OneWishart(MatrixLaplace):
    """Adds V alone: the support of the answer moves with the data, so no epsilon holds."""

    def __call__(self, rows, noise):
        g = noise.normal((2, 3, 4))
        return total(self.query, rows) + pack(self.scale / 2 * g @ np.swapaxes(g, 1, 2))


def test_mechanism_contract():
    mechanism = MatrixLaplace(query=scatter(), scale=0.7)
    check_mechanism(mechanism, draw(20, np.random.default_rng(0)), law=lambda r: law(r, mechanism))


@pytest.mark.parametrize("twin", [HalfNoise, OneWishart])
def test_twins_with_other_noise_are_caught(twin):
    mechanism = twin(query=scatter(), scale=0.7)
    with pytest.raises(AssertionError, match="noise is not what"):
        check_mechanism(mechanism, draw(20, np.random.default_rng(0)), law=lambda r: law(r, mechanism))


def test_every_direction_has_the_same_noise_and_cells_are_independent():
    """e^T Z e follows one law for all unit vectors e: Kolmogorov-Smirnov at a false-alarm rate of 1e-6 each."""
    mechanism, empty, noise = (
        MatrixLaplace(query=scatter(), scale=0.7),
        draw(0, np.random.default_rng(0)),
        SeededNoise(1),
    )
    z = unpack(np.stack([mechanism(empty, noise) for _ in range(2000)]), 3) / 0.7
    for e in (np.eye(3)[0], np.ones(3) / 3**0.5, np.array([0.6, 0, -0.8])):
        assert stats.kstest(np.einsum("ncij,i,j->nc", z, e, e).ravel(), difference_of_gammas).pvalue > 1e-6
    assert abs(np.corrcoef(z[:, 0, 0, 0], z[:, 1, 0, 0])[0, 1]) < 5 / 2000**0.5


def density(z, b):
    """f(z) up to a factor for 2 x 2 matrices z, by quadrature over V = z + (positive part): V >= 0 and V - z >= 0.

    In the eigenbasis of z both regions are cones about the axis of multiples of the identity:
    V = [[t + p, q], [q, t - p]] >= 0 iff t >= |(p, q)|, and V - z likewise with t - tr(z) / 2 and p - half the gap.
    The integral over t of exp(-(4 t - tr z) / b) is closed.
    """
    low, high = np.linalg.eigvalsh(z)
    middle, gap = (low + high) / 2, (high - low) / 2

    def inner(p):
        def at(q):
            t = max(math.hypot(p, q), middle + math.hypot(p - gap, q))
            return math.exp(-(4 * t - 2 * middle) / b)

        return 2 * quad(at, 0, 12, limit=80)[0]

    return quad(inner, -12, 12, limit=80, points=[0, gap])[0]


def test_the_inequality_of_the_proof_holds_and_is_nearly_reached():
    """e^(-t/b) <= f(z + P) / f(z) <= e^(t/b) at places z and positive semidefinite P of trace t = 1."""
    rng, b, ratios = np.random.default_rng(0), 1.0, list[float]()
    places = [np.zeros((2, 2)), *(np.diag(d) for d in ([2.0, 1.0], [-2.0, -1.0], [2.0, -2.0])), rng.normal(size=(2, 2))]
    for z in ((a + a.T) / 2 for a in places):
        for angle in (0.0, 0.8):
            u = np.array([math.cos(angle), math.sin(angle)])
            ratios.append(abs(math.log(density(z + np.outer(u, u), b) / density(z, b))) * b)
    assert max(ratios) <= 1 + 1e-4
    assert max(ratios) > 0.8

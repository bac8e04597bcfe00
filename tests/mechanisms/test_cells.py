"""Moments cell by cell: sensitivities, the law of the row-wise pure noise, and twins that must be caught."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from dpgm.mechanisms.cells import AboutCentres, CellKNorm, CellMoments
from dpgm.mechanisms.moments import unpack
from dpgm.mechanisms.noise import Gaussian
from dpgm.mechanisms.queries import total
from dpgm.privacy.guarantee import PrivacyError, Relation
from dpgm.privacy.mechanism import GaussianEvent, NoiseSource, PureEvent, SeededNoise
from dpgm.schema import Rows
from dpgm.testing import check_mechanism, check_query


def draw(n, rng):
    """Hostile records: shared or opposed directions of all lengths, cells outside the range included."""
    value = rng.choice([-1.0, 1.0], (n, 1)) * np.eye(3)[rng.integers(0, 3, n)] * rng.choice([0, 0.5, 1, 100.0], (n, 1))
    return Rows(value=value, label=rng.integers(-1, 3, n).astype(np.int64))


def look(rows):
    return rows["label"], rows["value"]


def moments(kind=CellMoments, **kw):
    return kind(**{"look": look, "dim": 3, "n_cells": 2, "radius": 2.0, "second_weight": 1.5, **kw})


@pytest.mark.parametrize("second_weight", [0.0, 1.5])
def test_sensitivities_hold_and_are_nearly_reached(second_weight):
    seen = check_query(moments(second_weight=second_weight), draw)
    assert seen[Relation.ADD_REMOVE, 2] > 0.99
    assert seen[Relation.REPLACE, 2] > 0.7


def test_the_answer_is_what_it_says():
    rng = np.random.default_rng(0)
    rows = Rows(value=rng.normal(size=(50, 3)) * 0.3, label=rng.integers(0, 2, 50))
    answer = total(moments(count_weight=0.5), rows)
    for cell in (0, 1):
        mine = rows["value"][rows["label"] == cell]
        np.testing.assert_allclose(answer[cell, :3], mine.sum(0) / 2)
        np.testing.assert_allclose(unpack(answer[cell, 3:-1], 3), 1.5 * mine.T @ mine / 4)
        assert answer[cell, -1] == pytest.approx(0.5 * len(mine))


class Half(CellMoments):
    def sensitivity(self, relation, norm=2):
        return super().sensitivity(relation, norm) / 2


class Twice(CellMoments):
    """Counts every record in its own cell and in the first."""

    def partial(self, rows):
        return super().partial(rows) + np.eye(self.n_cells)[0][:, None] * super().partial(rows).sum(0)


@pytest.mark.parametrize("twin", [Half, Twice])
def test_twins_are_caught(twin):
    with pytest.raises(AssertionError, match="moves the answer"):
        check_query(moments(twin), draw)


def test_a_twin_that_does_not_clip_is_caught(monkeypatch):
    monkeypatch.setattr("dpgm.mechanisms.cells.clip_rows", lambda v, _: v)
    with pytest.raises(AssertionError, match="moves the answer"):
        check_query(moments(), draw)


def test_a_look_that_multiplies_records_is_refused():
    rows = draw(4, np.random.default_rng(0))
    with pytest.raises(PrivacyError, match="one cell for each record"):
        moments(look=lambda r: (np.r_[r["label"], r["label"]], np.r_[r["value"], r["value"]])).partial(rows)
    with pytest.raises(PrivacyError, match="only state a price"):
        moments(look=None).partial(rows)
    with pytest.raises(PrivacyError, match="L2 sensitivity only"):
        moments().sensitivity(Relation.REPLACE, norm=1)


@pytest.mark.parametrize(
    ("field", "value"), [("radius", 0.0), ("radius", math.inf), ("count_weight", 0.0), ("second_weight", -1.0)]
)
def test_numbers_are_checked(field, value):
    with pytest.raises(PrivacyError, match=field):
        moments(**{field: value})


def test_prices():
    query = moments(look=None, second_weight=0.0, count_weight=0.75)
    assert query.sensitivity(Relation.ADD_REMOVE) == pytest.approx(1.25)
    assert CellKNorm(query=query, scale=2.5).cost(Relation.ADD_REMOVE).event == PureEvent(0.5)
    assert CellKNorm(query=query, scale=2.5).cost(Relation.REPLACE).event == PureEvent(1.0)
    assert Gaussian(query=query, noise_std=2.5).cost(Relation.ADD_REMOVE).event == GaussianEvent(2.0)
    with pytest.raises(PrivacyError, match="scale"):
        CellKNorm(query=query, scale=0.0)


def radius_law(relation):
    """Radii of the rows as the price states them: Gamma with the scale S / epsilon, or 2 S / epsilon under REPLACE."""
    mechanism = CellKNorm(query=moments(), scale=0.7)
    event = mechanism.cost(relation).event
    assert isinstance(event, PureEvent)
    moved = moments().sensitivity(Relation.ADD_REMOVE) * (1 if relation is Relation.ADD_REMOVE else 2)
    width = moments().shape[1]
    return lambda z, factor: stats.gamma.cdf(
        np.linalg.norm(z.reshape(-1, width), axis=1), width, scale=factor * moved / event.epsilon
    )


def test_mechanism_contract():
    check_mechanism(CellKNorm(query=moments(), scale=0.7), draw(20, np.random.default_rng(0)), law=radius_law)


def row_norms(mechanism, n):
    empty = draw(0, np.random.default_rng(0))
    noise = SeededNoise(3)
    return np.stack([np.linalg.norm(mechanism(empty, noise), axis=1) for _ in range(n)])


def test_every_row_has_its_own_gamma_radius():
    """Kolmogorov-Smirnov at a false-alarm rate of 1e-6 each; half the scale must be refused."""
    mechanism = CellKNorm(query=moments(), scale=0.7)
    width = mechanism.query.shape[1]
    norms = row_norms(mechanism, 1500)
    law = stats.gamma(width, scale=0.7)
    for row in norms.T:
        assert stats.kstest(row, law.cdf).pvalue > 1e-6
    assert abs(np.corrcoef(norms.T)[0, 1]) < 5 / math.sqrt(1500)
    twin = row_norms(dataclasses.replace(mechanism, scale=0.35), 1500)
    assert stats.kstest(twin[:, 0], law.cdf).pvalue < 1e-6


def test_the_radii_come_from_no_generator(monkeypatch):
    """The rows of all other cells are known to who knows their records, and so is their noise."""
    monkeypatch.setattr("dpgm.privacy.mechanism.NoiseSource.generator", None)
    CellKNorm(query=moments(), scale=0.7)(draw(4, np.random.default_rng(0)), NoiseSource())


def test_the_likelihood_ratio_stays_below_the_price():
    """log p(o) - log p'(o) = (|o - M'| - |o - M|) / scale <= S / scale, at many outcomes, for the worst neighbour."""
    mechanism = CellKNorm(query=moments(), scale=0.7)
    rows = Rows(value=np.array([[9.0, 0, 0]]), label=np.array([1]))
    centre = total(mechanism.query, rows)
    outcomes = [mechanism(rows, SeededNoise(s)) for s in range(300)]
    ratios = [(np.linalg.norm(o, axis=1) - np.linalg.norm(o - centre, axis=1)).sum() / 0.7 for o in outcomes]
    price = mechanism.cost(Relation.ADD_REMOVE).event
    assert isinstance(price, PureEvent)
    assert max(map(abs, ratios)) <= price.epsilon * (1 + 1e-12)


def test_a_look_at_images_centres_and_sorts():
    images = np.zeros((4, 2, 2, 1), np.uint8)
    images[:, 0, 0, 0] = [10, 20, 90, 100]
    rows = Rows(image=images, label=np.array([0, 0, 1, 1]))
    means = np.array([[15.0], [95.0]])
    centres = np.array([[[-4.0], [4.0]], [[-4.0], [4.0]]])

    def encoder(x):
        return x[:, 0, 0].astype(np.float64)

    for look, cells, values in (
        (AboutCentres(encoder=encoder), [0, 0, 1, 1], [10, 20, 90, 100]),
        (AboutCentres(encoder=encoder, means=means), [0, 0, 1, 1], [-5, 5, -5, 5]),
        (AboutCentres(encoder=encoder, means=means, centres=centres), [0, 1, 2, 3], [-1, 1, -1, 1]),
    ):
        got_cells, got = look(rows)
        np.testing.assert_array_equal(got_cells, cells)
        np.testing.assert_allclose(got[:, 0], values)
    check_query(CellMoments(look=AboutCentres(encoder=encoder, means=means), dim=1, n_cells=2, radius=3.0), labelled)


def labelled(n, rng):
    return Rows(image=rng.integers(0, 256, (n, 2, 2, 1), dtype=np.uint8), label=rng.integers(0, 2, n))

"""Second moments: packing keeps lengths, sensitivities hold, and the laws of codes come back."""

import dataclasses

import numpy as np
import pytest

from dpgm.mechanisms.moments import CodeMoments, SecondMoment, pack, unpack
from dpgm.mechanisms.noise import Gaussian
from dpgm.mechanisms.queries import total
from dpgm.privacy.guarantee import PrivacyError, Relation
from dpgm.privacy.mechanism import SeededNoise
from dpgm.schema import Rows
from dpgm.testing import check_query


def draw(n, rng):
    """Hostile records: directions shared or opposed, lengths from 0 to far beyond the radius, two classes."""
    base = rng.choice([-1.0, 1.0], (n, 1)) * np.eye(3)[rng.integers(0, 3, n)]
    value = base * rng.choice([0.0, 0.5, 1.0, 100.0], (n, 1))
    return Rows(value=value, label=rng.integers(0, 2, n).astype(np.int64))


def values(rows):
    return rows["value"]


def test_packing_keeps_lengths_and_comes_back():
    a = np.random.default_rng(0).normal(size=(4, 5, 5))
    a = a + np.swapaxes(a, 1, 2)
    np.testing.assert_allclose(np.linalg.norm(pack(a), axis=1), np.linalg.norm(a, axis=(1, 2)))
    np.testing.assert_allclose(unpack(pack(a), 5), a)


def test_sensitivities_hold_and_are_nearly_reached():
    seen = check_query(SecondMoment(vectors=values, dim=3, radius=2.0), draw)
    assert min(v for (_, norm), v in seen.items() if norm == 2) > 0.99
    seen = check_query(CodeMoments(codes=values, latent=3, n_classes=2, radius=2.0), draw)
    assert seen[Relation.ADD_REMOVE, 2] > 0.99
    assert seen[Relation.REPLACE, 2] > 0.8


def test_twins_that_do_not_clip_or_state_half_are_caught(monkeypatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Half(CodeMoments):
        def sensitivity(self, relation, norm=2):
            return super().sensitivity(relation, norm) / 2

    with pytest.raises(AssertionError, match="moves the answer"):
        check_query(Half(codes=values, latent=3, n_classes=2, radius=2.0), draw)
    monkeypatch.setattr("dpgm.mechanisms.moments.clip_rows", lambda v, _: v)
    for query in (
        SecondMoment(vectors=values, dim=3, radius=2.0),
        CodeMoments(codes=values, latent=3, n_classes=2, radius=2.0),
    ):
        with pytest.raises(AssertionError, match="moves the answer"):
            check_query(query, draw)


def test_the_laws_of_the_codes_come_back():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 30_000).astype(np.int64)
    means = np.array([[0.5, -0.5], [1.0, 0.0], [0.0, 1.0]])
    mixing = np.array([[0.8, 0.3], [0.0, 0.5]])
    rows = Rows(value=means[label] + rng.normal(size=(30_000, 2)) @ mixing, label=label)
    query = CodeMoments(codes=values, latent=2, n_classes=3, radius=6.0)
    noisy = Gaussian(query=query, noise_std=5.0)(rows, SeededNoise(0))
    counts, found, covariances = query.laws(noisy, 5.0)
    np.testing.assert_allclose(counts, np.bincount(label), rtol=0.03)
    np.testing.assert_allclose(found, means, atol=0.05)
    np.testing.assert_allclose(covariances, np.broadcast_to(mixing.T @ mixing, (3, 2, 2)), atol=0.1)


def test_shrinking_averages_noise_out_of_equal_covariances_and_keeps_unequal_ones():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 10, 20_000).astype(np.int64)
    query = CodeMoments(codes=values, latent=4, n_classes=10, radius=6.0)
    for scale, factor in ((np.ones(10), 0.45), (np.r_[np.ones(5), 2 * np.ones(5)], 1.3)):
        rows = Rows(value=rng.normal(size=(20_000, 4)) * scale[label, None], label=label)
        noisy = Gaussian(query=query, noise_std=20.0)(rows, SeededNoise(0))
        truth = scale[:, None, None] ** 2 * np.eye(4)
        plain = 20.0 * 36 / 2 / 2000  # standard deviation of the noise of a covariance
        error = np.sqrt(((query.laws(noisy, 20.0)[2] - truth) ** 2).mean())
        assert error < factor * plain


def test_noise_alone_still_gives_laws_to_sample_from():
    query = CodeMoments(codes=values, latent=2, n_classes=3, radius=6.0)
    noisy = Gaussian(query=query, noise_std=50.0)(
        Rows(value=np.zeros((0, 2)), label=np.zeros(0, np.int64)), SeededNoise(0)
    )
    counts, means, covariances = query.laws(noisy, 50.0)
    assert (counts > 0).all()
    assert np.isfinite(means).all()
    assert (np.linalg.eigvalsh(covariances) > 0).all()


def test_a_query_without_codes_only_states_its_price():
    query = CodeMoments(codes=None, latent=2, n_classes=3, radius=6.0)
    assert query.sensitivity(Relation.ADD_REMOVE) == pytest.approx(np.sqrt(5.01))
    with pytest.raises(PrivacyError, match="only state a price"):
        total(query, Rows(value=np.zeros((1, 2)), label=np.zeros(1, np.int64)))
    for field in ("radius", "second_weight", "count_weight"):
        with pytest.raises(PrivacyError, match=field):
            dataclasses.replace(query, **{field: 0.0})


def test_maps_that_multiply_records_are_refused():
    rows = draw(4, np.random.default_rng(0))
    for query in (
        SecondMoment(vectors=lambda r: np.r_[values(r), values(r)], dim=3, radius=2.0),
        CodeMoments(codes=lambda r: np.r_[values(r), values(r)], latent=3, n_classes=2, radius=2.0),
    ):
        with pytest.raises(PrivacyError, match="one entry of shape"):
            query.partial(rows)


def test_cells_keep_the_bound_and_each_code_counts_in_the_nearest():
    query = CodeMoments(codes=values, latent=3, n_classes=2, radius=2.0, centres=((0.5, 0, 0), (-0.5, 0, 0)))
    check_query(query, draw)
    rows = Rows(
        value=np.array([[1.0, 0, 0], [-1, 0, 0], [-1, 1, 0], [9, 0, 0], [1, 0, 0]]), label=np.array([0, 1, 1, 1, 7])
    )
    assert query.shape == (4, 3 + 6 + 1)
    np.testing.assert_allclose(query.partial(rows)[:, -1] / query.count_weight, [1, 0, 1, 2])
    with pytest.raises(PrivacyError, match="3 numbers"):
        dataclasses.replace(query, centres=((0.0, 1.0),))

"""Scattering coordinates: pictures come back from them, each alone, and their axes are the same every time."""

import numpy as np
import pytest

from dpgm.nets import scattered
from dpgm.nets.coordinates import Coordinates
from dpgm.nets.procedural import procedural_images
from dpgm.nets.scattered import ScatteringCoordinates, public_axes


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    """Axes of few made-up pictures: quick, and good enough here."""
    monkeypatch.setattr(scattered, "_PICTURES", 300)
    public_axes.cache_clear()
    yield
    public_axes.cache_clear()


def made_up(n, size=16, channels=1):
    return procedural_images(n, height=size, width=size, channels=channels, rng=np.random.default_rng(5))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_drawn_picture_has_the_coordinates_it_was_drawn_from(channels):
    images = made_up(20, channels=channels)
    c = ScatteringCoordinates(height=16, width=16, channels=channels, block=6, directions=100)
    z = c.encode(images)
    assert z.shape == (20, c.dim) == (20, 36 * channels + 100) == (20, len(c.scale))
    back = np.square(c.encode(c.decode(z, contrast=1.0)) - z).sum() / np.square(z - z.mean(0)).sum()
    assert back < 0.02


def test_a_grey_picture_comes_back_better_than_from_its_low_frequencies_alone():
    images = made_up(20)
    kinds = (
        ScatteringCoordinates(height=16, width=16, channels=1, block=6, directions=100),
        Coordinates(height=16, width=16, channels=1, block=6),
    )
    ours, theirs = (np.abs(c.decode(c.encode(images), contrast=1.0) / 255 - images / 255).mean() for c in kinds)
    assert ours < 0.8 * theirs


def test_records_and_drawn_pictures_are_alone_and_odd_ones_are_finite():
    images = made_up(6)
    images[0], images[1] = 0, 255
    c = ScatteringCoordinates(height=16, width=16, channels=1, block=6, directions=20, upright=True)
    z = c.encode(images)
    assert np.isfinite(z).all()
    np.testing.assert_allclose(c.encode(images[::-1])[::-1], z, atol=1e-4)
    np.testing.assert_allclose(c.encode(images[2:3])[0], z[2], atol=1e-4)
    wild = 100 * np.random.default_rng(0).normal(size=z.shape)
    drawn = c.decode(np.concatenate([z, wild]))
    assert np.abs(c.decode(z[2:4]).astype(int) - drawn[2:4]).max() <= 2
    assert c.decode(z[:1]).shape == (1, 16, 16, 1)


def test_nobody_is_no_picture():
    c = ScatteringCoordinates(height=16, width=16, channels=1, block=6, directions=20)
    assert c.encode(made_up(1)[:0]).shape == (0, c.dim)
    assert c.decode(np.zeros((0, c.dim))).shape == (0, 16, 16, 1)


def test_the_axes_are_the_same_when_they_are_made_again():
    first = public_axes(12, 12, 1, 30)
    public_axes.cache_clear()
    again = public_axes(12, 12, 1, 30)
    assert first is not again
    np.testing.assert_allclose(again.basis, first.basis, atol=1e-5)
    np.testing.assert_allclose(first.basis.T @ first.basis, np.eye(30), atol=1e-4)
    peaks = first.basis.abs().argmax(0)
    assert (first.basis[peaks, range(30)] > 0).all()


def test_small_pictures_have_fewer_directions():
    c = ScatteringCoordinates(height=8, width=8, channels=1, block=4, directions=5000)
    assert c.dim == 16 + 8 * 16

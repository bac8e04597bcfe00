"""Public coordinates of images: what is kept comes back, records are alone, slants are found and given back."""

import numpy as np
import pytest

from dpgm.nets.coordinates import Coordinates

KINDS = [{}, {"upright": True}, {"outline": True}, {"upright": True, "outline": True}]


def bars(n, size=28, lean=0.0):
    """Vertical bars leaning by `lean`, of random width and place."""
    rng = np.random.default_rng(0)
    down, across = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    width, place = rng.uniform(0.15, 0.3, (2, n, 1, 1)) * [[[[1]]], [[[0.3]]]]
    inside = (np.abs(across - place - lean * down) < width) & (np.abs(down) < 0.7)
    return (inside[..., None] * 255).astype(np.uint8)


def test_all_frequencies_keep_the_picture():
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)
    c = Coordinates(height=6, width=8, channels=3, block=8)
    z = c.encode(images)
    assert z.shape == (5, c.dim) == (5, 144)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), np.linalg.norm(images.reshape(5, -1) / 255.0, axis=1))
    assert np.array_equal(c.decode(z, contrast=1.0), images)


@pytest.mark.parametrize("kind", KINDS)
def test_few_coordinates_keep_the_shape(kind):
    images = bars(8, lean=0.3)
    c = Coordinates(height=28, width=28, channels=1, **kind)
    back = c.decode(c.encode(images))
    assert c.dim == len(c.frequency) == 100 + bool(kind.get("upright"))
    assert np.abs(back / 255.0 - images / 255.0).mean() < 0.06


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (12, 3)])
def test_records_are_alone_and_odd_ones_are_finite(kind, size, channels):
    images = np.random.default_rng(1).integers(0, 256, (6, size, size, channels), dtype=np.uint8)
    images[0], images[1] = 0, 255
    c = Coordinates(height=size, width=size, channels=channels, **kind)
    z = c.encode(images)
    assert np.isfinite(z).all()
    np.testing.assert_allclose(c.encode(images[::-1])[::-1], z, atol=1e-5)
    np.testing.assert_allclose(c.encode(images[2:3])[0], z[2], atol=1e-5)
    assert c.encode(images[:0]).shape == (0, c.dim)
    assert c.decode(z[:0]).shape == (0, size, size, channels)


def test_the_slant_is_found_and_taken_out():
    c = Coordinates(height=28, width=28, channels=1, upright=True)
    straight, leaning = c.encode(bars(20)), c.encode(bars(20, lean=0.4))
    assert np.abs(straight[:, -1]).max() < 0.05
    assert (leaning[:, -1] > 0.4).all()
    apart = np.linalg.norm(straight[:, :-1] - leaning[:, :-1], axis=1).mean()
    plain = Coordinates(height=28, width=28, channels=1)
    before = np.linalg.norm(plain.encode(bars(20)) - plain.encode(bars(20, lean=0.4)), axis=1).mean()
    assert apart < 0.5 * before


def test_the_mean_of_outlines_is_a_shape():
    """Two bars side by side: the mean picture is two grey bars, the mean outline still turns from black to white."""
    images = bars(1)
    moved = np.roll(images, 3, axis=2)
    outline = Coordinates(height=28, width=28, channels=1, outline=True)
    mean = outline.decode((outline.encode(images) + outline.encode(moved)) / 2)
    assert mean.max() > 200


def test_the_wobble_moves_pictures_and_is_seeded():
    c = Coordinates(height=28, width=28, channels=1)
    z = c.encode(bars(4))
    still, a, b = (c.decode(z, wobble=w, rng=np.random.default_rng(0)) for w in (0.0, 1.0, 1.0))
    assert np.array_equal(a, b)
    assert np.abs(a.astype(float) - still).mean() > 3


@pytest.mark.parametrize("bad", [{"block": 0}, {"reach": 0.0}])
def test_numbers_are_checked(bad):
    with pytest.raises(ValueError, match="allowed"):
        Coordinates(height=8, width=8, channels=1, **bad)

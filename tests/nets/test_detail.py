"""Random frequencies beyond the block: where they are, how strong, and that none appear unasked."""

import numpy as np

from dpgm.nets.coordinates import Coordinates


def test_details_live_outside_the_block_and_fall_with_the_frequency():
    """400 planes of 28 x 28: each tested variance has a standard error below 2 %."""
    low = Coordinates(height=28, width=28, channels=1, block=10)
    every = Coordinates(height=28, width=28, channels=1, block=28)
    z = np.zeros((400, low.dim))
    z[:, 0] = 14.0  # an even grey of one half, from which nothing is cut off
    images = low.decode(z, contrast=1.0, detail=np.full(400, 0.8), rng=np.random.default_rng(0))
    found = every.encode(images).var(0)
    down, across = np.divmod(np.arange(784), 28)
    inside = (down < 10) & (across < 10)
    assert found[inside].max() < 1e-3  # rounding to 256 levels
    for order in (12, 20, 30):
        at = ~inside & (down + across == order)
        np.testing.assert_allclose(found[at].mean(), 0.64 * order**-2.5, rtol=0.1)
    plain = low.decode(z, contrast=1.0)
    assert plain.var() == 0


def test_the_edge_of_the_block_is_where_it_ends():
    grid = Coordinates(height=28, width=28, channels=1, block=10, upright=True)
    at, fall = grid.edge()
    assert at.shape == fall.shape == (grid.dim,)
    assert not at[-1]
    assert at[:-1].reshape(10, 10)[8:].all()
    assert at[:-1].reshape(10, 10)[:, 8:].all()
    assert not at[:-1].reshape(10, 10)[:8, :8].any()

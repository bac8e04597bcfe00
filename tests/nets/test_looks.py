"""Sharper and moved pictures."""

import numpy as np
import torch

from dpgm.nets.looks import move, sharpen


def test_sharpening_keeps_order_ends_and_the_middle():
    x = torch.linspace(0, 1, 11)
    assert torch.equal(sharpen(x, 1.0), x)
    sharp = sharpen(x, 3.0)
    torch.testing.assert_close(sharp[[0, 5, 10]], torch.tensor([0.0, 0.5, 1.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(sharp[3], torch.tensor(0.3**3 / (0.3**3 + 0.7**3)))
    assert (sharp.diff() > 0).all()


def test_movements_are_small_reproducible_and_differ_from_picture_to_picture():
    x = torch.zeros(200, 1, 28, 28)
    x[:, :, 12:16, 12:16] = 1
    still = move(x, amount=0.0, rng=np.random.default_rng(0))
    one, two = (move(x, amount=1.0, rng=np.random.default_rng(0)) for _ in range(2))
    assert torch.equal(still, x)
    assert torch.equal(one, two)
    assert not torch.equal(one[0], one[1])
    place = torch.arange(28.0)
    centres = (one.sum((1, 2)) * place).sum(1) / one.sum((1, 2, 3))
    assert abs(centres.mean() - 13.5) < 0.3
    assert 0.7 < centres.std() < 1.4  # pixels: 1/28 of the side

"""Generators: every size, no coupling inside a batch, seeded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dpgm.nets.generators import ConvGenerator, DenseGenerator, LabelledGenerator, one_hot


def conv(height: int, width: int, channels: int, seed: int = 0) -> LabelledGenerator:
    rng = torch.Generator().manual_seed(seed)
    return ConvGenerator(height=height, width=width, channels=channels, n_classes=3, width_base=8, hidden=32, rng=rng)


def dense(height: int, width: int, channels: int, seed: int = 0) -> LabelledGenerator:
    rng = torch.Generator().manual_seed(seed)
    return DenseGenerator(height=height, width=width, channels=channels, n_classes=3, hidden=32, rng=rng)


both = pytest.mark.parametrize("build", [conv, dense])
Build = Callable[..., LabelledGenerator]


@both
@pytest.mark.parametrize("size", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (64, 64, 3), (20, 17, 1)])
def test_images_have_the_declared_size_and_range(build: Build, size: tuple[int, int, int]) -> None:
    net = build(*size)
    x = net.sample(torch.tensor([0, 1, 2, 2]), rng=torch.Generator().manual_seed(1), batch=3)
    assert x.shape == (4, size[2], size[0], size[1])
    assert 0 <= x.min() <= x.max() <= 1


@both
def test_seeded_and_free_of_global_state(build: Build) -> None:
    y = torch.tensor([0, 1, 2])
    first = build(8, 8, 1).sample(y, rng=torch.Generator().manual_seed(1))
    torch.rand(3)
    assert torch.equal(first, build(8, 8, 1).sample(y, rng=torch.Generator().manual_seed(1)))
    assert not torch.equal(first, build(8, 8, 1, seed=1).sample(y, rng=torch.Generator().manual_seed(1)))


@both
def test_records_of_a_batch_do_not_meet(build: Build) -> None:
    net = build(8, 8, 1).train()
    z, y = torch.randn(3, net.latent, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2])
    alone = torch.cat([net(z[i : i + 1], y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, net(z, y), rtol=1e-4, atol=1e-5)


@both
def test_soft_labels_interpolate(build: Build) -> None:
    net = build(8, 8, 1)
    z = torch.zeros(1, net.latent)
    hard = net(z, torch.tensor([1]))
    assert torch.equal(hard, net(z, one_hot(torch.tensor([1]), 3)))
    assert not torch.equal(hard, net(z, torch.tensor([[0.0, 0.5, 0.5]])))

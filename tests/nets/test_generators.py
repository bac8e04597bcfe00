"""Generators: every size, no coupling inside a batch, seeded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dpgm.nets.cosine import CosineMoments, MomentGenerator
from dpgm.nets.generators import ConvGenerator, DenseGenerator, Ensemble, LabelledGenerator, one_hot


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


@pytest.mark.parametrize("size", [(28, 28, 1), (32, 32, 3), (64, 64, 3)])
def test_a_law_that_bends_begins_at_the_gaussian_one(size: tuple[int, int, int]) -> None:
    height, width, channels = size
    shape = {"height": height, "width": width, "channels": channels}
    moments = CosineMoments(**shape, count=20)
    law = 0.05 * torch.randn(3, 20, 21, generator=torch.Generator().manual_seed(1))
    law[:, 0, 0] = 0.5
    drawn: list[torch.Tensor] = []
    for bend in (0, 16):
        net = MomentGenerator(moments, **shape, n_classes=3, rank=8, bend=bend, rng=torch.Generator().manual_seed(0))
        net.begin(law)
        drawn.append(net.eval().sample(torch.arange(6) % 3, rng=torch.Generator().manual_seed(2)))
        assert drawn[-1].shape == (6, channels, height, width)
        assert 0 <= drawn[-1].min() <= drawn[-1].max() <= 1
    torch.testing.assert_close(*drawn)
    with torch.no_grad():
        torch.nn.init.ones_(net.outward.bias)
    bent = net.sample(torch.arange(6) % 3, rng=torch.Generator().manual_seed(2))
    assert (bent - drawn[1]).abs().max() > 0.05


class _Shade(LabelledGenerator):
    """Images whose every pixel says which net and which class they are of."""

    def __init__(self, shade: float) -> None:
        super().__init__(n_classes=3, latent=1)
        self.shade = shade

    def forward(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (self.shade + y.float())[:, None, None, None].expand(-1, 1, 2, 2)


def test_an_ensemble_draws_from_all_its_nets_and_keeps_the_order_of_the_labels() -> None:
    y = torch.arange(3).repeat(200)
    net, rng = Ensemble([_Shade(0.25), _Shade(0.5)]), torch.Generator().manual_seed(0)
    shades = net.sample(y, rng=rng)[:, 0, 0, 0]
    assert torch.equal(shades.floor().long(), y)
    assert int((shades % 1 == 0.25).sum()) == 300
    assert {float(net.sample(y[:1], rng=rng)[0, 0, 0, 0]) for _ in range(20)} == {0.25, 0.5}

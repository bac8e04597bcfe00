"""Embedding matching: the loss falls, diversity survives, and the biased loss is told apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dpgm.nets.features import RandomFourier
from dpgm.nets.generators import ConvGenerator, LabelledGenerator, one_hot
from dpgm.nets.matching import Loss, shrink, train_generator


def test_loss_falls_on_images() -> None:
    rng = torch.Generator().manual_seed(0)
    features = RandomFourier(height=8, width=8, channels=1, dim=400)
    x = torch.zeros(2, 50, 1, 8, 8)
    x[0, :, :, 2:4] = 0.9
    x[1, :, :, :, 4:6] = 0.9
    x += 0.05 * torch.rand(x.shape, generator=rng)
    target = torch.stack([features(part).mean(0) for part in x])
    net = ConvGenerator(height=8, width=8, channels=1, n_classes=2, latent=4, width_base=8, hidden=32, rng=rng)
    seen: list[int] = []
    losses = train_generator(
        net, features, target, steps=80, batch=40, lr=1e-2, rng=rng, on_step=lambda step, loss: seen.append(step)
    )
    assert seen == list(range(80))
    assert losses[-1] < 0.1 * losses[0]
    assert not net.training
    y = torch.tensor([0, 1]).repeat_interleave(20)
    fake = net.sample(y, rng=rng).view(2, 20, 1, 8, 8).mean(1)
    assert (fake - x.mean(1)).abs().mean() < 0.1


class Spread(LabelledGenerator):
    """A generator of one number a record, s_c z; its mean embedding (s z, (s z)²) has the right answer |s_c| = 1."""

    def __init__(self) -> None:
        super().__init__(2, 1)
        self.scale = nn.Parameter(torch.full((2,), 0.8))

    def draw(self, y: Tensor, *, rng: torch.Generator, temperature: float = 1.0) -> Tensor:
        z = torch.randn(len(y), 1, generator=rng)
        return (one_hot(y, 2) @ self.scale[:, None]) * z


def learned_spread(loss: Loss) -> float:
    net = Spread()
    target = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    train_generator(
        net,
        lambda x: torch.cat([x, x**2], 1),
        target,
        steps=600,
        batch=4,
        lr=2e-2,
        memory=0.98,
        rng=torch.Generator().manual_seed(0),
        loss=loss,
    )
    return float(net.scale.detach().abs().mean())


@pytest.mark.parametrize(("loss", "off"), [("pairs", 0.1), ("running", 0.1), ("adam", 0.3)])
def test_unbiased_losses_keep_the_spread(loss: Loss, off: float) -> None:
    assert abs(learned_spread(loss) - 1) < off


def test_the_biased_batch_loss_loses_the_spread() -> None:
    assert learned_spread("batch") < 0.75


def test_the_heavier_class_is_met_first() -> None:
    class Point(LabelledGenerator):
        def __init__(self) -> None:
            super().__init__(2, 1)
            self.place = nn.Parameter(torch.zeros(1))

        def draw(self, y: Tensor, *, rng: torch.Generator, temperature: float = 1.0) -> Tensor:
            return self.place.expand(len(y), 1)

    net = Point()
    train_generator(
        net,
        lambda x: x,
        torch.tensor([[0.0], [1.0]]),
        torch.tensor([1.0, 3.0]),
        steps=300,
        batch=4,
        lr=1e-2,
        rng=torch.Generator().manual_seed(0),
    )
    assert float(net.place.detach()) == pytest.approx(0.75, abs=0.05)


def test_shrinkage_lowers_the_error_and_is_nothing_without_noise() -> None:
    rng = torch.Generator().manual_seed(0)
    truth = torch.randn(10, 200, generator=rng) * torch.tensor([1.0, 0.05]).repeat_interleave(100)
    noisy = truth + 0.3 * torch.randn(10, 200, generator=rng)
    better = shrink(noisy, 0.3, (100, 100))
    assert (better - truth).square().sum() < 0.7 * (noisy - truth).square().sum()
    torch.testing.assert_close(shrink(noisy, 0.0), noisy)
    torch.testing.assert_close(shrink(noisy, torch.zeros(10), (50, 150)), noisy)


def test_the_best_check_is_kept() -> None:
    net, seen = Spread(), list[float]()

    def judge(now: LabelledGenerator) -> float:
        assert isinstance(now, Spread)
        seen.append(float(now.scale.detach().mean()))
        return abs(seen[-1] - 0.9)  # on the way from 0.8 to 1

    train_generator(
        net,
        lambda x: torch.cat([x, x**2], 1),
        torch.tensor([[0.0, 1.0], [0.0, 1.0]]),
        steps=400,
        batch=40,
        lr=2e-3,
        rng=torch.Generator().manual_seed(0),
        judge=judge,
    )
    assert len(seen) == 8
    kept = float(net.scale.detach().mean())
    assert kept == pytest.approx(min(seen, key=lambda s: abs(s - 0.9)))
    assert seen[-1] != pytest.approx(kept), "the last one is not the best here"


def test_shapes_are_checked() -> None:
    rng = torch.Generator().manual_seed(0)
    net = ConvGenerator(height=8, width=8, channels=1, n_classes=2, width_base=8, rng=rng)
    with pytest.raises(ValueError, match="one target row"):
        train_generator(net, lambda x: x.flatten(1), torch.zeros(3, 64), steps=1, batch=6, lr=1e-3, rng=rng)

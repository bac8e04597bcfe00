"""Layers of a network as features: bounded whatever the statistics are, centred, with and without second moments."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpgm.nets.layers import Layered, layer_moments, public_statistics
from dpgm.nets.perceptual import Tower, fold, train_tower
from dpgm.nets.procedural import procedural_images

SMALL = ((4, 4), (6,))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layered(weights: tuple[float, ...] = (1, 1, 1), *, second: bool = False, channels: int = 1) -> Layered:
    net = fold(Tower(channels, SMALL, norm=True, rng=rng()).eval())
    shown = torch.rand(60, channels, 12, 12, generator=rng(1))
    centres, radii = public_statistics(net, shown, grid=6, second=second)
    return Layered("net", net, centres=centres, radii=radii, weights=weights, grid=6, second=second)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_norm_is_at_most_one_for_any_image(second: bool, channels: int) -> None:
    features = layered((3, 1, 2) * (1 + second), second=second, channels=channels)
    x = torch.rand(20, channels, 12, 12, generator=rng(2))
    x[0], x[1], x[2] = 0, 1, (x[2] > 0.5).float()
    z = features(x)
    assert z.shape == (20, features.dim)
    assert z.norm(dim=1).max() <= 1 + 1e-5
    torch.testing.assert_close(features(x[5:6]), z[5:6], rtol=1e-4, atol=1e-5)


def test_a_layer_far_from_the_public_centre_is_clipped_and_a_near_one_is_not() -> None:
    features = layered()
    x = torch.rand(200, 1, 12, 12, generator=rng(3))
    sizes = torch.stack([p.norm(dim=1) for p in features(x).split(features.sizes, 1)], 1) * 3**0.5
    assert (sizes <= 1 + 1e-5).all()
    inside = (sizes < 1 - 1e-4).float().mean(0)
    assert (inside > 0.6).all(), "the radius keeps about nine in ten of such images whole"
    features.radii.fill_(1e-3)
    torch.testing.assert_close(features(x).norm(dim=1), torch.ones(200))


def test_the_centre_takes_off_what_all_images_share() -> None:
    features = layered()
    x = torch.rand(200, 1, 12, 12, generator=rng(4))
    raw = torch.cat(layer_moments(features.net, x, 6, False), 1)  # pyright: ignore[reportArgumentType]
    shared = raw.mean(0).norm() / raw.norm(dim=1).mean()
    left = features(x).mean(0).norm() / features(x).norm(dim=1).mean()
    assert shared > 0.8
    assert left < 0.3 * shared


def test_folding_changes_nothing_that_is_computed() -> None:
    tower = Tower(1, SMALL, norm=True, rng=rng())
    x = torch.rand(30, 1, 12, 12, generator=rng(5))
    tower.train()
    for _ in range(20):
        tower(x)
    tower.eval()
    plain = fold(tower)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in plain.modules())
    for a, b in zip(tower(x), plain(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    tower.train()
    assert not torch.allclose(tower(x)[-1], plain(x)[-1], rtol=1e-2), "batch statistics would be another function"


def test_a_tower_learns_instances_and_is_seeded() -> None:
    pictures = procedural_images(8, height=12, width=12, channels=1, rng=np.random.default_rng(0))

    def train(seed: int) -> tuple[Tower, float]:
        return train_tower(
            pictures, np.arange(8), n_classes=8, steps=60, batch=32, rng=np.random.default_rng(seed), movement=0.5
        )

    tower, accuracy = train(0)
    assert accuracy > 0.5, "chance is 0.125"
    again, _ = train(0)
    assert all(torch.equal(a, b) for a, b in zip(tower.parameters(), again.parameters(), strict=True))
    assert not tower.training


@pytest.mark.parametrize("steps", [2, 5])
def test_a_tower_can_be_trained_for_few_steps(steps: int) -> None:
    images = np.zeros((4, 8, 8, 1), np.uint8)
    train_tower(images, np.arange(4), n_classes=4, steps=steps, rng=np.random.default_rng(0), batch=4)


def test_counts_of_the_parts_must_agree() -> None:
    features = layered()
    with pytest.raises(ValueError, match="one of each"):
        layered((1, 1))
    assert features.provenance == "none"

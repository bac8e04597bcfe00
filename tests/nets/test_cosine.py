"""Cosine moments: an orthonormal basis, bounded features, and a Gaussian law that comes back from its own moments."""

from __future__ import annotations

import math

import pytest
import torch

from dpgm.nets.cosine import CosineMoments, MomentGenerator, cosine_basis


@pytest.mark.parametrize("size", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (20, 17, 1)])
def test_the_basis_is_orthonormal_and_starts_with_brightness(size: tuple[int, int, int]) -> None:
    basis = cosine_basis(*size, count=30)
    torch.testing.assert_close(basis @ basis.T, torch.eye(30), atol=1e-5, rtol=0)
    assert basis[0].abs().std() < 1e-6


def test_the_whole_basis_loses_nothing() -> None:
    basis = cosine_basis(8, 8, 3, count=192)
    x = torch.rand(5, 192, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(x @ basis.T @ basis, x, atol=1e-5, rtol=0)


def test_features_are_bounded_even_for_the_brightest_image() -> None:
    moments = CosineMoments(height=28, width=28, channels=1)
    norms = moments(torch.stack([torch.zeros(1, 28, 28), torch.ones(1, 28, 28), torch.eye(28)[None]])).norm(dim=1)
    assert norms[0] == 0
    assert norms.max() <= 1 + 1e-5
    unclipped = CosineMoments(height=28, width=28, channels=1, radius=2.0)
    assert unclipped(torch.ones(1, 1, 28, 28)).norm() <= 1 + 1e-5, "the radius clips whatever it is"


def _gaussian_images(n: int, rng: torch.Generator, moments: CosineMoments) -> tuple[torch.Tensor, torch.Tensor]:
    mean = torch.zeros(moments.count)
    mean[:3] = torch.tensor([0.4, 0.1, -0.1])
    factor = torch.zeros(moments.count, 2)
    factor[0, 0], factor[1, 0], factor[2, 1] = 0.05, 0.05, 0.08
    z = mean + torch.randn(n, 2, generator=rng) @ factor.T
    return (z @ moments.basis * moments.radius).view(n, 1, 8, 8), torch.cat([mean[:, None], factor], 1)


def test_a_gaussian_law_comes_back_from_its_moments() -> None:
    moments = CosineMoments(height=8, width=8, channels=1, count=10)
    images, law = _gaussian_images(20_000, torch.Generator().manual_seed(0), moments)
    found = moments.gaussians(moments(images).mean(0, keepdim=True), torch.tensor([1e-5]))[0]
    torch.testing.assert_close(found[:, 0], law[:, 0], atol=3e-3, rtol=0)
    covariance, wanted = found[:, 1:] @ found[:, 1:].T, law[:, 1:] @ law[:, 1:].T
    torch.testing.assert_close(covariance, wanted, atol=5e-4, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_noise_alone_opens_next_to_nothing(seed: int) -> None:
    moments = CosineMoments(height=8, width=8, channels=1, count=20)
    target = 0.01 * torch.randn(3, moments.dim, generator=torch.Generator().manual_seed(seed))
    kept = moments.gaussians(target, torch.full((3,), 0.01))[:, :, 1:].square().sum()
    twin = moments.gaussians(target, torch.zeros(3))[:, :, 1:].square().sum()
    assert kept < 0.25 * twin, "told that there is no noise, it takes noise for variance"


def test_clearing_brings_noisy_covariances_nearer() -> None:
    moments = CosineMoments(height=8, width=8, channels=1, count=20)
    rng = torch.Generator().manual_seed(0)
    factor = 0.15 * torch.randn(4, 20, 20, generator=rng) / torch.arange(1, 21)
    truth = factor @ factor.transpose(1, 2)
    noise_std = 0.03
    target = torch.zeros(4, moments.dim)
    target[:, 20:] = truth[:, moments.pairs[0], moments.pairs[1]] * moments.factor / math.sqrt(2)
    target += noise_std * torch.randn(target.shape, generator=rng)

    def error(told: float) -> float:
        found = moments.gaussians(target, torch.full((4,), told))[:, :, 1:]
        return float((found @ found.transpose(1, 2) - truth).norm() / truth.norm())

    assert error(noise_std) < 0.7 * error(0.0)


@pytest.mark.parametrize("seed", range(4))
def test_lost_variance_goes_back_to_the_colours_it_came_from(seed: int) -> None:
    moments = CosineMoments(height=8, width=8, channels=3, count=60)
    grey = torch.from_numpy(moments.colours == 0)
    truth = torch.where(grey, 0.02, 0.0002) / torch.arange(1, 61)
    noise_std = 0.0003
    target = torch.zeros(2, moments.dim)
    target[:, 60:] = torch.diag(truth)[moments.pairs[0], moments.pairs[1]] / math.sqrt(2)
    target += noise_std * torch.randn(target.shape, generator=torch.Generator().manual_seed(seed))

    def error(moments: CosineMoments) -> float:
        found = moments.gaussians(target, torch.full((2,), noise_std))[:, :, 1:]
        return float((found.square().sum(2)[:, ~grey].sum(1) - truth[~grey].sum()).abs().mean())

    blind = CosineMoments(height=8, width=8, channels=3, count=60)
    blind.colours = 0 * blind.colours
    assert error(moments) < 0.5 * error(blind), "blind to colours, it gives all waves a share"


def test_the_generator_begins_at_the_law() -> None:
    moments = CosineMoments(height=8, width=8, channels=1, count=10)
    images, law = _gaussian_images(4_000, torch.Generator().manual_seed(0), moments)
    net = MomentGenerator(
        moments, height=8, width=8, channels=1, n_classes=2, rank=2, rng=torch.Generator().manual_seed(0)
    )
    net.begin(torch.stack([law, law]))
    drawn = net.eval().sample(torch.zeros(4_000, dtype=torch.long), rng=torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn.mean(0), images.clamp(0, 1).mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.std(0), images.clamp(0, 1).std(0), atol=0.02, rtol=0)


@pytest.mark.parametrize("size", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (64, 64, 3), (20, 17, 1)])
def test_images_have_the_declared_size_and_range(size: tuple[int, int, int]) -> None:
    height, width, channels = size
    moments = CosineMoments(height=height, width=width, channels=channels)
    rng = torch.Generator().manual_seed(0)
    net = MomentGenerator(moments, height=height, width=width, channels=channels, n_classes=3, rng=rng)
    x = net.eval().sample(torch.tensor([0, 1, 2]), rng=rng)
    assert x.shape == (3, channels, height, width)
    assert 0 <= x.min() <= x.max() <= 1

"""Public feature maps: bounded, per record, deterministic, differentiable."""

from __future__ import annotations

import pytest
import torch

from dpgm.nets.features import FeatureMap, Mixture, Normalised, RandomFourier, Scattering, normalise
from dpgm.nets.kernels import HermiteFeatures, TangentFeatures

SIZES = [(8, 8, 1), (28, 28, 1), (32, 32, 3), (20, 17, 1), (64, 64, 3)]


def images(n: int, height: int, width: int, channels: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed))


def maps(height: int, width: int, channels: int) -> list[FeatureMap]:
    scattering = Scattering(height=height, width=width, channels=channels, angles=4)
    return [
        RandomFourier(height=height, width=width, channels=channels, dim=200),
        Normalised(scattering, 0),
        Normalised(scattering, scattering.dim // (scattering.grid[0] * scattering.grid[1])),
        Mixture(
            Normalised(scattering, 1),
            RandomFourier(height=height, width=width, channels=channels, dim=50, scales=(1, 0.5)),
            weights=(3, 4),
        ),
        TangentFeatures(height=height, width=width, channels=channels, units=3),
        HermiteFeatures(height=height, width=width, channels=channels, pairs=40),
    ]


@pytest.mark.parametrize("size", SIZES)
def test_shape_norm_and_batch_independence(size: tuple[int, int, int]) -> None:
    x = images(3, *size)
    x[1] = 0
    for features in maps(*size):
        z = features(x)
        assert z.shape == (3, features.dim)
        assert torch.isfinite(z).all()
        assert z.double().norm(dim=1).max() <= 1 + 1e-6
        alone = torch.cat([features(x[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(alone, z, rtol=1e-4, atol=1e-5)
        assert features.provenance == "none"


def test_a_map_with_batch_statistics_is_caught() -> None:
    x = images(3, 8, 8, 1)

    def twin(x: torch.Tensor) -> torch.Tensor:
        z = x.flatten(1)
        return normalise(z - z.mean(0))

    alone = torch.cat([twin(x[i : i + 1]) for i in range(3)])
    assert (alone - twin(x)).abs().max() > 1e-2


def test_rebuilt_maps_are_equal_and_seeds_differ() -> None:
    x = images(2, 8, 8, 1)
    torch.rand(5)
    for a, b in zip(maps(8, 8, 1), maps(8, 8, 1), strict=True):
        assert torch.equal(a(x), b(x))
    other = RandomFourier(height=8, width=8, channels=1, dim=200, seed=1)
    assert not torch.equal(other(x), maps(8, 8, 1)[0](x))


@pytest.mark.parametrize("black", [False, True])
def test_gradients_reach_the_pixels(black: bool) -> None:
    x = images(2, 8, 8, 1) * (not black)
    for features in maps(8, 8, 1):
        pixels = x.clone().requires_grad_()
        z = features(pixels)
        (z * torch.linspace(-1, 1, z.shape[1])).sum().backward()
        assert pixels.grad is not None
        assert torch.isfinite(pixels.grad).all()
        if not black and not isinstance(features, TangentFeatures):  # a unit that is off sees nothing
            assert (pixels.grad != 0).float().mean() > 0.9
        assert all(p.grad is None for p in features.parameters())


def test_fourier_features_estimate_the_gaussian_kernel() -> None:
    x = images(6, 8, 8, 1)
    features = RandomFourier(height=8, width=8, channels=1, dim=20_000, bandwidth=2.0)
    kernel = torch.exp(-torch.cdist(x.flatten(1), x.flatten(1)).square() / 8)
    torch.testing.assert_close(features(x) @ features(x).T, kernel, atol=0.05, rtol=0)


def test_scattering_size_and_orientation() -> None:
    features = Scattering(height=28, width=28, channels=1)
    assert features.dim == 3969
    x = torch.zeros(2, 1, 28, 28)
    x[0, :, :, ::4] = 1
    x[1, :, ::4, :] = 1
    z = features(x).view(2, 81, -1).mean(2)
    first = z[:, 1:9]
    assert first[0].argmax() == 0
    assert first[1].argmax() == 4


def test_errors_name_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="even"):
        RandomFourier(height=8, width=8, channels=1, dim=7)
    with pytest.raises(ValueError, match="all above 0"):
        RandomFourier(height=8, width=8, channels=1, scales=())
    with pytest.raises(ValueError, match="one weight"):
        Mixture(RandomFourier(height=8, width=8, channels=1, dim=8), weights=(1.0, 2.0))
    with pytest.raises(ValueError, match="allows 1 to 3"):
        Scattering(height=8, width=8, channels=1, scales=4)
    with pytest.raises(ValueError, match="divisor"):
        normalise(torch.ones(1, 10), 3)


def test_hermite_features_estimate_their_gaussian_kernel() -> None:
    x = images(5, 8, 8, 1)
    features, r = HermiteFeatures(height=8, width=8, channels=1, order=40, pairs=1, rho=0.6), 0.6
    z = features(x)[:, : 64 * 41] * 2**0.5
    v = 4 * x.flatten(1) - 2
    kernel = torch.exp(-r / (1 - r**2) * (v[:, None] - v[None]).square()).mean(2)
    torch.testing.assert_close(z @ z.T, kernel, atol=1e-3, rtol=0)


def test_tangent_features_are_the_gradient_of_their_net() -> None:
    x = images(1, 8, 8, 1)
    features = TangentFeatures(height=8, width=8, channels=1, units=4)
    w, a = features.weight.clone().requires_grad_(), features.outer.clone().requires_grad_()
    (a @ ((x - 0.5).flatten(1) @ w.T).relu()[0]).backward()
    assert w.grad is not None
    assert a.grad is not None
    torch.testing.assert_close(features(x)[0], normalise(torch.cat([a.grad, w.grad.flatten()])[None], 0)[0])

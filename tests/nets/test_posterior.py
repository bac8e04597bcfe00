"""The closed-form denoiser of mixtures: against Bayes' rule on drawn pictures, one record at a time."""

import numpy as np
import pytest
import torch

from dpgm.nets.coordinates import Coordinates
from dpgm.nets.posterior import MixtureDenoiser


def laws(dim, rng):
    """Two classes of two Gaussians each."""
    factors = 0.2 * np.tril(rng.normal(size=(2, 2, dim, dim))) + 0.5 * np.eye(dim)
    return np.array([[0.3, 0.7], [0.6, 0.4]]), rng.normal(size=(2, 2, dim)), factors


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize(("rest", "right"), [(0.05, True), (0.2, False)])
def test_it_is_the_posterior_mean(upright, rest, right):
    """Weighted means of 200,000 drawn pictures: noise 0.02 or so; the twin believes in too much detail."""
    rng, n, sigma = np.random.default_rng(0), 200_000, 1.2
    coordinates = Coordinates(height=4, width=4, channels=1, block=2, upright=upright)
    weights, means, factors = laws(coordinates.dim, rng)
    of = rng.choice(2, n, p=weights[1])
    z = means[1][of] + np.einsum("nij,nj->ni", factors[1][of], rng.normal(size=(n, coordinates.dim)))
    fine = torch.from_numpy(np.sqrt(0.05) * rng.normal(size=(n, 1, 4, 4)))
    fine = fine - coordinates.synthesise(coordinates.analyse(fine))
    drawn = 2 * (coordinates.picture(z).double() + fine) - 1
    x = drawn[:1] + sigma * torch.from_numpy(rng.normal(size=(1, 1, 4, 4)))
    odds = (-(x - drawn).square().sum((1, 2, 3)) / (2 * sigma**2)).softmax(0)
    wanted = (odds[:, None, None, None] * drawn).sum(0, keepdim=True)
    denoiser = MixtureDenoiser(coordinates, weights, means, factors, rest=rest)
    found = denoiser(x.float(), torch.tensor([sigma]), torch.tensor([1])).double()
    slack = 6 * float(drawn.std()) / float(1 / odds.square().sum()) ** 0.5
    assert bool((found - wanted).abs().max() < slack) is right


def test_each_record_is_treated_alone():
    coordinates = Coordinates(height=5, width=4, channels=3, block=2)
    denoiser = MixtureDenoiser(coordinates, *laws(coordinates.dim, np.random.default_rng(0)), temperature=3.0)
    x, y = torch.randn(4, 3, 5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0])
    sigma = torch.tensor([0.1, 0.5, 2.0, 9.0])
    alone = torch.cat([denoiser(x[i : i + 1], sigma[i : i + 1], y[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(denoiser(x, sigma, y), alone)


def test_low_noise_keeps_what_the_law_allows_and_high_noise_gives_the_mean():
    coordinates = Coordinates(height=4, width=4, channels=1, block=2)
    weights, means, factors = laws(coordinates.dim, np.random.default_rng(0))
    denoiser = MixtureDenoiser(coordinates, weights, means, factors)
    x, y = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0])
    torch.testing.assert_close(denoiser(x, torch.tensor([1e-3]), y), x, atol=2e-3, rtol=0)
    middle = 2 * coordinates.picture((weights[0] @ means[0])[None]) - 1
    torch.testing.assert_close(denoiser(x, torch.tensor([1e4]), y), middle, atol=2e-3, rtol=0)

"""Annealed and diffusion samplers on a mixture and on Gaussians whose flow is known."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from dpgm.samplers import Kernel, anneal, annealed_langevin, ddim, heun, run, sigma_schedule, ula, unadjusted_hmc
from dpgm.samplers.diffusion import tweedie_score


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CENTRES = torch.tensor([-4.0, 4.0], dtype=torch.float64)
SPREAD = 0.4
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)


def mixture_logits(x: Tensor, sigma: float) -> Tensor:
    return WEIGHTS.log() - (x - CENTRES).square() / (2 * (SPREAD**2 + sigma**2))


def mixture_score(x: Tensor, sigma: float) -> Tensor:
    share = mixture_logits(x, sigma).softmax(1)
    return ((share * CENTRES).sum(1, keepdim=True) - x) / (SPREAD**2 + sigma**2)


def mixture_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    return x + sigma[:, None] ** 2 * mixture_score(x, float(sigma[0]))


LEVELS = [8.0 * 0.6**i for i in range(10)]
ANNEALED = {
    "langevin": annealed_langevin(mixture_score, LEVELS, n_steps=20, ratio=0.2),
    "hmc": anneal(
        lambda s: unadjusted_hmc(
            lambda x: mixture_score(x, s), step_size=0.3 * math.sqrt(s * s + SPREAD**2), n_leapfrog=5
        ),
        LEVELS,
        n_steps=8,
    ),
}


def right_mode(kernel: Kernel, n_steps: int, scale: float) -> tuple[float, float]:
    """Share of the right mode and spread inside it, from 4,000 chains started at `scale` times normal."""
    x = torch.randn(4000, 1, generator=rng(10), dtype=torch.float64) * scale
    x = run(kernel, x, n_steps=n_steps, rng=rng(11)).x
    return float((x > 0).double().mean()), float(x[x > 0].std())


@pytest.mark.parametrize(("name", "n_steps"), [("langevin", 200), ("hmc", 80)])
def test_annealing_finds_the_weights_of_a_mixture(name: str, n_steps: int) -> None:
    share, spread = right_mode(ANNEALED[name], n_steps, LEVELS[0])
    assert abs(share - 0.7) < 0.06  # finite levels leave a small bias; 4,000 chains: standard error 0.007
    assert abs(spread - SPREAD) < 0.05


def test_no_annealing_misses_the_weights() -> None:
    share, _ = right_mode(ula(lambda x: mixture_score(x, 0.0), step_size=0.02), 200, LEVELS[0])
    assert abs(share - 0.7) > 0.1


def quantile_error(x: Tensor) -> float:
    """Largest gap between the empirical and the true distribution function of the mixture."""
    points = x[:, 0].sort().values.numpy()
    true = sum(float(w) * norm.cdf(points, float(c), SPREAD) for w, c in zip(WEIGHTS, CENTRES, strict=True))
    return float(abs(true - torch.linspace(0, 1, len(points)).numpy()).max())


@pytest.mark.parametrize("kind", ["heun", "ddim", "ancestral"])
def test_diffusion_samples_the_mixture(kind: str) -> None:
    n_steps = 20 if kind == "heun" else 120
    sigmas = sigma_schedule(n_steps, sigma_min=0.02, sigma_max=50)
    kernel = {
        "heun": heun(mixture_denoiser, sigmas),
        "ddim": ddim(mixture_denoiser, sigmas),
        "ancestral": ddim(mixture_denoiser, sigmas, eta=1.0),
    }[kind]
    x = torch.randn(4000, 1, generator=rng(12), dtype=torch.float64) * 50
    out = run(kernel, x, n_steps=n_steps, rng=rng(13))
    # Kolmogorov: P(gap > 0.04) = 2 exp(-2 * 4000 * 0.04^2) = 5e-6
    assert quantile_error(out.x) < 0.04
    assert torch.equal(run(kernel, x, n_steps=n_steps + 3, rng=rng(13)).x, out.x)  # it stays put at the end


def test_heun_beats_euler_at_equal_steps() -> None:
    """On one Gaussian the flow is known: x(0) = x(s) a / sqrt(a^2 + s^2); Heun is of second order."""
    a, sigma = 0.5, 10.0
    denoiser = lambda x, s: x * (a * a / (a * a + s[:, None] ** 2))  # noqa: E731
    x = torch.randn(100, 1, generator=rng(0), dtype=torch.float64) * sigma
    end = 0.05
    true = x * math.sqrt((a * a + end**2) / (a * a + sigma**2))
    error = {}
    for n in (20, 40):
        sigmas = sigma_schedule(n, sigma_min=end, sigma_max=sigma)[:-1]
        for kind in (heun, ddim):
            out = run(kind(denoiser, sigmas), x, n_steps=n - 1, rng=rng(1)).x
            error[kind.__name__, n] = float((out - true).abs().mean())
    assert error["heun", 40] < 0.3 * error["ddim", 40]
    assert 1.6 < math.log2(error["heun", 20] / error["heun", 40]) < 2.5


def test_tweedie_score() -> None:
    x = torch.linspace(-6, 6, 13, dtype=torch.float64)[:, None]
    assert torch.allclose(tweedie_score(mixture_denoiser)(x, 1.5), mixture_score(x, 1.5))


@pytest.mark.parametrize("bad", [[1.0], [1.0, 2.0], [2.0, 1.0, -0.5], [math.nan, 0.0], [math.inf, 0.0]])
def test_levels_are_checked(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="falling"):
        heun(mixture_denoiser, bad)

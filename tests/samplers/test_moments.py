"""Samplers against distributions of known moments, the biased twins that must be caught, and the contract."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dpgm.samplers import Kernel, State, anneal, chain, ddim, heun, hmc, mala, run, stalled, ula, unadjusted_hmc
from dpgm.samplers.hamiltonian import MINIMAL_NORM, Metropolis
from dpgm.samplers.kernel import Energy, Schedule

COV = torch.tensor([[1.0, 0.6], [0.6, 2.0]], dtype=torch.float64)
PRECISION = torch.linalg.inv(COV)
MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64)


def gauss_energy(x: Tensor) -> Tensor:
    return ((x - MEAN) @ PRECISION * (x - MEAN)).sum(1) / 2


def gauss_score(x: Tensor) -> Tensor:
    return -(x - MEAN) @ PRECISION


def start(n: int, seed: int) -> Tensor:
    """Points of the Gaussian target itself."""
    z = torch.randn(n, 2, generator=rng(seed), dtype=torch.float64)
    return MEAN + z @ torch.linalg.cholesky(COV).T


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ess(draws: Tensor) -> float:
    """Effective sample size of draws [t, n] from n independent chains (initial positive sequence, pooled)."""
    t, n = draws.shape
    centred = draws - draws.mean()
    power = torch.fft.rfft(centred, n=2 * t, dim=0).abs().square().mean(1)
    cov = torch.fft.irfft(power, dim=0)[:t] / torch.arange(t, 0, -1, dtype=draws.dtype)
    rho = cov / cov[0]
    pairs = rho[: t // 2 * 2].reshape(-1, 2).sum(1)
    first_negative = int((pairs <= 0).to(torch.int).argmax()) if bool((pairs <= 0).any()) else len(pairs)
    time = max(-1 + 2 * float(pairs[:first_negative].sum()), 1 / math.log10(max(10, t * n)))
    return t * n / time


def z_score(draws: Tensor, truth: float, std: float) -> float:
    """(mean - truth) in Monte Carlo standard errors, for draws [t, n] of a statistic with known standard deviation."""
    return float((draws.mean() - truth) / (std / math.sqrt(ess(draws))))


def check_sampler(kernel: Kernel, x: Tensor) -> None:
    """What every kernel promises: shapes kept, inputs untouched, chains independent, one generator decides all."""
    before = x.clone()
    state, info = kernel.step(rng(1), kernel.init(x))
    again, _ = kernel.step(rng(1), kernel.init(x))
    assert state.x.shape == x.shape
    assert state.x.dtype == x.dtype
    assert state.step == 1
    for part in info:
        assert part.shape == (len(x),)
    assert bool(((info.acceptance >= 0) & (info.acceptance <= 1)).all())
    assert torch.equal(x, before)
    assert torch.equal(state.x, again.x)
    assert not state.x.requires_grad
    moved = x.clone()
    moved[-1] += 0.5  # chain -1 starts elsewhere: no other chain may notice
    other, _ = kernel.step(rng(1), kernel.init(moved))
    assert torch.equal(state.x[:-1], other.x[:-1])
    bad = x.clone()
    bad[0] = float("nan")
    result = run(kernel, bad, n_steps=2, rng=rng(1))
    assert bool(torch.isfinite(result.x[1:]).all())
    assert float(result.divergent.max()) > 0


# A test over 3 seeds and 5 moments: 15 z-scores. With |z| < 5.3 the false-alarm rate of one parametrised test is about
# 15 * 1.2e-7 = 2e-6 if the scores are normal; fixed seeds make each run the same.
LIMIT = 5.3


def z_scores(kernel: Kernel, seed: int, n: int = 400, n_steps: int = 150) -> list[float]:
    out = run(kernel, start(n, seed), n_steps=n_steps, rng=rng(seed + 100), keep=lambda s: s.x)
    assert out.kept is not None
    d = out.kept - MEAN
    scores = [z_score(out.kept[..., i], float(MEAN[i]), math.sqrt(float(COV[i, i]))) for i in (0, 1)]
    for i, j in ((0, 0), (1, 1), (0, 1)):
        c = float(COV[i, j])
        std = math.sqrt(float(COV[i, i] * COV[j, j]) + c * c)
        scores.append(z_score(d[..., i] * d[..., j], c, std))
    return scores


EXACT = {
    "hmc": hmc(gauss_energy, step_size=0.9, n_leapfrog=3),
    "hmc, score given, jitter": hmc(gauss_energy, score=gauss_score, step_size=0.9, n_leapfrog=3, jitter=0.2),
    "hmc, two-stage": hmc(gauss_energy, score=gauss_score, step_size=1.2, n_leapfrog=2, coefficients=MINIMAL_NORM),
    "mala": mala(gauss_energy, step_size=0.5),
    "line integral": unadjusted_hmc(gauss_score, step_size=0.9, n_leapfrog=3, metropolis="line_integral"),
    "chain": chain(
        mala(gauss_energy, score=gauss_score, step_size=0.5),
        hmc(gauss_energy, score=gauss_score, step_size=0.9, n_leapfrog=3),
    ),
}
BIASED = {
    "hmc without accept step": hmc(gauss_energy, score=gauss_score, step_size=0.9, n_leapfrog=3, adjust=False),
    "unadjusted hmc": unadjusted_hmc(gauss_score, step_size=0.9, n_leapfrog=3),
    "ula": ula(gauss_score, step_size=0.5),
    "wrong energy": hmc(lambda x: 1.1 * gauss_energy(x), score=gauss_score, step_size=0.9, n_leapfrog=3),
    "rayleigh": unadjusted_hmc(gauss_score, step_size=0.3, n_leapfrog=3, velocity="rayleigh"),
    "uniform": unadjusted_hmc(gauss_score, step_size=0.9, n_leapfrog=3, velocity="uniform"),
    "printed": unadjusted_hmc(gauss_score, step_size=0.9, n_leapfrog=3, metropolis="printed"),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_exact_samplers_keep_the_moments(name: str, seed: int) -> None:
    assert max(map(abs, z_scores(EXACT[name], seed))) < LIMIT


@pytest.mark.parametrize("name", BIASED)
def test_biased_twins_are_caught(name: str) -> None:
    assert max(map(abs, z_scores(BIASED[name], 0))) > LIMIT


def test_ula_has_the_variance_that_theory_says() -> None:
    """For N(0, 1) the stationary variance of ULA is 1 / (1 - h/2)."""
    kernel = ula(lambda x: -x, step_size=0.4)
    out = run(kernel, torch.zeros(2000, 1, dtype=torch.float64), n_steps=300, rng=rng(3), keep=lambda s: s.x[:, 0])
    assert out.kept is not None
    true = 1 / (1 - 0.2)
    assert abs(z_score(out.kept[50:].square(), true, true * math.sqrt(2))) < LIMIT


def quartic(x: torch.Tensor) -> torch.Tensor:
    return (x**4 / 4 + x**2 / 2).sum(1)


def double_well(x: torch.Tensor) -> torch.Tensor:
    """Two Gaussians: a score that is no polynomial."""
    return -torch.logaddexp(-(x - 1.5).square().sum(1) / 2, -(x + 1.5).square().sum(1) / 2)


@pytest.mark.parametrize(
    ("energy", "step_size", "within"), [(gauss_energy, 0.7, 1e-12), (quartic, 0.2, 1e-12), (double_well, 0.3, 0.02)]
)
def test_line_integral_is_the_energy_error(energy: Energy, step_size: float, within: float) -> None:
    """To within a part of its size: exactly up to scores of degree 3, to a fiftieth for a mixture. (The trapezoid rule
    is off by as much as the error itself.)
    """
    x = start(100, 5)

    def score(x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return -torch.autograd.grad(energy(x).sum(), x)[0]

    exact = hmc(energy, score=score, step_size=step_size, n_leapfrog=5)
    work = unadjusted_hmc(score, step_size=step_size, n_leapfrog=5, metropolis="line_integral")
    a, b = (k.step(rng(6), k.init(x))[1].energy_error for k in (exact, work))
    assert float((a - b).square().mean().sqrt()) <= within * max(1.0, float(a.square().mean().sqrt()))


@pytest.mark.parametrize("rule", ["none", "printed"])
def test_no_energy_error_is_reported_where_none_is_computed(rule: Metropolis) -> None:
    kernel = unadjusted_hmc(gauss_score, step_size=0.7, n_leapfrog=4, metropolis=rule)
    assert not kernel.step(rng(6), kernel.init(start(100, 5)))[1].energy_error.any()


def test_small_steps_remove_the_bias() -> None:
    kernel = unadjusted_hmc(gauss_score, step_size=0.05, n_leapfrog=30)
    assert max(map(abs, z_scores(kernel, 0, n_steps=60))) < LIMIT


def test_ess_of_an_autoregression() -> None:
    """AR(1) with coefficient a has effective size t n (1 - a) / (1 + a)."""
    a, t, n = 0.8, 2000, 50
    noise = torch.randn(t, n, generator=rng(7), dtype=torch.float64) * math.sqrt(1 - a * a)
    x = torch.randn(n, generator=rng(8), dtype=torch.float64)
    draws = []
    for i in range(t):
        x = a * x + noise[i]
        draws.append(x)
    assert 0.8 < ess(torch.stack(draws)) / (t * n * (1 - a) / (1 + a)) < 1.25


def test_anneal_with_energies_forgets_the_level_before() -> None:
    """Tempered HMC on a mixture: a kernel that kept the energies of another temperature would be biased."""

    def kernel_at(heat: float) -> Kernel:
        return hmc(lambda x: gauss_energy(x) / heat, step_size=0.9, n_leapfrog=3)

    kernel = anneal(kernel_at, [3.0, 2.0, 1.0], n_steps=5)
    out = run(kernel, start(4000, 1), n_steps=60, rng=rng(2))
    d = out.x - MEAN
    assert torch.allclose(d.T @ d / len(d), COV, atol=6 * 2 * math.sqrt(2 / 4000))


ALL = {
    **EXACT,
    **BIASED,
    "anneal": anneal(lambda s: ula(lambda x: gauss_score(x) / s, step_size=0.1), [2.0, 1.0], n_steps=2),
    "ddim": ddim(lambda x, s: x / (1 + s[:, None] ** 2), [3.0, 1.0, 0.0]),
    "heun": heun(lambda x, s: x / (1 + s[:, None] ** 2), [3.0, 1.0, 0.0]),
}


@pytest.mark.parametrize("name", ALL)
def test_contract(name: str) -> None:
    check_sampler(ALL[name], start(6, 0))


@pytest.mark.parametrize("size", [0.0, -0.1, math.nan, math.inf, lambda step: 1.0 - step])
def test_step_sizes_must_be_above_0(size: Schedule) -> None:
    kernels = [
        hmc(gauss_energy, score=gauss_score, step_size=size, n_leapfrog=2),
        unadjusted_hmc(gauss_score, step_size=size, n_leapfrog=2),
        mala(gauss_energy, score=gauss_score, step_size=size),
        ula(gauss_score, step_size=size),
    ]
    for kernel in kernels:
        with pytest.raises(ValueError, match="step size of step"):
            run(kernel, start(3, 0), n_steps=2, rng=rng(0))


def _lost_below_0(x: Tensor) -> Tensor:
    return torch.where(x < 0, math.nan, 0.5 * x)


@pytest.mark.parametrize(
    "kernel", [ula(_lost_below_0, step_size=1e-3), heun(lambda x, s: _lost_below_0(x), [2.0, 1.0])]
)
def test_a_chain_that_would_leave_the_numbers_stays_put(kernel: Kernel) -> None:
    x = torch.tensor([[5.0], [-5.0]], dtype=torch.float64)
    state, info = kernel.step(rng(0), kernel.init(x))
    assert info.divergent.tolist() == [False, True]
    assert (state.x == x)[:, 0].tolist() == [False, True]


def test_contract_catches_chains_that_mix() -> None:
    inner = ula(gauss_score, step_size=0.1)

    def step(g: torch.Generator, s: State) -> tuple[State, object]:
        moved, info = inner.step(g, s)
        return moved._replace(x=moved.x - 0.01 * moved.x.mean(0)), info

    with pytest.raises(AssertionError):
        check_sampler(Kernel(inner.init, step), start(6, 0))  # type: ignore[arg-type]


def test_the_printed_rule_accepts_entry_by_entry_by_the_ratio_of_scores() -> None:
    """s(x) = -x: an entry that moves outwards stays moved, one that shrinks to x' with chance x' / x, one that crosses
    0 never. 4,000 chains from x = (1, 1): 5 standard errors (6e-7).
    """
    kernel = unadjusted_hmc(lambda x: -x, step_size=0.8, n_leapfrog=1, metropolis="printed")
    x = torch.ones(4000, 2, dtype=torch.float64)
    state, info = kernel.step(rng(0), kernel.init(x))
    free, _ = unadjusted_hmc(lambda x: -x, step_size=0.8, n_leapfrog=1).step(rng(0), State(x, 0, None, -x))
    chance = free.x.clamp(0, 1)
    moved = state.x != 1
    assert torch.equal(state.x[moved], free.x[moved])
    assert bool(moved[free.x >= 1].all())
    assert not bool(moved[free.x <= 0].any())
    assert abs(float((moved.double() - chance).mean())) < 5 * 0.5 / math.sqrt(8000)
    assert float((moved[:, 0] != moved[:, 1]).double().mean()) > 0.2
    assert torch.allclose(info.acceptance, chance.mean(1))


def test_a_stalled_run_ends_early_and_a_moving_one_does_not() -> None:
    stuck = hmc(gauss_energy, score=gauss_score, step_size=50.0, n_leapfrog=3)
    out = run(stuck, start(50, 0), n_steps=100, rng=rng(0), stop=stalled(below=0.05, patience=4))
    assert len(out.acceptance) == len(out.divergent) == 4
    assert torch.equal(out.x, run(stuck, start(50, 0), n_steps=4, rng=rng(0)).x)
    free = run(EXACT["hmc"], start(50, 0), n_steps=30, rng=rng(0), stop=stalled(below=0.05, patience=1))
    assert len(free.acceptance) == 30
    with pytest.raises(ValueError, match="patience 0"):
        stalled(below=0.1, patience=0)


def test_run_keeps_and_thins() -> None:
    out = run(ula(gauss_score, step_size=0.1), start(4, 0), n_steps=10, rng=rng(0), keep=lambda s: s.x, thin=5)
    assert out.kept is not None
    assert out.kept.shape == (2, 4, 2)
    assert torch.equal(out.kept[-1], out.x)
    assert out.acceptance.shape == (10,)

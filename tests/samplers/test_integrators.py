"""Integrators, step sizes and velocity laws against exact statements."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dpgm.samplers import Kernel, hmc, pge_steps, run, splitting, tune_step_size
from dpgm.samplers.hamiltonian import LEAPFROG, MINIMAL_NORM, YOSHIDA, Phase, initial_velocity


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quartic_energy(x: Tensor) -> Tensor:
    return (x**4 / 4 + x**2 / 2).sum(1)


def quartic_score(x: Tensor) -> Tensor:
    return -(x**3) - x


@pytest.mark.parametrize("coefficients", [LEAPFROG, MINIMAL_NORM, YOSHIDA])
def test_integrators_are_reversible(coefficients: tuple[float, ...]) -> None:
    step = splitting(quartic_score, coefficients)
    x = torch.randn(50, 3, generator=rng(0), dtype=torch.float64)
    v = torch.randn(50, 3, generator=rng(1), dtype=torch.float64)
    phase = Phase(x, v, quartic_score(x))
    for _ in range(20):
        phase = step(phase, 0.1)
    back = Phase(phase.x, -phase.v, phase.score)
    for _ in range(20):
        back = step(back, 0.1)
    assert torch.allclose(back.x, x, atol=1e-10)
    assert torch.allclose(back.v, -v, atol=1e-10)


def energy_order(step: object) -> float:
    """Slope of log |energy error| against log step size over a fixed time."""
    x = torch.randn(200, 3, generator=rng(0), dtype=torch.float64)
    v = torch.randn(200, 3, generator=rng(1), dtype=torch.float64)
    total = lambda p: quartic_energy(p.x) + p.v.square().sum(1) / 2  # noqa: E731
    errors = []
    for n in (64, 128):
        phase = Phase(x, v, quartic_score(x))
        for _ in range(n):
            phase = step(phase, 1.0 / n)  # type: ignore[operator]
        errors.append((total(phase) - total(Phase(x, v, x))).abs().mean())
    return float(torch.log2(errors[0] / errors[1]))


@pytest.mark.parametrize(("coefficients", "order"), [(LEAPFROG, 2), (MINIMAL_NORM, 2), (YOSHIDA, 4)])
def test_fitted_order(coefficients: tuple[float, ...], order: int) -> None:
    assert abs(energy_order(splitting(quartic_score, coefficients)) - order) < 0.1


def test_fitted_order_catches_symplectic_euler() -> None:
    def euler(p: Phase, h: float) -> Phase:
        v = p.v + h * quartic_score(p.x)
        return Phase(p.x + h * v, v, p.score)

    assert energy_order(euler) < 1.5


def test_coefficients_are_checked() -> None:
    with pytest.raises(ValueError, match="palindrome"):
        splitting(quartic_score, (0.3, 1.0, 0.7))
    with pytest.raises(ValueError, match="add to 1"):
        splitting(quartic_score, (0.5, 0.9, 0.5))


@pytest.mark.parametrize("target", [0.65, 0.8, 0.9])
def test_step_size_meets_its_target(target: float) -> None:
    def kernel_at(size: float) -> Kernel:
        return hmc(quartic_energy, score=quartic_score, step_size=size, n_leapfrog=5)

    x = torch.randn(500, 20, generator=rng(0), dtype=torch.float64)
    size, x = tune_step_size(kernel_at, x, rng=rng(1), step_size=0.01, target=target)
    out = run(kernel_at(size), x, n_steps=20, rng=rng(2))
    assert abs(float(out.acceptance.mean()) - target) < 0.06


def test_tuning_refuses_odd_targets() -> None:
    with pytest.raises(ValueError, match=r"0\.65"):
        tune_step_size(
            lambda h: hmc(quartic_energy, step_size=h, n_leapfrog=1), torch.zeros(3, 1), rng=rng(0), target=0.3
        )


def test_pge_schedule() -> None:
    steps = pge_steps(1e-5, n_leapfrog=100, floor=1e-3)
    assert [steps(i) for i in (0, 1, 9)] == pytest.approx([0.1, 0.025, 0.001])
    assert steps(10_000) == 1e-3
    assert pge_steps(1e-5, n_leapfrog=100)(999) == pytest.approx(1e-7)


@pytest.mark.parametrize("law", ["gaussian", "rayleigh", "uniform"])
def test_velocity_laws_have_unit_second_moment(law: str) -> None:
    v = initial_velocity(law, torch.zeros(2000, 50), rng(0))  # type: ignore[arg-type]
    assert float(v.square().mean()) == pytest.approx(1, abs=0.03)
    assert float(v.mean()) == pytest.approx(math.sqrt(math.pi) / 2 if law == "rayleigh" else 0, abs=0.03)

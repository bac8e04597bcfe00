"""Diffusion samplers on a denoiser D(x, sigma) = E[clean | clean + sigma noise = x], one kernel step a noise level.

The score of the smoothed density is (D(x, sigma) - x) / sigma^2 (Tweedie). Start from N(0, sigmas[0]^2 I) and run
`len(sigmas) - 1` steps; the kernel stays put after that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from dpgm.samplers.kernel import Info, Kernel, State, bare_state, free_move, per_chain

Denoiser: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Noisy points [n, ...] and noise levels [n] to the expected clean points [n, ...]."""


def sigma_schedule(n_steps: int, *, sigma_min: float = 0.02, sigma_max: float = 80.0, rho: float = 7.0) -> list[float]:
    """`n_steps` + 1 falling noise levels, even in sigma^(1/rho), the last one 0.

    **Source**: Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", eq. (5).
    """
    if n_steps < 1 or not 0 < sigma_min < sigma_max:
        raise ValueError(f"{n_steps} steps, sigma {sigma_min} to {sigma_max}; allowed: >= 1 and 0 < min < max")
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return [(high + i / max(1, n_steps - 1) * (low - high)) ** rho for i in range(n_steps)] + [0.0]


def _levels(sigmas: Sequence[float]) -> tuple[float, ...]:
    levels = tuple(sigmas)
    falling = all(a > b for a, b in itertools.pairwise(levels))
    if len(levels) < 2 or not (falling and levels[-1] >= 0 and math.isfinite(levels[0])):
        raise ValueError(f"sigmas are {levels}; allowed are two or more strictly falling finite levels >= 0")
    return levels


def _kernel(sigmas: Sequence[float], move: Callable[[torch.Generator, Tensor, float, float], Tensor]) -> Kernel:
    levels = _levels(sigmas)

    def step(rng: torch.Generator, state: State) -> tuple[State, Info]:
        i = state.step
        x = state.x if i + 1 >= len(levels) else move(rng, state.x, levels[i], levels[i + 1])
        return free_move(state, x)

    return Kernel(bare_state, step)


def _slope(denoiser: Denoiser, x: Tensor, sigma: float) -> Tensor:
    return (x - denoiser(x, x.new_full((len(x),), sigma))) / sigma


def ddim(denoiser: Denoiser, sigmas: Sequence[float], *, eta: float = 0.0) -> Kernel:
    """DDIM: one Euler step of the probability flow dx/dsigma = (x - D) / sigma for each pair of levels.

    Args:
        denoiser: see `Denoiser`.
        sigmas: falling noise levels, the last may be 0.
        eta: 0 (deterministic) to 1 (ancestral: the share of fresh noise of the reverse diffusion).

    **Source**: Song, Meng, Ermon 2021, "Denoising diffusion implicit models", eq. (12) and (16).
    **Differs from the paper**: variance-exploding parametrisation.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; allowed is 0 (deterministic) to 1 (ancestral)")

    def move(rng: torch.Generator, x: Tensor, here: float, there: float) -> Tensor:
        fresh = eta * there * math.sqrt(max(0.0, 1 - (there / here) ** 2))
        x = x + (math.sqrt(there**2 - fresh**2) - here) * _slope(denoiser, x, here)
        return x + fresh * torch.randn(x.shape, generator=rng, dtype=x.dtype, device=x.device) if fresh > 0 else x

    return _kernel(sigmas, move)


def heun(denoiser: Denoiser, sigmas: Sequence[float]) -> Kernel:
    """Heun's second-order step of the same flow; plain Euler into sigma 0. Deterministic.

    **Source**: Karras et al. 2022, Algorithm 1. **Differs from the paper**: nothing.
    """

    def move(rng: torch.Generator, x: Tensor, here: float, there: float) -> Tensor:
        del rng
        slope = _slope(denoiser, x, here)
        euler = x + (there - here) * slope
        return euler if there == 0 else x + (there - here) * (slope + _slope(denoiser, euler, there)) / 2

    return _kernel(sigmas, move)


def tweedie_score(denoiser: Denoiser) -> Callable[[Tensor, float], Tensor]:
    """The score of the smoothed density, (D(x, sigma) - x) / sigma^2, for Langevin correctors."""

    def score_at(x: Tensor, sigma: float) -> Tensor:
        level = x.new_full((len(x),), sigma)
        return (denoiser(x, level) - x) / per_chain(level, x) ** 2

    return score_at

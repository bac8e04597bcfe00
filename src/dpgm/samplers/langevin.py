"""Langevin samplers: unadjusted, Metropolis-adjusted, annealed over noise levels.

One move is x' = x + h s(x) + sqrt(2 h) z, z ~ N(0, I), with the score s = grad log p and step size h.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dpgm.samplers.hamiltonian import settle
from dpgm.samplers.kernel import (
    Energy,
    Info,
    Kernel,
    Schedule,
    Score,
    State,
    anneal,
    at,
    bare_state,
    evaluator,
    free_move,
)


def _noise(x: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=rng, dtype=x.dtype, device=x.device)


def ula(score: Score, *, step_size: Schedule) -> Kernel:
    """Unadjusted Langevin: right in the limit of small steps; for N(0, 1) its variance is 1 / (1 - h / 2).

    Args:
        score: gradient of the log density, [n, ...] to [n, ...].
        step_size: h > 0 or a schedule over steps.
    """

    def step(rng: torch.Generator, state: State) -> tuple[State, Info]:
        h = at(step_size, state.step)
        x = state.x + h * score(state.x) + math.sqrt(2 * h) * _noise(state.x, rng)
        return free_move(state, x)

    return Kernel(bare_state, step)


def mala(energy: Energy, *, step_size: Schedule, score: Score | None = None) -> Kernel:
    """Langevin with the accept step: it leaves exp(-energy) invariant at any step size.

    Args:
        energy: U = -log p up to a constant, [n, ...] to [n].
        step_size: h > 0 or a schedule over steps.
        score: -grad U where it is known in closed form; automatic differentiation otherwise.
    """
    both = evaluator(energy, score)

    def init(x: Tensor) -> State:
        value, slope = both(x)
        return State(x, 0, value, slope)

    def step(rng: torch.Generator, state: State) -> tuple[State, Info]:
        assert state.energy is not None
        assert state.score is not None
        h = at(step_size, state.step)
        z = _noise(state.x, rng)
        x = state.x + h * state.score + math.sqrt(2 * h) * z
        value, slope = both(x)
        back = (state.x - x - h * slope).flatten(1).square().sum(1) / (4 * h)
        error = value - state.energy + back - z.flatten(1).square().sum(1) / 2
        return settle(rng, state, x, value, slope, error, adjust=True)

    return Kernel(init, step)


def annealed_langevin(
    score_at: Callable[[Tensor, float], Tensor], sigmas: Sequence[float], *, n_steps: int, ratio: float = 0.1
) -> Kernel:
    """Langevin through noise levels from coarse to fine, step size h = ratio sigma^2 at level sigma.

    Start from N(0, sigmas[0]^2 I) and run `n_steps * len(sigmas)` steps.

    Args:
        score_at: score of the density smoothed by N(0, sigma^2 I), from [n, ...] and sigma.
        sigmas: noise levels > 0 in falling order.
        n_steps: steps a level, 1 or more.
        ratio: step size over squared noise level, > 0.
    """
    if ratio <= 0 or not sigmas or min(sigmas) <= 0 or sorted(sigmas, reverse=True) != list(sigmas):
        raise ValueError(f"ratio {ratio}, sigmas {list(sigmas)}; allowed are ratio > 0 and falling sigmas > 0")

    def kernel_at(sigma: float) -> Kernel:
        return ula(lambda x: score_at(x, sigma), step_size=ratio * sigma**2)

    return anneal(kernel_at, sigmas, n_steps=n_steps)

"""What a sampler is: a kernel of two pure functions, and the ways to run and combine kernels.

A kernel is built from the target; `init` wraps points, `step` moves every chain of the batch once. The first axis
counts chains, and nothing mixes them. All randomness comes from the generator that `step` is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

Score: TypeAlias = Callable[[Tensor], Tensor]
"""Gradient of the log density: [n, ...] to [n, ...]."""
Energy: TypeAlias = Callable[[Tensor], Tensor]
"""Minus the log density up to a constant: [n, ...] to [n]."""
Schedule: TypeAlias = float | Callable[[int], float]
"""A step size, or a rule from the number of steps already done to the next step size."""


class State(NamedTuple):
    """Where the chains are.

    Attributes:
        x: positions [n, ...].
        step: number of steps done so far.
        energy: energy at `x` [n], where the kernel knows one.
        score: score at `x` [n, ...], where the kernel keeps it.
    """

    x: Tensor
    step: int = 0
    energy: Tensor | None = None
    score: Tensor | None = None


class Info(NamedTuple):
    """What happened in one step.

    Attributes:
        acceptance: probability with which each chain's move was accepted [n]; ones where no accept step exists.
        energy_error: total energy after the move minus before [n]; zeros where it is not computed.
        divergent: chains whose move was not finite or whose energy error passed 1,000 [n], bool; they stayed put.
    """

    acceptance: Tensor
    energy_error: Tensor
    divergent: Tensor


class Kernel(NamedTuple):
    """A Markov kernel on a batch of chains.

    Attributes:
        init: points [n, ...] to a state.
        step: generator and state to the next state and what happened.
    """

    init: Callable[[Tensor], State]
    step: Callable[[torch.Generator, State], tuple[State, Info]]


Keep: TypeAlias = Callable[[State], Tensor]


class Chain(NamedTuple):
    """The outcome of a run.

    Attributes:
        x: final positions [n, ...].
        acceptance: mean acceptance over chains, one value a step done [n_steps].
        divergent: share of divergent chains, one value a step done [n_steps].
        kept: what `keep` returned, stacked over the kept steps [n_kept, ...]; None without `keep`.
    """

    x: Tensor
    acceptance: Tensor
    divergent: Tensor
    kept: Tensor | None


def bare_state(x: Tensor) -> State:
    """The state of a kernel that caches nothing: positions [n, ...] and step 0."""
    return State(x)


def free_move(old: State, x: Tensor) -> tuple[State, Info]:
    """A step to `x` without accept rule: every chain moves but those that would not be finite, which stay put."""
    divergent, zeros = ~torch.isfinite(x.flatten(1)).all(1), x.new_zeros(len(x))
    return State(torch.where(per_chain(divergent, x), old.x, x), old.step + 1), Info(zeros + 1, zeros, divergent)


def per_chain(value: Tensor, x: Tensor) -> Tensor:
    """View one value a chain [n] so that it broadcasts against `x` [n, ...]."""
    return value.reshape(-1, *[1] * (x.dim() - 1))


def at(schedule: Schedule, step: int) -> float:
    """The step size of step number `step` (from 0).

    Raises:
        ValueError: it is not above 0, or not finite.
    """
    size = schedule(step) if callable(schedule) else schedule
    if not 0 < size < math.inf:
        raise ValueError(f"the step size of step {step} is {size}; allowed is a finite number above 0")
    return size


def evaluator(energy: Energy, score: Score | None) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A function to energy [n] and score [n, ...]; the score by automatic differentiation unless one is given."""

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        if score is not None:
            return energy(x), score(x)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = energy(leaf)
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), -slope

    return both


def stalled(*, below: float, patience: int = 3) -> Callable[[Info], bool]:
    """An early stop for `run`: true once the mean acceptance was under `below` in `patience` steps on end.

    Where moves are refused over and over, further steps cost evaluations and change nothing: shorten the step.
    """
    if not 0 < below <= 1 or patience < 1:
        raise ValueError(f"below is {below}, patience {patience}; allowed are 0 < below <= 1 and patience >= 1")
    in_a_row = 0

    def stop(info: Info) -> bool:
        nonlocal in_a_row
        in_a_row = in_a_row + 1 if float(info.acceptance.mean()) < below else 0
        return in_a_row >= patience

    return stop


def run(
    kernel: Kernel,
    x: Tensor,
    *,
    n_steps: int,
    rng: torch.Generator,
    keep: Keep | None = None,
    thin: int = 1,
    stop: Callable[[Info], bool] | None = None,
) -> Chain:
    """Move all chains `n_steps` times, or until `stop` says so.

    Args:
        kernel: what moves them.
        x: starting points [n, ...].
        n_steps: number of kernel steps, 0 or more.
        rng: the only source of randomness.
        keep: maps a state to what shall be remembered of it, e.g. `lambda s: s.x`; called on every `thin`-th state.
        thin: distance of the kept states, 1 or more.
        stop: is shown what happened in every step and ends the run when it answers true, e.g. `stalled(below=0.05)`;
            the lengths in the outcome are those of the steps done.
    """
    if n_steps < 0 or thin < 1:
        raise ValueError(f"n_steps is {n_steps}, thin is {thin}; allowed are n_steps >= 0 and thin >= 1")
    state = kernel.init(x)
    acceptance, divergent, kept = x.new_zeros(n_steps), x.new_zeros(n_steps), list[Tensor]()
    for i in range(n_steps):
        state, info = kernel.step(rng, state)
        acceptance[i], divergent[i] = info.acceptance.mean(), info.divergent.to(x.dtype).mean()
        if keep is not None and (i + 1) % thin == 0:
            kept.append(keep(state))
        if stop is not None and stop(info):
            acceptance, divergent = acceptance[: i + 1], divergent[: i + 1]
            break
    return Chain(state.x, acceptance, divergent, torch.stack(kept) if kept else None)


def chain(*kernels: Kernel) -> Kernel:
    """One step = one step of each kernel in turn, e.g. a diffusion predictor, then a Langevin corrector.

    Every part sees the number of *joint* steps done. The info is the last part's, divergence that of any part.
    """
    if not kernels:
        raise ValueError("chain() got no kernel; give at least one")

    def step(rng: torch.Generator, state: State) -> tuple[State, Info]:
        x, divergent, info = state.x, torch.zeros(len(state.x), dtype=torch.bool, device=state.x.device), None
        for part in kernels:
            moved, info = part.step(rng, part.init(x)._replace(step=state.step))
            x, divergent = moved.x, divergent | info.divergent
        assert info is not None
        return State(x, state.step + 1), info._replace(divergent=divergent)

    return Kernel(bare_state, step)


def anneal(kernel_at: Callable[[float], Kernel], levels: Sequence[float], *, n_steps: int) -> Kernel:
    """Walk through a sequence of targets: `n_steps` steps of `kernel_at(level)` for each level, then stay at the last.

    Args:
        kernel_at: the kernel of one level, e.g. of one temperature or noise level.
        levels: levels in the order of use, at least one.
        n_steps: steps a level, 1 or more. Run `n_steps * len(levels)` steps for the whole walk.
    """
    if not levels or n_steps < 1:
        raise ValueError(f"{len(levels)} levels of {n_steps} steps; give at least one level and one step")
    kernels = [kernel_at(level) for level in levels]

    def step(rng: torch.Generator, state: State) -> tuple[State, Info]:
        kernel = kernels[min(state.step // n_steps, len(kernels) - 1)]
        fresh = kernel.init(state.x)._replace(step=state.step)  # cached energies may belong to another level
        return kernel.step(rng, fresh)

    return Kernel(bare_state, step)

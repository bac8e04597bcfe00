"""Hamiltonian dynamics: splitting integrators, exact HMC where there is an energy, unadjusted HMC where there is none.

Convention throughout: score s = grad log p = -grad U, velocity v, kinetic energy K = |v|^2 / 2, and the physical
motion dx = v dt, dv = s dt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from dpgm.samplers.kernel import Energy, Info, Kernel, Schedule, Score, State, at, evaluator, per_chain

LEAPFROG = (0.5, 1.0, 0.5)
"""Kick, drift, kick; order 2."""
_B = 0.1931833275037836
MINIMAL_NORM = (_B, 0.5, 1 - 2 * _B, 0.5, _B)
"""Two-stage integrator of order 2 with a smaller error constant (McLachlan 1995, SIAM J. Sci. Comput. 16)."""
_A = 1 / (2 - 2 ** (1 / 3))
YOSHIDA = (_A / 2, _A, (1 - _A) / 2, 1 - 2 * _A, (1 - _A) / 2, _A, _A / 2)
"""Three leapfrogs of order 4 (Yoshida 1990, Phys. Lett. A 150)."""

DIVERGENCE = 1000.0

VelocityLaw: TypeAlias = Literal["gaussian", "rayleigh", "uniform"]
Metropolis: TypeAlias = Literal["none", "line_integral", "printed"]


class Phase(NamedTuple):
    """A point of phase space: position [n, ...], velocity [n, ...], score at the position [n, ...]."""

    x: Tensor
    v: Tensor
    score: Tensor


Integrator: TypeAlias = Callable[[Phase, float | Tensor], Phase]
"""One step of a given size: a number, or one for each chain shaped to broadcast."""


def splitting(score: Score, coefficients: Sequence[float] = LEAPFROG) -> Integrator:
    """The integrator that alternates kicks v += c h s(x) and drifts x += c h v, beginning and ending with a kick.

    Args:
        score: gradient of the log density, [n, ...] to [n, ...].
        coefficients: c of kick, drift, ..., kick; palindromic (hence reversible), kicks and drifts each adding to 1.
    """
    c = tuple(coefficients)
    sums = (sum(c[::2]), sum(c[1::2]))
    if len(c) % 2 == 0 or max(abs(a - b) for a, b in zip(c, c[::-1], strict=True)) > 1e-12:
        raise ValueError(f"coefficients are {c}; allowed is a palindrome of odd length such as {LEAPFROG}")
    if max(abs(s - 1) for s in sums) > 1e-12:
        raise ValueError(f"kicks add to {sums[0]} and drifts to {sums[1]}; each must add to 1: rescale them")

    def step(phase: Phase, step_size: float | Tensor) -> Phase:
        x, v, s = phase
        for i, a in enumerate(c):
            if i % 2 == 0:
                v = v + a * step_size * s
            else:
                x = x + a * step_size * v
                s = score(x)
        return Phase(x, v, s)

    return step


def initial_velocity(law: VelocityLaw, x: Tensor, rng: torch.Generator) -> Tensor:
    """Independent velocity entries of unit second moment, shaped as `x`.

    `gaussian` N(0, 1); `uniform` on [-sqrt 3, sqrt 3]; `rayleigh` sqrt(-log u) >= 0, which gives every entry a push
    in the same direction. Only the Gaussian law belongs to the kinetic energy |v|^2 / 2.
    """
    if law == "gaussian":
        return torch.randn(x.shape, generator=rng, dtype=x.dtype, device=x.device)
    u = torch.rand(x.shape, generator=rng, dtype=x.dtype, device=x.device)
    if law == "uniform":
        return (2 * u - 1) * math.sqrt(3)
    if law == "rayleigh":
        return torch.sqrt(-torch.log1p(-u))
    raise ValueError(f"velocity law is {law!r}; allowed are 'gaussian', 'rayleigh', 'uniform'")


def pge_steps(first: float, *, n_leapfrog: int, floor: float = 0.0) -> Callable[[int], float]:
    """PGE's step decay as a schedule: first (n_leapfrog / m)^2 in round m = 1, 2, ..., never below `floor`.

    **Source**: Private Gradient Estimation (MM 2024), Algorithm 2, line 4.
    **Differs from the paper**: the floor is ours; 0 switches it off.
    """
    if first <= 0 or n_leapfrog < 1 or floor < 0:
        raise ValueError(f"first {first}, n_leapfrog {n_leapfrog}, floor {floor}: allowed are > 0, >= 1 and >= 0")
    return lambda step: max(floor, first * (n_leapfrog / (step + 1)) ** 2)


def _sq(v: Tensor) -> Tensor:
    return v.flatten(1).square().sum(1)


def _jittered(schedule: Schedule, jitter: float, state: State, rng: torch.Generator) -> float | Tensor:
    size = at(schedule, state.step)
    if jitter == 0:
        return size
    u = torch.rand(len(state.x), generator=rng, dtype=state.x.dtype, device=state.x.device)
    return per_chain(size * (1 + jitter * (2 * u - 1)), state.x)


def hmc(
    energy: Energy,
    *,
    step_size: Schedule,
    n_leapfrog: int,
    score: Score | None = None,
    coefficients: Sequence[float] = LEAPFROG,
    jitter: float = 0.0,
    adjust: bool = True,
) -> Kernel:
    """Hamiltonian Monte Carlo with the exact accept step: it leaves exp(-energy) invariant at any step size.

    A move is kept with probability min(1, exp(H - H')), H = U + |v|^2 / 2, after `n_leapfrog` integrator steps.

    Args:
        energy: U, [n, ...] to [n].
        step_size: a number > 0 or a schedule over steps.
        n_leapfrog: integrator steps a move, 1 or more.
        score: -grad U where it is known in closed form; automatic differentiation otherwise.
        coefficients: of the integrator, see `splitting`.
        jitter: every chain draws its step size within (1 +- jitter) of the nominal one, 0 to below 1; it keeps a
            trajectory from closing on itself.
        adjust: False leaves the accept step out (biased; for comparison).
    """
    if n_leapfrog < 1 or not 0 <= jitter < 1:
        raise ValueError(f"n_leapfrog is {n_leapfrog}, jitter {jitter}; allowed are >= 1 and 0 <= jitter < 1")
    both = evaluator(energy, score)
    integrate = splitting(lambda x: both(x)[1] if score is None else score(x), coefficients)

    def init(x: Tensor) -> State:
        value, slope = both(x)
        return State(x, 0, value, slope)

    def step(rng: torch.Generator, state: State) -> tuple[State, Info]:
        assert state.energy is not None
        assert state.score is not None
        v = initial_velocity("gaussian", state.x, rng)
        size = _jittered(step_size, jitter, state, rng)
        end = Phase(state.x, v, state.score)
        for _ in range(n_leapfrog):
            end = integrate(end, size)
        value = energy(end.x).detach()
        error = value + _sq(end.v) / 2 - state.energy - _sq(v) / 2
        return settle(rng, state, end.x, value, end.score, error, adjust=adjust)

    return Kernel(init, step)


def settle(
    rng: torch.Generator,
    old: State,
    x: Tensor,
    energy: Tensor | None,
    score: Tensor,
    error: Tensor,
    *,
    adjust: bool,
) -> tuple[State, Info]:
    """Accept each move with probability min(1, exp(-error)), or always if not `adjust`; refuse divergent ones."""
    divergent = ~torch.isfinite(error) | ~torch.isfinite(x.flatten(1)).all(1)
    if adjust:
        divergent = divergent | (error > DIVERGENCE)
    error = torch.where(divergent, math.inf, error)
    chance = torch.exp(-error.clamp(min=0))
    u = torch.rand(len(x), generator=rng, dtype=x.dtype, device=x.device)
    move = (u < chance) if adjust else ~divergent
    wide = per_chain(move, x)
    assert old.score is not None
    state = State(
        torch.where(wide, x, old.x),
        old.step + 1,
        None if energy is None or old.energy is None else torch.where(move, energy, old.energy),
        torch.where(wide, score, old.score),
    )
    return state, Info(chance if adjust else move.to(x.dtype), error, divergent)


def unadjusted_hmc(
    score: Score,
    *,
    step_size: Schedule,
    n_leapfrog: int,
    velocity: VelocityLaw = "gaussian",
    metropolis: Metropolis = "none",
    coefficients: Sequence[float] = LEAPFROG,
) -> Kernel:
    """Hamiltonian moves for a score without an energy: one step = one round of PGE's Algorithm 2.

    The accept rule after each round of `n_leapfrog` steps:

    - `none`: every finite move is kept; the bias grows with the square of the step size.
    - `line_integral`: min(1, exp(U + K - U' - K')) with U' - U = -integral of s dx along the path, by Simpson's rule
      over each integrator step: exact for scores of degree 3 or less, right to order h^4 for other gradients. The
      trapezoid rule, without the score at the middle, errs by as much as the energy itself. It doubles the evaluations.
    - `printed`: min(1, s(x') / s(x)) entry by entry, each pixel accepted on its own: the paper's ratio as it stands.
      It has no known stationary law.

    **Source**: Private Gradient Estimation (MM 2024), section 4.2 and Algorithm 2.
    **Differs from the paper**: signs follow the physical leapfrog, since (10), (11) and Algorithm 2 disagree; the
    velocity is drawn anew each round; `none` and `line_integral` stand beside the printed rule.

    Args:
        score: gradient of the log density, [n, ...] to [n, ...].
        step_size: a number > 0 or a schedule over rounds such as `pge_steps`.
        n_leapfrog: integrator steps a round, 1 or more.
        velocity: law of the initial velocity, see `initial_velocity`.
        metropolis: accept rule.
        coefficients: of the integrator, see `splitting`.
    """
    if n_leapfrog < 1:
        raise ValueError(f"n_leapfrog is {n_leapfrog}; allowed is 1 or more")
    if metropolis not in ("none", "line_integral", "printed"):
        raise ValueError(f"metropolis is {metropolis!r}; allowed are 'none', 'line_integral', 'printed'")
    integrate = splitting(score, coefficients)

    def step(rng: torch.Generator, state: State) -> tuple[State, Info]:
        assert state.score is not None
        start = Phase(state.x, initial_velocity(velocity, state.x, rng), state.score)
        end, drop = start, state.x.new_zeros(len(state.x))
        for _ in range(n_leapfrog):
            new = integrate(end, at(step_size, state.step))
            if metropolis == "line_integral":
                middle = score((end.x + new.x) / 2)
                slope = (end.score + 4 * middle + new.score) / 6
                drop = drop - ((new.x - end.x) * slope).flatten(1).sum(1)
            end = new
        error = drop + (_sq(end.v) - _sq(start.v)) / 2 if metropolis == "line_integral" else drop  # 0: not computed
        if metropolis != "printed":
            return settle(rng, state, end.x, None, end.score, error, adjust=metropolis == "line_integral")
        chance = (end.score / start.score).nan_to_num(0.0).clamp(0, 1)
        move = torch.rand(chance.shape, generator=rng, dtype=chance.dtype, device=chance.device) < chance
        divergent = ~torch.isfinite(end.x.flatten(1)).all(1)
        x = torch.where(move & ~per_chain(divergent, move), end.x, state.x)
        return State(x, state.step + 1, None, score(x)), Info(chance.flatten(1).mean(1), error, divergent)

    def init(x: Tensor) -> State:
        return State(x, 0, None, score(x))

    return Kernel(init, step)


def tune_step_size(
    kernel_at: Callable[[float], Kernel],
    x: Tensor,
    *,
    rng: torch.Generator,
    step_size: float = 0.1,
    target: float = 0.8,
    n_steps: int = 60,
) -> tuple[float, Tensor]:
    """Find the step size whose mean acceptance is near `target`, and the points that the search ended at.

    The size doubles or halves until the acceptance crosses the target; then log h moves by
    2 (acceptance - target) / sqrt(moves since), and the answer is the mean of its last half. Run the chain proper with
    the size held fixed: only then is it exact.

    Args:
        kernel_at: the kernel of one step size.
        x: starting points [n, ...].
        rng: source of randomness.
        step_size: first guess, > 0.
        target: wanted acceptance, 0.65 to 0.9.
        n_steps: moves spent on the search, 2 or more.
    """
    if not 0.65 <= target <= 0.9:
        raise ValueError(f"target acceptance is {target}; allowed is 0.65 to 0.9")
    if step_size <= 0 or n_steps < 2:
        raise ValueError(f"step_size is {step_size}, n_steps {n_steps}; allowed are > 0 and >= 2")
    log_size, sizes, crossed, side = math.log(step_size), list[float](), 0, 0.0
    for t in range(1, n_steps + 1):
        kernel = kernel_at(math.exp(log_size))
        state, info = kernel.step(rng, kernel.init(x)._replace(step=t - 1))
        x, gap = state.x, float(info.acceptance.mean()) - target
        crossed += crossed > 0 or gap * side < 0
        side = gap
        log_size += 2 * gap / math.sqrt(crossed) if crossed else math.copysign(math.log(2), gap)
        sizes.append(log_size)
    tail = sizes[len(sizes) // 2 :]
    return math.exp(sum(tail) / len(tail)), x

"""Cost against quality, for HMC, Langevin and diffusion samplers on two fields whose law is known.

python benchmarks/samplers.py [samples]

The first field is a mixture of four Gaussians in 20 dimensions, the widest direction ten times the narrowest; the
second is the one-shot field of one class of scikit-learn's digits (pge at epsilon 1). Both can be drawn from exactly,
so the error of a sampler is measured against exact draws: the mean over 200 directions of the Wasserstein-1 distance,
in standard deviations of the direction. The row `exact` is the same for two sets of exact draws: nothing can do
better. Chains start at N(mean, s^2 I), with s^2 the mean variance of the law; those "from centres" at the centre of a
component drawn by its weight (pge begins at draws of the law itself, where no chain has anything to find); diffusion
at N(mean, 100 s^2 I). An evaluation is one of the energy, of the score or of the denoiser. `cost` is processor time
as a ratio to that of the row "HMC, exact, 20 rounds of 6, from centres" in the same run; the last line says how much
that row itself moved from the first minute to the last.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import math
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dpgm.data import open_data
from dpgm.methods.base import privatise
from dpgm.methods.pge import PGE
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, Relation
from dpgm.privacy.ledger import Ledger
from dpgm.samplers import Chain, Kernel, ddim, heun, hmc, mala, run, sigma_schedule, tune_step_size, ula, unadjusted_hmc

UNIT = "HMC, exact, 20 rounds of 6, from centres"


class Mixture:
    """sum_k w_k N(m_k, S_k) with everything in closed form.

    Args:
        weights: [k].
        means: [k, d].
        factors: Cholesky factors of the covariances [k, d, d].
    """

    def __init__(self, weights: Tensor, means: Tensor, factors: Tensor) -> None:
        self.weights, self.means, self.factors = weights, means, factors
        self.values, self.vectors = torch.linalg.eigh(factors @ factors.mT)
        self.evaluations = 0

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        k = torch.multinomial(self.weights, n, replacement=True, generator=rng)
        z = torch.randn(n, self.means.shape[1], generator=rng)
        return self.means[k] + torch.einsum("nij,nj->ni", self.factors[k], z)

    def _turned(self, x: Tensor, extra: float) -> tuple[Tensor, Tensor, Tensor]:
        """Residuals in each component's axes [k, n, d], variances [k, 1, d], log of w_k N(x) [k, n]."""
        self.evaluations += 1
        r = (x - self.means[:, None]) @ self.vectors
        v = (self.values + extra)[:, None]
        return r, v, self.weights.log()[:, None] - (r.square() / v + v.log()).sum(2) / 2

    def energy(self, x: Tensor) -> Tensor:
        return -self._turned(x, 0.0)[2].logsumexp(0)

    def score(self, x: Tensor) -> Tensor:
        r, v, log = self._turned(x, 0.0)
        return -(log.softmax(0)[:, :, None] * ((r / v) @ self.vectors.mT)).sum(0)

    def denoiser(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[clean | clean + sigma noise = x]."""
        r, v, log = self._turned(x, float(sigma[0]) ** 2)
        clean = self.means[:, None] + (r * (1 - float(sigma[0]) ** 2 / v)) @ self.vectors.mT
        return (log.softmax(0)[:, :, None] * clean).sum(0)

    def middle(self) -> Tensor:
        return self.weights @ self.means

    def centres(self, n: int, rng: torch.Generator) -> Tensor:
        return self.means[torch.multinomial(self.weights, n, replacement=True, generator=rng)]

    def spread(self) -> float:
        """The root mean variance of a coordinate."""
        middle = self.middle()
        within = (self.weights[:, None] * self.values).sum() / self.means.shape[1]
        between = (self.weights[:, None] * (self.means - middle).square()).sum() / self.means.shape[1]
        return math.sqrt(float(within + between))


def toy() -> Mixture:
    """Four Gaussians in 20 dimensions whose centres lie about two standard deviations apart."""
    g = torch.Generator().manual_seed(0)
    turns = torch.linalg.qr(torch.randn(4, 20, 20, generator=g))[0]
    factors = torch.linalg.cholesky((turns * torch.logspace(-1, 0, 20).square()) @ turns.mT)
    return Mixture(torch.tensor([0.1, 0.2, 0.3, 0.4]), 0.4 * torch.randn(4, 20, generator=g), factors)


def one_shot() -> Mixture:
    """The law of one class that pge released on the digits."""
    data, method = open_data("digits"), PGE(temperature=1.0)
    plan = method.plan(data.schema, relation=Relation.ADD_REMOVE, budget=Budget(epsilon=1.0, delta=1e-3))
    curator = Curator(data.train, schema=data.schema, ledger=Ledger(None, relation=plan.relation, cap=plan.budget))
    tensors = method.train(privatise(method, curator, plan, seed=0), seed=0).tensors()
    return Mixture(*(torch.from_numpy(tensors[name][0]).float() for name in ("weights", "means", "factors")))


def distance(a: Tensor, b: Tensor) -> float:
    """Mean Wasserstein-1 distance of two equal sets over 200 directions, each in standard deviations of `b`."""
    u = torch.randn(a.shape[1], 200, generator=torch.Generator().manual_seed(1))
    return float((((a @ u).sort(0).values - (b @ u).sort(0).values).abs().mean(0) / (b @ u).std(0)).mean())


def tuned(field: Mixture, kernel_at: Callable[[float], Kernel], target: float) -> float:
    g = torch.Generator().manual_seed(2)
    start = field.centres(200, g)
    start = run(kernel_at(0.05 * field.spread()), start, n_steps=50, rng=g).x
    return tune_step_size(kernel_at, start, rng=g, step_size=0.1 * field.spread(), target=target)[0]


def samplers(field: Mixture) -> list[tuple[str, Kernel, int, float | None]]:
    """Name, kernel, number of steps, size of the starting points (None: from centres)."""
    size, energy, score = field.spread(), field.energy, field.score

    def leap(h: float) -> Kernel:
        return hmc(energy, score=score, step_size=h, n_leapfrog=6, jitter=0.2)

    def walk(h: float) -> Kernel:
        return mala(energy, score=score, step_size=h)

    h, w = tuned(field, leap, 0.8), tuned(field, walk, 0.65)
    out: list[tuple[str, Kernel, int, float | None]] = []
    for n in (5, 20, 80):
        out.append((f"HMC, exact, {n} rounds of 6", leap(h), n, size))
        out.append((f"HMC, exact, {n} rounds of 6, from centres", leap(h), n, None))
        out.append((f"HMC, unadjusted, {n} rounds of 6", unadjusted_hmc(score, step_size=h, n_leapfrog=6), n, size))
        out.append((f"Langevin, exact (MALA), {6 * n} steps", walk(w), 6 * n, size))
        out.append((f"Langevin, unadjusted, {6 * n} steps", ula(score, step_size=w), 6 * n, size))
    high = 10 * size
    for n in (10, 30, 100):
        levels = sigma_schedule(n, sigma_min=0.02 * size, sigma_max=high)
        out.append((f"DDIM, {n} steps", ddim(field.denoiser, levels), n, high))
        out.append((f"DDIM, ancestral, {n} steps", ddim(field.denoiser, levels, eta=1.0), n, high))
        out.append((f"Heun, {n // 2} steps", heun(field.denoiser, levels[::2]), n // 2, high))
    return out


def measure(field: Mixture, n: int) -> None:
    g = torch.Generator().manual_seed(3)
    truth = field.draw(n, g)

    def timed(kernel: Kernel, n_steps: int, size: float | None) -> tuple[float, Chain]:
        noise = torch.randn(n, field.means.shape[1], generator=g)
        x = field.centres(n, g) if size is None else field.middle() + size * noise
        field.evaluations, start = 0, time.process_time()
        out = run(kernel, x, n_steps=n_steps, rng=g)
        return time.process_time() - start, out

    every = samplers(field)
    [one] = [row[1:] for row in every if row[0] == UNIT]
    timed(*one)  # what is slow the first time only
    unit = timed(*one)[0]
    start = time.process_time()
    again = field.draw(n, g)
    cost = (time.process_time() - start) / unit
    print("| sampler | evaluations | cost | distance to exact draws | acceptance |\n|---|---|---|---|---|")
    print(f"| exact | 0 | {cost:.3f} | {distance(again, truth):.3f} | |")
    for name, *row in every:
        seconds, out = timed(*row)
        accepted = f"{float(out.acceptance.mean()):.2f}" if "exact" in name else ""
        print(f"| {name} | {field.evaluations} | {seconds / unit:.2f} | {distance(out.x, truth):.3f} | {accepted} |")
    last = timed(*one)[0] / unit
    print(f"\nCost 1 was {1e6 * unit / n:,.0f} us of processor time a sample; the same again at the end: {last:.2f}.")


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    np.seterr(all="raise", under="ignore")
    for title, field in (("A known mixture", toy()), ("The one-shot field of a digit", one_shot())):
        print(f"\n{title}: {field.means.shape[1]} dimensions, {len(field.weights)} Gaussians, {count:,} samples\n")
        measure(field, count)

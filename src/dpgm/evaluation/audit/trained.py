"""The canary audit of PGE as published, over trained networks: many small trainings with a canary, as many without."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dpgm.evaluation.audit.bound import Array, Audit, ceiling, examine
from dpgm.evaluation.audit.published import randomised_response
from dpgm.mechanisms.perturbed import perturbed_loss
from dpgm.privacy.guarantee import Evidence, PrivacyError, Relation
from dpgm.privacy.mechanism import NoiseSource

_TOGETHER = 100
"""Trainings that run side by side."""
_PROBES = 64
"""Projection vectors with which the loss at the canary is measured; the same for all trainings."""


def trained(
    *,
    epsilon: float = 0.2,
    trials: int = 300,
    confidence: float = 0.999,
    n: int = 60,
    batch: int = 60,
    steps: int = 200,
    k: int = 10,
    hidden: int = 64,
    lr: float = 5e-3,
    statistic: Literal["loss", "norm"] = "loss",
    noise: NoiseSource | None = None,
) -> Audit:
    """Score networks trained by the paper's loss on 8 x 8 digits, one of which is replaced by a checkerboard.

    The attacker looks at the trained network at the checkerboard: at the sliced score matching loss, which training
    lowers where there was a record, or at the length of the score. Half of the trainings choose the threshold, the
    other half give the bound.

    **Source**: Liu et al. 2024, equations (6) and (8), algorithm 1; the loss as printed.
    **Differs from the paper**: perceptrons with two hidden layers instead of a U-net, no labels, no residual codes.

    Args:
        epsilon: the claimed, pure privacy loss.
        trials: trainings on each data set.
        confidence: probability that a true claim is not beaten.
        n: records.
        batch: records a step, drawn without replacement.
        steps: gradient steps (Adam).
        k: size of the neighbourhood in the randomised response.
        hidden: units of a hidden layer.
        lr: learning rate.
        statistic: what the attacker looks at.
        noise: where first weights, vectors and coins come from.
    """
    if not epsilon > 0 or trials < 4:
        raise PrivacyError(f"epsilon is {epsilon}, trials {trials}; allowed are above 0, e.g. 0.2, and 4 or more")
    source = NoiseSource() if noise is None else noise
    with_canary, without = neighbours(n)
    canary = with_canary[-1]
    probes = torch.from_numpy(np.random.default_rng(0).standard_normal((_PROBES, len(canary)), np.float32))
    scores: list[Array] = []
    for x in (with_canary, without):
        parts: list[Array] = []
        for start in range(0, trials, _TOGETHER):
            nets = _Nets(min(_TOGETHER, trials - start), len(canary), hidden, source.generator())
            for _ in range(steps):
                nets.step(x, batch=batch, epsilon=epsilon, k=k, lr=lr)
            parts.append(nets.loss_at(canary, probes) if statistic == "loss" else nets.norm_at(canary))
        scores.append(-np.concatenate(parts))
    stated, best, held_out = examine(*scores, claim=lambda _: epsilon, delta=0.0, confidence=confidence)
    return Audit(
        name=f"pge, published form: the {statistic} of trained networks at a canary",
        relation=Relation.REPLACE,
        evidence=Evidence.REFUTED,
        stated=stated,
        best=best,
        trials=trials,
        held_out=held_out,
        confidence=confidence,
        ceiling=ceiling(held_out, 0.0, confidence),
        pair=f"{n} handwritten digits; one of them replaced by a checkerboard",
        kind="training",
        how=f"2 x {trials:,} trainings of {steps} steps, {held_out:,} of each for the bound",
    )


def neighbours(n: int) -> tuple[Tensor, Tensor]:
    """Two data sets of `n` pictures [n, 64] in [0, 1]: n - 1 public digits and a checkerboard, or another digit."""
    from sklearn.datasets import load_digits

    digits = load_digits().data.astype(np.float32) / 16
    digits = digits[np.random.default_rng(0).permutation(len(digits))[:n]]
    checks = (np.indices((8, 8)).sum(0) % 2).astype(np.float32).ravel()
    return torch.from_numpy(np.vstack([digits[:-1], checks])), torch.from_numpy(digits)


class _Nets:
    """Many perceptrons d -> h -> h -> d with tanh, each trained by itself.

    Args:
        count: how many.
        dim: pixels.
        hidden: units of a hidden layer.
        coins: first weights, batches, vectors and responses.
    """

    def __init__(self, count: int, dim: int, hidden: int, coins: np.random.Generator) -> None:
        self.count, self.coins = count, coins
        self.weights: list[Tensor] = []
        for a, b, scale in ((dim, hidden, 1.0), (hidden, hidden, 1.0), (hidden, dim, 0.1)):
            wide = scale * math.sqrt(3.0 / a)
            w = coins.uniform(-wide, wide, (count, a, b)).astype(np.float32)
            self.weights += [torch.from_numpy(w), torch.zeros(count, 1, b)]
        for w in self.weights:
            w.requires_grad_()
        self.optimiser = torch.optim.Adam(self.weights)

    def __call__(self, x: Tensor) -> Tensor:
        """The scores, [count * b, d], of count * b points that lie net by net."""
        y = x.view(self.count, -1, x.shape[1])
        for layer in range(3):
            y = torch.baddbmm(self.weights[2 * layer + 1], y, self.weights[2 * layer])
            y = y if layer == 2 else y.tanh()
        return y.reshape(x.shape)

    def step(self, x: Tensor, *, batch: int, epsilon: float, k: int, lr: float) -> None:
        """One step of the paper's training for every net, on a batch of its own."""
        chosen = torch.from_numpy(self.coins.random((self.count, len(x)), np.float32).argsort(1)[:, :batch])
        v = self.coins.standard_normal((self.count, batch, x.shape[1]), np.float32)
        response = torch.from_numpy(randomised_response(v, epsilon, min(k, batch), self.coins))
        flat = (x[chosen].flatten(0, 1), torch.from_numpy(v).flatten(0, 1), response.flatten(0, 1))
        self.optimiser.zero_grad()
        (perturbed_loss(self, *flat, loss="printed") * self.count).backward()  # the sum of the nets' own means
        grads = [w.grad for w in self.weights if w.grad is not None]
        norm = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()
        for g in grads:
            g.mul_((1 / norm.clamp(min=1e-12)).clamp(max=1.0)[:, None, None])
        self.optimiser.param_groups[0]["lr"] = lr
        self.optimiser.step()

    def loss_at(self, point: Tensor, probes: Tensor) -> Array:
        """The sliced score matching loss of every net at one point, [count]."""
        x = point.repeat(self.count * len(probes), 1).requires_grad_()
        v = probes.repeat(self.count, 1)
        q = self(x)
        (slope,) = torch.autograd.grad((q * v).sum(), x)
        each = (slope * v).sum(1) + (q * v).sum(1).square() / 2
        return each.detach().view(self.count, -1).mean(1).double().numpy()

    @torch.no_grad()
    def norm_at(self, point: Tensor) -> Array:
        """Minus the length of every net's score at one point, [count]: it is long where there was no record."""
        return self(point.repeat(self.count, 1)).norm(dim=1).double().numpy()

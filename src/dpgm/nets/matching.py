"""Train a generator so that the mean embedding of its images, class by class, meets a given target.

Nothing here knows of privacy: the target is a released, already noisy statistic, so any number of steps is free.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dpgm.nets.features import TINY
from dpgm.nets.generators import LabelledGenerator, follow

_CHASE = 1e-3
_CHECKS = 8
Features = Callable[[Tensor], Tensor]
Loss = Literal["pairs", "running", "adam", "batch"]


def shrink(target: Tensor, noise_std: Tensor | float, sizes: Sequence[int] | None = None) -> Tensor:
    """Positive-part James-Stein shrinkage of noisy class means towards their average over the classes.

    For each group g of coordinates, with m the average over the k classes and D the size of the group:
    t_c <- m + max(0, 1 - D s_c² (1 - 1/k) / |t_c - m|²) (t_c - m).

    Args:
        target: noisy class means `[k, D_total]`.
        noise_std: standard deviation s of their noise, one number or `[k]`.
        sizes: numbers of consecutive coordinates that are shrunk each by a factor of their own; None for all together.
    """
    k, d = target.shape
    mean = target.mean(0, keepdim=True)
    std = torch.as_tensor(noise_std, dtype=target.dtype).expand(k)
    parts: list[Tensor] = []
    for away in (target - mean).split(list(sizes or (d,)), 1):
        noise = away.shape[1] * (1 - 1 / k) * std.square()
        keep = (1 - noise / away.square().sum(1).clamp(min=TINY**2)).clamp(min=0)
        parts.append(away * keep[:, None])
    return mean + torch.cat(parts, 1)


def _cosine(steps: int) -> Callable[[int], float]:
    """Share of the highest rate at each step: a linear rise over 5 % of the steps, then half a cosine."""
    rise = max(1, steps // 20)
    fall = max(1, steps - rise)
    return lambda t: min((t + 1) / rise, 0.5 + 0.5 * math.cos(math.pi * min(1.0, max(0, t - rise) / fall)))


def train_generator(
    generator: LabelledGenerator,
    features: Features,
    target: Tensor,
    weights: Tensor | None = None,
    *,
    steps: int,
    batch: int,
    lr: float,
    rng: torch.Generator,
    memory: float = 0.9,
    average: float = 0.99,
    loss: Loss = "pairs",
    bf16: bool = True,
    judge: Callable[[LabelledGenerator], float] | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Fit the generator to target class means, in place, and return the losses.

    Each step draws n = batch // k images a class with features f_ci and descends sum_c w_c |E f_c - T_c|² along the
    unbiased gradient sum_c w_c (2/n) sum_i <a_ci - T_c, df_ci>, where a_ci is, by `loss`,

    - "pairs": the mean of the *other* n - 1 images (the U-statistic): no bias, no delay;
    - "running": the bias-corrected moving average of the batch means: less noise, but a delay of about
      1 / (1 - memory) steps, which makes large learning rates diverge;
    - "adam": what v in the published loss makes it, m_c = T_c - v_c, where v follows T - (batch means) by Adam's steps
      on |v - T + means|²: a moving average whose pace differs from coordinate to coordinate;
    - "batch": the mean of the batch itself, for comparison only. |m - T|² has expectation |E m - T|² + Var / n, so it
      rewards generators of low diversity.

    Adam with a cosine rate; the generator is left with the moving average of its weights, in evaluation mode.

    Args:
        generator: the net to train, with `draw(y, rng=...)`.
        features: `[b, c, h, w] -> [b, D]`, fixed and differentiable.
        target: class means of the features, `[k, D]`.
        weights: importance of each class `[k]`, >= 0; None for equal weights.
        steps: optimiser steps.
        batch: images a step, at least 2 k.
        lr: highest learning rate.
        rng: source of latent vectors.
        memory: decay of the moving average of generated means (for "running", and for the losses returned).
        average: decay of the moving average of the weights, in [0, 1).
        loss: which mean the images are pulled by, see above.
        judge: an error of the averaged generator; with it the weights of the best of eight checks are kept.
        bf16: compute images and features in bfloat16 (about three times faster on CPUs that have it).
        on_step: called with the step's number and its loss sum_c w_c |e_c - T_c|².

    Raises:
        ValueError: if shapes do not fit.
    """
    k = len(target)
    if k != generator.n_classes or batch < 2 * k:
        raise ValueError(
            f"target has {k} classes, the generator {generator.n_classes}, a batch {batch} images; "
            "give one target row and at least two images a class"
        )
    target = target.detach().float()
    share = torch.ones(k) if weights is None else weights.detach().float()
    share = share / share.sum()
    y = torch.arange(k).repeat_interleave(batch // k)
    mean = copy.deepcopy(generator).requires_grad_(False)
    optimiser = torch.optim.Adam(generator.parameters(), lr=lr, betas=(0.5, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _cosine(steps))
    generator.train()
    running, losses = torch.zeros_like(target), []
    follower = nn.Parameter(torch.zeros_like(target))
    chase = torch.optim.Adam([follower], lr=_CHASE, betas=(0.5, 0.999), fused=True)
    best, checks = math.inf, {round(steps * (i + 1) / _CHECKS) - 1 for i in range(_CHECKS)}
    kept = copy.deepcopy(generator.state_dict())
    for step in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            fake = features(generator.draw(y, rng=rng)).float().view(k, -1, target.shape[1])
        with torch.no_grad():
            n, m = fake.shape[1], fake.mean(1, keepdim=True)
            running.lerp_(m[:, 0], 1 - memory)
            seen = running / (1 - memory ** (step + 1))
            losses.append(float((share[:, None] * (seen - target).square()).sum()))
            if loss == "pairs":
                m = (n * m - fake) / (n - 1)  # for each image the mean of the others
            elif loss == "running":
                m = seen[:, None]
            elif loss == "adam":
                follower.grad = 2 * (follower - target + m[:, 0]) / target.shape[1]
                chase.step()
                m = (target - follower)[:, None]
            pull = (2 / n) * share[:, None, None] * (m - target[:, None])
        optimiser.zero_grad(set_to_none=True)
        fake.backward(pull.expand_as(fake))
        optimiser.step()
        schedule.step()
        follow(mean, generator, min(average, step / (step + 10)))
        if judge and step in checks and (found := judge(mean)) < best:
            best, kept = found, copy.deepcopy(mean.state_dict())
        if on_step:
            on_step(step, losses[-1])
    generator.load_state_dict(kept if judge else mean.state_dict())
    generator.eval()
    return losses

"""Following noisy gradients: the public half of DP-SGD, and the conversation around it."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from dpgm.mechanisms.gradient import PoissonGradient
from dpgm.methods.base import Ask, Note, Tensors
from dpgm.privacy.mechanism import Array

Rule = Literal["momentum", "adam"]
CHECKPOINTS = 50
"""Checkpoints of a run; the ledger charges in as many blocks, so an interruption loses at most one of them."""


class Descent:
    """A net that follows released gradients, with a cosine rate and averaged weights.

    momentum: m <- beta m + g, theta <- theta - r_t m; Adam: with both moments and bias correction. The rate is
    r_t = lr (1 + cos(pi t / T)) / 2. Everything here is computed from releases.

    Args:
        net: its trainable parameters are written to.
        steps: T, at least 1.
        lr: highest rate.
        rule: how a gradient becomes a step.
        beta: decay of the first moment.
        beta2: decay of Adam's second moment.
        average: decay of the moving average of the weights, warmed up over the first steps.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        steps: int,
        lr: float,
        rule: Rule = "adam",
        beta: float = 0.9,
        beta2: float = 0.99,
        average: float = 0.95,
    ) -> None:
        self.net, self.steps, self.lr, self.rule = net, steps, lr, rule
        self.beta, self.beta2, self.average = beta, beta2, average
        self.done = 0
        self._weights = [p for p in net.parameters() if p.requires_grad]
        start = parameters_to_vector(self._weights).detach()
        self._mean, self._first, self._second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)

    @torch.no_grad()
    def follow(self, gradient: Array) -> None:
        """Take one step along a released gradient `[p]`."""
        g = torch.from_numpy(gradient).float()
        rate = self.lr * 0.5 * (1 + math.cos(math.pi * self.done / self.steps))
        self.done += 1
        if self.rule == "momentum":
            self._first = self.beta * self._first + g
            step = self._first
        else:
            self._first = self.beta * self._first + (1 - self.beta) * g
            self._second = self.beta2 * self._second + (1 - self.beta2) * g.square()
            second = self._second / (1 - self.beta2**self.done)
            step = self._first / (1 - self.beta**self.done) / (second.sqrt() + 1e-8)
        weights = parameters_to_vector(self._weights) - rate * step
        vector_to_parameters(weights, self._weights)
        self._mean.lerp_(weights, 1 - min(self.average, self.done / (self.done + 10)))

    def finish(self) -> nn.Module:
        """The net, holding its averaged weights."""
        with torch.no_grad():
            vector_to_parameters(self._mean, self._weights)
        return self.net

    def tensors(self) -> Tensors:
        """What a later run needs to go on from here."""
        now = parameters_to_vector(self._weights).detach()
        kept: dict[str, Tensor] = {"weights": now, "mean": self._mean, "first": self._first, "second": self._second}
        return {"done": np.array(self.done), **{name: t.numpy().copy() for name, t in kept.items()}}

    def load(self, tensors: Tensors) -> None:
        """Go on from what `tensors` wrote."""
        self.done = int(tensors["done"].item())
        kept = {name: torch.from_numpy(tensors[name].copy()) for name in ("weights", "mean", "first", "second")}
        self._mean, self._first, self._second = kept["mean"], kept["first"], kept["second"]
        with torch.no_grad():
            vector_to_parameters(kept["weights"], self._weights)


def descend(
    descent: Descent, mechanism: PoissonGradient, *, calls: int, used: int, state: Tensors | None, stage: str
) -> Generator[Ask, Any, None]:
    """Ask `mechanism` for gradients of the descent's net and follow them; part of a method's talk.

    An interrupted run goes on from its last checkpoint. Calls that were paid but whose answers were lost stay spent:
    the run ends that many steps earlier and never asks for more than was reserved.

    Args:
        descent: the net and its rule; its steps are at most `calls`.
        mechanism: what is asked, with its task.
        calls: how many calls are reserved.
        used: how many of them an earlier run has burnt.
        state: the last checkpoint of this descent, or None.
        stage: what progress notes call it.
    """
    if state is not None:
        descent.load(state)
    left = calls - max(used, descent.done)
    end = min(descent.steps, descent.done + left)
    every = max(1, math.ceil(calls / CHECKPOINTS))
    while descent.done < end:
        descent.follow((yield mechanism))
        if descent.done % every == 0 or descent.done == end:
            yield Note(stage=stage, step=descent.done, total=descent.steps, state=descent.tensors())

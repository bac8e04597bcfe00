"""PGE as its paper describes it: a score network trained on raw records, sampled by unadjusted Hamiltonian dynamics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpgm.methods.base import Batch, Model, Release, Tensors
from dpgm.nets.classifiers import to_bytes
from dpgm.nets.score import ScoreNet
from dpgm.samplers import pge_steps, run, unadjusted_hmc
from dpgm.samplers.hamiltonian import Metropolis, VelocityLaw
from dpgm.schema import Schema

CODE = 16
"""Length of the residual enhancement's code: a 4 x 4 thumbnail of the image."""
_BATCH = 500


def score_net(schema: Schema, *, residual: bool) -> ScoreNet:
    """The untrained network; its first weights are public and the same for all."""
    return ScoreNet(
        channels=schema.channels,
        n_classes=schema.n_classes,
        code=CODE if residual else 0,
        rng=torch.Generator().manual_seed(0),
    )


def thumbnail_code(x: Tensor) -> Tensor:
    """Codes [b, 16] of images [b, c, h, w]: a 4 x 4 thumbnail in 8 levels, in place of a public VQ model's codes."""
    small = torch.nn.functional.adaptive_avg_pool2d(x.mean(1, keepdim=True), 4).flatten(1)
    return (small * 7).round() / 3.5 - 1


@dataclass(frozen=True, kw_only=True)
class Dynamics:
    """How the published form samples (Algorithm 2).

    Attributes:
        rounds: M.
        n_leapfrog: N, leapfrog steps in a round.
        step_size: lambda0.
        step_floor: least step; 0 leaves the printed decay as it is.
        velocity: law of the initial velocity.
        metropolis: accept rule of a round.
    """

    rounds: int
    n_leapfrog: int
    step_size: float
    step_floor: float
    velocity: VelocityLaw
    metropolis: Metropolis


class NetworkField(Model):
    """A class-conditional score network and the dynamics that sample it.

    Args:
        release: holds the trained weights.
        net: the network with them.
        dynamics: of Algorithm 2.
    """

    def __init__(self, release: Release, net: ScoreNet, dynamics: Dynamics) -> None:
        super().__init__(release)
        self._net, self._dynamics = net.eval().requires_grad_(False), dynamics

    def tensors(self) -> Tensors:
        """Nothing beside the release."""
        return {}

    def _sample(self, labels: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        coins = torch.Generator().manual_seed(int(rng.integers(2**62)))
        parts = [
            self._some(torch.from_numpy(part), coins) for part in np.split(labels, range(_BATCH, len(labels), _BATCH))
        ]
        return Batch(images=to_bytes(torch.cat(parts)), labels=labels)

    def _some(self, y: Tensor, coins: torch.Generator) -> Tensor:
        d, schema = self._dynamics, self.schema
        code = torch.randn(len(y), self._net.code, generator=coins) if self._net.code else None

        def score(x: Tensor) -> Tensor:
            with torch.no_grad():
                return self._net(x, y, code)

        kernel = unadjusted_hmc(
            score,
            step_size=pge_steps(d.step_size, n_leapfrog=d.n_leapfrog, floor=d.step_floor),
            n_leapfrog=d.n_leapfrog,
            velocity=d.velocity,
            metropolis=d.metropolis,
        )
        start = torch.rand(len(y), schema.channels, schema.height, schema.width, generator=coins)
        return run(kernel, start, n_steps=d.rounds, rng=coins).x.nan_to_num(0.0)

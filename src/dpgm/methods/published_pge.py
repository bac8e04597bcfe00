"""PGE as its paper describes it: a score network trained on raw records, sampled by unadjusted Hamiltonian dynamics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpgm.mechanisms.perturbed import SOURCE, PerturbedProjections
from dpgm.methods.base import Batch, Method, Model, OnNote, Plan, Release, Resume, Talk, Tensors
from dpgm.nets.classifiers import to_bytes
from dpgm.nets.score import ScoreNet
from dpgm.privacy.guarantee import Budget, Relation, Source
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
class Published(Method):
    """The paper's training and sampling, with what it leaves open as options.

    **Guarantee**: none; evidence REFUTED (docs/proofs/perturbed-projections.md).
    **Source**: Liu et al. 2024, Algorithms 1 and 2.

    Attributes:
        k: candidates of the randomised response.
        loss: (8) as printed, or what (7) gives by integration by parts.
        residual: add masked codes of the records to the middle features in training, Gaussian noise in sampling.
        steps: training steps.
        rounds: M, rounds of Hamiltonian dynamics, each ended by the accept rule.
        n_leapfrog: N, leapfrog steps in a round.
        step_size: lambda0, decayed as lambda0 (N / m)^2 in round m.
        step_floor: least step; 0 leaves the printed decay as it is.
        velocity: law of the initial velocity.
        metropolis: accept rule: from the line integral of the score, the printed ratio of scores, or none.
    """

    k: int = 10
    loss: Literal["printed", "derived"] = "printed"
    residual: bool = True
    steps: int = 500
    rounds: int = 12
    n_leapfrog: int = 6
    step_size: float = 1e-5
    step_floor: float = 0.02
    velocity: VelocityLaw = "gaussian"
    metropolis: Metropolis = "line_integral"

    name: ClassVar[str] = "pge-published"
    sources: ClassVar[tuple[Source, ...]] = (SOURCE,)
    free: ClassVar[frozenset[str]] = frozenset(
        {"rounds", "n_leapfrog", "step_size", "step_floor", "velocity", "metropolis"}
    )

    def plan(self, schema: Schema, *, relation: Relation, budget: Budget) -> Plan:
        """One training, at the price that the paper claims."""
        mechanism = PerturbedProjections(
            build=partial(score_net, schema, residual=self.residual),
            epsilon=budget.epsilon,
            code=thumbnail_code if self.residual else None,
            k=self.k,
            steps=self.steps,
            loss=self.loss,
        )
        return Plan(
            schema=schema,
            relation=relation,
            budget=budget,
            items=((mechanism, 1),),
            details={"claimed_epsilon": budget.epsilon},
            seconds=4e-4 * self.steps * math.prod(schema.shape),
            memory_mb=1500,
        )

    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume) -> Talk:
        """The trained weights."""
        weights = yield plan.items[0][0]
        return weights

    def train(self, release: Release, *, seed: int, on_note: OnNote | None = None) -> NetworkField:
        """Nothing is left to train."""
        return self.restore(release, {})

    def restore(self, release: Release, tensors: Tensors) -> NetworkField:
        """The network from its weights."""
        net = score_net(release.schema, residual=self.residual)
        net.load_state_dict({name: torch.from_numpy(np.array(t)) for name, t in release.tensors.items()})
        return NetworkField(release, net, self)


AS_PRINTED = Published()


class NetworkField(Model):
    """A class-conditional score network and the dynamics that sample it.

    Args:
        release: holds the trained weights.
        net: the network with them.
        options: how it samples.
    """

    def __init__(self, release: Release, net: ScoreNet, options: Published) -> None:
        super().__init__(release)
        self._net, self._options = net.eval().requires_grad_(False), options

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
        d, schema = self._options, self.schema
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

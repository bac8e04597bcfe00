"""PGE as published: sliced score matching with perturbed projection vectors. Not private; here to be refuted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpgm.privacy.guarantee import Evidence, PrivacyError, Relation, Source
from dpgm.privacy.mechanism import ClaimEvent, Cost, NoiseSource
from dpgm.schema import Rows

SOURCE = Source(
    key="liu2024pge",
    title="Private Gradient Estimation is Useful for Generative Modeling",
    authors="Liu, Bochao and Wang, Pengju and Guo, Weijia and Li, Yong and Zhuang, Liansheng and Wang, Weiping "
    "and Ge, Shiming",
    year=2024,
    where="ACM Multimedia 2024",
)


def nearest_response(v: Tensor, *, epsilon: float, k: int, coins: np.random.Generator) -> Tensor:
    """Randomised response among the k vectors of the batch nearest by cosine, the vector itself among them.

    A vector stays with probability e^epsilon / (e^epsilon + k - 1); otherwise one of the k - 1 others takes its place.

    Args:
        v: projection vectors [b, D].
        epsilon: of the response, 0 or more.
        k: candidates, at most b are used.
        coins: fresh randomness.
    """
    k = min(k, len(v))
    unit = v / v.norm(dim=1, keepdim=True).clamp(min=1e-12)
    similar = unit @ unit.T
    similar.fill_diagonal_(2.0)  # the vector itself always comes first
    near = similar.topk(k, dim=1).indices
    keep = 1 / (1 + (k - 1) * np.exp(-epsilon))
    stays = torch.from_numpy(coins.random(len(v)) < keep)
    other = torch.from_numpy(coins.integers(1, max(k, 2), len(v)))
    chosen = torch.where(stays, 0, other) if k > 1 else torch.zeros_like(other)
    return v[near[torch.arange(len(v)), chosen]]


def perturbed_loss(
    field: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, response: Tensor, *, loss: Literal["printed", "derived"]
) -> Tensor:
    """The mean over records of R(v)^T grad q(x) R(v) + (v^T q(x))^2 / 2, eq. (8).

    `derived` puts v^T grad q(x) R(v) first, which is what (7) gives by integration by parts.

    Args:
        field: q, from [b, ...] to the same shape.
        x: records [b, ...].
        v: projection vectors [b, D].
        response: R(v) [b, D].
        loss: which of the two.
    """
    x = x.detach().requires_grad_()
    q = field(x).flatten(1)
    left = response if loss == "printed" else v
    (slope,) = torch.autograd.grad((q * left).sum(), x, create_graph=True)
    curve = (slope.flatten(1) * response).sum(1)
    return (curve + (q * v).sum(1).square() / 2).mean()


@dataclass(frozen=True, kw_only=True, eq=False)
class PerturbedProjections:
    """A score network trained on raw records by sliced score matching with perturbed projection vectors.

    **Guarantee**: none. The paper's theorem 1 claims (epsilon, 0)-DP for the trained network. The projection vectors
    are drawn without looking at the records, so perturbing them protects nothing, and the records enter both terms of
    the loss as they are: an event of probability 0 under one data set has probability up to 0.92 under its neighbour
    (docs/proofs/perturbed-projections.md).
    **Source**: Liu et al. 2024, Algorithm 1 and eq. (8).
    **Differs from the paper**: the masked code of a public VQ model is the masked, rounded code that `code` gives; the
    U-net is small.

    Attributes:
        build: makes the untrained network, called as net(x, y, code); public.
        epsilon: claimed, and used in the randomised response.
        code: per-record public code of images [b, c, h, w], or None; half of its entries are masked at random.
        k: candidates of the response.
        steps: training steps.
        batch: records a step.
        lr: learning rate.
        loss: see `perturbed_loss`.
        name: what ledger and guarantee call it.
    """

    build: Callable[[], nn.Module]
    epsilon: float
    code: Callable[[Tensor], Tensor] | None = None
    k: int = 10
    steps: int = 500
    batch: int = 64
    lr: float = 1e-3
    loss: Literal["printed", "derived"] = "printed"
    name: str = "pge-perturbed-projections"

    def __post_init__(self) -> None:
        if not (self.epsilon >= 0 and np.isfinite(self.epsilon)) or min(self.k, self.steps, self.batch) < 1:
            raise PrivacyError(
                f"epsilon is {self.epsilon}, k {self.k}, steps {self.steps}, batch {self.batch}; allowed are a finite "
                "epsilon of 0 or more, and whole numbers above 0"
            )

    def cost(self, relation: Relation) -> Cost:
        """The claim, refuted under either relation."""
        del relation
        return Cost(
            event=ClaimEvent(self.epsilon, 0.0),
            name=self.name,
            evidence=Evidence.REFUTED,
            sources=(replace(SOURCE, part="theorem 1 (does not hold)"),),
        )

    def __call__(self, rows: Rows, noise: NoiseSource) -> dict[str, NDArray[np.float32]]:
        """The trained weights, by name."""
        net, coins = self.build(), noise.generator()
        optimiser = torch.optim.Adam(net.parameters(), lr=self.lr)
        images, labels = rows["image"], rows["label"]
        for _ in range(self.steps if len(rows) else 0):
            index = coins.integers(len(rows), size=self.batch)
            x = torch.from_numpy(images[index]).permute(0, 3, 1, 2).float() / 255
            y = torch.from_numpy(labels[index])
            v = torch.from_numpy(coins.standard_normal(x.flatten(1).shape, dtype=np.float32))
            response = nearest_response(v, epsilon=self.epsilon, k=self.k, coins=coins)
            code = None
            if self.code is not None:
                code = self.code(x)
                code = code * torch.from_numpy(coins.random(code.shape) < 0.5)
            value = perturbed_loss(lambda z, y=y, c=code: net(z, y, c), x, v, response, loss=self.loss)
            optimiser.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
        return {name: t.detach().numpy().copy() for name, t in net.state_dict().items()}

"""PGE as published: sliced score matching with perturbed projection vectors. Not private; here to be refuted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

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
    **Differs from the paper**: what it leaves open is chosen here. Batches are drawn with replacement; Adam, with the
    norm of its gradient held to 1; a moving average of the weights is the answer, warmed up over the first steps; three
    quarters of a code's places are masked, as in the masked autoencoder that the paper is inspired by.

    Attributes:
        build: makes the untrained network, called as net(x, y, code); public.
        epsilon: claimed, and used in the randomised response.
        code: per-record public codes [b, d, h', w'] of images [b, c, h, w], or None.
        mask: share of a code's places that are set to 0.
        k: candidates of the response.
        steps: training steps.
        batch: records a step.
        physical: records in memory at once; the answer does not depend on it.
        lr: learning rate.
        ema: decay of the moving average; 0 gives the last weights.
        loss: see `perturbed_loss`.
        smooth: standard deviation of Gaussian noise added to the images, in units of white; 0 as in the paper.
        bfloat16: compute products in 16 bits.
        first: False for a later part of a training whose first part has claimed epsilon: the paper composes nothing.
        state: what an earlier part answered, to go on from.
        resumable: answer with all that a later part needs, under "net.", "ema.", "adam1.", "adam2.", with the number of
            steps "taken" and the "loss" of every step, NaN where it was left out as not finite; otherwise with the
            weights alone, by their names.
        assumptions: what is said of the public codes.
        name: what ledger and guarantee call it.
    """

    build: Callable[[], nn.Module]
    epsilon: float
    code: Callable[[Tensor], Tensor] | None = None
    mask: float = 0.75
    k: int = 10
    steps: int = 500
    batch: int = 64
    physical: int = 64
    lr: float = 1e-3
    ema: float = 0.0
    loss: Literal["printed", "derived"] = "printed"
    smooth: float = 0.0
    bfloat16: bool = False
    first: bool = True
    state: Mapping[str, NDArray[Any]] | None = None
    resumable: bool = False
    assumptions: tuple[str, ...] = ()
    name: str = "pge-perturbed-projections"

    def __post_init__(self) -> None:
        if not (self.epsilon >= 0 and np.isfinite(self.epsilon)) or min(self.k, self.steps, self.batch) < 1:
            raise PrivacyError(
                f"epsilon is {self.epsilon}, k {self.k}, steps {self.steps}, batch {self.batch}; allowed are a finite "
                "epsilon of 0 or more, and whole numbers above 0"
            )
        if not (0 <= self.mask <= 1 and 0 <= self.ema < 1 and self.smooth >= 0 and self.lr > 0 and self.physical >= 1):
            raise PrivacyError(
                f"mask is {self.mask}, ema {self.ema}, smooth {self.smooth}, lr {self.lr}, physical {self.physical}; "
                "allowed are mask in [0, 1], ema in [0, 1), smooth of 0 or more, lr above 0, physical of 1 or more"
            )

    def cost(self, relation: Relation) -> Cost:
        """The claim, refuted under either relation; later parts claim to add nothing."""
        del relation
        return Cost(
            event=ClaimEvent(self.epsilon if self.first else 0.0, 0.0),
            name=self.name,
            evidence=Evidence.REFUTED,
            assumptions=self.assumptions,
            sources=(replace(SOURCE, part="theorem 1 (does not hold)"),),
        )

    def __call__(self, rows: Rows, noise: NoiseSource) -> dict[str, NDArray[Any]]:
        """The weights by name, or the whole state; see `resumable`."""
        coins = noise.generator()
        training = _Training(self.build(), self.lr, self.ema, self.state)
        losses = np.zeros(self.steps, np.float32)
        for step in range(self.steps if len(rows) else 0):
            index = coins.integers(len(rows), size=self.batch)
            x = torch.from_numpy(rows["image"][index]).permute(0, 3, 1, 2).float() / 255
            y = torch.from_numpy(rows["label"][index])
            losses[step] = training.step(self._parts(training.net, x, y, coins))
        return training.tensors(losses) if self.resumable else training.weights()

    def _parts(self, net: nn.Module, x: Tensor, y: Tensor, coins: np.random.Generator) -> Iterator[Tensor]:
        """The loss of one batch, as shares that add up to it."""
        v = torch.from_numpy(coins.standard_normal(x.flatten(1).shape, dtype=np.float32))
        response = nearest_response(v, epsilon=self.epsilon, k=self.k, coins=coins)
        code = None
        if self.code is not None:
            code = self.code(x)
            code = code * torch.from_numpy(coins.random((len(x), 1, *code.shape[2:])) >= self.mask)
        if self.smooth:
            x = x + self.smooth * torch.from_numpy(coins.standard_normal(x.shape, dtype=np.float32))
        for start in range(0, len(x), self.physical):
            some = slice(start, start + self.physical)

            def field(z: Tensor, some: slice = some) -> Tensor:
                with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
                    return net(z, y[some], None if code is None else code[some]).float()

            yield perturbed_loss(field, x[some], v[some], response[some], loss=self.loss) * (len(x[some]) / len(x))


class _Training:
    """A network under Adam with averaged weights, as tensors that can be put away and taken up again."""

    def __init__(self, net: nn.Module, lr: float, ema: float, state: Mapping[str, NDArray[Any]] | None) -> None:
        self.net, self.ema = net, ema
        self.names = dict(net.named_parameters())
        self.done, self.taken, self.losses = 0, 0, np.zeros(0, np.float32)
        if state is not None:
            net.load_state_dict(_under(state, "net."))
            self.losses = np.array(state["loss"])
            self.done, self.taken = len(self.losses), int(state["taken"][0])
        self.mean = {k: t.clone() for k, t in net.state_dict().items()} if state is None else _under(state, "ema.")
        self.adam = torch.optim.Adam(self.names.values(), lr=lr)
        if state is not None:
            first, second = _under(state, "adam1."), _under(state, "adam2.")
            for name, p in self.names.items():
                if name in first:
                    step = torch.tensor(float(self.taken))  # steps that were left out do not count for Adam
                    kept = {"step": step, "exp_avg": first[name], "exp_avg_sq": second[name]}
                    self.adam.state[p] = kept

    def step(self, parts: Iterator[Tensor]) -> float:
        """Follow the gradient of a sum; one that is not finite is left out, and its loss is NaN."""
        self.adam.zero_grad()
        value = 0.0
        for part in parts:
            part.backward()
            value += part.item()
        norm = nn.utils.clip_grad_norm_(self.names.values(), 1.0)
        if finite := bool(torch.isfinite(norm)) and np.isfinite(value):
            self.adam.step()
            self.taken += 1
        self.done += 1
        decay = min(self.ema, self.done / (self.done + 10))
        with torch.no_grad():
            for name, new in self.net.state_dict().items():
                self.mean[name].lerp_(new, 1 - decay) if self.ema else self.mean[name].copy_(new)
        return value if finite else np.nan

    def weights(self) -> dict[str, NDArray[Any]]:
        """The averaged weights by name."""
        return {name: t.detach().numpy().copy() for name, t in self.mean.items()}

    def tensors(self, losses: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """All that is needed to go on, and the losses so far followed by `losses`."""
        out = {f"net.{name}": t.numpy().copy() for name, t in self.net.state_dict().items()}
        out |= {f"ema.{name}": t for name, t in self.weights().items()}
        for name, p in self.names.items():
            if p in self.adam.state:
                out[f"adam1.{name}"] = self.adam.state[p]["exp_avg"].numpy().copy()
                out[f"adam2.{name}"] = self.adam.state[p]["exp_avg_sq"].numpy().copy()
        return {**out, "taken": np.array([self.taken]), "loss": np.concatenate([self.losses, losses])}


def _under(state: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): torch.from_numpy(np.array(t)) for k, t in state.items() if k.startswith(prefix)}

"""Noisy sums of clipped per-record gradients over a Poisson sample: the step of DP-SGD."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dpgm.mechanisms.layers import is_separate
from dpgm.mechanisms.local_state import LocalState, values_of
from dpgm.mechanisms.per_record import Clip, Engine, Loss, clipped_gradient_sum, sensitivity
from dpgm.mechanisms.queries import RECORD_ALONE, Encoder, foreign
from dpgm.nets.classifiers import to_unit
from dpgm.privacy.guarantee import Evidence, PrivacyError, Relation, Source
from dpgm.privacy.mechanism import (
    REAL_ARITHMETIC,
    Array,
    Cost,
    GaussianEvent,
    NoiseSource,
    PoissonGaussianEvent,
)
from dpgm.schema import Rows


@runtime_checkable
class Task(Protocol):
    """What is differentiated: clipped gradients of chosen records, summed. Its attributes are public."""

    @property
    def bound(self) -> float:
        """The most that one record can add to the sum, in the L2 norm."""
        ...

    @property
    def evidence(self) -> Evidence:
        """How well it is founded that one record moves its own term only."""
        ...

    def assumptions(self) -> tuple[str, ...]:
        """What that rests on."""
        ...

    def clipped_sum(self, rows: Rows, chosen: NDArray[np.intp], noise: NoiseSource) -> Tensor:
        """The sum over the chosen records, `[p]`."""
        ...


@dataclass(frozen=True, kw_only=True)
class PoissonGradient:
    """(sum over a Poisson sample of clip_C(gradient) + N(0, (s C)^2 I)) / (q n), as float64 [p].

    Every record takes part by a coin of its own, fresh in every call and never shown. The divisor is the public number
    q n of the declared size n, never the size of the sample.

    **Guarantee**: the Poisson-subsampled Gaussian mechanism with rate q and noise multiplier s, under ADD_REMOVE; with
    q = 1 the Gaussian mechanism under either relation. A sampled gradient under REPLACE has no checked accounting
    here, and the accountant refuses it. Proof: docs/proofs/poisson-gradient.md; per-record state:
    docs/proofs/local-inference.md.
    **Source**: Abadi et al. 2016.
    **Differs from the paper**: sampling is really by independent coins, and the divisor is fixed.

    Attributes:
        rate: q in (0, 1], the probability of each record.
        noise_multiplier: s, noise relative to the task's bound C.
        size: n, the declared number of records.
        task: whose gradients; a mechanism without one only states its price.
        evidence: what the price claims about the task; a task with less is refused.
        name: what ledger and guarantee call this release.
        rests_on: assumptions beside those of the mechanism; a price without a task states those of the task, too.
    """

    rate: float
    noise_multiplier: float
    size: int
    task: Task | None = None
    evidence: Evidence = Evidence.PROVED
    name: str = "poisson-gradient"
    rests_on: tuple[str, ...] = ()
    source: ClassVar[Source] = Source(
        key="abadi2016deep",
        title="Deep Learning with Differential Privacy",
        authors="Abadi, Martin and Chu, Andy and Goodfellow, Ian and McMahan, H. Brendan and Mironov, Ilya and "
        "Talwar, Kunal and Zhang, Li",
        year=2016,
        where="CCS 2016, arXiv 1607.00133",
        part="algorithm 1",
    )

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise PrivacyError(f"rate is {self.rate}; allowed is a probability above 0 and at most 1, e.g. 0.05")
        if not (self.noise_multiplier > 0 and math.isfinite(self.noise_multiplier)):
            raise PrivacyError(
                f"noise_multiplier is {self.noise_multiplier}; allowed is a finite number above 0; calibrate it"
            )
        if self.size < 1:
            raise PrivacyError(f"size is {self.size}; declare the number of records, a round figure of 1 or more")
        if self.task is not None and self.task.evidence < self.evidence:
            raise PrivacyError(
                f"the task's evidence is {self.task.evidence.word}, but the price says {self.evidence.word}; "
                "state the weaker one, which needs --allow when it is refuted or unsupported"
            )

    def cost(self, relation: Relation) -> Cost:
        """The sampled event, or the plain Gaussian one for q = 1 (a replaced record moves the sum by 2C)."""
        more = () if self.task is None else self.task.assumptions()
        event = PoissonGaussianEvent(self.rate, self.noise_multiplier)
        if self.rate == 1:
            event = GaussianEvent(self.noise_multiplier / (1 if relation is Relation.ADD_REMOVE else 2))
        return Cost(
            event=event,
            name=self.name,
            evidence=self.evidence,
            sources=(self.source,),
            assumptions=tuple(dict.fromkeys((REAL_ARITHMETIC, *self.rests_on, *more))),
        )

    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        """The noisy mean gradient of one fresh sample."""
        if self.task is None:
            raise PrivacyError(f"'{self.name}' only states a price; give it a task before it is asked")
        chosen = np.flatnonzero(noise.coins(len(rows), self.rate))
        exact = self.task.clipped_sum(rows, chosen, noise).double().numpy()
        return (exact + noise.normal(exact.shape, self.noise_multiplier * self.task.bound)) / (self.rate * self.size)


def foreign_task(module: nn.Module, loss: Loss, *maps: object) -> tuple[str, ...]:
    """What a task assumes of its net, its loss and the maps before them; of the first two nothing where they are known.

    An engine that shows them one record at a time is no reason: they could keep something of one for the next.
    """
    torchs = getattr(functional, getattr(loss, "__name__", ""), None) is loss
    return foreign(*maps) if is_separate(module) and (torchs or not foreign(loss)) else (RECORD_ALONE,)


Inputs = Callable[[Tensor, Tensor, np.random.Generator], tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True, eq=False)
class ModuleGradient:
    """Clipped gradients of a module's loss on images or public features, and labels.

    The module may be trained between calls: its weights are made of releases.

    Attributes:
        module: the net; it must treat each record alone (see `clipped_gradient_sum`, which checks).
        loss: `loss(module, *inputs)` -> one loss for each row.
        clip_norm: C, or bounds of groups.
        encoder: public per-record features instead of pixels; computed once and kept with the rows (as bfloat16).
        state: where the features are kept.
        draws: noise draws or augmentations of a record, averaged before clipping.
        inputs: per-record map (x [b, ...], label [b], coins) -> inputs of the loss, each `[b * draws, ...]` with the
            draws of a record side by side; None passes x and label on. The coins are fresh and secret.
        engine: how gradients are computed.
        dtype: torch.bfloat16 for speed.
    """

    module: nn.Module
    loss: Loss
    clip_norm: Clip
    encoder: Encoder | None = None
    state: LocalState = field(default_factory=LocalState)
    draws: int = 1
    inputs: Inputs | None = None
    engine: Engine = "auto"
    dtype: torch.dtype = torch.float32

    @property
    def evidence(self) -> Evidence:
        """Proved, given the assumptions."""
        return Evidence.PROVED

    def assumptions(self) -> tuple[str, ...]:
        """That each record is treated alone, where this project did not make what treats it."""
        return foreign_task(self.module, self.loss, self.encoder, self.inputs)

    @property
    def bound(self) -> float:
        """C; sqrt(sum C_g^2) for groups."""
        return sensitivity(self.clip_norm)

    def clipped_sum(self, rows: Rows, chosen: NDArray[np.intp], noise: NoiseSource) -> Tensor:
        """The sum over the chosen records, `[p]`, in pieces of bounded memory."""
        coins = noise.generator()
        # An empty sample is one piece too: it has the shape of the answer, and nothing tells it from others.
        pieces = np.array_split(chosen, max(1, -(-len(chosen) // _PIECE)))
        return sum((self._piece(rows, p, coins) for p in pieces[1:]), start=self._piece(rows, pieces[0], coins))

    def _piece(self, rows: Rows, chosen: NDArray[np.intp], coins: np.random.Generator) -> Tensor:
        label = torch.from_numpy(rows["label"][chosen])
        if self.encoder is None:
            x = to_unit(rows["image"][chosen])
        else:
            x = values_of(self.state, rows, self._encode)[chosen]
        inputs = (x, label) if self.inputs is None else self.inputs(x, label, coins)
        if any(len(t) != self.draws * len(chosen) for t in inputs):  # each row too many would be clipped on its own
            raise PrivacyError(
                f"the inputs do not have draws = {self.draws} rows for each record, so one record could count several "
                "times; correct the map or draws"
            )
        return clipped_gradient_sum(
            self.loss,
            self.module,
            inputs,
            clip_norm=self.clip_norm,
            draws=self.draws,
            engine=self.engine,
            dtype=self.dtype,
        )

    def _encode(self, block: Rows) -> Tensor:
        assert self.encoder is not None
        return torch.from_numpy(self.encoder(block["image"])).bfloat16()


_PIECE = 2048
"""Records whose inputs stand in memory at once."""

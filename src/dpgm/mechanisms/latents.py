"""Where the latent codes of a decoder come from, and the clipped gradients of the decoder.

A code that listens to other records would let one record move everybody's gradient, and clipping would bound nothing.
So codes are taken only from a `LatentSource`, which states how well it is founded that this does not happen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpgm.mechanisms.gradient import foreign_task
from dpgm.mechanisms.local_state import LocalState, values_of
from dpgm.mechanisms.per_record import Clip, Engine, clipped_gradient_sum, sensitivity
from dpgm.mechanisms.queries import foreign
from dpgm.nets.classifiers import to_unit
from dpgm.nets.vae import Autoencoder, GaussianEncoder, evidence_loss, infer, reconstruction_loss
from dpgm.privacy.guarantee import Evidence, PrivacyError
from dpgm.privacy.mechanism import Array, NoiseSource
from dpgm.schema import Rows

Encode = Callable[[Tensor, Tensor], Tensor]
"""A map from images [b, c, h, w] and labels [b] to codes [b, latent], of each record alone."""

_PIECE = 1024
"""Records whose images stand in memory at once."""


@runtime_checkable
class LatentSource(Protocol):
    """Gives each record its code, and states its evidence."""

    @property
    def evidence(self) -> Evidence:
        """How well it is founded that a code depends on its own record, its own coins and releases only."""
        ...

    @property
    def provenance(self) -> str:
        """Where the map comes from, in a few words."""
        ...

    def begin(self, rows: Rows, coins: np.random.Generator) -> None:
        """Prepare for `rows`; called before codes are asked for."""
        ...

    def visit(self, rows: Rows, chosen: NDArray[np.intp], decoder: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Codes of the chosen records in training, `[b, latent]`."""
        ...

    def settle(self, decoder: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Codes of records given the finished decoder, from each record alone."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalInference:
    """Every record fits its own code against the decoder that was released so far, and keeps it.

    **Guarantee**: free beside the decoder's gradients (docs/proofs/local-inference.md).

    Attributes:
        latent: length of a code.
        start: first codes, by a public or released map; None for zeros.
        steps: gradient steps at a visit.
        step_size: length of a step for a gradient of norm 1.
        cap: largest gradient norm.
        final_steps: steps when the decoder is finished.
        state: where the codes are kept.
    """

    latent: int
    start: Encode | None = None
    steps: int = 6
    step_size: float = 0.05
    cap: float = 10.0
    final_steps: int = 60
    state: LocalState = field(default_factory=LocalState)

    @property
    def evidence(self) -> Evidence:
        """Proved: Lemma L."""
        return Evidence.PROVED

    @property
    def provenance(self) -> str:
        """Record-local."""
        return "each record infers its own code"

    def begin(self, rows: Rows, coins: np.random.Generator) -> None:
        """Give every record its first code."""
        values_of(self.state, rows, self._first_of)

    def visit(self, rows: Rows, chosen: NDArray[np.intp], decoder: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Improve the kept codes a little."""
        kept = values_of(self.state, rows, self._first_of)
        z = self._improve(decoder, kept[chosen], y, x, self.steps)
        kept[chosen] = z
        return z

    def settle(self, decoder: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """From the first code to the posterior mode, without the kept codes."""
        return self._improve(decoder, self._first(x, y), y, x, self.final_steps)

    def _first(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.zeros(len(x), self.latent) if self.start is None else self.start(x, y)

    def _first_of(self, block: Rows) -> Tensor:
        return self._first(to_unit(block["image"]), torch.from_numpy(block["label"]))

    def _improve(self, decoder: nn.Module, z: Tensor, y: Tensor, x: Tensor, steps: int) -> Tensor:
        moved = infer(decoder, z, y, x, steps=steps, step_size=self.step_size, cap=self.cap)
        return torch.where(torch.isfinite(moved).all(1, keepdim=True), moved, z)


@dataclass(frozen=True, kw_only=True, eq=False)
class FixedEncoder:
    """A map that was made without the records, or of releases whose price the ledger holds.

    Attributes:
        encode: gives the codes.
        provenance: which public data, or which releases, it was made of.
    """

    encode: Encode
    provenance: str

    @property
    def evidence(self) -> Evidence:
        """Proved, given its provenance."""
        return Evidence.PROVED

    def begin(self, rows: Rows, coins: np.random.Generator) -> None:
        """Nothing to prepare."""

    def visit(self, rows: Rows, chosen: NDArray[np.intp], decoder: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The map's codes."""
        return self.settle(decoder, x, y)

    def settle(self, decoder: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The map's codes."""
        with torch.no_grad():
            return self.encode(x, y)


_trained: WeakKeyDictionary[LocalState, tuple[Rows, GaussianEncoder]] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseFreeEncoder:
    """An encoder trained on the private records without noise, as DP²-VAE publishes it. It protects nobody.

    One record moves the encoder, the encoder moves every record's code, and so every record's clipped gradient, at
    every step (docs/proofs/local-inference.md, "Where it fails"). It is here to be refuted.

    Attributes:
        first: the untrained encoder and decoder; they are copied, not changed.
        epochs: passes over the records.
        lr: learning rate.
        batch: records a step.
        state: token of the trained encoder, which stays with the rows.
    """

    first: Autoencoder
    epochs: int = 10
    lr: float = 1e-3
    batch: int = 128
    state: LocalState = field(default_factory=LocalState)

    @property
    def evidence(self) -> Evidence:
        """Refuted: one replaced digit moves the sum by 3 C and more."""
        return Evidence.REFUTED

    @property
    def provenance(self) -> str:
        """What is wrong with it."""
        return "an encoder trained without noise on the private records"

    def begin(self, rows: Rows, coins: np.random.Generator) -> None:
        """Train on `rows`, once."""
        held = _trained.get(self.state)
        if held is not None and held[0] is rows:
            return
        model = copy.deepcopy(self.first)
        optimiser = torch.optim.Adam(model.parameters(), lr=self.lr)
        for _ in range(self.epochs):
            order = coins.permutation(len(rows))
            for part in np.array_split(order, max(1, len(rows) // self.batch)):
                x, y = to_unit(rows["image"][part]), torch.from_numpy(rows["label"][part])
                noise = coins.standard_normal((len(part), model.encoder.latent), dtype=np.float32)
                optimiser.zero_grad()
                evidence_loss(model, x, y, torch.from_numpy(noise)).mean().backward()
                optimiser.step()
        _trained[self.state] = (rows, model.encoder.requires_grad_(False))

    def visit(self, rows: Rows, chosen: NDArray[np.intp], decoder: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The trained encoder's mean codes."""
        return self.settle(decoder, x, y)

    def settle(self, decoder: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The trained encoder's mean codes."""
        if self.state not in _trained:
            raise PrivacyError("the noise-free encoder is gone with the process that trained it; start the run anew")
        with torch.no_grad():
            return _trained[self.state][1](x, y)[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class DecoderGradient:
    """Clipped gradients of a decoder's reconstruction loss, at codes from a source that states its evidence.

    Attributes:
        decoder: maps codes and labels to images.
        source: where the codes come from; anything but a `LatentSource` is refused.
        clip_norm: C, or bounds of groups.
        draws: jittered copies of a code, averaged inside a record before clipping.
        jitter: standard deviation of the noise on a code when the gradient is taken.
        engine: how gradients are computed.
        dtype: torch.bfloat16 for speed.
    """

    decoder: nn.Module
    source: LatentSource
    clip_norm: Clip
    draws: int = 1
    jitter: float = 0.1
    engine: Engine = "auto"
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        check_source(self.source)

    @property
    def bound(self) -> float:
        """C; sqrt(sum C_g^2) for groups."""
        return sensitivity(self.clip_norm)

    @property
    def evidence(self) -> Evidence:
        """That of the codes."""
        return self.source.evidence

    def assumptions(self) -> tuple[str, ...]:
        """That codes and gradients are of each record alone, where this project did not make what gives them; where a
        map of codes comes from elsewhere, its provenance, too.
        """
        found = foreign_task(self.decoder, reconstruction_loss, self.source)
        if isinstance(self.source, FixedEncoder) and foreign(self.source.encode):
            found = (*found, f"the map to codes knows the records by what was paid for only ({self.source.provenance})")
        return found

    def clipped_sum(self, rows: Rows, chosen: NDArray[np.intp], noise: NoiseSource) -> Tensor:
        """The sum over the chosen records, `[p]`."""
        coins = noise.generator()
        self.source.begin(rows, coins)
        pieces = np.array_split(chosen, max(1, -(-len(chosen) // _PIECE)))
        return sum((self._piece(rows, p, coins) for p in pieces[1:]), start=self._piece(rows, pieces[0], coins))

    def _piece(self, rows: Rows, chosen: NDArray[np.intp], coins: np.random.Generator) -> Tensor:
        x, y = to_unit(rows["image"][chosen]), torch.from_numpy(rows["label"][chosen])
        z = self.source.visit(rows, chosen, self.decoder, x, y)
        z, y, x = (t.repeat_interleave(self.draws, 0) for t in (z, y, x))
        z = z + self.jitter * torch.from_numpy(coins.standard_normal(tuple(z.shape), dtype=np.float32))
        return clipped_gradient_sum(
            reconstruction_loss,
            self.decoder,
            (z, y, x),
            clip_norm=self.clip_norm,
            draws=self.draws,
            engine=self.engine,
            dtype=self.dtype,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SettledCodes:
    """Codes of a block of rows given the finished decoder, as `CodeMoments` wants them.

    Attributes:
        decoder: the finished decoder.
        source: where the codes come from.
    """

    decoder: nn.Module
    source: LatentSource

    def __post_init__(self) -> None:
        check_source(self.source)

    def __call__(self, rows: Rows) -> Array:
        """Codes [b, latent]."""
        x, y = to_unit(rows["image"]), torch.from_numpy(rows["label"])
        return self.source.settle(self.decoder, x, y).double().numpy()


@dataclass(frozen=True, kw_only=True, eq=False)
class AboutLaws:
    """Codes of a block of rows in the frame of the law that was released for their class: A_y (z - m_y).

    Attributes:
        codes: gives z.
        means: m [k, latent].
        frames: A [k, latent, latent].
    """

    codes: SettledCodes
    means: Array
    frames: Array

    def __call__(self, rows: Rows) -> Array:
        """Codes [b, latent]; those of labels outside 0..k-1, which count nowhere, are 0."""
        z, y = self.codes(rows), rows["label"]
        known = (y >= 0) & (y < len(self.means))
        out = np.zeros_like(z)
        out[known] = np.einsum("nij,nj->ni", self.frames[y[known]], z[known] - self.means[y[known]])
        return out


def check_source(source: object) -> None:
    """Raise unless `source` states its evidence.

    Raises:
        PrivacyError: for a plain net or function.
    """
    if isinstance(source, nn.Module) or not isinstance(source, LatentSource):
        raise PrivacyError(
            f"latent codes from a plain {type(source).__name__} are refused: nothing says which records it heard; use "
            " LocalInference, or FixedEncoder with its provenance"
        )

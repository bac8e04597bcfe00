"""The protocols of the private side: events and costs, queries, mechanisms, and the source of noise."""

from __future__ import annotations

import dataclasses
import math
import os
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from dpgm.privacy.guarantee import Evidence, PrivacyError, Relation, Source
from dpgm.schema import Rows

Array: TypeAlias = NDArray[np.float64]
R_co = TypeVar("R_co", covariant=True)


# ---------------------------------------------------------------------------------------------------------------------
# Events: what happened, in the unit of the ledger's relation. An event's meaning never changes; new meaning, new class.


class _Checked:
    """Numbers that make no sense are refused: a price of NaN or below 0 would pass every comparison with a cap."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, f.name)
            allowed, fits = _ALLOWED[f.name]
            if not fits(value):
                raise PrivacyError(f"{f.name} of {type(self).__name__} is {value}; allowed is {allowed}")
            if f.name not in _WHOLE:  # the file and the cache know plain floats only
                object.__setattr__(self, f.name, float(value))


_WHOLE = ("sensitivity", "slices", "records")
_ALLOWED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "noise_multiplier": ("a finite number above 0", lambda v: 0 < v < math.inf),
    "sigma": ("a finite number above 0", lambda v: 0 < v < math.inf),
    "rate": ("a probability above 0 and at most 1", lambda v: 0 < v <= 1),
    "sensitivity": ("a whole number above 0", lambda v: type(v) is int and v > 0),
    "records": ("a whole number above 0", lambda v: type(v) is int and v > 0),
    "slices": ("a whole number above 0", lambda v: type(v) is int and v > 0),
    "rho": ("a finite number above 0", lambda v: 0 < v < math.inf),
    "epsilon": ("0 or a finite number above", lambda v: 0 <= v < math.inf),
    "delta": ("a number from 0 to 1", lambda v: 0 <= v <= 1),
}


@dataclass(frozen=True)
class GaussianEvent(_Checked):
    """One Gaussian release whose noise is `noise_multiplier` times the L2 sensitivity (mu = 1/noise_multiplier)."""

    noise_multiplier: float


@dataclass(frozen=True)
class PoissonGaussianEvent(_Checked):
    """One Gaussian release of a sum over a Poisson sample: each record takes part with probability `rate`.

    Defined for ADD_REMOVE only.
    """

    rate: float
    noise_multiplier: float


@dataclass(frozen=True)
class DiscreteGaussianEvent(_Checked):
    """Discrete Gaussian noise of parameter `sigma` on integers where one coordinate moves by at most `sensitivity`."""

    sigma: float
    sensitivity: int


@dataclass(frozen=True)
class SlicedGaussianEvent(_Checked):
    """Gaussian noise behind `slices` random directions of N(0, 1) entries, published with the answer.

    `noise_multiplier` is s / c: noise std over the largest shift of the vector before projection.
    """

    noise_multiplier: float
    slices: int


@dataclass(frozen=True)
class ShuffledGaussianEvent(_Checked):
    """Gaussian noise of `noise_multiplier` times the largest shift on each of `records` records or more, whose noisy
    rows are published in random order.

    Defined for REPLACE only.
    """

    noise_multiplier: float
    records: int


@dataclass(frozen=True)
class ZeroConcentratedEvent(_Checked):
    """A mechanism proved to be rho-zCDP (Bun and Steinke, 2016)."""

    rho: float


@dataclass(frozen=True)
class BoundedRangeEvent(_Checked):
    """A choice whose privacy loss lies in an interval of length `epsilon`, as the exponential mechanism's does."""

    epsilon: float


@dataclass(frozen=True)
class PureEvent(_Checked):
    """A mechanism proved to be (epsilon, 0)-DP."""

    epsilon: float


@dataclass(frozen=True)
class ClaimEvent(_Checked):
    """A bare statement (epsilon, delta); it composes by addition only."""

    epsilon: float
    delta: float


Event: TypeAlias = (
    GaussianEvent
    | PoissonGaussianEvent
    | DiscreteGaussianEvent
    | SlicedGaussianEvent
    | ShuffledGaussianEvent
    | ZeroConcentratedEvent
    | BoundedRangeEvent
    | PureEvent
    | ClaimEvent
)

REAL_ARITHMETIC = "real arithmetic (floating-point noise stands for real noise)"
PUBLIC_NUMBER = "the number of records is public"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The price tag of one access.

    Attributes:
        event: what the access is, relative to its sensitivity under the ledger's relation.
        name: the mechanism's name.
        evidence: how well the price is founded.
        sources: literature or proof page.
        assumptions: what must hold beside the theorem.
    """

    event: Event
    name: str
    evidence: Evidence = Evidence.PROVED
    sources: tuple[Source, ...] = ()
    assumptions: tuple[str, ...] = (REAL_ARITHMETIC,)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as the ledger keeps them."""
        return {
            "name": self.name,
            "event": type(self.event).__name__,
            **dataclasses.asdict(self.event),
            "evidence": self.evidence.word,
            "assumptions": list(self.assumptions),
            "sources": [dataclasses.asdict(s) for s in self.sources],
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Cost:
        """Read back what `to_json` wrote.

        Raises:
            PrivacyError: an event that this version does not know.
        """
        known = {kind.__name__: kind for kind in typing.get_args(Event)}
        if (kind := known.get(value["event"])) is None:
            raise PrivacyError(f"the ledger holds the event '{value['event']}'; known are {sorted(known)}; update dpgm")
        return Cost(
            event=kind(**{f.name: value[f.name] for f in dataclasses.fields(kind)}),
            name=value["name"],
            evidence=Evidence[value["evidence"].upper()],
            assumptions=tuple(value["assumptions"]),
            sources=tuple(Source(**s) for s in value["sources"]),
        )


def evidence_of(query: object) -> Evidence:
    """How well a query's sensitivity is founded, for the price of noise on it.

    PROVED for this project's own queries, each of which has its page. Another query says it by an attribute `evidence`;
    one that says nothing is CLAIMED: noise of the right law on an unproved sensitivity proves nothing.
    """
    stated = getattr(query, "evidence", None)
    if isinstance(stated, Evidence):
        return stated
    return Evidence.PROVED if type(query).__module__.partition(".")[0] == "dpgm" else Evidence.CLAIMED


# ---------------------------------------------------------------------------------------------------------------------
# Queries and mechanisms: fields are public, call arguments are private.


@runtime_checkable
class Query(Protocol):
    """A deterministic sum over records. It is a frozen value; only `partial` sees rows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the answer: public, known before any row is read."""
        ...

    def partial(self, rows: Rows) -> Array:
        """The sum over one block of rows; the answer is the sum of the partial sums."""
        ...

    def sensitivity(self, relation: Relation, norm: int = 2) -> float:
        """The most that the sum can move between neighbours, in the L1 (`norm=1`) or L2 (`norm=2`) norm."""
        ...

    def assumptions(self) -> tuple[str, ...]:
        """What the sensitivity rests on beside the proof, e.g. the public data that a feature map was trained on."""
        ...


@runtime_checkable
class Mechanism(Protocol[R_co]):
    """A frozen value that states its price before it runs."""

    def cost(self, relation: Relation) -> Cost:
        """The price of one call under `relation`."""
        ...

    def __call__(self, rows: Rows, noise: NoiseSource) -> R_co:
        """The noisy answer."""
        ...


# ---------------------------------------------------------------------------------------------------------------------
# Noise


class NoiseSource:
    """Privacy noise from the operating system's entropy; it has no seed and no state to save.

    A normal variate is the scaled sum of `TERMS` independent ones, which hides the floating-point pattern that a
    single variate carries (Holohan and Braghin 2021, arXiv 2107.10138).
    """

    seeded = False
    TERMS = 4
    _CHUNK = 1 << 20

    def bits(self, n: int) -> NDArray[np.uint64]:
        """`n` independent 64-bit words."""
        return np.frombuffer(os.urandom(8 * n), dtype=np.uint64)

    def uniform(self, n: int) -> Array:
        """`n` uniform variates in the open interval (0, 1): a multiple of 2^-52 plus half a step."""
        # 52 bits, not 53: the half must survive rounding, or the largest value is 1 and its normal quantile infinite.
        return ((self.bits(n) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52

    def normal(self, shape: int | tuple[int, ...], std: float = 1.0) -> Array:
        """Independent N(0, std^2) variates of `shape`."""
        n = int(np.prod(shape))
        out = np.zeros(n)
        for start in range(0, n, self._CHUNK):
            part = out[start : start + self._CHUNK]
            for _ in range(self.TERMS):
                part += ndtri(self.uniform(len(part)))
        out *= std / np.sqrt(self.TERMS)
        return out.reshape(shape)

    def coins(self, n: int, rate: float) -> NDArray[np.bool_]:
        """`n` independent coins that fall True with probability `rate`."""
        return self.uniform(n) < rate

    def gamma(self, shape: int, n: int) -> Array:
        """`n` independent variates of Gamma(`shape`, 1), `shape` a whole number: sums of as many exponential ones."""
        out = np.zeros(n)
        for i in range(n):
            for start in range(0, shape, self._CHUNK):
                out[i] -= np.log(self.uniform(min(self._CHUNK, shape - start))).sum()
        return out

    def generator(self) -> np.random.Generator:
        """A numpy generator with 256 bits of fresh entropy, for coins inside a record, which nobody sees.

        Never for noise: whoever knows the records behind some of the answer knows the noise on it, and draws of a
        generator tell the next ones.
        """
        seed = np.random.SeedSequence([int(w) for w in self.bits(4)], pool_size=8)
        return np.random.Generator(np.random.PCG64DXSM(seed))


class SeededNoise(NoiseSource):
    """A reproducible stream for tests and audits. A guarantee under it is UNSUPPORTED: whoever knows the seed removes
    the noise.
    """

    seeded = True

    def __init__(self, seed: int) -> None:
        self._stream = np.random.PCG64DXSM(seed)

    def bits(self, n: int) -> NDArray[np.uint64]:
        """`n` 64-bit words of the seeded stream."""
        return self._stream.random_raw(n).astype(np.uint64, copy=False)


Reader: TypeAlias = Callable[[], Rows]
Json: TypeAlias = Any

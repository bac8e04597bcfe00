"""Deterministic sums over records, each of which answers how far one record can move it.

All sums run block by block in float64, so that memory does not grow with the number of rows and another engine can
compute the partial sums (`total(..., map_fn=pool.imap)`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dpgm.privacy.guarantee import PrivacyError, Relation
from dpgm.privacy.mechanism import Array, Query
from dpgm.schema import Rows

BLOCK = 1000
"""Rows in one partial sum: large enough to be fast, small enough for feature maps of some 10,000 numbers."""

_NUMBERS, LEAST = 2_000_000, 100
"""Numbers in a block of vectors, about; rows in it, at least."""
_LEAST = 1e-300
_PLAIN = (1e-100, 1e100)
"""Bounds for which squares in float64 neither overflow unseen nor vanish where they count."""

MapFn = Callable[[Callable[[Rows], Array], Iterable[Rows]], Iterable[Array]]


def total(query: Query, rows: Rows, *, block: int | None = None, map_fn: MapFn = map) -> Array:
    """The answer of `query`: the sum of its partial sums over blocks of rows.

    Args:
        query: the sum to compute.
        rows: private rows; zero rows give zeros.
        block: rows in one partial sum; None for what the query says (`query.block`), else for `BLOCK`, or fewer where
            the answer is long, so that memory is bounded.
        map_fn: how partial sums are computed: `map`, or the like of a pool or cluster.
    """
    block = block or getattr(query, "block", None)
    if block is None:
        block = max(LEAST, min(BLOCK, _NUMBERS // max(1, *query.shape[-1:])) // LEAST * LEAST)
    answer = np.zeros(query.shape)
    for part in map_fn(query.partial, rows.blocks(block)):
        if part.shape != query.shape:  # adding would repeat a short one over many coordinates
            raise PrivacyError(
                f"a partial sum has shape {part.shape}; the query declares {query.shape}; correct either"
            )
        answer += part
    return answer


@runtime_checkable
class Encoder(Protocol):
    """A public, per-record feature map of images; queries clip what it returns, so no bound depends on it.

    Attributes:
        name: what it is, e.g. "scattering".
        dim: length D of a feature vector.
        nonnegative: True promises non-negative features; queries enforce it by cutting negative values off.
        assumptions: what its use rests on, e.g. the public data it was trained on.
    """

    @property
    def name(self) -> str:
        """What it is."""
        ...

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        ...

    @property
    def nonnegative(self) -> bool:
        """Whether features are never negative."""
        ...

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What its use rests on."""
        ...

    def __call__(self, images: NDArray[np.uint8], /) -> Array:
        """Features [b, D] of images [b, height, width, channels]."""
        ...


def clip_rows(vectors: NDArray[Any], bound: float, *, nonnegative: bool = False) -> Array:
    """Each row scaled down to L2 norm at most `bound`; rows that are not finite become zero.

    Args:
        vectors: [b, D].
        bound: largest norm, 1e-300 or more.
        nonnegative: cut negative values off first.

    Returns:
        float64 [b, D] with norms at most `bound`.

    Raises:
        PrivacyError: a smaller bound.
    """
    if not bound >= _LEAST:
        raise PrivacyError(f"the bound is {bound}; allowed is {_LEAST:g} or more: below, float64 has too few digits")
    out = np.array(vectors, dtype=np.float64)
    if nonnegative:
        np.maximum(out, 0.0, out=out)
    limit = bound * (1 - 1e-12)  # a hair below the bound: rounding must not lift a row above it
    with np.errstate(over="ignore", invalid="ignore"):
        square = np.vecdot(out, out)
    if _PLAIN[0] < bound < _PLAIN[1] and np.isfinite(square).all():
        over = square > limit**2
        if over.any():  # all rows in place: picking those that are over costs more than it saves
            out *= np.where(over, limit / np.sqrt(np.where(over, square, 1.0)), 1.0)[:, None]
        return out
    out[~np.isfinite(out).all(axis=1)] = 0.0
    largest = np.abs(out).max(axis=1, keepdims=True, initial=0.0)
    # In units of the bound, or of the largest entry if that is larger: no square overflows and none that counts
    # vanishes. A power of two, so that rows within the bound come back as they are.
    unit = np.ldexp(0.5, np.frexp(np.maximum(largest, limit))[1])
    out /= unit
    norm = np.sqrt((out**2).sum(axis=1, keepdims=True))
    over = norm > limit / unit
    out *= np.where(over, limit / np.where(over, norm, 1.0), unit)
    return out


@dataclass(frozen=True, kw_only=True)
class ClippedSum:
    """The sum over records of a vector that is clipped to norm `clip_norm`: sum_i clip(v(x_i), C).

    Proof: docs/proofs/clipped-sum.md.

    Attributes:
        vectors: per-record map from a block of rows to [b, dim]; it must treat each record alone.
        dim: length of a vector.
        clip_norm: C, above 0.
        nonnegative: cut negative entries off, which lowers the sensitivity under REPLACE.
        rests_on: assumptions of `vectors`.
    """

    vectors: Callable[[Rows], NDArray[Any]]
    dim: int
    clip_norm: float
    nonnegative: bool = False
    rests_on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _positive("clip_norm", self.clip_norm)
        _whole("dim", self.dim)

    @property
    def shape(self) -> tuple[int, ...]:
        """(dim,)."""
        return (self.dim,)

    def partial(self, rows: Rows) -> Array:
        """Sum of the clipped vectors of one block."""
        vectors = one_each(self.vectors(rows), (len(rows), self.dim))
        return clip_rows(vectors, self.clip_norm, nonnegative=self.nonnegative).sum(axis=0)

    def sensitivity(self, relation: Relation, norm: int = 2) -> float:
        """C under ADD_REMOVE; 2C under REPLACE, or sqrt(2) C for non-negative vectors (L2; L1 costs sqrt(dim))."""
        replaced = math.sqrt(2) if self.nonnegative else 2.0
        factor = 1.0 if relation is Relation.ADD_REMOVE else replaced
        return factor * self.clip_norm * _norm_factor(norm, self.dim)

    def assumptions(self) -> tuple[str, ...]:
        """What the vectors rest on."""
        return (*self.rests_on, *foreign(self.vectors))


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """The number of records with each value 0..bins-1 of an integer column: sum_i onehot(column_i).

    Proof: docs/proofs/histogram.md.

    Attributes:
        column: name of an integer column.
        bins: number of values, public; other values count nowhere.
    """

    column: str
    bins: int

    def __post_init__(self) -> None:
        _whole("bins", self.bins)

    @property
    def shape(self) -> tuple[int, ...]:
        """(bins,)."""
        return (self.bins,)

    def partial(self, rows: Rows) -> Array:
        """Counts of one block."""
        values = one_each(rows[self.column], (len(rows),))
        inside = values[(values >= 0) & (values < self.bins)].astype(np.int64)
        return np.bincount(inside, minlength=self.bins).astype(np.float64)

    def sensitivity(self, relation: Relation, norm: int = 2) -> float:
        """ADD_REMOVE: 1 in either norm. REPLACE: one count falls, another rises: 2 in L1, sqrt(2) in L2."""
        _norm_factor(norm, 1)
        if relation is Relation.ADD_REMOVE:
            return 1.0
        return 2.0 if norm == 1 else math.sqrt(2)

    def assumptions(self) -> tuple[str, ...]:
        """None: bins are declared."""
        return ()


@dataclass(frozen=True, kw_only=True)
class MeanEmbedding:
    """Class-wise sums of clipped features with riding class counts: sum_i onehot(y_i) (x) (clip(phi(x_i), B), c0).

    One release of it serves means and counts at once: dividing a row by its last column / c0 gives the class mean.

    Proof: docs/proofs/mean-embedding.md.

    Attributes:
        encoder: public feature map phi, D numbers a record.
        n_classes: k, public.
        bound: B, above 0.
        count_weight: c0, above 0; c0 = 0.1 costs 0.5 % more noise.
    """

    encoder: Encoder
    n_classes: int
    bound: float = 1.0
    count_weight: float = 0.1

    def __post_init__(self) -> None:
        _positive("bound", self.bound)
        _positive("count_weight", self.count_weight)
        _whole("n_classes", self.n_classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """(k, D + 1); the last column holds c0 times the class count."""
        return (self.n_classes, self.encoder.dim + 1)

    def partial(self, rows: Rows) -> Array:
        """Sum of one block; labels outside 0..k-1 count nowhere."""
        label = one_each(rows["label"], (len(rows),))
        order = np.argsort(label, kind="stable")  # a class lies together, so that its sum reads each number once
        ends = np.searchsorted(label[order], np.arange(self.n_classes + 1))
        phi = one_each(self.encoder(rows["image"][order]), (len(rows), self.encoder.dim))
        phi = clip_rows(phi, self.bound, nonnegative=self.encoder.nonnegative)
        out = np.empty(self.shape)
        for sums, start, end in zip(out, ends[:-1], ends[1:], strict=True):
            sums[:-1] = phi[start:end].sum(axis=0)
            sums[-1] = self.count_weight * (end - start)
        return out

    def sensitivity(self, relation: Relation, norm: int = 2) -> float:
        """ADD_REMOVE: sqrt(B^2 + c0^2). REPLACE: the larger of one label kept (2B, or sqrt(2) B for non-negative
        features) and label changed, sqrt(2 (B^2 + c0^2)). L2 only.
        """
        if norm != 2:
            raise PrivacyError("a mean embedding has an L2 sensitivity only; use Gaussian or KNorm noise, not Laplace")
        one = math.hypot(self.bound, self.count_weight)
        if relation is Relation.ADD_REMOVE:
            return one
        same_label = (math.sqrt(2) if self.encoder.nonnegative else 2.0) * self.bound
        return max(same_label, math.sqrt(2) * one)

    def assumptions(self) -> tuple[str, ...]:
        """What the encoder rests on."""
        return (*self.encoder.assumptions, *foreign(self.encoder))


RECORD_ALONE = (
    "the map of records to vectors treats each record alone, and was made without the private records or of releases"
)
"""What a map that is not this project's must keep; clipping cannot see it, and `check_query` only tests it."""


def foreign(*maps: object) -> tuple[str, ...]:
    """`RECORD_ALONE`, if one of the maps, or a map that it is made of, is not this project's; None is no map."""
    return () if all(map(_own, maps)) else (RECORD_ALONE,)


def _root(thing: object) -> str:
    """The package whose code a function or class is; functools.wraps gives a function another's `__module__`."""
    code = getattr(thing, "__globals__", None)
    return ((code or {}).get("__name__") or getattr(thing, "__module__", None) or "").partition(".")[0]


def hooked(net: Any) -> bool:
    """Whether something was hooked into a net: a hook runs anybody's code in a layer of a known kind."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(layer, kind, None) for layer in net.modules() for kind in kinds)


def _own(thing: Any) -> bool:
    if thing is None:
        return True
    if _root(thing) != "dpgm":
        return False
    if hasattr(thing, "forward") and not all(_root(part) in ("dpgm", "torch") for part in thing.modules()):
        return False
    if hasattr(thing, "forward") and hooked(thing):
        return False
    parts = vars(thing).values() if dataclasses.is_dataclass(thing) else ()
    return all(_own(p) for p in parts if _is_map(p))


def _is_map(thing: object) -> bool:
    """Functions and objects of classes that may be called, nets among them."""
    return (callable(thing) or dataclasses.is_dataclass(thing)) and not isinstance(thing, type)


def one_each(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """`values`, if every record has its one entry: with another shape a record would count more than once."""
    if values.shape != shape:
        raise PrivacyError(
            f"the rows of a block gave an array with {values.ndim} axes ending in {values.shape[1:]}; allowed is one "
            f"entry of shape {shape[1:]} for each record; correct the column, the feature map or the declared dim"
        )
    return values


def _whole(name: str, value: int) -> None:
    if value < 1:
        raise PrivacyError(f"{name} is {value}; allowed is a whole number, 1 or more")


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise PrivacyError(f"{name} is {value}; allowed is a finite number above 0")


def _norm_factor(norm: int, dim: int) -> float:
    """|v|_1 <= sqrt(dim) |v|_2."""
    if norm not in (1, 2):
        raise PrivacyError(f"norm is {norm}; allowed is 1 or 2")
    return math.sqrt(dim) if norm == 1 else 1.0

"""The words of a promise: relation, evidence, budget, source, guarantee."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from numbers import Real
from typing import Any


class PrivacyError(ValueError):
    """A request that would break, overstate or lose a privacy guarantee."""


class BudgetExceeded(PrivacyError):
    """A plan that costs more than the ledger's cap."""


class Relation(Enum):
    """Which data sets count as neighbours."""

    ADD_REMOVE = "add/remove one"
    """One record is added or removed; the number of records is protected."""
    REPLACE = "replace one"
    """One record is replaced by any other; the number of records is public."""


class Evidence(IntEnum):
    """How well a promise is founded; `min` over the parts names the whole."""

    REFUTED = 0
    """An attack or a counterexample on record beats the claim."""
    UNSUPPORTED = 1
    """Nobody gives an argument that covers what was run."""
    CLAIMED = 2
    """A paper says so; not checked here."""
    PROVED = 3
    """A proof in docs/proofs, and the code was read against it."""

    @property
    def word(self) -> str:
        """The lower-case word that artefacts and headlines print."""
        return self.name.lower()


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a method, mechanism or proof comes from.

    Attributes:
        key: BibTeX key.
        title: full title.
        authors: authors as BibTeX writes them.
        year: year of publication.
        where: venue, arXiv number or page of this project's docs.
        part: theorem, algorithm or equation, if one is meant.
    """

    key: str
    title: str
    authors: str
    year: int
    where: str
    part: str = ""

    def bibtex(self) -> str:
        """The BibTeX entry."""
        note = f",\n  note = {{{self.part}}}" if self.part else ""
        return (
            f"@misc{{{self.key},\n  title = {{{self.title}}},\n  author = {{{self.authors}}},\n"
            f"  year = {{{self.year}}},\n  howpublished = {{{self.where}}}{note}\n}}"
        )


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that may be promised away.

    Attributes:
        epsilon: privacy loss, a finite number above 0.
        delta: slack, from 0 to below 1 and far below 1/records; 0 asks for pure differential privacy.

    Raises:
        PrivacyError: numbers outside these ranges.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        for name, value in (("epsilon", self.epsilon), ("delta", self.delta)):
            if not isinstance(value, Real) or isinstance(value, bool):
                raise PrivacyError(f"{name} is {value!r}; allowed is a number")
            object.__setattr__(self, name, float(value))  # numpy's numbers cannot be written to a ledger
        if not (self.epsilon > 0 and math.isfinite(self.epsilon)):
            raise PrivacyError(f"epsilon is {self.epsilon}; allowed is a finite number above 0, usually 0.1 to 10")
        if not 0 <= self.delta < 1:
            raise PrivacyError(f"delta is {self.delta}; allowed is 0 (pure) or a number far below 1/records, e.g. 1e-5")


def large_delta(delta: float, size: int | None) -> str:
    """A warning, where delta is so large that the promise is next to none; else ""."""
    if size is None or delta * size < 1:
        return ""
    return (
        f"delta {delta:g} is not below 1/{size:,}: it would allow publishing a record at random; give a smaller "
        "delta, or leave it out"
    )


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """A promise about everything that was computed from private rows, with all that it rests on.

    For all neighbours D, D' under `relation` and all events E:
    Pr[M(D) in E] <= exp(epsilon) Pr[M(D') in E] + delta, as far as `evidence` says.

    Attributes:
        relation: which data sets are neighbours.
        unit: what one neighbour step changes, e.g. "record".
        epsilon: the privacy loss; infinite when exposures made it void.
        delta: the slack.
        evidence: the weakest evidence of any part.
        mechanisms: names of the mechanisms that touched the rows.
        sources: their literature.
        assumptions: what must hold beside the theorem.
        exposures: reasons of non-private looks at the rows; they are *not* covered by epsilon.
    """

    relation: Relation
    unit: str
    epsilon: float
    delta: float
    evidence: Evidence
    mechanisms: tuple[str, ...]
    sources: tuple[Source, ...] = ()
    assumptions: tuple[str, ...] = ()
    exposures: tuple[str, ...] = ()

    def headline(self) -> str:
        """One line that may stand alone: epsilon never travels without what it means."""
        price = f"epsilon {ceil_digits(self.epsilon)}, delta {ceil_digits(self.delta, 6)}"
        word = "REFUTED" if self.evidence is Evidence.REFUTED else self.evidence.word
        line = f"{price}, {self.relation.value} {self.unit}: {word}"
        if self.evidence is Evidence.REFUTED:
            line += " (an attack beats this claim: no guarantee)"
        elif self.evidence is Evidence.UNSUPPORTED:
            line += " (no argument covers this run: do not rely on it)"
        if self.assumptions:
            line += f", assuming {'; '.join(self.assumptions)}"
        if self.exposures:
            line += f". NOT PRIVATE beside it: {'; '.join(self.exposures)}"
        return line

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the headline."""
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "relation": self.relation.value,
            "unit": self.unit,
            "evidence": self.evidence.word,
            "mechanisms": list(self.mechanisms),
            "assumptions": list(self.assumptions),
            "sources": [vars(s).copy() for s in self.sources],
            "exposures": list(self.exposures),
            "headline": self.headline(),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Guarantee:
        """Read back what `to_json` wrote."""
        return Guarantee(
            relation=Relation(value["relation"]),
            unit=value["unit"],
            epsilon=value["epsilon"],
            delta=value["delta"],
            evidence=Evidence[value["evidence"].upper()],
            mechanisms=tuple(value["mechanisms"]),
            sources=tuple(Source(**s) for s in value["sources"]),
            assumptions=tuple(value["assumptions"]),
            exposures=tuple(value["exposures"]),
        )


ALLOWED: dict[str, Evidence] = {"refuted": Evidence.REFUTED, "unsupported": Evidence.UNSUPPORTED}


def check_allowed(guarantee: Guarantee, allow: str | None) -> None:
    """Raise unless weak evidence was asked for by name.

    Args:
        guarantee: the promise of a plan.
        allow: None, "unsupported", or "refuted" (which allows both).
    """
    if allow not in (None, *ALLOWED):
        raise PrivacyError(f"allow is {allow!r}; allowed are None, {', '.join(map(repr, ALLOWED))}")
    least = ALLOWED[allow] if allow else Evidence.CLAIMED
    if guarantee.evidence < least:
        word = guarantee.evidence.word
        raise PrivacyError(
            f"this plan's evidence is {word}: {guarantee.headline()}. It gives no protection that can be relied on; "
            f"to run it all the same, for study, pass --allow {word} (allow='{word}' in Python)"
        )


def ceil_digits(value: float, digits: int = 4) -> str:
    """`value` with `digits` significant digits, rounded up: a printed price is never below the computed one."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return f"{math.ceil(value / unit - 1e-9) * unit:.{digits}g}"

"""What several runs on the same records promise together: their ledgers, added up by composition."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, Guarantee, PrivacyError, Relation
from dpgm.privacy.ledger import Ledger

T = TypeVar("T")


def reopen(path: Path) -> Ledger:
    """The ledger in a file, under the terms that its first entry states.

    Raises:
        PrivacyError: there is none, it is damaged, or a run is using it.
    """
    if not path.is_file():
        raise PrivacyError(f"{path} does not exist; give run folders, or ledger files that runs wrote")
    with path.open("rb") as file:
        first = file.readline()
    try:
        opened = json.loads(first)
        cap, relation, unit = (
            Budget(epsilon=opened["epsilon"], delta=opened["delta"]),
            Relation(opened["relation"]),
            str(opened["unit"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise PrivacyError(f"{path} does not begin as a ledger does; restore it from a copy") from error
    return Ledger(path, relation=relation, cap=cap, unit=unit)


def together(ledgers: Sequence[Ledger], *, delta: float | None = None) -> Guarantee:
    """The promise of all that was ever reserved in several ledgers, to a record that is in the data of all of them.

    The price is that of the adaptive composition of all mechanisms, which is less than the sum of the epsilons.

    **Guarantee**: composition; evidence is the weakest of all, assumptions are those of all and two more.
    **Source**: docs/proofs/ledger.md.

    Args:
        ledgers: one or more, under one relation and unit.
        delta: slack of the whole; by default the largest of the ledgers' own.

    Raises:
        PrivacyError: no ledger, ledgers of different relations or units, or a delta that is none.
    """
    terms = {(x.relation, x.unit) for x in ledgers}
    if len(terms) != 1:
        said = ", ".join(sorted(f"{relation.value} {unit}" for relation, unit in terms)) or "none"
        raise PrivacyError(f"ledgers of one relation and unit can be added up; these are: {said}")
    [(relation, unit)] = terms
    delta = max(x.cap.delta for x in ledgers) if delta is None else delta
    if not 0 <= delta < 1:
        raise PrivacyError(f"delta is {delta}; allowed is a number from 0 to below 1, far below 1/records")
    costs, parts = [c for x in ledgers for c in x.costs()], [x.guarantee() for x in ledgers]
    return Guarantee(
        relation=relation,
        unit=unit,
        epsilon=accountant.epsilon_of(costs, delta=delta, relation=relation) if costs else 0.0,
        delta=delta,
        evidence=min(p.evidence for p in parts),
        mechanisms=_each(m for p in parts for m in p.mechanisms),
        sources=_each(s for p in parts for s in p.sources),
        assumptions=_each(
            [
                *(a for p in parts for a in p.assumptions),
                "no price was chosen by looking at an answer",
                "nothing else was ever asked of these records",
            ]
        ),
        exposures=_each(e for p in parts for e in p.exposures),
    )


def _each(values: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(values))

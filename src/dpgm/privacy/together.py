"""What several runs on the same records promise together: added up afterwards, or kept under one cap from the start.

Proof page: docs/proofs/ledger.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, Guarantee, PrivacyError, Relation
from dpgm.privacy.ledger import Ledger
from dpgm.privacy.mechanism import Cost

T = TypeVar("T")
_AT_ONCE = 60.0
"""Seconds that may lie between the entries that a run writes into its own and the shared ledger."""


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


def shared(path: Path, *, cap: Budget | None = None, relation: Relation = Relation.ADD_REMOVE) -> Ledger:
    """The ledger in a file that several runs share; a new one, if there is none.

    Args:
        path: the file.
        cap: the most that all runs together may reserve, for a new file; one that is there keeps its own.
        relation: which data sets are neighbours, for a new file.

    Raises:
        PrivacyError: there is no file and no cap, or the file is damaged or in use.
    """
    if not path.exists() or not path.read_bytes().count(b"\n"):  # its first line may have been cut off
        if cap is None:
            raise PrivacyError(f"{path} does not exist yet; say what all runs on it may cost together, e.g. --cap 3")
        return Ledger(path, cap=cap, relation=relation)
    return reopen(path)


def shared_name(entries: Iterable[Mapping[str, Any]]) -> str | None:
    """The file name of the shared ledger that a run's own entries speak of; None for a run that stands alone."""
    return next((e["facts"].get("shared ledger") for e in entries if e["kind"] == "about"), None)


def runs(ledger: Ledger) -> tuple[str, ...]:
    """Names of the runs in a shared ledger, in the order in which they began."""
    return _each(label.partition("/")[0] for label in ledger.labels if "/" in label)


def stands_in(run: Ledger, whole: Ledger) -> bool:
    """Whether every plan of a run stands in a shared ledger, too, reserved at the same time: names and plans alone may
    be those of another study.
    """
    there = [e for e in whole.entries if e["kind"] == "reserve" and "/" in e["label"]]
    mine = [e for e in run.entries if e["kind"] == "reserve"]
    return all(any(_same_plan(e, t) for t in there) for e in mine)


def _same_plan(mine: Mapping[str, Any], there: Mapping[str, Any]) -> bool:
    apart = datetime.fromisoformat(mine["time"]) - datetime.fromisoformat(there["time"])
    return (
        there["label"].partition("/")[2] == mine["label"]
        and there["plan_digest"] == mine["plan_digest"]
        and abs(apart.total_seconds()) <= _AT_ONCE
    )


class Part(Ledger):
    """The ledger of one run, whose every entry about the rows stands in a ledger that several runs share as well.

    The run's promise is its own; the shared ledger states the total and holds it under its cap. A call is made only
    after both have its charge, and what either of them counts as used is used: neither a copy of the run's file nor its
    loss makes a call free.

    Args:
        path: file of the run's own ledger; None keeps it in memory only.
        cap: the most that the run may reserve.
        relation: which data sets are neighbours; that of `whole`.
        whole: the shared ledger; it stays open as long as this one.
        name: of the run in `whole`; the run of that name goes on, if there is one.
        prices: all that a new run will reserve; where `whole` has no room for it, nothing is written.

    Raises:
        BudgetExceeded: the prices bring `whole` above its cap.
        PrivacyError: as for any ledger; a name that is none or another run's; another relation.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        cap: Budget,
        relation: Relation,
        whole: Ledger,
        name: str,
        prices: Sequence[tuple[Cost, int]] = (),
    ) -> None:
        if not name or "/" in name:
            raise PrivacyError(f"the name of a run in a shared ledger is {name!r}; allowed is any text without '/'")
        if relation is not whole.relation:
            raise PrivacyError(
                f"the shared ledger is under '{whole.relation.value}', this run under '{relation.value}'; prices under "
                "different relations do not add up, so take that of the ledger"
            )
        if name not in runs(whole):
            whole.afford(name, prices)
        elif path is not None and not path.exists():
            raise PrivacyError(
                f"the shared ledger has a run '{name}' already, and its own ledger is not here: go on where it was "
                "begun, or give this run a folder of another name"
            )
        self._whole, self._name = whole, name
        super().__init__(path, cap=cap, relation=relation, unit=whole.unit)

    def check_alive(self) -> None:
        """Raise unless this process may spend."""
        super().check_alive()
        self._whole.check_alive()

    def reserve(self, label: str, costs: Sequence[tuple[Cost, int]]) -> None:
        """Set aside the price of a plan in both ledgers; nothing is written where either refuses."""
        if label not in self.labels:
            self.afford(label, costs)
        self._whole.reserve(self._there(label), costs)
        super().reserve(label, costs)

    def used(self, label: str, item: int) -> int:
        """How many calls of a plan item either ledger knows of."""
        return max(super().used(label, item), self._whole.used(self._there(label), item))

    def charge(self, label: str, item: int, n: int = 1) -> None:
        """Announce the next `n` calls in both ledgers."""
        super().charge(label, item, n)
        self._whole.charge(self._there(label), item, n)

    def delivered(self, label: str, item: int) -> bool:
        """Whether either ledger knows that the answer of a single call was handed out."""
        return super().delivered(label, item) or self._whole.delivered(self._there(label), item)

    def deliver(self, label: str, item: int) -> None:
        """Record in both ledgers that the answer of a single call is about to be handed out."""
        super().deliver(label, item)
        self._whole.deliver(self._there(label), item)

    def repeat(self, label: str, item: int) -> None:
        """Announce in both ledgers that a single call is made again."""
        super().repeat(label, item)
        there = self._there(label)
        if self._whole.used(there, item):
            self._whole.repeat(there, item)
        else:  # the crash fell between the two charges
            self._whole.charge(there, item)

    def expose(self, *, reason: str, audience: str) -> None:
        """Record a look at the rows in both ledgers."""
        super().expose(reason=reason, audience=audience)
        self._whole.expose(reason=reason, audience=audience)

    def note_seeded_noise(self) -> None:
        """Record in both ledgers that the noise can be reproduced."""
        super().note_seeded_noise()
        self._whole.note_seeded_noise()

    def _there(self, label: str) -> str:
        return f"{self._name}/{label}"


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

"""The write-ahead ledger: pay first, on disk, then touch.

Every line is one JSON object, chained to the one before by SHA-256 and flushed to disk before anything happens that
it announces. A crash or a resume may over-count, never under-count. The chain shows damage and partial edits; it
cannot stop an owner who rewrites the whole file.

Proof page: docs/proofs/ledger.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dpgm.privacy import accountant
from dpgm.privacy.guarantee import (
    Budget,
    BudgetExceeded,
    Evidence,
    Guarantee,
    PrivacyError,
    Relation,
    ceil_digits,
)
from dpgm.privacy.mechanism import Cost

_START = "0" * 64


class Ledger:
    """Append-only account of everything that is asked of one set of private rows.

    Args:
        path: file to keep, locked until the ledger is closed; None keeps it in memory only.
        cap: the most that may ever be reserved.
        relation: which data sets are neighbours.
        unit: what one neighbour step changes.

    Raises:
        PrivacyError: an existing file is damaged, in use, or was opened for other terms.
    """

    def __init__(
        self,
        path: str | Path | None,
        *,
        cap: Budget,
        relation: Relation = Relation.ADD_REMOVE,
        unit: str = "record",
    ) -> None:
        path = None if path is None else Path(path)
        self.relation, self.cap, self.unit = relation, cap, unit
        self.entries: list[dict[str, Any]] = []
        self._path, self._file = path, None
        self._process, self._lock = os.getpid(), threading.RLock()
        terms = {"relation": relation.value, "unit": unit, "epsilon": cap.epsilon, "delta": cap.delta}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)  # what was written is with the system, nothing waits in here
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self._file.close()
                raise PrivacyError(f"the ledger {path.name} is in use by another run; wait until it ends") from error
        try:
            self._load()
            if not self.entries:
                self._append("open", **terms)
            if (was := {k: self.entries[0].get(k) for k in terms}) != terms:
                raise PrivacyError(
                    f"the ledger's terms are {was}, now {terms} is asked; use the first or another folder"
                )
        except BaseException:
            self.close()
            raise

    # -- reading and writing ------------------------------------------------------------------------------------------

    def _load(self) -> None:
        if self._file is None or self._path is None:
            return
        self._file.seek(0)
        text = self._file.read()
        *lines, torn = text.split(b"\n")
        whole = _is_whole(torn)  # only the newline is missing: the entry may have been acted upon, so it counts
        for number, line in enumerate([*lines, torn] if whole else lines, 1):
            self.entries.append(self._entry(line, f"line {number} of {self._path.name}"))
        if whole:
            self._write(b"\n")
        elif torn:  # an entry whose writing was cut off, so nothing came of it
            self._file.truncate(len(text) - len(torn))
            os.fsync(self._file.fileno())

    def _entry(self, line: bytes, where: str) -> dict[str, Any]:
        try:
            entry: dict[str, Any] = dict(json.loads(line))
            body = {k: v for k, v in entry.items() if k != "hash"}
            sound = entry["previous"] == self._head and entry["hash"] == _digest(body) and _line(entry) == line + b"\n"
        except (ValueError, KeyError, TypeError) as error:
            raise PrivacyError(f"{where} is not a ledger entry; restore the file from a copy") from error
        if not sound:
            raise PrivacyError(
                f"{where} breaks the hash chain: the file was changed after it was written; restore it from a copy, "
                "its guarantee is void"
            )
        return entry

    @property
    def _head(self) -> str:
        return self.entries[-1]["hash"] if self.entries else _START

    def _append(self, kind: str, **fields: Any) -> None:
        with self._lock:
            self._append_alone(kind, fields)

    def _append_alone(self, kind: str, fields: dict[str, Any]) -> None:
        self.check_alive()
        entry: dict[str, Any] = {
            "kind": kind,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            **fields,
            "previous": self._head,
        }
        entry = json.loads(json.dumps(entry))  # what memory holds is what the file says
        entry["hash"] = _digest(entry)
        try:
            self._write(_line(entry))
            self.entries.append(entry)
        except BaseException:  # a full disk, an interrupt: what the file holds now is found out by opening it anew
            self.close()
            raise

    def _write(self, data: bytes) -> None:
        if self._file is None or self._path is None:
            return
        while data:
            data = data[self._file.write(data) :]
        os.fsync(self._file.fileno())
        if not self.entries:
            _sync_folder(self._path.parent)

    def check_alive(self) -> None:
        """Raise unless this process may spend; asked before every call, also before one that is paid already.

        Raises:
            PrivacyError: the ledger is closed, or a fork has copied it.
        """
        if os.getpid() != self._process:
            raise PrivacyError("the ledger was opened by another process; a copy of it must not spend; open it anew")
        if self._file is not None and self._file.closed:
            raise PrivacyError("the ledger is closed; open it anew before anything more is asked")

    def close(self) -> None:
        """Let another process use the file; nothing more can be charged here."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the account --------------------------------------------------------------------------------------------------

    def reserve(self, label: str, costs: Sequence[tuple[Cost, int]]) -> None:
        """Set aside the price of a whole plan before its first touch; asking again for the same plan is free.

        Args:
            label: name of the plan within this ledger.
            costs: pairs (cost, how many times).

        Raises:
            PrivacyError: another plan was reserved under `label`.
            BudgetExceeded: with all that was reserved before, the plan costs more than the cap.
        """
        if bad := [(c.name, n) for c, n in costs if type(n) is not int or n < 1]:
            raise PrivacyError(f"the plan counts {bad} calls; allowed are whole numbers, 1 or more")
        if twice := sorted({c.name for c, k in Counter(c for c, _ in costs).items() if k > 1}):
            raise PrivacyError(
                f"the plan '{label}' lists the same price of {twice} more than once, so the ledger could not tell its "
                "items apart; merge them into one item with a count, or give the mechanisms different names"
            )
        plan = [{"cost": c.to_json(), "count": n} for c, n in costs]
        digest = _digest(plan)
        with self._lock:
            for entry in self._of("reserve"):
                if entry["label"] == label:
                    if entry["plan_digest"] == digest:
                        return
                    raise PrivacyError(
                        f"the ledger has reserved another plan as '{label}': a resumed run must not change its method, "
                        "data facts or budget; go back to the first settings or start in another folder"
                    )
            total = self.afford(label, costs)
            self._append("reserve", label=label, plan=plan, plan_digest=digest, epsilon=total, delta=self.cap.delta)

    def afford(self, label: str, costs: Sequence[tuple[Cost, int]]) -> float:
        """The epsilon of all that is reserved and a new plan `label`, which is not reserved by asking.

        Raises:
            BudgetExceeded: it is more than the cap.
        """
        before = self.costs()
        total = self._epsilon([*before, *costs])
        if not total <= self.cap.epsilon * (1 + 1e-9):
            hint = f"about {self.left():.3g} is left, so ask for less" if before else "raise epsilon or ask for less"
            raise BudgetExceeded(
                f"the plan '{label}' brings the total to epsilon {ceil_digits(total)}; the cap is "
                f"{self.cap.epsilon:g} at delta {ceil_digits(self.cap.delta, 6)}, of which "
                f"{ceil_digits(self._epsilon(before))} is reserved; {hint}"
            )
        return total

    def left(self) -> float:
        """The epsilon of one more Gaussian release (pure one, where delta is 0) that the cap allows; a bit below it.

        It is more than the cap less what is reserved: prices compose to less than their sum.
        """
        costs, low, high = self.costs(), 0.0, self.cap.epsilon
        if not costs:
            return high
        while high - low > 1e-3 * self.cap.epsilon:
            middle = (low + high) / 2
            more = accountant.one_release(Budget(epsilon=middle, delta=self.cap.delta))
            fits = self._epsilon([*costs, (Cost(event=more, name="one more"), 1)]) <= self.cap.epsilon
            low, high = (middle, high) if fits else (low, middle)
        return low

    def used(self, label: str, item: int) -> int:
        """How many of the calls reserved as plan item `item` were charged so far."""
        return max((e["until"] for e in self._of("charge") if (e["label"], e["item"]) == (label, item)), default=0)

    def charge(self, label: str, item: int, n: int = 1) -> None:
        """Announce the next `n` calls of plan item `item`, before the rows are touched.

        Raises:
            PrivacyError: nothing was reserved as `label`, or its calls are used up.
        """
        with self._lock:
            count = self._reserved(label, item)
            used = self.used(label, item)
            if n < 1 or used + n > count:
                raise PrivacyError(
                    f"plan '{label}' item {item} allows {count} calls; {used} are used, {n} more were asked; "
                    "reserve another plan under another name if the budget allows"
                )
            self._append("charge", label=label, item=item, until=used + n)

    def deliver(self, label: str, item: int) -> None:
        """Record that the answer of a single call is about to be handed out; from here on it cannot be repeated.

        Raises:
            PrivacyError: an answer was handed out already: two calls were under way, and one is paid for.
        """
        with self._lock:
            if self.delivered(label, item):
                raise PrivacyError(
                    f"the only answer of plan '{label}' item {item} was handed out while this one was made; use that"
                )
            self._append("deliver", label=label, item=item)

    def delivered(self, label: str, item: int) -> bool:
        """Whether the answer of a single call was handed out."""
        return any((e["label"], e["item"]) == (label, item) for e in self._of("deliver"))

    def repeat(self, label: str, item: int) -> None:
        """Announce that the only call of an item is made again because a crash destroyed its answer unseen.

        Raises:
            PrivacyError: the item has several calls, or was not charged, or its answer was handed out.
        """
        if self._reserved(label, item) != 1 or self.used(label, item) != 1:
            raise PrivacyError(f"plan '{label}' item {item} is not a single interrupted call; it cannot be repeated")
        if self.delivered(label, item):
            raise PrivacyError(
                f"the only answer of plan '{label}' item {item} was handed out; a second draw is not paid for; "
                "use the saved release or checkpoint, or reserve another plan under another name"
            )
        self._append("repeat", label=label, item=item)

    def expose(self, *, reason: str, audience: str) -> None:
        """Record a look at the rows that no guarantee covers."""
        self._append("expose", reason=reason, audience=audience)

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Record by public facts whose account this is; once recorded, they stay.

        Equal prices do not make equal records: a resumed run must not finish on others what it began on these.

        Args:
            facts: plain JSON values that tell one set of records from another, e.g. its name and schema.

        Raises:
            PrivacyError: other facts were recorded.
        """
        facts = json.loads(json.dumps(facts))
        with self._lock:
            for entry in self._of("about"):
                if changed := sorted(k for k in facts if entry["facts"].get(k) != facts[k]):
                    said = "; ".join(_difference(k, entry["facts"].get(k), facts[k]) for k in changed)
                    raise PrivacyError(
                        f"the ledger is the account of another run: {said}; go back to the first data and "
                        "options, or start in another folder"
                    )
                return
            self._append("about", facts=facts)

    def note_seeded_noise(self) -> None:
        """Record that the noise can be reproduced: from here on the evidence is UNSUPPORTED."""
        self._append("seeded-noise")

    def guarantee(self) -> Guarantee:
        """The promise that covers everything reserved: its price, its weakest evidence, all its assumptions."""
        found = accountant.promise(self.costs(), delta=self.cap.delta, relation=self.relation, unit=self.unit)
        evidence, assumptions = found.evidence, list(found.assumptions)
        if any(self._of("seeded-noise")):
            evidence = min(evidence, Evidence.UNSUPPORTED)
            assumptions.append("nobody knows the seed of the noise")
        if any(self._of("repeat")):
            assumptions.append("an answer that a crash interrupted never left the process")
        kinds = [e["kind"] for e in self.entries]
        if "charge" in kinds and "reserve" in kinds[kinds.index("charge") :]:
            assumptions.append("no price was chosen by looking at an answer")
        looks = [f"{e['reason']} (seen by {e['audience']})" for e in self._of("expose")]
        exposures = tuple(dict.fromkeys(looks))
        return dataclasses.replace(found, evidence=evidence, assumptions=tuple(assumptions), exposures=exposures)

    def _of(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self.entries if e["kind"] == kind]

    def _reserved(self, label: str, item: int) -> int:
        for entry in self._of("reserve"):
            if entry["label"] == label and 0 <= item < len(entry["plan"]):
                return int(entry["plan"][item]["count"])
        raise PrivacyError(f"nothing is reserved as '{label}' item {item}; reserve the whole plan before touching rows")

    def _epsilon(self, costs: list[tuple[Cost, int]]) -> float:
        return accountant.epsilon_of(costs, delta=self.cap.delta, relation=self.relation) if costs else 0.0

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the reserved plans, in order."""
        return tuple(e["label"] for e in self._of("reserve"))

    def costs(self) -> list[tuple[Cost, int]]:
        """Everything that was ever reserved, and how often each."""
        return [(Cost.from_json(i["cost"]), i["count"]) for e in self._of("reserve") for i in e["plan"]]


def _is_whole(torn: bytes) -> bool:
    """Whether what follows the last newline begins with a whole JSON value; a cut-off entry never does."""
    try:
        json.JSONDecoder().raw_decode(torn.decode())
    except ValueError:
        return False
    return True


def _difference(name: str, was: Any, now: Any) -> str:
    return f"the {name} is another" if isinstance(now, dict) else f"{name} was {was!r}, is {now!r}"


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
